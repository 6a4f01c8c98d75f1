// Grouped matrix products as Hopper wants them: one block for each multiprocessor takes tile after tile
// (tile_schedule.h). Of its three warpgroups one brings 128 bytes of k of A and B at a time into a ring of stages in
// shared memory, by copies of whole tiles, or row by row where rows are gathered or end in the middle of a tile; two
// multiply, 64 rows each, so that one promotes its sums while the tensor cores work for the other. The sums are those
// of TensorTile (gemm_tensor.cuh), in the same order.
//
// Blocks may work in pairs, the clusters of Hopper: on neighbouring rows of tiles of a group and the same columns, of
// which each brings half for both, which takes a third off what tiles of 256 columns read from the L2 cache. A stage is
// free once the consumers of both blocks have done with it.
//
// A tile that reaches behind its group reads rows of the next, whose sums are not stored. Whole tiles of bfloat16 are
// stored through shared memory; others, and float32, by their threads. A product may have an epilogue instead, which
// makes something else of the sums (swiglu_codes.cuh).
#pragma once

#include <algorithm>

#include "kernels/cuda/gemm_grid.cuh"
#include "kernels/cuda/gemm_tensor.cuh"
#include "kernels/cuda/multiprocessors.h"
#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/copy_async.cuh"
#include "kernels/cuda/ptx/mbarrier.cuh"
#include "kernels/cuda/ptx/tile_copy.cuh"
#include "kernels/cuda/tile_schedule.h"
#include "kernels/gemm_clusters.h"

namespace octet::kernels::cuda {

inline constexpr int kWarpgroup = 128, kConsumers = 2, kPersistentThreads = (1 + kConsumers) * kWarpgroup;
inline constexpr int kPair = 2;  // blocks of a cluster
inline constexpr uint32_t kBothBlocks = 3;
// Of 65536, which ptxas divides evenly, 168 for each thread.
inline constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;

// What a product's scales belong to, for each 128 of k.
enum class Scales {
  kNone,
  kLinesByTiles,  // a row of A, 128 columns of B
  kLines,         // a row of A, a column of B
  kTiles,         // 128 rows of A, 128 columns of B
};

// Which operands lie not along k, but along their lines: A along the rows of the result, B along its columns.
enum class Transposed { kNone, kB, kBoth };

// Numbers of a matrix; or an epilogue, which takes two parts of a tile: the same 128 columns of the first half of the
// product's columns and of the second.
template <class Result>
inline constexpr bool kIsNumber = std::is_same_v<Result, float> || std::is_same_v<Result, bfloat16>;
template <class Result>
using Destination = std::conditional_t<kIsNumber<Result>, ResultMatrix<Result>, Result>;

// Spans: what groups are ranges of (tile_schedule.h). is_gathered: the rows of A are, or, where both operands are
// transposed, those of B. A tile is 128 rows by 128 columns for each part.
template <class ProductsOf, class SpansOf, Scales scales, bool is_gathered, Transposed transposed, int parts,
          class ResultOf>
struct ProductForm {
  using Products = ProductsOf;
  using Spans = SpansOf;
  using Element = typename Products::Element;
  using Result = ResultOf;
  static constexpr bool kIsGathered = is_gathered;
  static constexpr bool kAIsTransposed = transposed == Transposed::kBoth;
  static constexpr bool kBIsTransposed = transposed != Transposed::kNone;
  static constexpr int kParts = parts;
  static constexpr bool kIsScaled = scales != Scales::kNone;
  static constexpr bool kAIsByLines = scales == Scales::kLinesByTiles || scales == Scales::kLines;
  static constexpr bool kBIsByLines = scales == Scales::kLines;
  static constexpr bool kIsStoredByTiles = std::is_same_v<Result, bfloat16>;
  static constexpr bool kHasEpilogue = !kIsNumber<Result>;
  static_assert(kIsScaled == Products::kIsScaled);
  static_assert(!kHasEpilogue || (parts == 2 && transposed == Transposed::kNone));
  static_assert(!kAIsTransposed || (Spans::kIsOfSums && !kIsScaled));
};

// Where things lie in shared memory, in bytes from a boundary of 1024.
template <class Form>
struct Ring {
  static constexpr int kParts = Form::kParts, kStages = kParts == 1 ? 5 : 4;
  static constexpr uint32_t kRows = 128, kTile = kRows * kSwizzledRowBytes, kStageBytes = (1 + kParts) * kTile;
  static constexpr uint32_t kResultTile = 64 * kSwizzledRowBytes;  // 64 rows and columns of bfloat16
  // Of A, then of B.
  static constexpr uint32_t kAScales = Form::kAIsByLines ? kRows : 4, kBScales = Form::kBIsByLines ? 128 * kParts : 4;
  static constexpr uint32_t kScales = Form::kIsScaled ? kAScales + kBScales : 0;

  static constexpr uint32_t a(int stage) { return uint32_t(stage) * kStageBytes; }
  static constexpr uint32_t b(int stage, int part) { return a(stage) + uint32_t(1 + part) * kTile; }
  static constexpr uint32_t kResults = kStages * kStageBytes;
  static constexpr uint32_t result(int consumer, int place) {
    return kResults + uint32_t(consumer * 2 + place) * kResultTile;
  }
  static constexpr uint32_t epilogue(int warp) { return kResults + uint32_t(warp) * kEpilogueBytes; }
  static constexpr uint32_t kEpilogueBytes = [] {
    if constexpr (Form::kHasEpilogue) return Form::Result::kWarpBytes;
    return uint32_t(0);
  }();
  static constexpr uint32_t kFirstScales = kResults + (Form::kIsStoredByTiles ? kConsumers * 2 * kResultTile : 0) +
                                           kConsumers * (kWarpgroup / kWarp) * kEpilogueBytes;
  static constexpr uint32_t scales(int stage) { return kFirstScales + uint32_t(stage) * kScales * 4; }
  static constexpr uint32_t kBarriers = kFirstScales + kStages * kScales * 4;
  static constexpr uint32_t full(int stage) { return kBarriers + uint32_t(stage) * 16; }
  static constexpr uint32_t empty(int stage) { return full(stage) + 8; }
  static constexpr size_t kBytes = kBarriers + kStages * 16;
  static_assert(kBytes <= 227 * 1024);
};

// What a product is, beside its maps.
template <class Element, class Spans, class Result>
struct PersistentProduct {
  const Element* a;  // of rows that are not copied by tiles
  int64_t a_step;
  const Element* b = nullptr;
  int64_t b_step = 0;
  const int32_t* lines = nullptr;  // where row r of A lies, or of B where both are transposed; null: at r
  const float* a_scale = nullptr;
  int64_t a_scale_line = 0, a_scale_block = 0;  // steps
  const float* b_scale = nullptr;
  int64_t b_scale_group = 0, b_scale_column = 0, b_scale_block = 0;
  int64_t b_group_rows = 0;  // from one group to the next
  Spans spans;
  int groups;
  int64_t R, N, K;  // rows of the result in all groups, its columns, and what there is of k
  Destination<Result> c;
  bool c_by_tiles = false, c_by_pairs = false;
  bool has_peer = false;  // blocks work in pairs
};

template <class Form>
struct PersistentKernel {
  using Products = typename Form::Products;
  using Element = typename Form::Element;
  using Result = typename Form::Result;
  using Product = PersistentProduct<Element, typename Form::Spans, Result>;
  using Layout = Ring<Form>;
  static constexpr bool is_gathered = Form::kIsGathered;
  static constexpr bool a_is_transposed = Form::kAIsTransposed, b_is_transposed = Form::kBIsTransposed;
  static constexpr int parts = Form::kParts;
  static constexpr int kStages = Layout::kStages, kTileRows = int(Layout::kRows), kPart = 128;
  static constexpr int kDepth = kSwizzledRowBytes / int(sizeof(Element));
  static constexpr uint32_t kHalfTile = Layout::kTile / 2;  // 64 lines
  // Of 16 bytes in a row; neighbouring threads of the producer take those of one row.
  static constexpr int kPieces = kSwizzledRowBytes / 16, kRowsAtOnce = kWarpgroup / kPieces;
  static constexpr bool kCopies = Form::kIsScaled || is_gathered || a_is_transposed;  // by all threads of the producer
  static constexpr int kTilesOfGathered = !is_gathered ? 0 : a_is_transposed ? parts : 1;
  static constexpr uint32_t kBytesByTiles = Layout::kTile * (1 + parts - kTilesOfGathered);

  static __device__ __forceinline__ TileWalk<typename Form::Spans> walk_of(const Product& p) {
    return {p.spans, p.groups, kTileRows << int(p.has_peer), int((p.N + parts * kPart - 1) / (parts * kPart))};
  }
  // Pairs take tiles of twice the rows, of which each block has half.
  static __device__ __forceinline__ int first_index(const Product& p) { return int(blockIdx.x) >> int(p.has_peer); }
  static __device__ __forceinline__ int index_step(const Product& p) { return int(gridDim.x) >> int(p.has_peer); }
  static __device__ __forceinline__ bool find(TileWalk<typename Form::Spans>& walk, int index, const Product& p,
                                              GroupTile& tile) {
    if (!walk.find(index, tile)) return false;
    if (p.has_peer) keep_rows_of_block(tile, ptx::block_in_cluster(), kTileRows);
    return true;
  }
  // Where groups are rows of the result, all of k is summed: known before, which saves the producer registers.
  static constexpr bool kIsOfRows = !Form::Spans::kIsOfSums;
  static __device__ __forceinline__ int blocks_of(int64_t k) { return int((k + kDepth - 1) / kDepth); }
  // Where a part of a tile begins among the columns.
  static __device__ __forceinline__ int column_of(const Product& p, const GroupTile& tile, int part) {
    if constexpr (Form::kHasEpilogue) return tile.column * kPart + part * int(p.N / 2);
    return (tile.column * parts + part) * kPart;
  }
  static __device__ __forceinline__ int first_k_of(const GroupTile& tile) { return kIsOfRows ? 0 : tile.first_k; }
  static __device__ __forceinline__ int line_of(const GroupTile& tile) { return kIsOfRows ? tile.first : tile.line; }

  // Which scales of a tile a thread of the producer copies: none where a tile ends.
  struct ScaleCopies {
    const float* a = nullptr;
    const float* b[Form::kBIsByLines ? parts : 1] = {};

    ScaleCopies() = default;
    __device__ __forceinline__ ScaleCopies(const Product& p, const GroupTile& tile, int thread) {
      const int64_t first_block = first_k_of(tile) / kDepth;
      if (thread < (Form::kAIsByLines || tile.count == 0 ? tile.count : 1)) {
        int64_t line = line_of(tile) + thread;
        if (is_gathered) line = p.lines[line];
        if (!Form::kAIsByLines) line = line_of(tile) / kTileRows;
        a = p.a_scale + line * p.a_scale_line + first_block * p.a_scale_block;
      }
      const float* const of_group = p.b_scale + tile.group * p.b_scale_group + first_block * p.b_scale_block;
      if constexpr (Form::kBIsByLines) {
        OCTET_UNROLL
        for (int part = 0; part < parts; ++part) {
          const int line = column_of(p, tile, part) + thread;
          if (line < p.N) b[part] = of_group + line * p.b_scale_column;
        }
      } else if (thread < parts && column_of(p, tile, thread) < p.N) {
        b[0] = of_group + column_of(p, tile, thread) / kPart * p.b_scale_column;
      }
    }
    __device__ __forceinline__ void copy(uint32_t to, const Product& p, int block, int thread) const {
      if (Form::kAIsByLines || thread == 0) {
        ptx::copy_async_word(to + uint32_t(thread) * 4, a != nullptr ? a + block * p.a_scale_block : p.a_scale,
                             a != nullptr);
      }
      to += Layout::kAScales * 4;
      OCTET_UNROLL
      for (int part = 0; part < (Form::kBIsByLines ? parts : 1); ++part) {
        if (!Form::kBIsByLines && thread >= parts) return;
        ptx::copy_async_word(to + uint32_t(part * kPart + thread) * 4,
                             b[part] != nullptr ? b[part] + block * p.b_scale_block : p.b_scale, b[part] != nullptr);
      }
    }
  };

  // Of B, k columns of it from k on: all parts, or this block's half of them for both blocks of a pair.
  static __device__ __forceinline__ void load_b(const TensorMap& b_map, const Product& p, uint32_t to,
                                                const GroupTile& tile, int k, uint32_t full) {
    constexpr int kSide = kPart / 2, kSides = 2 * parts;  // 64 columns
    const int row = int(tile.group * p.b_group_rows);
    int column = column_of(p, tile, 0);
    if (p.has_peer) {
      const int block = ptx::block_in_cluster(), first = block * parts;
      to += uint32_t(first) * kHalfTile;
      column = Form::kHasEpilogue ? column_of(p, tile, block) : column + first * kSide;
      if constexpr (b_is_transposed) {
        OCTET_UNROLL
        for (int side = 0; side < parts; ++side) {
          ptx::load_tile_to(kBothBlocks, to + uint32_t(side) * kHalfTile, b_map, column + side * kSide, row + k, full);
        }
      } else {
        ptx::load_tile_to(kBothBlocks, to, b_map, k, row + column, full);
      }
    } else if constexpr (b_is_transposed) {
      OCTET_UNROLL
      for (int side = 0; side < kSides; ++side) {
        ptx::load_tile(to + uint32_t(side) * kHalfTile, b_map, column + side * kSide, row + k, full);
      }
    } else {
      OCTET_UNROLL
      for (int part = 0; part < parts; ++part) {
        ptx::load_tile(to + uint32_t(part) * Layout::kTile, b_map, k, row + column_of(p, tile, part), full);
      }
    }
  }

  static __device__ __forceinline__ void produce(const TensorMap& a_map, const TensorMap& b_map, const Product& p,
                                                 uint32_t base) {
    const int thread = int(threadIdx.x);
    if (!kCopies && thread != 0) return;
    const int all_blocks = blocks_of(p.K);
    auto walk = walk_of(p);
    RingPlace<kStages> at;
    GroupTile tile;
    for (int index = first_index(p); find(walk, index, p, tile); index += index_step(p)) {
      constexpr int kLines = is_gathered ? kTileRows / kRowsAtOnce : 1;
      int lines[kLines];
      OCTET_UNROLL
      for (int i = 0; i < kLines; ++i) {
        const int row = thread / kPieces + i * kRowsAtOnce;
        lines[i] = is_gathered && row < tile.count ? p.lines[line_of(tile) + row] : -1;
      }
      const int k_blocks = kIsOfRows ? all_blocks : blocks_of(tile.depth);
      ScaleCopies scales;
      if constexpr (Form::kIsScaled) scales = ScaleCopies(p, tile, thread);
      for (int block = 0; block < k_blocks; ++block) {
        ptx::wait_for_phase(base + Layout::empty(at.stage), at.parity ^ 1);
        const uint32_t full = base + Layout::full(at.stage);
        if constexpr (Form::kIsScaled) scales.copy(base + Layout::scales(at.stage), p, block, thread);
        if constexpr (is_gathered) {
          const int piece = thread % kPieces, k = first_k_of(tile) + block * kDepth + piece * (kDepth / kPieces);
          OCTET_UNROLL
          for (int i = 0; i < kLines; ++i) {
            const uint32_t row = uint32_t(thread / kPieces + i * kRowsAtOnce);
            const bool is_there = lines[i] >= 0 && k < p.K;
            ptx::copy_async(base + Layout::a(at.stage) + swizzled_offset(row, uint32_t(piece) * 16),
                            is_there ? p.a + lines[i] * p.a_step + k : p.a, is_there);
          }
        }
        if (thread == 0) {
          ptx::arrive_and_expect(full, kBytesByTiles);
          const int k = first_k_of(tile) + block * kDepth;
          if constexpr (!is_gathered) ptx::load_tile(base + Layout::a(at.stage), a_map, k, line_of(tile), full);
          load_b(b_map, p, base + Layout::b(at.stage, 0), tile, k, full);
        }
        if constexpr (kCopies) ptx::arrive_after_copies(full);
        at.advance();
      }
    }
  }

  // Where both operands are transposed: 64 rows of k of 64 lines at a time. A group begins and ends at any k, and what
  // lies behind its end may be anything: the stage in which it ends is copied row by row, zeros for what is behind.
  static constexpr int kRowsEach = kDepth / kRowsAtOnce;  // that a thread copies its piece of

  // rows: where they lie, -1 for zeros. line: the first of this thread's, of `lines` that there are.
  template <int halves>
  static __device__ __forceinline__ void copy_rows(uint32_t to, const Element* from, int64_t step,
                                                   const int (&rows)[kRowsEach], int line, int64_t lines) {
    const uint32_t thread = threadIdx.x;
    to += swizzled_offset(thread / kPieces, thread % kPieces * 16);
    OCTET_UNROLL
    for (int i = 0; i < kRowsEach; ++i) {
      const Element* const row = from + (rows[i] >= 0 ? rows[i] * step + line : 0);
      OCTET_UNROLL
      for (int half = 0; half < halves; ++half) {
        const bool is_there = rows[i] >= 0 && line + half * kDepth < lines;
        ptx::copy_async(to + uint32_t(half) * kHalfTile + uint32_t(i * kRowsAtOnce * kSwizzledRowBytes),
                        is_there ? row + half * kDepth : from, is_there);
      }
    }
  }
  static __device__ __forceinline__ void produce_transposed(const TensorMap& a_map, const TensorMap& b_map,
                                                            const Product& p, uint32_t base) {
    const int thread = int(threadIdx.x), first_row = thread / kPieces, first_line = thread % kPieces * (16 / 2);
    // The rows of this thread of those from k on, of which so many are left.
    const auto find_rows = [&](int(&rows)[kRowsEach], int k, int left, bool by_lines) {
      OCTET_UNROLL
      for (int i = 0; i < kRowsEach; ++i) {
        const int row = first_row + i * kRowsAtOnce;
        rows[i] = row >= left ? -1 : by_lines ? p.lines[k + row] : k + row;
      }
    };
    auto walk = walk_of(p);
    RingPlace<kStages> at;
    GroupTile tile;
    for (int index = first_index(p); find(walk, index, p, tile); index += index_step(p)) {
      const int column = column_of(p, tile, 0);
      int gathered[kRowsEach];
      if constexpr (is_gathered) find_rows(gathered, tile.first_k, tile.depth, true);
      int k = tile.first_k;
      for (int left = tile.depth; left > 0; left -= kDepth) {
        ptx::wait_for_phase(base + Layout::empty(at.stage), at.parity ^ 1);
        const uint32_t full = base + Layout::full(at.stage), a = base + Layout::a(at.stage);
        const uint32_t b = base + Layout::b(at.stage, 0);
        const bool is_whole = left >= kDepth;
        if (thread == 0) {
          ptx::arrive_and_expect(full, is_whole ? kBytesByTiles : 0);
          if (is_whole) {
            OCTET_UNROLL
            for (int half = 0; half < 2; ++half) {
              ptx::load_tile(a + uint32_t(half) * kHalfTile, a_map, tile.line + half * kDepth, k, full);
            }
            if constexpr (!is_gathered) load_b(b_map, p, b, tile, k, full);
          }
        }
        if (!is_whole) {
          int rows[kRowsEach];
          find_rows(rows, k, left, false);
          copy_rows<2>(a, p.a, p.a_step, rows, tile.line + first_line, p.spans.rows);
          if constexpr (!is_gathered) copy_rows<2 * parts>(b, p.b, p.b_step, rows, column + first_line, p.N);
        }
        k += kDepth;
        if constexpr (is_gathered) {
          copy_rows<2 * parts>(b, p.b, p.b_step, gathered, column + first_line, p.N);
          find_rows(gathered, k, left - kDepth, true);  // on their way while the stage is waited for
        }
        ptx::arrive_after_copies(full);
        at.advance();
      }
    }
  }

  // The products of one stage.
  static __device__ __forceinline__ void multiply(float (&sum)[64], uint32_t a, uint32_t b, bool accumulate) {
    ptx::wgmma_fence();
    OCTET_UNROLL
    for (int step = 0; step < 4; ++step) {
      const uint32_t along_k = uint32_t(step) * 32, along_lines = uint32_t(step) * 2048;
      const bool adds = step > 0 || accumulate;
      if constexpr (a_is_transposed) {
        Products::multiply_both_transposed(sum, transposed_descriptor(a + along_lines, kHalfTile),
                                           transposed_descriptor(b + along_lines, kHalfTile), adds);
      } else if constexpr (b_is_transposed) {
        Products::multiply_transposed(sum, wgmma_descriptor(a + along_k),
                                      transposed_descriptor(b + along_lines, kHalfTile), adds);
      } else {
        Products::multiply(sum, wgmma_descriptor(a + along_k), wgmma_descriptor(b + along_k), adds);
      }
    }
    ptx::wgmma_commit();
  }
  // The stage may be written again: told by one lane, after its warp has done with it; by another to the other block of
  // a pair.
  static __device__ __forceinline__ void give_back(const Product& p, uint32_t empty) {
    __syncwarp();
    const int lane = int(threadIdx.x) % kWarp;
    if (p.has_peer) {
      if (lane < kPair) ptx::arrive_at(lane, empty);
    } else if (lane == 0) {
      ptx::arrive(empty);
    }
  }

  static __device__ __forceinline__ float cleaned(float x) { return x != x ? bit_cast<float>(0x7fffffffu) : x; }

  // Its rows of one part of the tile.
  static __device__ __forceinline__ void store(const float (&sum)[64], const TensorMap& c_map, const Product& p,
                                               const GroupTile& tile, int part, int consumer, uint32_t base) {
    const int thread = int(threadIdx.x) % kWarpgroup, column = column_of(p, tile, part);
    const int rows = tile.count - consumer * 64;
    const int first = tile.first + consumer * 64;
    if constexpr (std::is_same_v<Result, bfloat16>) {
      if (p.c_by_tiles && rows >= 64) {
        // By 64 columns, in one of two places while the other is on its way.
        OCTET_UNROLL
        for (int half = 0; half < 2; ++half) {
          const uint32_t place = Layout::result(consumer, half);
          if (thread == 0) ptx::wait_for_stores<1>();
          ptx::sync_some(1 + consumer, kWarpgroup);
          const Shared<uint32_t> words = dynamic_shared<uint32_t>(place, Layout::kResultTile / 4);
          const auto corner = wgmma_place(thread, 0);
          const uint32_t first_word = swizzled_offset(uint32_t(corner.row), uint32_t(corner.column) * 2) / 4;
          OCTET_UNROLL
          for (int i = 0; i < 32; i += 2) {
            // Eight columns on is the next piece of 16 bytes, which the swizzle moves; eight rows on it is the same.
            const uint32_t word = (first_word ^ uint32_t(i / 4 * 4)) + uint32_t(i / 2 % 2) * 8 * kSwizzledRowBytes / 4;
            words[int(word)] = ptx::bf16x2_from_floats(sum[32 * half + i], sum[32 * half + i + 1]);
          }
          ptx::fence_proxy_async();
          ptx::sync_some(1 + consumer, kWarpgroup);
          if (thread == 0) {
            if (column + half * 64 < p.N) ptx::store_tile(c_map, column + half * 64, first, base + place);
            ptx::commit_stores();
          }
        }
        return;
      }
    }
    if constexpr (std::is_same_v<Result, float>) {
      if (p.c_by_pairs) return store_pairs(sum, p, first, rows, column);
    }
    OCTET_UNROLL
    for (int i = 0; i < 64; ++i) {
      const auto at = wgmma_place(thread, i);
      if (at.row < rows && column + at.column < p.N) p.c.write(first + at.row, column + at.column, cleaned(sum[i]));
    }
  }
  // Eight pairs at a time, so that reads of what is added to are on their way together.
  static __device__ __forceinline__ void store_pairs(const float (&sum)[64], const Product& p, int first, int rows,
                                                     int column) {
    const int thread = int(threadIdx.x) % kWarpgroup;
    constexpr int kPairs = 8;
    OCTET_UNROLL
    for (int i = 0; i < 64; i += 2 * kPairs) {
      float* at[kPairs];
      uint2 before[kPairs] = {};
      OCTET_UNROLL
      for (int j = 0; j < kPairs; ++j) {
        const auto place = wgmma_place(thread, i + 2 * j);
        const bool is_there = place.row < rows && column + place.column < p.N;
        at[j] = is_there ? p.c.data + int64_t(first + place.row) * p.c.row_step + column + place.column : nullptr;
        if (is_there && p.c.accumulate) before[j] = load_words<uint2>(at[j]);
      }
      OCTET_UNROLL
      for (int j = 0; j < kPairs; ++j) {
        const float left = cleaned(sum[i + 2 * j]), right = cleaned(sum[i + 2 * j + 1]);
        uint2 pair;
        pair.x = bit_cast<uint32_t>(p.c.accumulate ? bit_cast<float>(before[j].x) + left : left);
        pair.y = bit_cast<uint32_t>(p.c.accumulate ? bit_cast<float>(before[j].y) + right : right);
        if (at[j] != nullptr) store_words(at[j], pair);
      }
    }
  }

  // total += sum, times the scales of rows: those of A, and those of B where columns have none of their own.
  static __device__ __forceinline__ void promote(const float (&sum)[64], const float (&scale)[2], int stage, int part,
                                                 float (&total)[64]) {
    if constexpr (Form::kBIsByLines) {
      const Shared<uint2> pairs =
          dynamic_shared<uint2>(Layout::scales(stage) + (Layout::kAScales + uint32_t(part * kPart)) * 4, kPart / 2);
      const int lane = int(threadIdx.x) % 4;
      OCTET_UNROLL
      for (int i = 0; i < 64; i += 4) {
        const uint2 pair = pairs[i + lane];
        const float b_scale[2] = {bit_cast<float>(pair.x), bit_cast<float>(pair.y)};
        OCTET_UNROLL
        for (int j = 0; j < 4; ++j) total[i + j] = fmaf(sum[i + j], scale[j / 2] * b_scale[j % 2], total[i + j]);
      }
    } else {
      OCTET_UNROLL
      for (int i = 0; i < 64; ++i) total[i] = fmaf(sum[i], scale[i / 2 % 2], total[i]);
    }
  }

  static __device__ __forceinline__ void consume(const TensorMap& c_map, const Product& p, uint32_t base) {
    const int consumer = int(threadIdx.x) / kWarpgroup - 1, thread = int(threadIdx.x) % kWarpgroup;
    const int row = consumer * 64 + thread / kWarp * 16 + thread % kWarp / 4;
    const int all_blocks = blocks_of(p.K);
    auto walk = walk_of(p);
    RingPlace<kStages> at;
    GroupTile tile;
    for (int index = first_index(p); find(walk, index, p, tile); index += index_step(p)) {
      float total[parts][64] = {}, sum[64] = {};
      uint32_t last = 0;
      const int k_blocks = kIsOfRows ? all_blocks : blocks_of(tile.depth);
      for (int block = 0; block < k_blocks; ++block) {
        ptx::wait_for_phase(base + Layout::full(at.stage), at.parity);
        // Rows that came by copies that wgmma does not see by itself.
        if (is_gathered || (a_is_transposed && tile.depth - block * kDepth < kDepth)) ptx::fence_proxy_async();
        const uint32_t empty = base + Layout::empty(at.stage);
        // 64 rows, or, transposed, as many bytes: 64 of k of 64 lines.
        const uint32_t a = base + Layout::a(at.stage) + uint32_t(consumer) * 64 * kSwizzledRowBytes;
        if constexpr (Form::kIsScaled) {
          const Shared<float> scales = dynamic_shared<float>(Layout::scales(at.stage), int(Layout::kScales));
          const float upper = scales[Form::kAIsByLines ? row : 0], lower = scales[Form::kAIsByLines ? row + 8 : 0];
          OCTET_UNROLL
          for (int part = 0; part < parts; ++part) {
            multiply(sum, a, base + Layout::b(at.stage, part), false);
            const float b_scale = Form::kBIsByLines ? 1.0f : float(scales[int(Layout::kAScales) + part]);
            const float scale[2] = {upper * b_scale, lower * b_scale};
            ptx::wgmma_wait();
            // Columns' scales are too many to be held, and stay in the stage until they are used.
            if (part == parts - 1 && !Form::kBIsByLines) give_back(p, empty);
            promote(sum, scale, at.stage, part, total[part]);
            if (part == parts - 1 && Form::kBIsByLines) give_back(p, empty);
          }
        } else {
          OCTET_UNROLL
          for (int part = 0; part < parts; ++part) {
            multiply(total[part], a, base + Layout::b(at.stage, part), block > 0);
          }
          ptx::wgmma_wait<parts>();
          if (block > 0) give_back(p, last);
          last = empty;
        }
        at.advance();
      }
      if constexpr (!Form::kIsScaled) {
        ptx::wgmma_wait();
        if (kIsOfRows || k_blocks > 0) give_back(p, last);
      }
      if constexpr (Form::kHasEpilogue) {
        const int first = consumer * 64;
        p.c.store(total[0], total[1], tile.first + first, tile.count - first, column_of(p, tile, 0),
                  Layout::epilogue(int(threadIdx.x) / kWarp - kWarpgroup / kWarp));
      } else {
        OCTET_UNROLL
        for (int part = 0; part < parts; ++part) store(total[part], c_map, p, tile, part, consumer, base);
      }
    }
    if (thread == 0) ptx::wait_for_stores<0>();
  }
};

template <class Form>
__global__ void __launch_bounds__(kPersistentThreads, 1)
    persistent_kernel(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map,
                      const __grid_constant__ TensorMap c_map,
                      const __grid_constant__ typename PersistentKernel<Form>::Product p) {
  using Kernel = PersistentKernel<Form>;
  using Layout = typename Kernel::Layout;
  const uint32_t base = dynamic_shared_address();  // on a boundary of 1024
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Kernel::kStages; ++stage) {
      ptx::init_barrier(base + Layout::full(stage), 1 + (Kernel::kCopies ? kWarpgroup : 0));
      ptx::init_barrier(base + Layout::empty(stage), kConsumers * kWarpgroup / kWarp << int(p.has_peer));
    }
    ptx::fence_barriers();
  }
  if (p.has_peer) {
    ptx::sync_cluster();
  } else {
    __syncthreads();
  }
  if (threadIdx.x < kWarpgroup) {
    ptx::keep_registers<kProducerRegisters>();
    if constexpr (Form::kAIsTransposed) {
      Kernel::produce_transposed(a_map, b_map, p, base);
    } else {
      Kernel::produce(a_map, b_map, p, base);
    }
  } else {
    ptx::take_registers<kConsumerRegisters>();
    if constexpr (Form::kHasEpilogue) {
      if (blockIdx.x == 0 && threadIdx.x == kWarpgroup) p.c.add_count();
    }
    Kernel::consume(c_map, p, base);
  }
  if (p.has_peer) ptx::sync_cluster();  // whose consumers tell this block's barriers to the end
}

// A matrix that a product reads, in rows of so many bytes.
struct OperandRows {
  const void* data;
  int64_t rows, row_bytes;
};

// A product whose operands and result may be copied by tiles; launch() where it can be. A and B have K columns, or B N
// where it is transposed. Sums of bfloat16 over ranges of k have both operands transposed: K rows of A, a_lines
// columns.
template <class Products, Scales scales, class Spans, class Result>
class PersistentLaunch {
 public:
  using Element = typename Products::Element;

  static constexpr bool kBothTransposed = Spans::kIsOfSums && !Products::kIsScaled;

  PersistentLaunch(int64_t a_lines, const OperandRows& b, bool b_is_transposed,
                   const PersistentProduct<Element, Spans, Result>& product)
      : product_(product), a_lines_(a_lines), b_is_transposed_(b_is_transposed) {
    constexpr int64_t kBytes = sizeof(Element), kTileColumns = kSwizzledRowBytes / kBytes;
    const int64_t K = product.K, N = product.N;
    a_ = {.data = product.a,
          .element_bytes = kBytes,
          .rows = kBothTransposed ? K : a_lines,
          .columns = kBothTransposed ? a_lines : K,
          .row_bytes = product.a_step * kBytes,
          .tile_rows = kBothTransposed ? kTileColumns : 128,
          .tile_columns = kTileColumns};
    b_ = {.data = b.data,
          .element_bytes = kBytes,
          .rows = b.rows,
          .columns = b_is_transposed ? N : K,
          .row_bytes = b.row_bytes,
          .tile_rows = b_is_transposed ? kTileColumns : 128,
          .tile_columns = kTileColumns};
    if constexpr (std::is_same_v<Result, bfloat16>) {
      c_ = {.data = product.c.data,
            .element_bytes = sizeof(bfloat16),
            .rows = product.R,
            .columns = N,
            .row_bytes = product.c.row_step * int64_t(sizeof(bfloat16)),
            .tile_rows = 64,
            .tile_columns = 64};
      product_.c_by_tiles = can_be_tiled(c_);
    }
    if constexpr (std::is_same_v<Result, float>) {
      product_.c_by_pairs = (N | product.c.row_step) % 2 == 0 && reinterpret_cast<uintptr_t>(product.c.data) % 8 == 0;
    }
  }
  // What is copied row by row must be whole pieces of 16 bytes, and where only B lies along the columns k of the next
  // group would be read behind the last of one's own.
  bool is_possible() const {
    if (!can_be_tiled(a_) || !can_be_tiled(b_) || product_.R >= kMostTiledRows) return false;
    const auto is_whole = [](int64_t elements) { return elements * int64_t(sizeof(Element)) % 16 == 0; };
    if (kBothTransposed) return is_whole(a_lines_) && is_whole(product_.N);
    return is_whole(product_.K) && (!b_is_transposed_ || product_.groups == 1 || product_.K % b_.tile_rows == 0);
  }

  void launch(const char* name, Stream& stream) const {
    if constexpr (!Spans::kIsOfSums || kBothTransposed) {
      if (product_.lines != nullptr) return launch_form<true>(name, stream);
    }
    launch_form<false>(name, stream);
  }

 private:
  template <bool is_gathered>
  void launch_form(const char* name, Stream& stream) const {
    if constexpr (kBothTransposed) {
      launch_width<is_gathered, Transposed::kBoth>(name, stream);
    } else {
      if constexpr (!Products::kIsScaled) {
        if (b_is_transposed_) return launch_width<is_gathered, Transposed::kB>(name, stream);
      }
      launch_width<is_gathered, Transposed::kNone>(name, stream);
    }
  }
  // Tiles of 256 columns read a quarter less from the L2 cache for the same products: where they leave little of their
  // last column unused, and there are enough of them for every multiprocessor.
  template <bool is_gathered, Transposed transposed>
  void launch_width(const char* name, Stream& stream) const {
    const int64_t row_tiles = most_row_tiles(product_.groups, product_.R, 128);
    const int64_t narrow = ceil_div<int64_t>(product_.N, 128), wide = ceil_div<int64_t>(product_.N, 256);
    if constexpr (kIsNumber<Result>) {
      const bool is_worth =
          (narrow % 2 == 0 || narrow > 8) && row_tiles * wide >= gpu::multiprocessors(stream.device());
      if (!is_worth) return launch_kernel<is_gathered, transposed, 1>(name, narrow, stream);
    }
    launch_kernel<is_gathered, transposed, 2>(name, wide, stream);
  }
  template <bool is_gathered, Transposed transposed, int parts>
  void launch_kernel(const char* name, int64_t column_tiles, Stream& stream) const {
    using Form = ProductForm<Products, Spans, scales, is_gathered, transposed, parts, Result>;
    PersistentProduct<Element, Spans, Result> product = product_;
    MatrixTiles b = b_;
    const int most_blocks = gpu::multiprocessors(stream.device());
    // Gathered rows of B come by themselves.
    const bool shares_b = !is_gathered || transposed != Transposed::kBoth;
    product.has_peer = shares_b && is_in_pairs(column_tiles, most_blocks);
    if (product.has_peer && transposed == Transposed::kNone) b.tile_rows = 64 * parts;  // half of all parts
    const int together = product.has_peer ? kPair : 1;
    const int64_t tiles = most_row_tiles(product_.groups, product_.R, 128 * together) * column_tiles;
    cuda::launch_clusters(name, together, blocks(std::min<int64_t>(tiles, most_blocks / together) * together),
                          kPersistentThreads, Ring<Form>::kBytes, stream, persistent_kernel<Form>, encode(a_),
                          encode(b), product_.c_by_tiles ? encode(c_) : TensorMap{}, product);
  }
  bool is_in_pairs(int64_t column_tiles, int most_blocks) const {
    const GemmClusters wanted = gemm_clusters();
    if (wanted == GemmClusters::kOff || most_blocks < kPair) return false;
    const bool is_even = Spans::kIsOfSums || product_.groups == 1;
    return wanted == GemmClusters::kOn || pairs_pay(product_.R, product_.groups, is_even, column_tiles, most_blocks);
  }

  PersistentProduct<Element, Spans, Result> product_;
  int64_t a_lines_;
  bool b_is_transposed_;
  MatrixTiles a_, b_, c_;
};

}  // namespace octet::kernels::cuda
