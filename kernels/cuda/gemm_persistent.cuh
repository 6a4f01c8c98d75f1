// Grouped matrix products as Hopper wants them: one block for each multiprocessor takes tile after tile
// (tile_schedule.h). Of its three warpgroups one brings 128 bytes of k of A and B at a time into a ring of stages in
// shared memory, by copies of whole tiles, or row by row where rows are gathered; two multiply, 64 rows each, so that
// one promotes its sums while the tensor cores work for the other. The sums are those of TensorTile (gemm_tensor.cuh),
// in the same order.
//
// A tile that reaches behind its group reads rows of the next, whose sums are not stored. Whole tiles of bfloat16 are
// stored through shared memory; others, and float32, by their threads.
#pragma once

#include <algorithm>

#include "kernels/cuda/gemm_grid.cuh"
#include "kernels/cuda/gemm_tensor.cuh"
#include "kernels/cuda/multiprocessors.h"
#include "kernels/cuda/ptx/copy_async.cuh"
#include "kernels/cuda/ptx/mbarrier.cuh"
#include "kernels/cuda/ptx/tile_copy.cuh"
#include "kernels/cuda/tile_schedule.h"

namespace octet::kernels::cuda {

inline constexpr int kWarpgroup = 128, kConsumers = 2, kPersistentThreads = (1 + kConsumers) * kWarpgroup;
// Of 65536, which ptxas divides evenly, 168 for each thread.
inline constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;

// Where things lie in shared memory, in bytes from a boundary of 1024. A tile is 128 rows by 128 columns for each part.
template <bool is_scaled, int parts>
struct Ring {
  static constexpr int kStages = parts == 1 ? 5 : 4;
  static constexpr uint32_t kRows = 128, kTile = kRows * kSwizzledRowBytes, kStageBytes = (1 + parts) * kTile;
  static constexpr uint32_t kResultTile = 64 * kSwizzledRowBytes;  // 64 rows and columns of bfloat16
  static constexpr uint32_t kScales = is_scaled ? kRows + 4 : 0;   // of the rows of A, then of the parts of B

  static constexpr uint32_t a(int stage) { return uint32_t(stage) * kStageBytes; }
  static constexpr uint32_t b(int stage, int part) { return a(stage) + uint32_t(1 + part) * kTile; }
  static constexpr uint32_t kResults = kStages * kStageBytes;
  static constexpr uint32_t result(int consumer, int place) {
    return kResults + uint32_t(consumer * 2 + place) * kResultTile;
  }
  static constexpr uint32_t kFirstScales = kResults + kConsumers * 2 * kResultTile;
  static constexpr uint32_t scales(int stage) { return kFirstScales + uint32_t(stage) * kScales * 4; }
  static constexpr uint32_t kBarriers = kFirstScales + kStages * kScales * 4;
  static constexpr uint32_t full(int stage) { return kBarriers + uint32_t(stage) * 16; }
  static constexpr uint32_t empty(int stage) { return full(stage) + 8; }
  static constexpr size_t kBytes = kBarriers + kStages * 16;
  static_assert(kBytes <= 227 * 1024);
};

// What a product is, beside its maps.
template <class Element, class Result>
struct PersistentProduct {
  const Element* a;  // of gathered rows
  int64_t a_step;
  const int32_t* lines;  // where row r of A lies; null: at r
  const float* a_scale;
  const float* b_scale;
  int64_t b_scale_group, b_scale_column, b_scale_block;  // steps
  const int64_t* offsets;
  int groups;
  int64_t R, N, K;
  ResultMatrix<Result> c;
  bool c_by_tiles;
};

// B lies along k, or, transposed, along the columns of the result.
template <class Products, bool is_gathered, bool b_is_transposed, int parts, class Result>
struct PersistentKernel {
  using Element = typename Products::Element;
  using Product = PersistentProduct<Element, Result>;
  using Layout = Ring<Products::kIsScaled, parts>;
  static constexpr int kStages = Layout::kStages, kTileRows = int(Layout::kRows), kPart = 128;
  static constexpr int kDepth = kSwizzledRowBytes / int(sizeof(Element));
  static constexpr bool kCopies = Products::kIsScaled || is_gathered;  // by all threads of the producer
  static constexpr uint32_t kBytesByTiles = Layout::kTile * ((is_gathered ? 0 : 1) + parts);

  static __device__ __forceinline__ void produce(const TensorMap& a_map, const TensorMap& b_map, const Product& p,
                                                 uint32_t base) {
    const int thread = int(threadIdx.x);
    if (!kCopies && thread != 0) return;
    const int k_blocks = int((p.K + kDepth - 1) / kDepth);
    TileWalk walk(p.offsets, p.groups, int(p.R), kTileRows, int((p.N + parts * kPart - 1) / (parts * kPart)));
    RingPlace<kStages> at;
    GroupTile tile;
    for (int index = int(blockIdx.x); walk.find(index, tile); index += int(gridDim.x)) {
      // Neighbouring threads take the pieces of one row.
      constexpr int kPieces = kSwizzledRowBytes / 16, kLines = is_gathered ? kTileRows / (kWarpgroup / kPieces) : 1;
      int lines[kLines];
      OCTET_UNROLL
      for (int i = 0; i < kLines; ++i) {
        const int row = thread / kPieces + i * (kWarpgroup / kPieces);
        lines[i] = is_gathered && row < tile.count ? p.lines[tile.first + row] : -1;
      }
      const float* a_scale = nullptr;
      if (Products::kIsScaled && thread < tile.count) {
        a_scale = p.a_scale + int64_t(is_gathered ? p.lines[tile.first + thread] : tile.first + thread) * k_blocks;
      }
      const float* b_scale = nullptr;
      if (Products::kIsScaled)
        b_scale = p.b_scale + tile.group * p.b_scale_group + tile.column * parts * p.b_scale_column;
      const int column = tile.column * parts * kPart;
      for (int block = 0; block < k_blocks; ++block) {
        ptx::wait_for_phase(base + Layout::empty(at.stage), at.parity ^ 1);
        const uint32_t full = base + Layout::full(at.stage);
        if constexpr (Products::kIsScaled) {
          const uint32_t scales = base + Layout::scales(at.stage);
          ptx::copy_async_word(scales + uint32_t(thread) * 4, thread < tile.count ? a_scale + block : p.a_scale,
                               thread < tile.count);
          if (thread < parts) {
            const bool is_there = column + thread * kPart < p.N;
            const float* const from = b_scale + thread * p.b_scale_column + block * p.b_scale_block;
            ptx::copy_async_word(scales + (Layout::kRows + uint32_t(thread)) * 4, is_there ? from : p.b_scale,
                                 is_there);
          }
        }
        if constexpr (is_gathered) {
          const int piece = thread % kPieces, k = block * kDepth + piece * (kDepth / kPieces);
          OCTET_UNROLL
          for (int i = 0; i < kLines; ++i) {
            const uint32_t row = uint32_t(thread / kPieces + i * (kWarpgroup / kPieces));
            const bool is_there = lines[i] >= 0 && k < p.K;
            ptx::copy_async(base + Layout::a(at.stage) + swizzled_offset(row, uint32_t(piece) * 16),
                            is_there ? p.a + lines[i] * p.a_step + k : p.a, is_there);
          }
        }
        if (thread == 0) {
          ptx::arrive_and_expect(full, kBytesByTiles);
          if constexpr (!is_gathered)
            ptx::load_tile(base + Layout::a(at.stage), a_map, block * kDepth, tile.first, full);
          OCTET_UNROLL
          for (int part = 0; part < parts; ++part) {
            const uint32_t to = base + Layout::b(at.stage, part);
            const int first = column + part * kPart;
            if constexpr (b_is_transposed) {
              const int row = int(tile.group * p.K) + block * kDepth;
              ptx::load_tile(to, b_map, first, row, full);
              ptx::load_tile(to + Layout::kTile / 2, b_map, first + kDepth, row, full);
            } else {
              ptx::load_tile(to, b_map, block * kDepth, int(tile.group * p.N) + first, full);
            }
          }
        }
        if constexpr (kCopies) ptx::arrive_after_copies(full);
        at.advance();
      }
    }
  }

  // The products of one stage.
  static __device__ __forceinline__ void multiply(float (&sum)[64], uint32_t a, uint32_t b, bool accumulate) {
    ptx::wgmma_fence();
    OCTET_UNROLL
    for (int step = 0; step < 4; ++step) {
      const uint64_t left = wgmma_descriptor(a + uint32_t(step) * 32);
      if constexpr (b_is_transposed) {
        Products::multiply_transposed(sum, left, transposed_descriptor(b + uint32_t(step) * 2048, Layout::kTile / 2),
                                      step > 0 || accumulate);
      } else {
        Products::multiply(sum, left, wgmma_descriptor(b + uint32_t(step) * 32), step > 0 || accumulate);
      }
    }
    ptx::wgmma_commit();
  }
  // The stage may be written again: told by one lane, after its warp has done with it.
  static __device__ __forceinline__ void give_back(uint32_t empty) {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) ptx::arrive(empty);
  }

  static __device__ __forceinline__ float cleaned(float x) { return x != x ? bit_cast<float>(0x7fffffffu) : x; }

  // Its rows of one part of the tile.
  static __device__ __forceinline__ void store(const float (&sum)[64], const TensorMap& c_map, const Product& p,
                                               const GroupTile& tile, int part, int consumer, uint32_t base) {
    const int thread = int(threadIdx.x) % kWarpgroup, column = (tile.column * parts + part) * kPart;
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
    OCTET_UNROLL
    for (int i = 0; i < 64; ++i) {
      const auto at = wgmma_place(thread, i);
      if (at.row < rows && column + at.column < p.N) p.c.write(first + at.row, column + at.column, cleaned(sum[i]));
    }
  }

  static __device__ __forceinline__ void consume(const TensorMap& c_map, const Product& p, uint32_t base) {
    const int consumer = int(threadIdx.x) / kWarpgroup - 1, thread = int(threadIdx.x) % kWarpgroup;
    const int k_blocks = int((p.K + kDepth - 1) / kDepth);
    const int row = consumer * 64 + thread / kWarp * 16 + thread % kWarp / 4;
    TileWalk walk(p.offsets, p.groups, int(p.R), kTileRows, int((p.N + parts * kPart - 1) / (parts * kPart)));
    RingPlace<kStages> at;
    GroupTile tile;
    for (int index = int(blockIdx.x); walk.find(index, tile); index += int(gridDim.x)) {
      float total[parts][64] = {}, sum[64] = {};
      uint32_t last = 0;
      for (int block = 0; block < k_blocks; ++block) {
        ptx::wait_for_phase(base + Layout::full(at.stage), at.parity);
        if constexpr (is_gathered) ptx::fence_proxy_async();  // rows came by copies that wgmma does not see by itself
        const uint32_t empty = base + Layout::empty(at.stage);
        const uint32_t a = base + Layout::a(at.stage) + uint32_t(consumer) * 64 * kSwizzledRowBytes;
        if constexpr (Products::kIsScaled) {
          const Shared<float> scales = dynamic_shared<float>(Layout::scales(at.stage), int(Layout::kScales));
          const float upper = scales[row], lower = scales[row + 8];
          OCTET_UNROLL
          for (int part = 0; part < parts; ++part) {
            multiply(sum, a, base + Layout::b(at.stage, part), false);
            const float b_scale = scales[kTileRows + part];
            const float scale[2] = {upper * b_scale, lower * b_scale};
            ptx::wgmma_wait();
            if (part == parts - 1) give_back(empty);
            OCTET_UNROLL
            for (int i = 0; i < 64; ++i) total[part][i] = fmaf(sum[i], scale[i / 2 % 2], total[part][i]);
          }
        } else {
          OCTET_UNROLL
          for (int part = 0; part < parts; ++part) {
            multiply(total[part], a, base + Layout::b(at.stage, part), block > 0);
          }
          ptx::wgmma_wait<parts>();
          if (block > 0) give_back(last);
          last = empty;
        }
        at.advance();
      }
      if constexpr (!Products::kIsScaled) {
        ptx::wgmma_wait();
        give_back(last);
      }
      OCTET_UNROLL
      for (int part = 0; part < parts; ++part) store(total[part], c_map, p, tile, part, consumer, base);
    }
    if (thread == 0) ptx::wait_for_stores<0>();
  }
};

template <class Products, bool is_gathered, bool b_is_transposed, int parts, class Result>
__global__ void __launch_bounds__(kPersistentThreads, 1)
    persistent_rows_kernel(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map,
                           const __grid_constant__ TensorMap c_map,
                           const __grid_constant__ PersistentProduct<typename Products::Element, Result> p) {
  using Kernel = PersistentKernel<Products, is_gathered, b_is_transposed, parts, Result>;
  using Layout = typename Kernel::Layout;
  const uint32_t base = dynamic_shared_address();  // on a boundary of 1024
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Kernel::kStages; ++stage) {
      ptx::init_barrier(base + Layout::full(stage), 1 + (Kernel::kCopies ? kWarpgroup : 0));
      ptx::init_barrier(base + Layout::empty(stage), kConsumers * kWarpgroup / kWarp);
    }
    ptx::fence_barriers();
  }
  __syncthreads();
  if (threadIdx.x < kWarpgroup) {
    ptx::keep_registers<kProducerRegisters>();
    Kernel::produce(a_map, b_map, p, base);
  } else {
    ptx::take_registers<kConsumerRegisters>();
    Kernel::consume(c_map, p, base);
  }
}

// A product whose operands and result may be copied by tiles; launch() where it can be. A is [S, K] and B [G * N, K],
// or [G * K, N] transposed, in bytes that lie as MatrixTiles says.
template <class Products, class Result>
class PersistentLaunch {
 public:
  using Element = typename Products::Element;

  PersistentLaunch(const ConstView& a, const void* b, int64_t b_row_bytes, bool b_is_transposed,
                   const PersistentProduct<Element, Result>& product)
      : product_(product), b_is_transposed_(b_is_transposed) {
    constexpr int64_t kBytes = sizeof(Element), kTileColumns = kSwizzledRowBytes / kBytes;
    const int64_t K = product.K, N = product.N, groups = product.groups;
    a_ = {.data = product.a,
          .element_bytes = kBytes,
          .rows = a.rows(),
          .columns = K,
          .row_bytes = product.a_step * kBytes,
          .tile_rows = 128,
          .tile_columns = kTileColumns};
    b_ = {.data = b,
          .element_bytes = kBytes,
          .rows = groups * (b_is_transposed ? K : N),
          .columns = b_is_transposed ? N : K,
          .row_bytes = b_row_bytes,
          .tile_rows = b_is_transposed ? kTileColumns : 128,
          .tile_columns = kTileColumns};
    c_ = {.data = product.c.data,
          .element_bytes = sizeof(bfloat16),
          .rows = product.R,
          .columns = N,
          .row_bytes = product.c.row_step * int64_t(sizeof(bfloat16)),
          .tile_rows = 64,
          .tile_columns = 64};
    product_.c_by_tiles = std::is_same_v<Result, bfloat16> && can_be_tiled(c_);
  }
  // Rows of A must be whole pieces of 16 bytes, and where B lies along the columns k of the next group would be read
  // behind the last of one's own.
  bool is_possible() const {
    return can_be_tiled(a_) && can_be_tiled(b_) && product_.R < kMostTiledRows &&
           product_.K * int64_t(sizeof(Element)) % 16 == 0 &&
           (!b_is_transposed_ || product_.groups == 1 || product_.K % b_.tile_rows == 0);
  }

  void launch(const char* name, Stream& stream) const {
    if (product_.lines != nullptr) {
      launch_form<true>(name, stream);
    } else {
      launch_form<false>(name, stream);
    }
  }

 private:
  template <bool is_gathered>
  void launch_form(const char* name, Stream& stream) const {
    if constexpr (!Products::kIsScaled) {
      if (b_is_transposed_) return launch_width<is_gathered, true>(name, stream);
    }
    launch_width<is_gathered, false>(name, stream);
  }
  // Tiles of 256 columns read a quarter less from the L2 cache for the same products: where they leave little of their
  // last column unused, and there are enough of them for every multiprocessor.
  template <bool is_gathered, bool b_is_transposed>
  void launch_width(const char* name, Stream& stream) const {
    const int64_t row_tiles = most_row_tiles(product_.groups, product_.R, 128);
    const int64_t narrow = ceil_div<int64_t>(product_.N, 128), wide = ceil_div<int64_t>(product_.N, 256);
    const int most_blocks = gpu::multiprocessors(stream.device());
    if ((narrow % 2 == 0 || narrow > 8) && row_tiles * wide >= most_blocks) {
      launch_kernel<is_gathered, b_is_transposed, 2>(name, std::min<int64_t>(row_tiles * wide, most_blocks), stream);
    } else {
      launch_kernel<is_gathered, b_is_transposed, 1>(name, std::min<int64_t>(row_tiles * narrow, most_blocks), stream);
    }
  }
  template <bool is_gathered, bool b_is_transposed, int parts>
  void launch_kernel(const char* name, int64_t grid, Stream& stream) const {
    cuda::launch(name, blocks(grid), kPersistentThreads, Ring<Products::kIsScaled, parts>::kBytes, stream,
                 persistent_rows_kernel<Products, is_gathered, b_is_transposed, parts, Result>, encode(a_), encode(b_),
                 product_.c_by_tiles ? encode(c_) : TensorMap{}, product_);
  }

  PersistentProduct<Element, Result> product_;
  bool b_is_transposed_;
  MatrixTiles a_, b_, c_;
};

}  // namespace octet::kernels::cuda
