#include "kernels/attention.h"

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"
//
#include "kernels/cpu/exp_simd.inc"
#include "kernels/cpu/fp8_simd.inc"

// Keys come in blocks of kKeys by their position in the sequence, and all arithmetic of a query is a chain over those
// blocks and over the elements inside them, whatever other queries are computed beside it: that is why decoding one
// token gives the bits of the forward pass, and why the tile sizes below change nothing but speed.
constexpr int kKeys = 64;
constexpr int64_t kQueries = 256;  // queries of one head that share a packed block of keys
// Rows and vectors of the sums in registers.
#if OCTET_ISA_LEVEL == 1
constexpr int kTile = 6, kVectors = 1;  // 12 sums of 8 lanes, a line of the other matrix and a broadcast fill 16
#else
constexpr int kTile = 8, kVectors = 2;  // each operand that is loaded serves two sums or more
#endif
constexpr bool kTopInRegisters = OCTET_ISA_LEVEL == 2;  // the largest score of each row as well

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

// body.operator()<n>(c) for vectors c .. c + n - 1 of `vectors`.
template <class Body>
OCTET_INLINE void for_vectors(int64_t vectors, Body&& body) {
  int64_t c = 0;
  for (; c + kVectors <= vectors; c += kVectors) body.template operator()<kVectors>(c);
  if constexpr (kVectors == 2) {
    if (c < vectors) body.template operator()<1>(c);
  }
}

// The two forms of products. Their operands lie in words along the axis that is summed. Singles are float32 numbers,
// multiplied and added in order. Pairs are bfloat16, and an odd number of them has a zero behind it: of two neighbours
// the odd one is added first, as dot_pair does it with both in one word. Without dot_pair a word is one number, as
// float32, and subnormals are flushed.
struct Singles {
  static constexpr bool kPaired = false;
  static constexpr int64_t kElements = 1;  // in one word
  static constexpr bool kOddFirst = false;
};
struct Pairs {
  static constexpr bool kPaired = true;
  static constexpr int64_t kElements = OCTET_ISA_LEVEL == 2 ? 2 : 1;
  static constexpr bool kOddFirst = kElements == 1;  // of two words
};
// Elements in sixteen words.
template <class Words>
constexpr int64_t kUnit = 16 * Words::kElements;

// Sixteen words of the n elements at p, zeros behind the last.
template <class Words, class Scalar>
OCTET_INLINE f32x16 load_words(const Scalar* p, int64_t n) {
  if constexpr (Words::kElements == 1) {
    return n >= 16 ? load(p) : load_first(p, n);
  } else {
    if (n >= 32) return load(reinterpret_cast<const float*>(p));
    bfloat16 part[32] = {};
    std::memcpy(static_cast<void*>(part), p, size_t(n) * sizeof(bfloat16));
    return load(reinterpret_cast<const float*>(part));
  }
}

// sum + a * b of words.
template <class Words>
OCTET_INLINE f32x16 multiply_add(f32x16 a, f32x16 b, f32x16 sum) {
#if OCTET_ISA_LEVEL == 2
  if constexpr (Words::kPaired) return dot_pair(sum, bits(a), bits(b));
#endif
  return fma(a, b, sum);
}
// sums[v][r] += a[r] * b[16 v ...] for rows from kFirst on and one word; that of row r is at r * a_row.
template <class Words, int kFirst, int vectors, int kRows>
OCTET_INLINE void add_word(f32x16 (&sums)[vectors][kRows], const float* a, int64_t a_row, const float* b) {
  f32x16 line[vectors];
  for_constants<vectors>([&](auto v) OCTET_INLINE_LAMBDA { line[v] = load(b + 16 * v); });
  for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA {
    if constexpr (r >= kFirst) {
      const f32x16 word = splat(a[r * a_row]);
      for_constants<vectors>([&](auto v)
                                 OCTET_INLINE_LAMBDA { sums[v][r] = multiply_add<Words>(word, line[v], sums[v][r]); });
    }
  });
}
// sums[v][r] += a[r, k] * b[k, 16 v ...] for k = 0 .. n - 1; word w of a at r * a_row + w * a_word, of b at w * b_word.
template <class Words, int vectors, int kRows>
OCTET_INLINE void add_products(f32x16 (&sums)[vectors][kRows], const float* a, int64_t a_row, int64_t a_word,
                               const float* b, int64_t b_word, int64_t n) {
  const int64_t words = Words::kPaired ? (n + 1) / 2 * (2 / Words::kElements) : n;
  for (int64_t i = 0; i < words; ++i) {
    const int64_t w = Words::kOddFirst ? i ^ 1 : i;  // two steps written out, GCC would spill sums
    add_word<Words, 0>(sums, a + w * a_word, a_row, b + w * b_word);
  }
}
// sums[v][row] += a * b[16 v ...] for a pair whose odd a is 0, whatever its odd b.
template <int row, int vectors, int kRows>
OCTET_INLINE void add_even(f32x16 (&sums)[vectors][kRows], const float* a, const float* b) {
  for_constants<vectors>([&](auto v) OCTET_INLINE_LAMBDA {
    f32x16& sum = sums[v][row];
#if OCTET_ISA_LEVEL == 2
    sum = dot_pair(sum, bits(splat(*a)), bits(load(b + 16 * v)) & splat_i32(0xffff));
#else
    sum = fma(splat(*a), load(b + 16 * v), sum + splat(0.0f));
#endif
  });
}

// x rounded to bfloat16 where words are pairs.
template <class Words>
OCTET_INLINE f32x16 as_factor(f32x16 x) {
  if constexpr (!Words::kPaired) return x;
  return from_bits(rounded_in_high_halves(x) & splat_i32(int32_t(0xffff0000u)));
}
// Factors to the words of a row, from consecutive vectors of it.
template <class Words, int n>
OCTET_INLINE void store_factors(float* to, const f32x16* x) {
#if OCTET_ISA_LEVEL == 2
  if constexpr (Words::kPaired) {
    store(to, from_bits(round_to_pairs(x[0], n == 2 ? x[n - 1] : splat(0.0f))));
    return;
  }
#endif
  for_constants<n>([&](auto v) OCTET_INLINE_LAMBDA { store(to + 16 * v, as_factor<Words>(x[v])); });
}

// The rows of one head lie too far apart for the processor to foresee: each is asked for this many rows before its
// turn. Behind the last one lies the next block, or what a prefetch may ask for in vain.
constexpr int64_t kRowsAhead = 20;

// to[r, :] = the words of x[r, :].
template <class Words, class Scalar>
static void pack_rows(const Scalar* x, int64_t x_row, int64_t rows, int64_t cols, float* to, int64_t to_row) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; c += kUnit<Words>) {
      __builtin_prefetch(x + (r + kRowsAhead) * x_row + c);
      store(to + r * to_row + c / Words::kElements, load_words<Words>(x + r * x_row + c, cols - c));
    }
  }
}
// to[w, r] = word w of x[r, :] for r < kKeys, zeros from `rows` to the next multiple of 16.
template <class Words, class Scalar>
static void pack_transposed(const Scalar* x, int64_t x_row, int64_t rows, int64_t cols, float* to) {
  for (int64_t r = 0; r < rows; r += 16) {
    for (int64_t c = 0; c < cols; c += kUnit<Words>) {
      f32x16 square[16];
      for_constants<16>([&](auto i) OCTET_INLINE_LAMBDA {
        __builtin_prefetch(x + (r + i + kRowsAhead) * x_row + c);
        square[i] = r + i < rows ? load_words<Words>(x + (r + i) * x_row + c, cols - c) : splat(0.0f);
      });
      transpose(square);
      float* line = to + c / Words::kElements * kKeys + r;
      for_constants<16>([&](auto i) OCTET_INLINE_LAMBDA { store(line + i * kKeys, square[i]); });
    }
  }
}
// to[w, c] = word w of the column x[:, c]; to_row is a multiple of 16.
template <class Words, class Scalar>
static void pack_columns(const Scalar* x, int64_t x_row, int64_t rows, int64_t cols, float* to, int64_t to_row) {
#if OCTET_ISA_LEVEL == 2
  if constexpr (Words::kPaired) {
    for (int64_t r = 0; r < rows; r += 2) {
      for (int64_t c = 0; c < cols; c += 32) {
        __builtin_prefetch(x + (r + kRowsAhead) * x_row + c);
        __builtin_prefetch(x + (r + 1 + kRowsAhead) * x_row + c);
        const i32x16 even = bits(load_words<Words>(x + r * x_row + c, cols - c));
        const i32x16 odd = r + 1 < rows ? bits(load_words<Words>(x + (r + 1) * x_row + c, cols - c)) : splat_i32(0);
        store(to + r / 2 * to_row + c, from_bits(first_pairs(even, odd)));
        if (c + 16 < to_row) store(to + r / 2 * to_row + c + 16, from_bits(last_pairs(even, odd)));
      }
    }
    return;
  }
#endif
  pack_rows<Words>(x, x_row, rows, cols, to, to_row);
  if (Words::kPaired && rows % 2 == 1) std::fill_n(to + rows * to_row, to_row, 0.0f);
}

// rows[r] = value in the lanes behind limit + r.
template <int kRows>
OCTET_INLINE void replace_later(f32x16 (&rows)[kRows], int64_t limit, f32x16 value) {
  if (limit >= 15) return;
  for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA {
    rows[r] = select(greater_i32(lane_numbers(), splat_i32(int32_t(limit + r))), value, rows[r]);
  });
}

// body(v, r) for each of the sums[v][r].
template <int vectors, int kRows, class Body>
OCTET_INLINE void each_sum(const f32x16 (&)[vectors][kRows], Body&& body) {
  for_constants<vectors>(
      [&](auto v) OCTET_INLINE_LAMBDA { for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA { body(v, r); }); });
}
// Vectors of a block of keys that hold those up to `limit`.
OCTET_INLINE int64_t vectors_seen(int64_t limit) { return std::min<int64_t>(limit, kKeys - 1) / 16 + 1; }

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
template <class Words, int kRows>
OCTET_INLINE void score_tile(const float* q, int64_t q_row, int64_t head_dim, const float* k_t, float scale,
                             int64_t first_limit, float* scores, float* largest) {
  const f32x16 lowest = splat(-std::numeric_limits<float>::infinity());
  const int64_t vectors = vectors_seen(first_limit + kRows - 1);
  f32x16 top[kRows];
  if constexpr (kTopInRegisters) for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA { top[r] = lowest; });
  for_vectors(vectors, [&]<int n>(int64_t c) OCTET_INLINE_LAMBDA {
    f32x16 sums[n][kRows];
    each_sum(sums, [&](auto v, auto r) OCTET_INLINE_LAMBDA { sums[v][r] = splat(0.0f); });
    add_products<Words>(sums, q, q_row, 1, k_t + 16 * c, kKeys, head_dim);
    each_sum(sums, [&](auto v, auto r) OCTET_INLINE_LAMBDA { sums[v][r] *= splat(scale); });
    for_constants<n>([&](auto v) OCTET_INLINE_LAMBDA { replace_later(sums[v], first_limit - 16 * (c + v), lowest); });
    each_sum(sums, [&](auto v, auto r) OCTET_INLINE_LAMBDA {
      store(scores + r * kKeys + 16 * (c + v), sums[v][r]);
      if constexpr (kTopInRegisters) top[r] = max(sums[v][r], top[r]);
    });
  });
  if constexpr (!kTopInRegisters) {
    for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA { top[r] = lowest; });
    for (int64_t c = 0; c < vectors; ++c) {
      for_constants<kRows>([&](auto r)
                               OCTET_INLINE_LAMBDA { top[r] = max(load(scores + r * kKeys + 16 * c), top[r]); });
    }
  }
  for_constants<kRows>([&](auto r) OCTET_INLINE_LAMBDA { largest[r] = reduce_max(top[r]); });
}

// o[r, :] = decay[r] * o[r, :] + sum over j of p[r, j] * v[j, :]: first the keys that all rows see, then those of the
// later rows only. A value that a row must not see is never touched, not even multiplied by 0.
template <class Words, int kRows>
OCTET_INLINE void weigh_tile(const float* p, const float* decay, const float* v, int64_t V, int64_t first_limit,
                             float* o) {
  for_vectors(V / 16, [&]<int n>(int64_t c) OCTET_INLINE_LAMBDA {
    f32x16 sums[n][kRows];
    each_sum(sums, [&](auto i, auto r)
                       OCTET_INLINE_LAMBDA { sums[i][r] = load(o + r * V + 16 * (c + i)) * splat(decay[r]); });
    const auto word = [&]<int kFirst>(int64_t w)
                          OCTET_INLINE_LAMBDA { add_word<Words, kFirst>(sums, p + w, kKeys, v + w * V + 16 * c); };
    if constexpr (Words::kPaired) {
      const int64_t shared = std::min<int64_t>((first_limit + 1) / 2 * 2, kKeys);
      add_products<Words>(sums, p, kKeys, 1, v + 16 * c, V, shared);
      // Pair i begins with the last key of one row: 2 i, or 2 i + 1.
      const auto pairs = [&]<int kOdd>() OCTET_INLINE_LAMBDA {
        for_constants<(kRows + 1 - kOdd) / 2>([&](auto i) OCTET_INLINE_LAMBDA {
          constexpr int row = 2 * i + kOdd;
          if (shared + 2 * i >= kKeys) return;
          const int64_t w = (shared + 2 * i) / Words::kElements;
          add_even<row>(sums, p + row * kKeys + w, v + w * V + 16 * c);
          if constexpr (Words::kOddFirst) word.template operator()<row + 1>(w + 1);
          word.template operator()<row + 1>(w);
        });
      };
      if (first_limit % 2 == 0) {
        pairs.template operator()<0>();
      } else {
        pairs.template operator()<1>();
      }
    } else {
      const int64_t shared = std::min<int64_t>(first_limit + 1, kKeys);
      add_products<Words>(sums, p, kKeys, 1, v + 16 * c, V, shared);
      for_constants<kRows - 1>([&](auto i) OCTET_INLINE_LAMBDA {
        if (shared + i < kKeys) word.template operator()<i + 1>(shared + i);
      });
    }
    each_sum(sums, [&](auto i, auto r) OCTET_INLINE_LAMBDA { store(o + r * V + 16 * (c + i), sums[i][r]); });
  });
}

// Up to kGroup queries against one block of keys: scores, their softmax so far, and the sums weighted with it. Row r
// sees the keys 0 .. first_limit + r of the block, first_limit >= 0. Each step waits for the one before: two tiles at
// a time wait half as often.
constexpr int kGroup = 2 * kTile;
template <class Words>
static void attend_group(int64_t rows, const float* q, int64_t q_row, int64_t head_dim, const float* k_t,
                         const float* v, int64_t V, float scale, int64_t first_limit, float* m, float* l, float* o) {
  alignas(64) float p[kGroup * kKeys], largest[16], decay[16], sums[16];
  for_tiles(rows, [&]<int kRows>(int64_t r) OCTET_INLINE_LAMBDA {
    score_tile<Words, kRows>(q + r * q_row, q_row, head_dim, k_t, scale, first_limit + r, p + r * kKeys, largest + r);
  });
  const mask16 in_group = greater_i32(splat_i32(int32_t(rows)), lane_numbers());
  const f32x16 old_m = load(m), old_l = load(l);
  const f32x16 new_m = select(in_group, max(load(largest), old_m), old_m);
  store(m, new_m);
  store(decay, exp(old_m - new_m));
  for (int64_t r = 0; r < rows; r += 2) {
    const int64_t next = std::min(r + 1, rows - 1);  // the same row twice where one is left
    f32x16 sum[2] = {splat(0.0f), splat(0.0f)};
    for_vectors(vectors_seen(first_limit + next), [&]<int n>(int64_t c) OCTET_INLINE_LAMBDA {
      f32x16 x[2 * n];
      for_constants<n>([&](auto i) OCTET_INLINE_LAMBDA {
        x[i] = load(p + r * kKeys + 16 * (c + i)) - splat(m[r]);
        x[n + i] = load(p + next * kKeys + 16 * (c + i)) - splat(m[next]);
      });
      exp_to_88<2 * n, /*kAbove87=*/false, Words::kPaired>(x);
      for_constants<n>([&](auto i) OCTET_INLINE_LAMBDA { sum[0] += x[i], sum[1] += x[n + i]; });
      // The words of a row lie where its scores have been read already.
      store_factors<Words, n>(p + r * kKeys + 16 * c / Words::kElements, x);
      store_factors<Words, n>(p + next * kKeys + 16 * c / Words::kElements, x + n);
    });
    sums[r] = reduce_add(sum[0]), sums[next] = reduce_add(sum[1]);
  }
  store(l, select(in_group, old_l * load(decay) + load(sums), old_l));
  for_tiles(rows, [&]<int kRows>(int64_t r) OCTET_INLINE_LAMBDA {
    weigh_tile<Words, kRows>(p + r * kKeys, decay + r, v, V, first_limit + r, o + r * V);
  });
}

template <class Words, class Scalar>
static void attend(const Attend<Scalar>& a) {
  const int64_t D = round_up(a.head_dim, kUnit<Words>) / Words::kElements, V = round_up(a.value_dim, 16);
  const std::array<float*, 6> parts =
      workspace<6>({(a.rows + kTile) * D, (a.rows + kTile) * V, D * kKeys, V * kKeys, a.rows + 16, a.rows + 16});
  float *q = parts[0], *o = parts[1], *k_t = parts[2], *v = parts[3], *m = parts[4], *l = parts[5];
  pack_rows<Words>(a.q, a.q_row, a.rows, a.head_dim, q, D);
  std::fill_n(o, a.rows * V, 0.0f);
  std::fill_n(m, a.rows, -std::numeric_limits<float>::infinity());
  std::fill_n(l, a.rows, 0.0f);
  const int64_t last_position = a.first_position + a.rows - 1;
  for (int64_t key = 0; key <= last_position; key += kKeys) {
    const int64_t keys = std::min<int64_t>(kKeys, last_position + 1 - key);
    pack_transposed<Words>(a.k + key * a.k_row, a.k_row, keys, a.head_dim, k_t);
    pack_columns<Words>(a.v + key * a.v_row, a.v_row, keys, a.value_dim, v, V);
    const int64_t first = std::max<int64_t>(0, key - a.first_position);  // rows before it see no key of this block
    for (int64_t row = first; row < a.rows; row += kGroup) {
      attend_group<Words>(std::min<int64_t>(kGroup, a.rows - row), q + row * D, D, a.head_dim, k_t, v, V, a.scale,
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

// What holds while a form computes.
struct AsIs {};
template <class Words>
using Mode = std::conditional_t<Words::kPaired, FlushSubnormals, AsIs>;

// body.operator()<Scalar, Words>(): the storage type, and the form of the products.
template <class Body>
static void visit_forms(const ConstView& q, const ConstView& o, int64_t heads, Body&& body) {
  visit_float(q.dtype(), [&]<class Scalar>() {
    if constexpr (std::is_same_v<Scalar, bfloat16>) {
      if (rounds_factors(q, o, heads)) return body.template operator()<Scalar, Pairs>();
    }
    body.template operator()<Scalar, Singles>();
  });
}

void attention_forward(const AttentionForward& args, Stream& stream) {
  visit_forms(args.q, args.o, args.num_heads, [&]<class Scalar, class Words>() {
    const int64_t T = args.q.rows(), H = args.num_heads, group = H / args.num_kv_heads;
    if (T == 0) return;
    const int64_t S = T / args.batch, chunks = (S + kQueries - 1) / kQueries;
    const int64_t head_dim = args.q.cols() / H, value_dim = args.o.cols() / H;
    stream.parallel_for(args.batch * H * chunks, [&](int64_t item) {
      // Sequences one after the other, so that shares are of sequences, or of heads; of a head the last queries first,
      // which take longest.
      const int64_t chunk = chunks - 1 - item % chunks, h = item / chunks % H, b = item / chunks / H;
      const int64_t first = chunk * kQueries, t = b * S + first;
      [[maybe_unused]] const Mode<Words> mode;
      attend<Words, Scalar>({.q = args.q.row<Scalar>(t) + h * head_dim,
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
  visit_forms(args.q, args.o, args.num_heads, [&]<class Scalar, class Words>() {
    const int64_t N = args.q.rows(), H = args.num_heads, group = H / args.num_kv_heads;
    const int64_t chunks = (N + kQueries - 1) / kQueries;
    const int64_t head_dim = args.q.cols() / H, value_dim = args.o.cols() / H;
    stream.parallel_for(H * chunks, [&](int64_t item) {
      const int64_t chunk = chunks - 1 - item % chunks, h = item / chunks, n = chunk * kQueries;
      [[maybe_unused]] const Mode<Words> mode;
      attend<Words, Scalar>({.q = args.q.row<Scalar>(n) + h * head_dim,
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

// One key-value head of one sequence. D and V are head_dim and value_dim rounded up to 16. Rows of words have the
// lengths D_words and V_words. Columns of words have lines of D or V, and are the rows themselves where a word is one
// number.
struct Gradients {
  int64_t S, D, V, D_words, V_words;
  int64_t head_dim, value_dim;  // as they are
  float scale;
  const float *q, *grad_o;                  // [S, D_words], [S, V_words]: rows of words of one query head
  const float *q_columns, *grad_o_columns;  // [S / kElements, D], [S / kElements, V]: columns of words
  const float *lse, *delta;                 // [S]; delta[i] = grad_o[i] . o[i]
  float *dq, *dk, *dv;                      // added to; dk and dv have S rounded up to kKeys rows
  float *k_t, *v_t, *k;                     // [D_words, kKeys], [V_words, kKeys], [kKeys / kElements, D]: one block
  // Words of [kKeys queries, kKeys keys]: columns of p, rows and columns of ds.
  float *p, *ds, *ds_columns;
};

// Factors x[v][r], of rows `row` and on at vectors c and on of one block, to columns of words and, if it is not null,
// to rows of words. `row` is even.
template <class Words, int n, int kRows>
OCTET_INLINE void store_factors(float* columns, [[maybe_unused]] float* rows, int64_t row, int64_t c,
                                const f32x16 (&x)[n][kRows]) {
#if OCTET_ISA_LEVEL == 2
  if constexpr (Words::kPaired) {
    const auto pairs = [&](int r)
                           OCTET_INLINE_LAMBDA { return round_to_pairs(x[0][r], n == 2 ? x[n - 1][r] : splat(0.0f)); };
    for_constants<kRows / 2>([&](auto i) OCTET_INLINE_LAMBDA {
      const i32x16 even = pairs(2 * i), odd = pairs(2 * i + 1);
      float* line = columns + (row / 2 + i) * kKeys + 16 * c;
      store(line, from_bits(first_pairs(even, odd)));
      if constexpr (n == 2) store(line + 16, from_bits(last_pairs(even, odd)));
      if (rows == nullptr) return;
      store(rows + (row + 2 * i) * (kKeys / 2) + 8 * c, from_bits(even));
      store(rows + (row + 2 * i + 1) * (kKeys / 2) + 8 * c, from_bits(odd));
    });
    return;
  }
#endif
  each_sum(x, [&](auto v, auto r) OCTET_INLINE_LAMBDA {
    store(columns + (row + r) * kKeys + 16 * (c + v), as_factor<Words>(x[v][r]));
  });
}

// p and ds of one tile of queries, row r of which sees the keys 0 .. first_limit + r of the block; 0 for other keys of
// the vectors that hold those.
template <class Words, int kRows>
OCTET_INLINE void gradient_tile(const Gradients& g, int64_t query, int64_t row, int64_t first_limit) {
  for_vectors(vectors_seen(first_limit + kRows - 1), [&]<int n>(int64_t c) OCTET_INLINE_LAMBDA {
    alignas(64) float p[n][kRows][16];
    f32x16 sums[n][kRows];
    const auto clear = [&] OCTET_INLINE_LAMBDA {
      each_sum(sums, [&](auto v, auto r) OCTET_INLINE_LAMBDA { sums[v][r] = splat(0.0f); });
    };
    const auto hide_later = [&] OCTET_INLINE_LAMBDA {
      for_constants<n>([&](auto v)
                           OCTET_INLINE_LAMBDA { replace_later(sums[v], first_limit - 16 * (c + v), splat(0.0f)); });
    };
    clear();
    add_products<Words>(sums, g.q + query * g.D_words, g.D_words, 1, g.k_t + 16 * c, kKeys, g.head_dim);
    for_constants<n>([&](auto v) OCTET_INLINE_LAMBDA {
      for_constants<kRows / 2>([&](auto pair) OCTET_INLINE_LAMBDA {
        constexpr int r = 2 * pair;
        f32x16 x[2] = {sums[v][r] * splat(g.scale) - splat(g.lse[query + r]),
                       sums[v][r + 1] * splat(g.scale) - splat(g.lse[query + r + 1])};
        exp_to_88<2, /*kAbove87=*/false, Words::kPaired>(x);  // beyond 88 is a later key at most
        sums[v][r] = x[0], sums[v][r + 1] = x[1];
      });
    });
    hide_later();
    each_sum(sums, [&](auto v, auto r) OCTET_INLINE_LAMBDA { store(p[v][r], sums[v][r]); });
    store_factors<Words>(g.p, nullptr, row, c, sums);
    clear();
    add_products<Words>(sums, g.grad_o + query * g.V_words, g.V_words, 1, g.v_t + 16 * c, kKeys, g.value_dim);
    each_sum(sums, [&](auto v, auto r)
                       OCTET_INLINE_LAMBDA { sums[v][r] = load(p[v][r]) * (sums[v][r] - splat(g.delta[query + r])); });
    hide_later();
    store_factors<Words>(g.ds_columns, g.ds, row, c, sums);
  });
}

// to[r, :] += sum over k of a[r, k] b[k, :], all columns of one tile of rows.
template <class Words, int kRows>
OCTET_INLINE void add_tile_product(float* to, int64_t cols, const float* a, int64_t a_row, int64_t a_word,
                                   const float* b, int64_t n) {
  for_vectors(cols / 16, [&]<int vectors>(int64_t c) OCTET_INLINE_LAMBDA {
    f32x16 sums[vectors][kRows];
    each_sum(sums, [&](auto v, auto r) OCTET_INLINE_LAMBDA { sums[v][r] = load(to + r * cols + 16 * (c + v)); });
    add_products<Words>(sums, a, a_row, a_word, b + 16 * c, cols, n);
    each_sum(sums, [&](auto v, auto r) OCTET_INLINE_LAMBDA { store(to + r * cols + 16 * (c + v), sums[v][r]); });
  });
}

// The queries from `query` on, at most kKeys of them, against the packed block of keys that begins at `key`.
template <class Words>
[[gnu::noinline]] static void add_gradients(const Gradients& g, int64_t query, int64_t key) {
  constexpr int64_t E = Words::kElements;
  const int64_t rows = std::min<int64_t>(kKeys, g.S - query);
  const bool diagonal = query == key;
  for_tiles(rows, [&]<int kTileRows>(int64_t r) OCTET_INLINE_LAMBDA {
    constexpr int kRows = std::max(kTileRows, 4);  // rows are stored in twos
    gradient_tile<Words, kRows>(g, query + r, r, query + r - key);
    const int64_t keys = diagonal ? std::min<int64_t>(r + kRows, rows) : kKeys;
    add_tile_product<Words, kRows>(g.dq + (query + r) * g.D, g.D, g.ds + r * kKeys / E, kKeys / E, 1, g.k, keys);
  });
  // A key is seen by the queries from its own position on.
  for_tiles(diagonal ? rows : kKeys, [&]<int kRows>(int64_t j) OCTET_INLINE_LAMBDA {
    const int64_t from = diagonal ? j : 0;
    add_tile_product<Words, kRows>(g.dv + (key + j) * g.V, g.V, g.p + from / E * kKeys + j, 1, kKeys,
                                   g.grad_o_columns + (query + from) / E * g.V, rows - from);
    add_tile_product<Words, kRows>(g.dk + (key + j) * g.D, g.D, g.ds_columns + from / E * kKeys + j, 1, kKeys,
                                   g.q_columns + (query + from) / E * g.D, rows - from);
  });
}

// x[r, :] = factor * from[r, :], in the storage type. A sum that was flushed is 0 or -0, by how many terms of 0 the
// tiles of an instruction set add to it: 0 of all.
template <class Words, class Scalar>
static void unpack_rows(const float* from, int64_t from_cols, float factor, Scalar* x, int64_t x_row, int64_t rows,
                        int64_t cols) {
  for (int64_t r = 0; r < rows; ++r) {
    for_lanes(cols, [&](int64_t c, auto lanes) {
      __builtin_prefetch(x + (r + kRowsAhead) * x_row + c);
      const f32x16 product = load(from + r * from_cols + c) * splat(factor);
      lanes.store(x + r * x_row + c, Words::kPaired ? product + splat(0.0f) : product);
    });
  }
}

void attention_backward(const AttentionBackward& args, Stream& stream) {
  visit_forms(args.q, args.o, args.num_heads, [&]<class Scalar, class Words>() {
    const int64_t T = args.q.rows(), H = args.num_heads, group = H / args.num_kv_heads;
    if (T == 0) return;
    const int64_t S = T / args.batch, padded_S = round_up(S, kKeys);
    const int64_t head_dim = args.q.cols() / H, value_dim = args.o.cols() / H;
    constexpr int64_t E = Words::kElements;
    const int64_t D = round_up(head_dim, 16), V = round_up(value_dim, 16);
    const int64_t D_words = round_up(D, kUnit<Words>) / E, V_words = round_up(V, kUnit<Words>) / E;
    stream.parallel_for(args.batch * args.num_kv_heads, [&](int64_t item) {
      [[maybe_unused]] const Mode<Words> mode;
      const int64_t t = item / args.num_kv_heads * S, kv_head = item % args.num_kv_heads;
      const int64_t queries = S + kTile, columns = E == 1 ? 0 : queries / E, block = kKeys * (kKeys + kTile);
      const std::array<float*, 15> parts = workspace<15>(
          {queries * D_words, queries * V_words, columns * D, columns * V, queries, queries, queries * D, padded_S * D,
           padded_S * V, D_words * kKeys, V_words * kKeys, kKeys * D, block, block, E == 1 ? 0 : block});
      float *q = parts[0], *grad_o = parts[1], *lse = parts[4], *delta = parts[5];
      const Gradients g{.S = S,
                        .D = D,
                        .V = V,
                        .D_words = D_words,
                        .V_words = V_words,
                        .head_dim = head_dim,
                        .value_dim = value_dim,
                        .scale = args.scale,
                        .q = q,
                        .grad_o = grad_o,
                        .q_columns = E == 1 ? q : parts[2],
                        .grad_o_columns = E == 1 ? grad_o : parts[3],
                        .lse = lse,
                        .delta = delta,
                        .dq = parts[6],
                        .dk = parts[7],
                        .dv = parts[8],
                        .k_t = parts[9],
                        .v_t = parts[10],
                        .k = parts[11],
                        .p = parts[12],
                        .ds = parts[13],
                        .ds_columns = E == 1 ? parts[13] : parts[14]};
      std::fill_n(g.dk, padded_S * D, 0.0f);
      std::fill_n(g.dv, padded_S * V, 0.0f);
      // Behind the last query come some that see nothing: p and ds are 0.
      std::fill_n(q + S * D_words, kTile * D_words, 0.0f);
      std::fill_n(grad_o + S * V_words, kTile * V_words, 0.0f);
      std::fill_n(lse + S, kTile, std::numeric_limits<float>::infinity());
      std::fill_n(delta + S, kTile, 0.0f);
      const Scalar* k = args.k.row<Scalar>(t) + kv_head * head_dim;
      const Scalar* v = args.v.row<Scalar>(t) + kv_head * value_dim;
      for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        const Scalar* q_rows = args.q.row<Scalar>(t) + h * head_dim;
        pack_rows<Words>(q_rows, args.q.row_stride(), S, head_dim, q, D_words);
        const Scalar* grad_o_rows = args.grad_o.row<Scalar>(t) + h * value_dim;
        pack_rows<Words>(grad_o_rows, args.grad_o.row_stride(), S, value_dim, grad_o, V_words);
        if constexpr (E != 1) {
          pack_columns<Words>(q_rows, args.q.row_stride(), S, head_dim, parts[2], D);
          pack_columns<Words>(grad_o_rows, args.grad_o.row_stride(), S, value_dim, parts[3], V);
        }
        for (int64_t i = 0; i < S; ++i) {
          const Scalar* o = args.o.row<Scalar>(t + i) + h * value_dim;
          const Scalar* grad = grad_o_rows + i * args.grad_o.row_stride();
          f32x16 dot = splat(0.0f);
          for_lanes(value_dim, [&](int64_t c, auto lanes) { dot = fma(lanes.load(grad + c), lanes.load(o + c), dot); });
          delta[i] = reduce_add(dot);
          lse[i] = args.lse.row<float>(t + i)[h];
        }
        std::fill_n(g.dq, S * D, 0.0f);
        for (int64_t key = 0; key < S; key += kKeys) {
          const int64_t keys = std::min<int64_t>(kKeys, S - key);
          pack_transposed<Words>(k + key * args.k.row_stride(), args.k.row_stride(), keys, head_dim, g.k_t);
          pack_transposed<Words>(v + key * args.v.row_stride(), args.v.row_stride(), keys, value_dim, g.v_t);
          pack_columns<Words>(k + key * args.k.row_stride(), args.k.row_stride(), keys, head_dim, g.k, D);
          for (int64_t query = key; query < S; query += kKeys) add_gradients<Words>(g, query, key);
        }
        unpack_rows<Words>(g.dq, D, args.scale, args.dq.row<Scalar>(t) + h * head_dim, args.dq.row_stride(), S,
                           head_dim);
      }
      unpack_rows<Words>(g.dk, D, args.scale, args.dk.row<Scalar>(t) + kv_head * head_dim, args.dk.row_stride(), S,
                         head_dim);
      unpack_rows<Words>(g.dv, V, 1.0f, args.dv.row<Scalar>(t) + kv_head * value_dim, args.dv.row_stride(), S,
                         value_dim);
    });
  });
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(attention_forward, AttentionForward)
OCTET_CPU_KERNEL(attention_backward, AttentionBackward)
OCTET_CPU_KERNEL(attention_decode, AttentionDecode)
