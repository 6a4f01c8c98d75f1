// How numbers become E4M3 codes (kernels/quantize.h), with the CPU's bits. A tile of 128 rows and columns is dealt
// out to 256 threads: thread t has columns 8 (t % 16) and on of rows t / 16, t / 16 + 16, ...
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/quantize.h"

namespace octet::kernels::cuda {

inline constexpr int kBlock = 128;
inline constexpr int kTileThreads = 256;
inline constexpr int kTileLanes = kBlock / kVector;          // threads to a row
inline constexpr int kTileStep = kTileThreads / kTileLanes;  // rows at a time
inline constexpr int kTilePasses = kBlock / kTileStep;
inline constexpr int kTileWarps = kTileThreads / kWarp;

// Eight codes, the first n of them and zeros behind; and their numbers, times factor.
__device__ __forceinline__ uint2 load_codes(const uint8_t* from, int64_t n) {
  if (n >= kVector && reinterpret_cast<uintptr_t>(from) % 8 == 0) return load_words<uint2>(from);
  uint32_t words[2] = {0, 0};
  for (int i = 0; i < kVector; ++i) {
    if (i < n) words[i / 4] |= uint32_t(from[i]) << (i % 4 * 8);
  }
  uint2 codes;
  codes.x = words[0], codes.y = words[1];
  return codes;
}
__device__ __forceinline__ Floats8 numbers_of(const uint2& codes, float factor) {
  const uint32_t words[2] = {codes.x, codes.y};
  Floats8 x;
  for (int i = 0; i < kVector; ++i) x.v[i] = ptx::float_from_e4m3(words[i / 4] >> (i % 4 * 8) & 0xffu) * factor;
  return x;
}

// Eight numbers as a tile keeps them.
struct alignas(16) Float32Piece {
  Floats8 x;

  static __device__ __forceinline__ Float32Piece of(const Floats8& x) { return {x}; }
  __device__ __forceinline__ Floats8 numbers() const { return x; }
};
struct Bf16Piece {  // rounded
  uint4 words;

  static __device__ __forceinline__ Bf16Piece of(const Floats8& x) {
    uint32_t pairs[4];
    for (int i = 0; i < 4; ++i) {
      pairs[i] = from_float<bfloat16>(x.v[2 * i]).bits | uint32_t(from_float<bfloat16>(x.v[2 * i + 1]).bits) << 16;
    }
    Bf16Piece piece;
    piece.words.x = pairs[0], piece.words.y = pairs[1], piece.words.z = pairs[2], piece.words.w = pairs[3];
    return piece;
  }
  __device__ __forceinline__ Floats8 numbers() const {
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
    Floats8 x;
    for (int i = 0; i < 4; ++i) {
      x.v[2 * i] = bit_cast<float>(pairs[i] << 16);
      x.v[2 * i + 1] = bit_cast<float>(pairs[i] & 0xffff0000u);
    }
    return x;
  }
};
struct alignas(16) CodePiece {
  uint2 codes;
  float scale;

  __device__ __forceinline__ Floats8 numbers() const { return numbers_of(codes, scale); }
};
// Without rounding.
template <class Scalar>
using PieceOf = std::conditional_t<std::is_same_v<Scalar, bfloat16>, Bf16Piece, Float32Piece>;

__device__ __forceinline__ int tile_column() { return int(threadIdx.x) % kTileLanes * kVector; }
__device__ __forceinline__ int tile_row(int pass) { return pass * kTileStep + int(threadIdx.x) / kTileLanes; }

// Zeros where the matrix ends. It lies in dynamic shared memory, where each thread has places of its own: held in
// registers, one block would fill a multiprocessor. The pieces of a row are exchanged so that 8 threads, each with a
// piece of one column and a row 4 on, do not share banks.
template <class Piece>
struct Tile {
  static constexpr int kPieces = kTilePasses * kTileThreads, kSharedBytes = kPieces * int(sizeof(Piece));
  Shared<Piece> pieces;

  static __device__ __forceinline__ int place(int row, int lane) { return row * kTileLanes + (lane ^ row / 4 % 8); }

  // Tile i of those that a block has.
  static __device__ __forceinline__ Tile number(int i) {
    return {dynamic_shared<Piece>(size_t(i) * kSharedBytes, kPieces)};
  }
  __device__ __forceinline__ Floats8 numbers(int row, int lane) const {
    const Piece piece = pieces[place(row, lane)];
    return piece.numbers();
  }
  __device__ __forceinline__ Floats8 row(int pass) const {
    return numbers(tile_row(pass), int(threadIdx.x) % kTileLanes);
  }
  __device__ __forceinline__ void set(int pass, const Piece& piece) const {
    pieces[place(tile_row(pass), int(threadIdx.x) % kTileLanes)] = piece;
  }
};

struct Counts {
  int flushed = 0, saturated = 0, non_finite = 0;
};
// Adds those of a block to stats; all its threads call it.
template <int kThreads>
__device__ __forceinline__ void add_counts(const Counts& counts, int64_t count, QuantizeStats* stats) {
  if (stats == nullptr) return;
  const int flushed = block_sum<kThreads>(counts.flushed), saturated = block_sum<kThreads>(counts.saturated);
  const int non_finite = block_sum<kThreads>(counts.non_finite);
  if (threadIdx.x != 0) return;
  atomic_add(&stats->count, count);
  atomic_add(&stats->flushed, flushed);
  atomic_add(&stats->saturated, saturated);
  atomic_add(&stats->non_finite, non_finite);
}

// The bits of |x|, 0 where x is not finite: greater numbers have greater bits.
__device__ __forceinline__ uint32_t finite_bits(float x) {
  const uint32_t u = bit_cast<uint32_t>(x) & 0x7fffffffu;
  return u < 0x7f800000u ? u : 0u;
}
__device__ __forceinline__ uint32_t largest_bits(const Floats8& x) {
  uint32_t top = 0;
  for (int j = 0; j < kVector; ++j) {
    const uint32_t u = finite_bits(x.v[j]);
    top = u > top ? u : top;
  }
  return top;
}
// power_of_two_scale of core/base/fp8.h, and its reciprocal.
struct PowerOfTwo {
  float scale, inv_scale;
};
__device__ __forceinline__ PowerOfTwo power_of_two(uint32_t amax_bits) {
  int field = int((amax_bits + 0x1fffffu) >> 23) - 8;
  field = amax_bits == 0 ? 127 : field < 1 ? 1 : field;
  return {bit_cast<float>(uint32_t(field) << 23), bit_cast<float>(uint32_t(254 - field) << 23)};
}

// The code of x / scale and of its neighbour, in the low bytes.
__device__ __forceinline__ void count_code(float x, float y, Counts& counts) {
  const uint32_t from = bit_cast<uint32_t>(x) & 0x7fffffffu, to = bit_cast<uint32_t>(y) & 0x7fffffffu;
  const int non_finite = from >= 0x7f800000u;
  counts.flushed += int(to <= 0x3a800000u) - int(from == 0);  // 2^-10 or below
  counts.non_finite += non_finite;
  counts.saturated += int(to > 0x43e80000u) - non_finite;  // beyond 464
}
// Writes the codes of the first n of x / scale, given each number's 1 / scale.
__device__ __forceinline__ void store_codes(uint8_t* to, const Floats8& x, const Floats8& inv_scale, int64_t n,
                                            Counts& counts) {
  uint32_t pairs[4];
  for (int i = 0; i < 4; ++i) {
    const float low = x.v[2 * i] * inv_scale.v[2 * i], high = x.v[2 * i + 1] * inv_scale.v[2 * i + 1];
    if (2 * i < n) count_code(x.v[2 * i], low, counts);
    if (2 * i + 1 < n) count_code(x.v[2 * i + 1], high, counts);
    pairs[i] = ptx::e4m3x2_from_floats(low, high);
  }
  if (n >= kVector && reinterpret_cast<uintptr_t>(to) % 8 == 0) {
    uint2 words;
    words.x = pairs[0] | pairs[1] << 16, words.y = pairs[2] | pairs[3] << 16;
    store_words(to, words);
  } else {
    for (int i = 0; i < kVector; ++i) {
      if (i < n) to[i] = uint8_t(pairs[i / 2] >> (i % 2 * 8));
    }
  }
}
__device__ __forceinline__ Floats8 all_of(float x) {
  Floats8 all;
  for (int j = 0; j < kVector; ++j) all.v[j] = x;
  return all;
}
// One block of a row by 16 neighbouring lanes, eight columns to each, of which n are there; whole warps call it.
__device__ __forceinline__ void quantize_row_block(const Floats8& x, int64_t n, uint8_t* codes, float* scale,
                                                   Counts& counts) {
  const PowerOfTwo power = power_of_two(warp_max<kTileLanes>(largest_bits(x)));
  if (n <= 0) return;
  if (threadIdx.x % kTileLanes == 0) *scale = power.scale;
  store_codes(codes, x, all_of(power.inv_scale), n, counts);
}

// A tile of `rows` rows and n columns with one scale, and what it adds to stats. codes: of its first row and column.
// All threads of the block call it.
template <class Piece>
__device__ __forceinline__ void quantize_tile(const Tile<Piece>& tile, int rows, int64_t n, uint8_t* codes,
                                              int64_t stride, float* scale, QuantizeStats* stats) {
  uint32_t top = 0;
  for (int pass = 0; pass < kTilePasses; ++pass) {
    const uint32_t of_row = largest_bits(tile.row(pass));
    top = of_row > top ? of_row : top;
  }
  const PowerOfTwo power = power_of_two(block_max<kTileThreads>(top, 0u));
  if (threadIdx.x == 0) *scale = power.scale;
  const int column = tile_column();
  Counts counts;
  for (int pass = 0; pass < kTilePasses; ++pass) {
    if (tile_row(pass) >= rows) continue;
    store_codes(codes + tile_row(pass) * stride + column, tile.row(pass), all_of(power.inv_scale), n - column, counts);
  }
  add_counts<kTileThreads>(counts, rows * n, stats);
}

// Writes the codes of a tile, n columns of it, each column by itself: codes + c * stride + r, on boundaries of 16
// bytes. Takes the tile's memory. inv_scales: of each column. All threads of the block call it, and between the last
// use of that memory and this there is a barrier.
template <class Piece>
__device__ __forceinline__ void store_transposed(const Tile<Piece>& tile, const Shared<float>& inv_scales, int64_t n,
                                                 uint8_t* codes, int64_t stride, Counts& counts) {
  // A column's 128 codes, and 16 bytes that keep 8 of them off each other's banks.
  constexpr int kColumnBytes = kBlock + 16, kSide = 4, kGroups = kTileLanes / kTileWarps;
  static_assert(kBlock * kColumnBytes <= Tile<Piece>::kSharedBytes && kWarp * kSide == kBlock);
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  uint32_t words[kGroups][kVector];
  OCTET_UNROLL
  for (int group = 0; group < kGroups; ++group) {
    const int first = warp + group * kTileWarps;
    Floats8 rows[kSide];
    OCTET_UNROLL
    for (int i = 0; i < kSide; ++i) rows[i] = tile.numbers(lane * kSide + i, first);
    OCTET_UNROLL
    for (int j = 0; j < kVector; ++j) {
      const float inv_scale = inv_scales[first * kVector + j];
      float y[kSide];
      OCTET_UNROLL
      for (int i = 0; i < kSide; ++i) {
        y[i] = rows[i].v[j] * inv_scale;
        count_code(rows[i].v[j], y[i], counts);
      }
      words[group][j] = ptx::e4m3x2_from_floats(y[0], y[1]) | uint32_t(ptx::e4m3x2_from_floats(y[2], y[3])) << 16;
    }
  }
  __syncthreads();
  const Shared<uint32_t> columns = tile.pieces.template as<uint32_t>();
  OCTET_UNROLL
  for (int group = 0; group < kGroups; ++group) {
    OCTET_UNROLL
    for (int j = 0; j < kVector; ++j) {
      const int c = (warp + group * kTileWarps) * kVector + j;
      columns[c * (kColumnBytes / 4) + lane] = words[group][j];
    }
  }
  __syncthreads();
  constexpr int kPieces = kBlock / 16;
  for (int i = int(threadIdx.x); i < kBlock * kPieces; i += kTileThreads) {
    const int c = i / kPieces, piece = i % kPieces;
    if (c < n)
      store_words(codes + c * stride + piece * 16,
                  uint4(columns.template as<uint4>()[c * (kColumnBytes / 16) + piece]));
  }
}

// Each column of a tile with its scale, n columns of it; rows without numbers get code 0. codes: as store_transposed
// writes them; scale: of the first column. All threads of the block call it; the tile is used up.
template <class Piece>
__device__ __forceinline__ void quantize_tile_columns(const Tile<Piece>& tile, int64_t n, uint8_t* codes,
                                                      int64_t stride, float* scale, Counts& counts) {
  OCTET_SHARED(uint32_t, tops, kTileWarps * kBlock);
  OCTET_SHARED(float, inv_scales, kBlock);
  const int column = tile_column(), warp = int(threadIdx.x) / kWarp;
  __syncthreads();  // the last call's numbers have been read
  uint32_t of_rows[kVector] = {};
  for (int pass = 0; pass < kTilePasses; ++pass) {
    const Floats8 x = tile.row(pass);
    for (int j = 0; j < kVector; ++j) {
      const uint32_t u = finite_bits(x.v[j]);
      of_rows[j] = u > of_rows[j] ? u : of_rows[j];
    }
  }
  for (int j = 0; j < kVector; ++j) {
    const uint32_t other = shuffle_xor(of_rows[j], kTileLanes);  // the other row of this warp
    if (threadIdx.x % kWarp < kTileLanes) tops[warp * kBlock + column + j] = other > of_rows[j] ? other : of_rows[j];
  }
  __syncthreads();
  if (threadIdx.x < kBlock) {
    const int c = int(threadIdx.x);
    uint32_t top = 0;
    for (int w = 0; w < kTileWarps; ++w) {
      const uint32_t u = tops[w * kBlock + c];
      top = u > top ? u : top;
    }
    const PowerOfTwo power = power_of_two(top);
    inv_scales[c] = power.inv_scale;
    if (c < n) scale[c] = power.scale;
  }
  __syncthreads();
  store_transposed(tile, inv_scales, n, codes, stride, counts);
}

// Rows 128 b and on of a group: `rows` of them, at most 128; none where b is beyond the last block.
struct RowBlock {
  int64_t first = 0;
  int rows = 0;
  bool is_there = false;
};
__device__ __forceinline__ RowBlock row_block(const int64_t* offsets, const int64_t* block_offsets, int groups,
                                              int64_t b) {
  if (b >= block_offsets[groups]) return {};
  int low = 0, high = groups;  // the last group that begins at b or before is in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (block_offsets[middle] <= b) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const int64_t first = offsets[low] + kBlock * (b - block_offsets[low]), left = offsets[low + 1] - first;
  return {first, int(left < kBlock ? left : kBlock), true};
}

}  // namespace octet::kernels::cuda
