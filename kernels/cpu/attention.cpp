#include "kernels/attention.h"

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"
//
#include "kernels/cpu/exp_simd.inc"

// Keys come in blocks of kKeys by their position in the sequence, and all arithmetic of a query is a chain over those
// blocks and over the elements inside them, whatever other queries are computed beside it: that is why decoding one
// token gives the bits of the forward pass, and why the tile sizes below change nothing but speed.
constexpr int kKeys = 64, kKeyVectors = kKeys / 16;
constexpr int64_t kQueries = 256;  // queries of one head that share a packed block of keys
#if OCTET_ISA_LEVEL == 1
constexpr int kTile = 6;  // rows in registers: 12 sums of 8 lanes, a row of the other matrix and a broadcast fill 16
#else
constexpr int kTile = 8;  // 8 sums hide the latency of two fused multiply-adds a cycle
#endif

OCTET_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// tile.operator()<rows>(first) for consecutive tiles of kTile rows and one of 4 or 1 behind them. The last may reach
// beyond n: few rows take as long as some more, waiting for their own sums.
template <class Tile>
OCTET_INLINE void for_tiles(int64_t n, Tile&& tile) {
  int64_t r = 0;
  for (; r + 4 < n; r += kTile) tile.template operator()<kTile>(r);
  if (r + 1 == n) {
    tile.template operator()<1>(r);
  } else if (r < n) {
    tile.template operator()<4>(r);
  }
}

// sums[r] += a[r, k] * b[k, :] for k = 0 .. n - 1 in order; a[r, k] at r * a_row + k * a_k, b[k, :] at k * b_k.
template <int kRows>
OCTET_INLINE void multiply_add(f32x16 (&sums)[kRows], const float* a, int64_t a_row, int64_t a_k, const float* b,
                               int64_t b_k, int64_t n) {
  for (int64_t k = 0; k < n; ++k) {
    const f32x16 row = load(b + k * b_k);
    for_constants<kRows>([&](auto r)
                             OCTET_INLINE_LAMBDA { sums[r] = fma(splat(a[r * a_row + k * a_k]), row, sums[r]); });
  }
}

// The rows of one head lie too far apart for the processor to foresee: each is asked for this many rows before its
// turn. Behind the last one lies the next block, or what a prefetch may ask for in vain.
constexpr int64_t kRowsAhead = 20;

// to[r, :] = x[r, :] in float32 with zeros up to the row length `to_cols`, a multiple of 16.
template <class Scalar>
static void pack_rows(const Scalar* x, int64_t x_row, int64_t rows, int64_t cols, float* to, int64_t to_cols) {
  for (int64_t r = 0; r < rows; ++r) {
    for_lanes(cols, [&](int64_t c, auto lanes) {
      __builtin_prefetch(x + (r + kRowsAhead) * x_row + c);
      store(to + r * to_cols + c, lanes.load(x + r * x_row + c));
    });
  }
}
// to[c, r] = x[r, c] for r < kKeys, zeros from `rows` to the next multiple of 16 and for columns beyond `cols`.
template <class Scalar>
static void pack_transposed(const Scalar* x, int64_t x_row, int64_t rows, int64_t cols, float* to) {
  for (int64_t r = 0; r < rows; r += 16) {
    for_lanes(cols, [&](int64_t c, auto lanes) {
      f32x16 square[16];
      for_constants<16>([&](auto i) OCTET_INLINE_LAMBDA {
        __builtin_prefetch(x + (r + i + kRowsAhead) * x_row + c);
        square[i] = r + i < rows ? lanes.load(x + (r + i) * x_row + c) : splat(0.0f);
      });
      transpose(square);
      for_constants<16>([&](auto i) OCTET_INLINE_LAMBDA { store(to + (c + i) * kKeys + r, square[i]); });
    });
  }
}

// rows[r] = value in the lanes behind limit + r.
template <int kRows>
OCTET_INLINE void replace_later(f32x16 (&rows)[kRows], int64_t limit, f32x16 value) {
  if (limit >= 15) return;
  for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA {
    rows[r] = select(greater_i32(lane_numbers(), splat_i32(int32_t(limit + r))), value, rows[r]);
  });
}

// `sizes` floats each, one after the other at multiples of 64 bytes, in memory that the thread keeps.
template <size_t n>
static std::array<float*, n> workspace(const std::array<int64_t, n>& sizes) {
  static thread_local std::vector<float> memory;
  int64_t total = 16;
  for (const int64_t size : sizes) total += round_up(size, 16);
  if (int64_t(memory.size()) < total) memory.resize(size_t(total));
  std::array<float*, n> parts;
  float* next = memory.data();
  next += (64 - reinterpret_cast<uintptr_t>(next) % 64) % 64 / sizeof(float);
  for (size_t i = 0; i < n; ++i) {
    parts[i] = next;
    next += round_up(sizes[i], 16);
  }
  return parts;
}

// Consecutive queries of one head, and the keys and values of the sequence they belong to.
template <class Scalar>
struct Attend {
  const Scalar *q, *k, *v;  // q at the first query, k and v at position 0
  int64_t q_row, k_row, v_row;
  int64_t rows, first_position;
  int64_t head_dim, value_dim;
  float scale;
  Scalar* o;
  int64_t o_row;
  float* lse;  // null: not wanted
  int64_t lse_row;
};

// Scores of one tile of queries with one block of keys, -infinity where a key is not seen, and the largest of each row.
// Row r sees the keys 0 .. first_limit + r of the block, first_limit >= 0; vectors of keys that no row sees are left
// out.
template <int kRows>
OCTET_INLINE void score_tile(const float* q, int64_t D, int64_t head_dim, const float* k_t, float scale,
                             int64_t first_limit, float* p, float* largest) {
  const f32x16 lowest = splat(-std::numeric_limits<float>::infinity());
  const int64_t vectors = std::min<int64_t>(first_limit + kRows - 1, kKeys - 1) / 16 + 1;
  f32x16 rows[kRows];
  for (int64_t c = 0; c < vectors; ++c) {
    for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA { rows[r] = splat(0.0f); });
    multiply_add(rows, q, D, 1, k_t + 16 * c, kKeys, head_dim);
    for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA { rows[r] *= splat(scale); });
    replace_later(rows, first_limit - 16 * c, lowest);
    for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA { store(p + r * kKeys + 16 * c, rows[r]); });
  }
  for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA { rows[r] = lowest; });
  for (int64_t c = 0; c < vectors; ++c) {
    for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA { rows[r] = max(load(p + r * kKeys + 16 * c), rows[r]); });
  }
  for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA { largest[r] = reduce_max(rows[r]); });
}

// o[r, :] = decay[r] * o[r, :] + sum over j of p[r, j] * v[j, :]: first the keys that all rows see, then those of the
// later rows only. A value that a row must not see is never touched, not even multiplied by 0.
template <int kRows>
OCTET_INLINE void weigh_tile(const float* p, const float* decay, const float* v, int64_t V, int64_t first_limit,
                             float* o) {
  const int64_t shared = std::min<int64_t>(first_limit + 1, kKeys), later = kKeys - shared;
  for (int64_t c = 0; c < V; c += 16) {
    f32x16 sums[kRows];
    for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA { sums[r] = load(o + r * V + c) * splat(decay[r]); });
    multiply_add(sums, p, kKeys, 1, v + c, V, shared);
    for_constants<kRows - 1>([&](auto i) OCTET_INLINE_LAMBDA {
      if (i >= later) return;
      const f32x16 row = load(v + (shared + i) * V + c);
      for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA {
        if constexpr (r > i) sums[r] = fma(splat(p[r * kKeys + shared + i]), row, sums[r]);
      });
    });
    for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA { store(o + r * V + c, sums[r]); });
  }
}

// Up to kGroup queries against one block of keys: scores, their softmax so far, and the sums weighted with it. Row r
// sees the keys 0 .. first_limit + r of the block, first_limit >= 0. Each step waits for the one before: two tiles at
// a time wait half as often.
constexpr int kGroup = 2 * kTile;
static void attend_group(int64_t rows, const float* q, int64_t D, int64_t head_dim, const float* k_t, const float* v,
                         int64_t V, float scale, int64_t first_limit, float* m, float* l, float* o) {
  alignas(64) float p[kGroup * kKeys], largest[16], decay[16], sums[16];
  for_tiles(rows, [&]<int kRows>(int64_t r) OCTET_INLINE_LAMBDA {
    score_tile<kRows>(q + r * D, D, head_dim, k_t, scale, first_limit + r, p + r * kKeys, largest + r);
  });
  const mask16 in_group = greater_i32(splat_i32(int32_t(rows)), lane_numbers());
  const f32x16 old_m = load(m), old_l = load(l);
  const f32x16 new_m = select(in_group, max(load(largest), old_m), old_m);
  store(m, new_m);
  store(decay, exp(old_m - new_m));
  for (int64_t r = 0; r < rows; r += 2) {
    const int64_t next = std::min(r + 1, rows - 1);  // the same row twice where one is left
    const int64_t vectors = std::min<int64_t>(first_limit + next, kKeys - 1) / 16 + 1;
    f32x16 sum[2] = {splat(0.0f), splat(0.0f)};
    for (int64_t c = 0; c < vectors; ++c) {
      float *at = p + r * kKeys + 16 * c, *at_next = p + next * kKeys + 16 * c;
      f32x16 x[2] = {load(at) - splat(m[r]), load(at_next) - splat(m[next])};
      exp_to_88(x);
      store(at, x[0]), store(at_next, x[1]);
      sum[0] += x[0], sum[1] += x[1];
    }
    sums[r] = reduce_add(sum[0]), sums[next] = reduce_add(sum[1]);
  }
  store(l, select(in_group, old_l * load(decay) + load(sums), old_l));
  for_tiles(rows, [&]<int kRows>(int64_t r) OCTET_INLINE_LAMBDA {
    weigh_tile<kRows>(p + r * kKeys, decay + r, v, V, first_limit + r, o + r * V);
  });
}

template <class Scalar>
static void attend(const Attend<Scalar>& a) {
  const int64_t D = round_up(a.head_dim, 16), V = round_up(a.value_dim, 16);
  const std::array<float*, 6> parts =
      workspace<6>({(a.rows + kTile) * D, (a.rows + kTile) * V, D * kKeys, V * kKeys, a.rows + 16, a.rows + 16});
  float *q = parts[0], *o = parts[1], *k_t = parts[2], *v = parts[3], *m = parts[4], *l = parts[5];
  pack_rows(a.q, a.q_row, a.rows, a.head_dim, q, D);
  std::fill_n(o, a.rows * V, 0.0f);
  std::fill_n(m, a.rows, -std::numeric_limits<float>::infinity());
  std::fill_n(l, a.rows, 0.0f);
  const int64_t last_position = a.first_position + a.rows - 1;
  for (int64_t key = 0; key <= last_position; key += kKeys) {
    const int64_t keys = std::min<int64_t>(kKeys, last_position + 1 - key);
    pack_transposed(a.k + key * a.k_row, a.k_row, keys, a.head_dim, k_t);
    pack_rows(a.v + key * a.v_row, a.v_row, keys, a.value_dim, v, V);
    const int64_t first = std::max<int64_t>(0, key - a.first_position);  // rows before it see no key of this block
    for (int64_t row = first; row < a.rows; row += kGroup) {
      attend_group(std::min<int64_t>(kGroup, a.rows - row), q + row * D, D, a.head_dim, k_t, v, V, a.scale,
                   a.first_position + row - key, m + row, l + row, o + row * V);
    }
  }
  for (int64_t r = 0; r < a.rows; ++r) {
    const f32x16 inv_l = splat(1.0f / l[r]);
    for_lanes(a.value_dim,
              [&](int64_t c, auto lanes) { lanes.store(a.o + r * a.o_row + c, load(o + r * V + c) * inv_l); });
  }
  if (a.lse == nullptr) return;
  for (int64_t r = 0; r < a.rows; r += 16) {
    float lanes[16];
    store(lanes, load(m + r) + log(load(l + r)));
    for (int64_t i = 0; i < std::min<int64_t>(16, a.rows - r); ++i) a.lse[(r + i) * a.lse_row] = lanes[i];
  }
}

void attention_forward(const AttentionForward& args, Stream& stream) {
  visit_float(args.q.dtype(), [&]<class Scalar>() {
    const int64_t T = args.q.rows(), H = args.num_heads, group = H / args.num_kv_heads;
    if (T == 0) return;
    const int64_t S = T / args.batch, chunks = (S + kQueries - 1) / kQueries;
    const int64_t head_dim = args.q.cols() / H, value_dim = args.o.cols() / H;
    stream.parallel_for(args.batch * H * chunks, [&](int64_t item) {
      // The last queries of a sequence take longest: they come first.
      const int64_t chunk = chunks - 1 - item / (args.batch * H), b = item / H % args.batch, h = item % H;
      const int64_t first = chunk * kQueries, t = b * S + first;
      attend<Scalar>({.q = args.q.row<Scalar>(t) + h * head_dim,
                      .k = args.k.row<Scalar>(b * S) + h / group * head_dim,
                      .v = args.v.row<Scalar>(b * S) + h / group * value_dim,
                      .q_row = args.q.row_stride(),
                      .k_row = args.k.row_stride(),
                      .v_row = args.v.row_stride(),
                      .rows = std::min(kQueries, S - first),
                      .first_position = first,
                      .head_dim = head_dim,
                      .value_dim = value_dim,
                      .scale = args.scale,
                      .o = args.o.row<Scalar>(t) + h * value_dim,
                      .o_row = args.o.row_stride(),
                      .lse = args.lse.row<float>(t) + h,
                      .lse_row = args.lse.row_stride()});
    });
  });
}

void attention_decode(const AttentionDecode& args, Stream& stream) {
  visit_float(args.q.dtype(), [&]<class Scalar>() {
    const int64_t N = args.q.rows(), H = args.num_heads, group = H / args.num_kv_heads;
    const int64_t chunks = (N + kQueries - 1) / kQueries;
    const int64_t head_dim = args.q.cols() / H, value_dim = args.o.cols() / H;
    stream.parallel_for(H * chunks, [&](int64_t item) {
      const int64_t chunk = chunks - 1 - item / H, h = item % H, n = chunk * kQueries;
      attend<Scalar>({.q = args.q.row<Scalar>(n) + h * head_dim,
                      .k = args.k_cache.data<Scalar>() + h / group * head_dim,
                      .v = args.v_cache.data<Scalar>() + h / group * value_dim,
                      .q_row = args.q.row_stride(),
                      .k_row = args.k_cache.row_stride(),
                      .v_row = args.v_cache.row_stride(),
                      .rows = std::min(kQueries, N - n),
                      .first_position = args.length - N + n,
                      .head_dim = head_dim,
                      .value_dim = value_dim,
                      .scale = args.scale,
                      .o = args.o.row<Scalar>(n) + h * value_dim,
                      .o_row = args.o.row_stride(),
                      .lse = nullptr,
                      .lse_row = 0});
    });
  });
}

// One key-value head of one sequence. Every matrix is float32 with rows of D or V numbers.
struct Gradients {
  int64_t S, D, V;              // D and V: head_dim and value_dim rounded up to 16
  int64_t head_dim, value_dim;  // as they are
  float scale;
  const float *q, *grad_o;   // [S, D], [S, V] of one query head
  const float *lse, *delta;  // [S]; delta[i] = grad_o[i] . o[i]
  float *dq, *dk, *dv;       // added to; dk and dv have S rounded up to kKeys rows
  float *k_t, *v_t, *k;      // [D, kKeys], [V, kKeys], [kKeys, D]: one block of keys
  float *p, *ds;             // [kKeys queries, kKeys keys]
};

// p and ds of one tile of queries, row r of which sees the keys 0 .. first_limit + r of the block; zeros elsewhere.
template <int kRows>
OCTET_INLINE void gradient_tile(const Gradients& g, int64_t query, int64_t row, int64_t first_limit) {
  float *p = g.p + row * kKeys, *ds = g.ds + row * kKeys;
  for (int64_t c = 0; c < kKeyVectors; ++c, p += 16, ds += 16) {
    if (first_limit + kRows - 1 < 16 * c) {
      for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA {
        store(p + r * kKeys, splat(0.0f));
        store(ds + r * kKeys, splat(0.0f));
      });
      continue;
    }
    f32x16 sums[kRows];
    for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA { sums[r] = splat(0.0f); });
    multiply_add(sums, g.q + query * g.D, g.D, 1, g.k_t + 16 * c, kKeys, g.head_dim);
    for_constants<(kRows + 1) / 2>([&](auto pair) OCTET_INLINE_LAMBDA {
      constexpr int r = 2 * pair, next = std::min(r + 1, kRows - 1);
      f32x16 x[2] = {sums[r] * splat(g.scale) - splat(g.lse[query + r]),
                     sums[next] * splat(g.scale) - splat(g.lse[query + next])};
      exp_to_88(x);  // beyond 88 is a later key at most
      sums[r] = x[0], sums[next] = x[1];
    });
    replace_later(sums, first_limit - 16 * c, splat(0.0f));
    for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA {
      store(p + r * kKeys, sums[r]);
      sums[r] = splat(0.0f);
    });
    multiply_add(sums, g.grad_o + query * g.V, g.V, 1, g.v_t + 16 * c, kKeys, g.value_dim);
    for_constants<kRows>(
        [&](auto r) OCTET_INLINE_LAMBDA { sums[r] = load(p + r * kKeys) * (sums[r] - splat(g.delta[query + r])); });
    replace_later(sums, first_limit - 16 * c, splat(0.0f));
    for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA { store(ds + r * kKeys, sums[r]); });
  }
}

// to[r, :] += sum over k of a[r, k] b[k, :], all columns of one tile of rows.
template <int kRows>
OCTET_INLINE void add_product(float* to, int64_t cols, const float* a, int64_t a_row, int64_t a_k, const float* b,
                              int64_t n) {
  for (int64_t c = 0; c < cols; c += 16) {
    f32x16 sums[kRows];
    for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA { sums[r] = load(to + r * cols + c); });
    multiply_add(sums, a, a_row, a_k, b + c, cols, n);
    for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA { store(to + r * cols + c, sums[r]); });
  }
}

// The queries from `query` on, at most kKeys of them, against the packed block of keys that begins at `key`.
static void add_gradients(const Gradients& g, int64_t query, int64_t key) {
  const int64_t rows = std::min<int64_t>(kKeys, g.S - query);
  const bool diagonal = query == key;
  for_tiles(rows, [&]<int kRows>(int64_t r) OCTET_INLINE_LAMBDA {
    gradient_tile<kRows>(g, query + r, r, query + r - key);
    const int64_t keys = diagonal ? std::min<int64_t>(r + kRows, rows) : kKeys;
    add_product<kRows>(g.dq + (query + r) * g.D, g.D, g.ds + r * kKeys, kKeys, 1, g.k, keys);
  });
  // A key is seen by the queries from its own position on.
  for_tiles(kKeys, [&]<int kRows>(int64_t j) OCTET_INLINE_LAMBDA {
    const int64_t from = diagonal ? std::min(j, rows) : 0;
    add_product<kRows>(g.dv + (key + j) * g.V, g.V, g.p + from * kKeys + j, 1, kKeys, g.grad_o + (query + from) * g.V,
                       rows - from);
    add_product<kRows>(g.dk + (key + j) * g.D, g.D, g.ds + from * kKeys + j, 1, kKeys, g.q + (query + from) * g.D,
                       rows - from);
  });
}

// x[r, :] = factor * from[r, :], in the storage type.
template <class Scalar>
static void unpack_rows(const float* from, int64_t from_cols, float factor, Scalar* x, int64_t x_row, int64_t rows,
                        int64_t cols) {
  for (int64_t r = 0; r < rows; ++r) {
    for_lanes(cols, [&](int64_t c, auto lanes) {
      __builtin_prefetch(x + (r + kRowsAhead) * x_row + c);
      lanes.store(x + r * x_row + c, load(from + r * from_cols + c) * splat(factor));
    });
  }
}

void attention_backward(const AttentionBackward& args, Stream& stream) {
  visit_float(args.q.dtype(), [&]<class Scalar>() {
    const int64_t T = args.q.rows(), H = args.num_heads, group = H / args.num_kv_heads;
    if (T == 0) return;
    const int64_t S = T / args.batch, padded_S = round_up(S, kKeys);
    const int64_t head_dim = args.q.cols() / H, value_dim = args.o.cols() / H;
    const int64_t D = round_up(head_dim, 16), V = round_up(value_dim, 16);
    stream.parallel_for(args.batch * args.num_kv_heads, [&](int64_t item) {
      const int64_t t = item / args.num_kv_heads * S, kv_head = item % args.num_kv_heads;
      const std::array<float*, 12> parts = workspace<12>(
          {(S + kTile) * D, (S + kTile) * V, S + kTile, S + kTile, (S + kTile) * D, padded_S * D, padded_S * V,
           D * kKeys, V * kKeys, kKeys * D, kKeys * (kKeys + kTile), kKeys * (kKeys + kTile)});
      float *q = parts[0], *grad_o = parts[1], *lse = parts[2], *delta = parts[3];
      const Gradients g{.S = S,
                        .D = D,
                        .V = V,
                        .head_dim = head_dim,
                        .value_dim = value_dim,
                        .scale = args.scale,
                        .q = q,
                        .grad_o = grad_o,
                        .lse = lse,
                        .delta = delta,
                        .dq = parts[4],
                        .dk = parts[5],
                        .dv = parts[6],
                        .k_t = parts[7],
                        .v_t = parts[8],
                        .k = parts[9],
                        .p = parts[10],
                        .ds = parts[11]};
      std::fill_n(g.dk, padded_S * D, 0.0f);
      std::fill_n(g.dv, padded_S * V, 0.0f);
      const Scalar* k = args.k.row<Scalar>(t) + kv_head * head_dim;
      const Scalar* v = args.v.row<Scalar>(t) + kv_head * value_dim;
      for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        pack_rows(args.q.row<Scalar>(t) + h * head_dim, args.q.row_stride(), S, head_dim, q, D);
        pack_rows(args.grad_o.row<Scalar>(t) + h * value_dim, args.grad_o.row_stride(), S, value_dim, grad_o, V);
        for (int64_t i = 0; i < S; ++i) {
          const Scalar* o = args.o.row<Scalar>(t + i) + h * value_dim;
          f32x16 dot = splat(0.0f);
          for_lanes(value_dim,
                    [&](int64_t c, auto lanes) { dot = fma(load(grad_o + i * V + c), lanes.load(o + c), dot); });
          delta[i] = reduce_add(dot);
          lse[i] = args.lse.row<float>(t + i)[h];
        }
        std::fill_n(g.dq, S * D, 0.0f);
        for (int64_t key = 0; key < S; key += kKeys) {
          const int64_t keys = std::min<int64_t>(kKeys, S - key);
          pack_transposed(k + key * args.k.row_stride(), args.k.row_stride(), keys, head_dim, g.k_t);
          pack_transposed(v + key * args.v.row_stride(), args.v.row_stride(), keys, value_dim, g.v_t);
          pack_rows(k + key * args.k.row_stride(), args.k.row_stride(), keys, head_dim, g.k, D);
          for (int64_t query = key; query < S; query += kKeys) add_gradients(g, query, key);
        }
        unpack_rows(g.dq, D, args.scale, args.dq.row<Scalar>(t) + h * head_dim, args.dq.row_stride(), S, head_dim);
      }
      unpack_rows(g.dk, D, args.scale, args.dk.row<Scalar>(t) + kv_head * head_dim, args.dk.row_stride(), S, head_dim);
      unpack_rows(g.dv, V, 1.0f, args.dv.row<Scalar>(t) + kv_head * value_dim, args.dv.row_stride(), S, value_dim);
    });
  });
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(attention_forward, AttentionForward)
OCTET_CPU_KERNEL(attention_backward, AttentionBackward)
OCTET_CPU_KERNEL(attention_decode, AttentionDecode)
