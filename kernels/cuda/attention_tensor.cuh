// Attention of bfloat16 on the tensor cores, a head of a sequence at a time in tiles of positions (arXiv:2205.14135). A
// tile lies in shared memory in slabs of 64 columns, swizzled as gemm_tile.h says, zeros behind its last row and
// column; products are mma.sync of 16 by 8 by 16, summed in float32 in the tensor core's own way, and P and dS are
// rounded to bfloat16 to be factors of the next product.
//
// Keys come in blocks of 64 by their position, and what a query must not see adds exact zeros, so a query's result does
// not depend on the tile that it is in.
//
// The sizes follow from shared memory. A warp with r rows of one operand in registers reads 2 (D + V) bytes of each key
// and value for r (D + V) products: r / 2 a byte. An SM reads 128 bytes in the time of 2048 products, so 16 rows leave
// its tensor cores half idle at best, and 32 not. Forward has 32 where the sums of o and 64 scores a row find
// registers, V <= 128, and 16 above. The backward pass has 16, whose sums of dk and dv fill them; there a product of
// its own rows, which it reads once for each kChunk columns, is 8 kChunk / (16 + kChunk) a byte. dk, dv and dq together
// are 7 products for the 5 that one kernel would need: the two more are the price of sums in a fixed order without
// atomics.
#pragma once

#include "kernels/cuda/attention_heads.cuh"
#include "kernels/cuda/gemm_tile.h"
#include "kernels/cuda/ptx/copy_async.cuh"
#include "kernels/cuda/ptx/mma.cuh"

namespace octet::kernels::cuda {

inline constexpr int kTensorThreads = 128, kTensorWarps = kTensorThreads / kWarp;
inline constexpr float kLog2E = 0x1.715476p0f, kLn2 = 0x1.62e430p-1f;

__host__ __device__ constexpr uint32_t tile_bytes(int rows, int columns) {
  return uint32_t(rows) * kSwizzledRowBytes * uint32_t(ceil_div(columns, 64));
}

// A tile in shared memory: `rows` as declared, by columns rounded up to 16.
template <int rows>
struct SharedTile {
  uint32_t offset;  // in dynamic shared memory

  static __device__ __forceinline__ uint32_t place(int row, int column) {
    return uint32_t(column) / 64 * (uint32_t(rows) * kSwizzledRowBytes) +
           swizzled_offset(uint32_t(row), uint32_t(column) % 64 * 2);
  }
  // Rows first .. first + count - 1 of x, zeros behind them; the thread waits for its copies before a barrier.
  __device__ __forceinline__ void load(const HeadRows<bfloat16>& x, int64_t first, int count) const {
    const int thread = int(threadIdx.x), pieces = ceil_div(x.columns, 16) * 2;
    for (int row = thread / 8; row < rows; row += kTensorThreads / 8) {
      const bool has_row = row < count;
      const bfloat16* const from = x.data + (has_row ? first + row : 0) * x.row_stride;
      for (int piece = thread % 8; piece < pieces; piece += 8) {
        const uint32_t to = offset + place(row, piece * 8);
        const int left = x.columns - piece * 8;
        if (x.is_aligned) {
          const bool is_there = has_row && left > 0;
          ptx::copy_async(dynamic_shared_address() + to, from + (is_there ? piece * 8 : 0), is_there);
        } else {
          uint32_t words[4] = {};
          for (int i = 0; i < 8; ++i) {
            if (has_row && i < left) words[i / 2] |= uint32_t(from[piece * 8 + i].bits) << i % 2 * 16;
          }
          uint4 all;
          all.x = words[0], all.y = words[1], all.z = words[2], all.w = words[3];
          dynamic_shared<uint4>(to, 1)[0] = all;
        }
      }
    }
  }

  // 16 rows from `row` by 16 columns, as the left operand whose rows they are.
  __device__ __forceinline__ void left(uint32_t (&a)[4], int row, int column) const {
    const int lane = int(threadIdx.x) % kWarp;
    ptx::load_pieces(a, dynamic_shared_address() + offset + place(row + lane % 16, column + lane / 16 * 8));
  }
  // 16 rows by 16 columns as the right operand summed along the columns: rows 0-7 of them in b[0] and b[1].
  __device__ __forceinline__ void right(uint32_t (&b)[4], int row, int column) const {
    const int lane = int(threadIdx.x) % kWarp;
    ptx::load_pieces(
        b, dynamic_shared_address() + offset + place(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
  }
  // The same summed along the rows: columns 0-7 of them in b[0] and b[1].
  __device__ __forceinline__ void right_of_rows(uint32_t (&b)[4], int row, int column) const {
    const int lane = int(threadIdx.x) % kWarp;
    ptx::load_pieces_transposed(b, dynamic_shared_address() + offset + place(row + lane % 16, column + lane / 16 * 8));
  }
};

// Products of 16 columns of results as the left operand of the next.
__device__ __forceinline__ void round_left(uint32_t (&a)[4], const float (&low)[4], const float (&high)[4]) {
  a[0] = ptx::bf16x2_from_floats(low[0], low[1]), a[1] = ptx::bf16x2_from_floats(low[2], low[3]);
  a[2] = ptx::bf16x2_from_floats(high[0], high[1]), a[3] = ptx::bf16x2_from_floats(high[2], high[3]);
}

// Two neighbouring columns of a row of results.
__device__ __forceinline__ void store_pair(bfloat16* row, int column, int columns, float x, float y) {
  const uint32_t pair = ptx::bf16x2_from_floats(x, y);
  if (column + 1 < columns && reinterpret_cast<uintptr_t>(row + column) % 4 == 0) {
    store_words(row + column, pair);
    return;
  }
  if (column < columns) row[column].bits = uint16_t(pair);
  if (column + 1 < columns) row[column + 1].bits = uint16_t(pair >> 16);
}
// 16 rows of results that a warp holds, `count` of them there, times a factor.
template <int kPieces>
__device__ __forceinline__ void store_rows(bfloat16* first, int64_t row_stride, int count, int columns,
                                           const float (&x)[kPieces][4], const float (&factor)[2]) {
  const int lane = int(threadIdx.x) % kWarp;
  OCTET_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    if (row >= count) continue;
    OCTET_UNROLL
    for (int n = 0; n < kPieces; ++n) {
      store_pair(first + row * row_stride, 8 * n + lane % 4 * 2, columns, x[n][2 * half] * factor[half],
                 x[n][2 * half + 1] * factor[half]);
    }
  }
}

// kRowTiles: tiles of 16 queries that a warp has. kWidth: the columns of o that it has room for.
template <int kRowTiles, int kWidth>
struct TensorForward {
  static constexpr int kRows = 16 * kRowTiles, kQueries = kTensorWarps * kRows;
  static size_t shared_bytes(int head_dim, int value_dim) {
    return tile_bytes(kQueries, head_dim) + 2 * (tile_bytes(kKeyBlock, head_dim) + tile_bytes(kKeyBlock, value_dim));
  }
};

template <int kRowTiles, int kWidth>
__global__ void __launch_bounds__(kTensorThreads) tensor_forward_kernel(ForwardHeads<bfloat16> a) {
  using Form = TensorForward<kRowTiles, kWidth>;
  const HeadTile at = head_tile(a.heads, a.batch, /*last_first=*/true);
  const int first = int(at.tile) * Form::kQueries, position = int(a.keys - a.queries) + first;
  const int rows = int(a.queries - first < Form::kQueries ? a.queries - first : Form::kQueries);
  const int head_dim = a.q.columns, value_dim = a.v.columns;
  const HeadRows<bfloat16> q = a.q.at(at.sequence * a.queries, at.head);

  const SharedTile<Form::kQueries> q_tile{0};
  const uint32_t k_bytes = tile_bytes(kKeyBlock, head_dim), stage = k_bytes + tile_bytes(kKeyBlock, value_dim);
  const auto k_tile = [&](int block) {
    return SharedTile<kKeyBlock>{tile_bytes(Form::kQueries, head_dim) + uint32_t(block) % 2 * stage};
  };
  const auto v_tile = [&](int block) { return SharedTile<kKeyBlock>{k_tile(block).offset + k_bytes}; };
  const int num_keys = position + rows;
  const auto load_block = [&](int block) {
    const int key = block * kKeyBlock, count = num_keys - key < kKeyBlock ? num_keys - key : kKeyBlock;
    k_tile(block).load(a.k.at(at.sequence * a.keys, at.head / a.group), key, count);
    v_tile(block).load(a.v.at(at.sequence * a.keys, at.head / a.group), key, count);
  };

  const int lane = int(threadIdx.x) % kWarp, warp_row = int(threadIdx.x) / kWarp * Form::kRows;
  const float scale = a.scale * kLog2E;
  float o[kRowTiles][kWidth / 8][4] = {}, m[kRowTiles][2], l[kRowTiles][2] = {};
  OCTET_UNROLL
  for (int r = 0; r < kRowTiles; ++r) m[r][0] = m[r][1] = -kInfinity;
  q_tile.load(q, first, rows);
  load_block(0);
  ptx::commit_copies();
  const int num_blocks = ceil_div(num_keys, kKeyBlock);
  for (int block = 0; block < num_blocks; ++block) {
    ptx::wait_for_copies<0>();
    __syncthreads();  // this block is there, and the one before has been read
    if (block + 1 < num_blocks) load_block(block + 1);
    ptx::commit_copies();
    // How far the warp's first query is behind the block's first key; the block's size is far enough.
    const int distance = position + warp_row - block * kKeyBlock;
    const int behind = distance < kKeyBlock ? distance : kKeyBlock;
    if (warp_row >= rows || behind + Form::kRows <= 0) continue;

    float s[kRowTiles][kKeyBlock / 8][4] = {};
    for (int d = 0; d < head_dim; d += 16) {
      uint32_t left[kRowTiles][4];
      OCTET_UNROLL
      for (int r = 0; r < kRowTiles; ++r) q_tile.left(left[r], warp_row + 16 * r, d);
      OCTET_UNROLL
      for (int n = 0; n < kKeyBlock / 16; ++n) {
        uint32_t right[4];
        k_tile(block).right(right, 16 * n, d);
        OCTET_UNROLL
        for (int r = 0; r < kRowTiles; ++r) {
          ptx::mma_bf16(s[r][2 * n], left[r], right[0], right[1]);
          ptx::mma_bf16(s[r][2 * n + 1], left[r], right[2], right[3]);
        }
      }
    }
    OCTET_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      OCTET_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int limit = behind + 16 * r + 8 * half + lane / 4 - lane % 4 * 2;  // counted from this lane's first key
        float largest = m[r][half];
        OCTET_UNROLL
        for (int i = 0; i < kKeyBlock / 4; ++i) {
          float& x = s[r][i / 2][2 * half + i % 2];
          x = x * scale;
          if (behind < kKeyBlock && i / 2 * 8 + i % 2 > limit) x = -kInfinity;
          largest = fmaxf(largest, x);
        }
        largest = fmaxf(largest, shuffle_xor(largest, 1));
        largest = fmaxf(largest, shuffle_xor(largest, 2));
        const float decay = ptx::exp2_of(m[r][half] - largest);
        m[r][half] = largest;
        float sum = l[r][half] * decay;
        OCTET_UNROLL
        for (int i = 0; i < kKeyBlock / 4; ++i) {
          float& x = s[r][i / 2][2 * half + i % 2];
          x = ptx::exp2_of(x - largest);
          sum = sum + x;
        }
        l[r][half] = sum;
        OCTET_UNROLL
        for (int n = 0; n < kWidth / 8; ++n) {
          o[r][n][2 * half] = o[r][n][2 * half] * decay;
          o[r][n][2 * half + 1] = o[r][n][2 * half + 1] * decay;
        }
      }
    }
    OCTET_UNROLL
    for (int j = 0; j < kKeyBlock / 16; ++j) {
      uint32_t left[kRowTiles][4];
      OCTET_UNROLL
      for (int r = 0; r < kRowTiles; ++r) round_left(left[r], s[r][2 * j], s[r][2 * j + 1]);
      OCTET_UNROLL
      for (int n = 0; n < kWidth / 16; ++n) {
        if (16 * n >= value_dim) continue;
        uint32_t right[4];
        v_tile(block).right_of_rows(right, 16 * j, 16 * n);
        OCTET_UNROLL
        for (int r = 0; r < kRowTiles; ++r) {
          ptx::mma_bf16(o[r][2 * n], left[r], right[0], right[1]);
          ptx::mma_bf16(o[r][2 * n + 1], left[r], right[2], right[3]);
        }
      }
    }
  }

  const int64_t token = at.sequence * a.queries + first;
  OCTET_UNROLL
  for (int r = 0; r < kRowTiles; ++r) {
    const int row = warp_row + 16 * r;
    float inv_l[2];
    OCTET_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float sum = warp_sum<4>(l[r][half]);
      inv_l[half] = 1.0f / sum;
      const int of = row + 8 * half + lane / 4;
      if (a.lse != nullptr && lane % 4 == 0 && of < rows) {
        a.lse[(token + of) * a.lse_stride + at.head] = m[r][half] * kLn2 + log_of(sum);
      }
    }
    store_rows(a.o + (token + row) * a.o_stride + at.head * value_dim, a.o_stride, rows - row, value_dim, o[r], inv_l);
  }
}

// dk and dv of 64 keys, or dq of 64 queries, 16 rows to a warp. The block's own rows go through the tiles of rows that
// they meet: keys through the queries of each head of their group, queries through keys; S and dP are made with a row
// for each own row, so that P and dS are left operands as they are. kWidth: the columns of dk or dq that there is room
// for, 0: not made; kValueWidth: those of dv.
template <bool kOfKeys, int kWidth, int kValueWidth>
struct TensorBackward {
  static constexpr int kRows = 64;
  // Columns of S and dP at a time: what the sums leave room for.
  static constexpr int kSums = kWidth + kValueWidth, kChunk = kSums <= 128 ? 64 : kSums <= 256 ? 32 : 16;
  static constexpr uint32_t kStatBytes = 2 * kRows * sizeof(float);
  static size_t shared_bytes(int head_dim, int value_dim) {
    return 3 * (tile_bytes(kRows, head_dim) + tile_bytes(kRows, value_dim)) + 2 * kStatBytes;
  }
};

template <bool kOfKeys, int kWidth, int kValueWidth>
__global__ void __launch_bounds__(kTensorThreads) tensor_backward_kernel(BackwardHeads<bfloat16> a) {
  using Form = TensorBackward<kOfKeys, kWidth, kValueWidth>;
  constexpr int kRows = Form::kRows, kChunk = Form::kChunk;
  const int64_t group = kOfKeys ? a.group : 1;
  const HeadTile at = head_tile(kOfKeys ? a.heads / a.group : a.heads, a.batch, /*last_first=*/!kOfKeys);
  const int64_t start = at.sequence * a.S;
  const int own = int(at.tile), tiles = int(ceil_div<int64_t>(a.S, kRows));
  const int head_dim = a.q.columns, value_dim = a.v.columns;
  const auto count = [&](int tile) {
    return int(a.S - int64_t(tile) * kRows < kRows ? a.S - int64_t(tile) * kRows : kRows);
  };

  const uint32_t x_bytes = tile_bytes(kRows, head_dim), tile_pair = x_bytes + tile_bytes(kRows, value_dim);
  const SharedTile<kRows> own_x{0}, own_y{x_bytes};  // k and v, or q and grad_o
  const auto other_x = [&](int i) { return SharedTile<kRows>{tile_pair * (1 + uint32_t(i) % 2)}; };
  const auto other_y = [&](int i) { return SharedTile<kRows>{tile_pair * (1 + uint32_t(i) % 2) + x_bytes}; };
  const auto stats = [&](int i) {  // of 64 queries: lse in units of log 2, then delta
    return dynamic_shared<float>(3 * tile_pair + uint32_t(i) % 2 * Form::kStatBytes, 2 * kRows);
  };
  const float scale = a.scale * kLog2E;
  const auto lse_of = [&](int tile, int row, int64_t head) {
    const int64_t t = start + int64_t(tile) * kRows + row;
    return row < count(tile) ? a.lse[t * a.lse_stride + head] * kLog2E : 0.0f;
  };
  const auto delta_of = [&](int tile, int row, int64_t head) {
    const int64_t t = start + int64_t(tile) * kRows + row;
    return row < count(tile) ? a.delta[t * a.heads + head] : 0.0f;
  };

  const int per_head = kOfKeys ? tiles - own : own + 1, steps = per_head * int(group);
  const auto tile_of = [&](int i) { return (kOfKeys ? own : 0) + i % per_head; };
  const auto load_step = [&](int i) {
    const int tile = tile_of(i), rows = count(tile);
    const int64_t head = kOfKeys ? at.head * group + i / per_head : at.head / a.group, row = int64_t(tile) * kRows;
    other_x(i).load((kOfKeys ? a.q : a.k).at(start, head), row, rows);
    other_y(i).load((kOfKeys ? a.grad_o : a.v).at(start, head), row, rows);
    if (kOfKeys && threadIdx.x < kRows) {
      stats(i)[int(threadIdx.x)] = lse_of(tile, int(threadIdx.x), head);
      stats(i)[kRows + int(threadIdx.x)] = delta_of(tile, int(threadIdx.x), head);
    }
  };

  const int lane = int(threadIdx.x) % kWarp, warp_row = int(threadIdx.x) / kWarp * 16;
  float own_lse[2] = {}, own_delta[2] = {};
  if constexpr (!kOfKeys) {
    for (int half = 0; half < 2; ++half) {
      own_lse[half] = lse_of(own, warp_row + lane / 4 + 8 * half, at.head);
      own_delta[half] = delta_of(own, warp_row + lane / 4 + 8 * half, at.head);
    }
  }
  own_x.load((kOfKeys ? a.k : a.q).at(start, at.head), int64_t(own) * kRows, count(own));
  own_y.load((kOfKeys ? a.v : a.grad_o).at(start, at.head), int64_t(own) * kRows, count(own));
  load_step(0);
  ptx::commit_copies();
  float dx[kWidth / 8 + 1][4] = {}, dv[kValueWidth / 8 + 1][4] = {};
  for (int i = 0; i < steps; ++i) {
    ptx::wait_for_copies<0>();
    __syncthreads();  // this step's tiles are there, and those of the step before have been read
    if (i + 1 < steps) load_step(i + 1);
    ptx::commit_copies();
    const bool is_diagonal = tile_of(i) == own;
    for (int chunk = 0; chunk < kRows; chunk += kChunk) {
      float s[kChunk / 8][4] = {}, dp[kChunk / 8][4] = {};
      const auto multiply = [&](float(&sum)[kChunk / 8][4], const SharedTile<kRows>& mine,
                                const SharedTile<kRows>& others, int columns) {
        for (int d = 0; d < columns; d += 16) {
          uint32_t left[4];
          mine.left(left, warp_row, d);
          OCTET_UNROLL
          for (int n = 0; n < kChunk / 16; ++n) {
            uint32_t right[4];
            others.right(right, chunk + 16 * n, d);
            ptx::mma_bf16(sum[2 * n], left, right[0], right[1]);
            ptx::mma_bf16(sum[2 * n + 1], left, right[2], right[3]);
          }
        }
      };
      multiply(s, own_x, other_x(i), head_dim);
      if constexpr (kWidth > 0) multiply(dp, own_y, other_y(i), value_dim);
      OCTET_UNROLL
      for (int n = 0; n < kChunk / 8; ++n) {
        OCTET_UNROLL
        for (int e = 0; e < 4; ++e) {
          const int row = warp_row + lane / 4 + e / 2 * 8, column = chunk + 8 * n + lane % 4 * 2 + e % 2;
          const bool is_seen = !is_diagonal || (kOfKeys ? row <= column : column <= row);
          const float lse = kOfKeys ? float(stats(i)[column]) : own_lse[e / 2];
          const float p = is_seen ? ptx::exp2_of(s[n][e] * scale - lse) : 0.0f;
          s[n][e] = p;
          if constexpr (kWidth > 0) {
            const float delta = kOfKeys ? float(stats(i)[kRows + column]) : own_delta[e / 2];
            dp[n][e] = is_seen ? p * (dp[n][e] - delta) : 0.0f;
          }
        }
      }
      OCTET_UNROLL
      for (int j = 0; j < kChunk / 16; ++j) {
        uint32_t left[4], right[4];
        if constexpr (kValueWidth > 0) {
          round_left(left, s[2 * j], s[2 * j + 1]);
          OCTET_UNROLL
          for (int n = 0; n < kValueWidth / 16; ++n) {
            if (16 * n >= value_dim) continue;
            other_y(i).right_of_rows(right, chunk + 16 * j, 16 * n);
            ptx::mma_bf16(dv[2 * n], left, right[0], right[1]);
            ptx::mma_bf16(dv[2 * n + 1], left, right[2], right[3]);
          }
        }
        if constexpr (kWidth > 0) {
          round_left(left, dp[2 * j], dp[2 * j + 1]);
          OCTET_UNROLL
          for (int n = 0; n < kWidth / 16; ++n) {
            if (16 * n >= head_dim) continue;
            other_x(i).right_of_rows(right, chunk + 16 * j, 16 * n);
            ptx::mma_bf16(dx[2 * n], left, right[0], right[1]);
            ptx::mma_bf16(dx[2 * n + 1], left, right[2], right[3]);
          }
        }
      }
    }
  }
  const int64_t token = start + int64_t(own) * kRows + warp_row;
  const int rows = count(own) - warp_row;
  if constexpr (kWidth > 0) {
    const int64_t stride = kOfKeys ? a.dk_stride : a.dq_stride;
    store_rows((kOfKeys ? a.dk : a.dq) + token * stride + at.head * head_dim, stride, rows, head_dim, dx,
               {a.scale, a.scale});
  }
  if constexpr (kValueWidth > 0) {
    store_rows(a.dv + token * a.dv_stride + at.head * value_dim, a.dv_stride, rows, value_dim, dv, {1.0f, 1.0f});
  }
}

}  // namespace octet::kernels::cuda
