// Attention with one float32 accumulator for each sum, in the order of the CPU's contract, so with its bits: the form
// of float32, and of heads wider than the tensor cores' form takes. A block of 256 threads has 64 by 64 scores, 4 by 4
// for each thread, and 64 columns of the result; wider results have the scores computed anew for each 64 of their
// columns.
#pragma once

#include "kernels/cuda/attention_heads.cuh"

namespace octet::kernels::cuda {

inline constexpr int kPlainThreads = 256, kPlainSide = 4;
inline constexpr int kPlainDepth = 16;    // of a head's columns at a time
inline constexpr int kPlainColumns = 64;  // of a result

// Where the 4 by 4 numbers of this thread begin in a tile of 64 by 64.
__device__ __forceinline__ int plain_row() { return int(threadIdx.x) / 16 * kPlainSide; }
__device__ __forceinline__ int plain_column() { return int(threadIdx.x) % 16 * kPlainSide; }

// sum[i][j] = a[i, :] . b[j, :] for this thread's rows of a and of b, the columns in order; zeros behind the last rows.
template <class Scalar>
__device__ __forceinline__ void row_products(float (&sum)[kPlainSide][kPlainSide], const HeadRows<Scalar>& a,
                                             int a_rows, const HeadRows<Scalar>& b, int b_rows) {
  OCTET_SHARED(float, a_part, kPlainDepth* kKeyBlock);
  OCTET_SHARED(float, b_part, kPlainDepth* kKeyBlock);
  for (int i = 0; i < kPlainSide; ++i) {
    for (int j = 0; j < kPlainSide; ++j) sum[i][j] = 0.0f;
  }
  for (int d0 = 0; d0 < a.columns; d0 += kPlainDepth) {
    __syncthreads();  // the last parts have been read
    const int n = a.columns - d0 < kPlainDepth ? a.columns - d0 : kPlainDepth;
    for (int x = int(threadIdx.x); x < kPlainDepth * kKeyBlock; x += kPlainThreads) {
      const int row = x / kPlainDepth, d = x % kPlainDepth;
      a_part[d * kKeyBlock + row] = row < a_rows && d < n ? to_float(a.data[row * a.row_stride + d0 + d]) : 0.0f;
      b_part[d * kKeyBlock + row] = row < b_rows && d < n ? to_float(b.data[row * b.row_stride + d0 + d]) : 0.0f;
    }
    __syncthreads();
    for (int d = 0; d < n; ++d) {
      float x[kPlainSide], y[kPlainSide];
      for (int i = 0; i < kPlainSide; ++i)
        x[i] = a_part[d * kKeyBlock + plain_row() + i], y[i] = b_part[d * kKeyBlock + plain_column() + i];
      for (int i = 0; i < kPlainSide; ++i) {
        for (int j = 0; j < kPlainSide; ++j) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
      }
    }
  }
}

// sum[i][j] += p[i, r] x[r, j] over the rows r of x in order, of those that each row i of p sees: all up to limit[i]
// if is_until, and all from limit[i] on if not. Others are never touched, not even multiplied by 0. p: [64, 64]; x: 64
// columns from `column` on.
template <bool is_until, class Scalar>
__device__ __forceinline__ void add_weighted_rows(float (&sum)[kPlainSide][kPlainSide], const Shared<float>& p,
                                                  const HeadRows<Scalar>& x, int rows, int column,
                                                  const int (&limit)[kPlainSide]) {
  OCTET_SHARED(float, x_part, kPlainDepth* kPlainColumns);
  for (int r0 = 0; r0 < rows; r0 += kPlainDepth) {
    __syncthreads();  // p has been written, the last part read
    const int n = rows - r0 < kPlainDepth ? rows - r0 : kPlainDepth;
    for (int i = int(threadIdx.x); i < kPlainDepth * kPlainColumns; i += kPlainThreads) {
      const int r = i / kPlainColumns, c = column + i % kPlainColumns;
      x_part[i] = r < n && c < x.columns ? to_float(x.data[(r0 + r) * x.row_stride + c]) : 0.0f;
    }
    __syncthreads();
    for (int r = 0; r < n; ++r) {
      float y[kPlainSide];
      for (int j = 0; j < kPlainSide; ++j) y[j] = x_part[r * kPlainColumns + plain_column() + j];
      for (int i = 0; i < kPlainSide; ++i) {
        if (is_until ? r0 + r > limit[i] : r0 + r < limit[i]) continue;
        const float weight = p[(plain_row() + i) * kKeyBlock + r0 + r];
        for (int j = 0; j < kPlainSide; ++j) sum[i][j] = fmaf(weight, y[j], sum[i][j]);
      }
    }
  }
}

template <class Scalar>
__global__ void __launch_bounds__(kPlainThreads) plain_forward_kernel(ForwardHeads<Scalar> a) {
  OCTET_SHARED(float, p, kKeyBlock* kKeyBlock);
  OCTET_SHARED(float, m_of_rows, kKeyBlock);
  OCTET_SHARED(float, l_of_rows, kKeyBlock);
  OCTET_SHARED(float, decay_of_rows, kKeyBlock);
  const HeadTile at = head_tile(a.heads, a.batch, /*last_first=*/true);
  const int column = int(blockIdx.y) * kPlainColumns;
  const int64_t first = at.tile * kKeyBlock, position = a.keys - a.queries + first;
  const int rows = int(a.queries - first < kKeyBlock ? a.queries - first : kKeyBlock);
  const HeadRows<Scalar> q = a.q.at(at.sequence * a.queries + first, at.head);
  const int row = plain_row();
  // The four threads that take the softmax of a row have every fourth of its keys.
  const int own_row = int(threadIdx.x) / 4, own_key = int(threadIdx.x) % 4;
  float o[kPlainSide][kPlainSide] = {}, m = -kInfinity, l = 0.0f;
  for (int64_t key = 0; key < position + rows; key += kKeyBlock) {
    const int64_t left = position + rows - key, before = position - key;
    const int keys = int(left < kKeyBlock ? left : kKeyBlock);
    float s[kPlainSide][kPlainSide];
    row_products(s, q, rows, a.k.at(at.sequence * a.keys + key, at.head / a.group), keys);
    int limit[kPlainSide];
    for (int i = 0; i < kPlainSide; ++i) {
      limit[i] = int(before + row + i < kKeyBlock ? before + row + i : kKeyBlock - 1);
      for (int j = 0; j < kPlainSide; ++j) p[(row + i) * kKeyBlock + plain_column() + j] = s[i][j] * a.scale;
    }
    __syncthreads();
    const int64_t own_limit = before + own_row;
    float largest = -kInfinity;
    for (int k = own_key; k < kKeyBlock; k += 4) {
      const float x = p[own_row * kKeyBlock + k];
      if (k <= own_limit && !(x < largest)) largest = x;
    }
    largest = warp_max<4>(largest);
    const float old_m = m;
    m = largest > old_m ? largest : old_m;
    const float decay = exp_of(old_m - m);
    // Key i goes to lane i mod 16, the lanes' sums are added as a tree.
    float lanes[4];
    for (int i = 0; i < 4; ++i) {
      lanes[i] = 0.0f;
      for (int k = own_key + 4 * i; k < kKeyBlock; k += 16) {
        const float e = k <= own_limit ? exp_of(p[own_row * kKeyBlock + k] - m) : 0.0f;
        p[own_row * kKeyBlock + k] = e;
        lanes[i] = lanes[i] + e;
      }
    }
    l = l * decay + warp_sum<4>((lanes[0] + lanes[2]) + (lanes[1] + lanes[3]));
    if (own_key == 0) decay_of_rows[own_row] = decay;
    __syncthreads();
    for (int i = 0; i < kPlainSide; ++i) {
      const float by = decay_of_rows[row + i];
      for (int j = 0; j < kPlainSide; ++j) o[i][j] = o[i][j] * by;
    }
    add_weighted_rows<true>(o, p, a.v.at(at.sequence * a.keys + key, at.head / a.group), keys, column, limit);
    __syncthreads();  // p and decay have been read
  }
  if (own_key == 0) m_of_rows[own_row] = m, l_of_rows[own_row] = l;
  __syncthreads();
  const int64_t token = at.sequence * a.queries + first;
  for (int i = 0; i < kPlainSide; ++i) {
    if (row + i >= rows) continue;
    const float inv_l = 1.0f / l_of_rows[row + i];
    for (int j = 0; j < kPlainSide; ++j) {
      const int c = column + plain_column() + j;
      if (c < a.v.columns) {
        a.o[(token + row + i) * a.o_stride + at.head * a.v.columns + c] = from_float<Scalar>(o[i][j] * inv_l);
      }
    }
    if (a.lse != nullptr && plain_column() == 0 && column == 0) {
      a.lse[(token + row + i) * a.lse_stride + at.head] = m_of_rows[row + i] + log_of(l_of_rows[row + i]);
    }
  }
}

// delta[i] = grad_o[i] . o[i] of each head, sixteen threads to one: element d goes to lane d mod 16, the lanes' sums
// are added as a tree.
template <class Scalar>
__global__ void __launch_bounds__(kPlainThreads)
    attention_delta_kernel(HeadRows<Scalar> grad_o, HeadRows<Scalar> o, float* delta, int64_t T, int64_t heads) {
  const int64_t item = (int64_t(blockIdx.x) * kPlainThreads + threadIdx.x) / 16;
  const bool is_there = item < T * heads;
  const int64_t t = is_there ? item / heads : 0, h = is_there ? item % heads : 0;
  const HeadRows<Scalar> x = grad_o.at(t, h), y = o.at(t, h);
  float dot = 0.0f;
  for (int d = int(threadIdx.x) % 16; is_there && d < x.columns; d += 16) {
    dot = fmaf(to_float(x.data[d]), to_float(y.data[d]), dot);
  }
  dot = warp_sum<16>(dot);
  if (is_there && threadIdx.x % 16 == 0) delta[item] = dot;
}

// One of the three gradients. A block has 64 of its rows and goes through the blocks of rows that these meet: queries
// through keys, keys through the queries of each head of their group.
enum class Gradient { kQueries, kKeys, kValues };
template <Gradient gradient, class Scalar>
__global__ void __launch_bounds__(kPlainThreads) plain_backward_kernel(BackwardHeads<Scalar> a) {
  constexpr bool kOfQueries = gradient == Gradient::kQueries, kOfValues = gradient == Gradient::kValues;
  OCTET_SHARED(float, weights, kKeyBlock* kKeyBlock);  // p or ds, a row for each of the block's rows
  OCTET_SHARED(float, lse_of_queries, kKeyBlock);
  OCTET_SHARED(float, delta_of_queries, kKeyBlock);
  const int64_t group = kOfQueries ? 1 : a.group;
  const HeadTile at = head_tile(kOfQueries ? a.heads : a.heads / a.group, a.batch, /*last_first=*/kOfQueries);
  const int column = int(blockIdx.y) * kPlainColumns, row = plain_row(), other = plain_column();
  const int64_t first = at.tile * kKeyBlock, start = at.sequence * a.S;
  const auto count = [&](int64_t from) { return int(a.S - from < kKeyBlock ? a.S - from : kKeyBlock); };
  float sum[kPlainSide][kPlainSide] = {};
  for (int64_t h = at.head * group; h < (at.head + 1) * group; ++h) {
    const HeadRows<Scalar> q = a.q.at(start, h), grad_o = a.grad_o.at(start, h);
    const HeadRows<Scalar> k = a.k.at(start, h / a.group), v = a.v.at(start, h / a.group);
    for (int64_t from = kOfQueries ? 0 : first; kOfQueries ? from <= first : from < a.S; from += kKeyBlock) {
      const int64_t query = kOfQueries ? first : from, key = kOfQueries ? from : first;
      __syncthreads();  // the last weights, lse and delta have been read
      if (threadIdx.x < kKeyBlock) {
        const int i = int(threadIdx.x);
        const bool is_there = i < count(query);
        const int64_t t = start + query + i;
        lse_of_queries[i] = is_there ? a.lse[t * a.lse_stride + h] : 0.0f;
        delta_of_queries[i] = is_there ? a.delta[t * a.heads + h] : 0.0f;
      }
      const HeadRows<Scalar> queries = q.at(query, 0), keys = k.at(key, 0);
      const HeadRows<Scalar> grads = grad_o.at(query, 0), values = v.at(key, 0);
      float s[kPlainSide][kPlainSide], dp[kPlainSide][kPlainSide];
      row_products(s, kOfQueries ? queries : keys, count(first), kOfQueries ? keys : queries, count(from));
      if (!kOfValues) {
        row_products(dp, kOfQueries ? grads : values, count(first), kOfQueries ? values : grads, count(from));
      }
      for (int i = 0; i < kPlainSide; ++i) {
        for (int j = 0; j < kPlainSide; ++j) {
          const int r = kOfQueries ? row + i : other + j;  // of the query
          const float p = exp_of(s[i][j] * a.scale - lse_of_queries[r]);
          weights[(row + i) * kKeyBlock + other + j] = kOfValues ? p : p * (dp[i][j] - delta_of_queries[r]);
        }
      }
      int limit[kPlainSide];
      for (int i = 0; i < kPlainSide; ++i) {
        const bool is_diagonal = query == key;
        limit[i] = is_diagonal ? row + i : kOfQueries ? kKeyBlock - 1 : 0;
      }
      const HeadRows<Scalar>& x = kOfValues ? grads : kOfQueries ? keys : queries;
      add_weighted_rows<kOfQueries>(sum, weights, x, count(from), column, limit);
    }
  }
  const int columns = kOfValues ? a.v.columns : a.q.columns;
  Scalar* const to = kOfValues ? a.dv : kOfQueries ? a.dq : a.dk;
  const int64_t stride = kOfValues ? a.dv_stride : kOfQueries ? a.dq_stride : a.dk_stride;
  const float factor = kOfValues ? 1.0f : a.scale;
  for (int i = 0; i < kPlainSide; ++i) {
    for (int j = 0; j < kPlainSide; ++j) {
      const int c = column + other + j;
      if (row + i >= count(first) || c >= columns) continue;
      to[(start + first + row + i) * stride + at.head * columns + c] = from_float<Scalar>(sum[i][j] * factor);
    }
  }
}

}  // namespace octet::kernels::cuda
