#include "kernels/fp8_gemm.h"

#include "kernels/cpu/isa_headers.h"
#include "kernels/cpu/product_tasks.h"
//
#include "kernels/cpu/isa_begin.inc"
//
#include "kernels/cpu/fp8_simd.inc"
#include "kernels/cpu/gemm_tile.inc"

namespace {

constexpr int64_t kBlock = 128;  // k of one scale
static_assert(kWords % kBlock == 0 && kPieces * kBlock == 2 * kWords);
constexpr int64_t kUnit = 16 * PairWords::kVectors;  // columns of a tile, the widest of all emulations

// An operand of codes as gemm_tile.inc has it, with the scale of each 128 of k.
template <bool across, class Scale>
struct CodeOperand {
  using Element = uint8_t;
  static constexpr bool kAcross = across;
  Lines<uint8_t> line;
  Scale scale;  // scale(i, k / 128)
};
template <bool across, class Scale>
CodeOperand<across, Scale> codes(Lines<uint8_t> line, Scale scale) {
  return {line, scale};
}

// found[i]: whether there is a NaN among the n codes of row or column first + i, from k on.
template <class From>
void find_nans(From from, int64_t first, int64_t count, int64_t k, int64_t n, uint8_t* found) {
  if constexpr (From::kAcross) {
    std::memset(found, 0, size_t(count));
    for (int64_t d = 0; d < n; ++d) {
      const uint8_t* line = from.line(k + d) + first;
      for (int64_t i = 0; i < count; ++i) found[i] |= uint8_t((line[i] & 0x7f) == 0x7f);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) found[i] = has_nan_e4m3(from.line(first + i) + k, n);
  }
}

// to[piece * stride + i] is the scale of line first + i. Panels hold a NaN code as a number, so that the arithmetic
// need not look for it: the scale of its 128 is the NaN, and so every sum it enters is one.
template <class From>
void pack_scales(From from, int64_t first, int64_t count, int64_t k0, int64_t depth, int64_t stride, float* to) {
  uint8_t poisoned[kTaskColumns];
  for (int64_t piece = 0; piece == 0 || piece * kBlock < depth; ++piece) {
    const int64_t k = k0 + piece * kBlock, n = std::min(kBlock, depth - piece * kBlock);
    find_nans(from, first, count, k, std::max<int64_t>(n, 0), poisoned);
    for (int64_t i = 0; i < std::min(stride, count + 63); ++i) {  // and zeros up to a whole tile
      float scale = 0.0f;
      if (i < count && n > 0) {
        scale = poisoned[i] != 0 ? std::bit_cast<float>(0x7fffffff) : from.scale(first + i, k / kBlock);
      }
      to[piece * stride + i] = scale;
    }
  }
}

struct ScaledMath {
  static void pack_column_extras(const auto& b, int64_t first, int64_t columns, int64_t k0, int64_t depth,
                                 Panels& panels) {
    pack_scales(b, first, columns, k0, depth, kTaskColumns, panels.b_scale);
  }
  static void pack_row_extras(const auto& a, int64_t first, int64_t rows, int64_t k0, int64_t depth, Panels& panels) {
    pack_scales(a, first, rows, k0, depth, kPackRows, panels.a_scale);
  }
  // fma(sum, a_scale * b_scale, total), total being 0 in the first piece of all.
  template <int64_t rows, int64_t V>
  OCTET_INLINE static void promote(const Tile& t, const Piece& piece, f32x16 (&sum)[rows][V]) {
    const float* const total = static_cast<const float*>(t.total);
    const float* const a_scale = t.a_scale + piece.number * kPackRows;
    f32x16 b_scale[V];
    unrolled<V>([&](auto v) { b_scale[v] = load(t.b_scale + piece.number * kTaskColumns + 16 * v); });
    const auto add_to = [&](auto&& before) OCTET_INLINE_LAMBDA {
      each_sum<rows, V>([&](auto i, auto v) {
        sum[i][v] = fma(sum[i][v], splat(a_scale[i]) * b_scale[v], before(total + i * kTotalStride + 16 * v));
      });
    };
    if (piece.first) {
      add_to([](const float*) { return splat(0.0f); });
    } else {
      add_to([](const float* sums) { return load(sums); });
    }
    put_sums(t, piece, sum);
  }
};

struct IdealMath : ScaledMath {
  using Words = PairWords;
  using Total = float;

  template <int64_t rows, bool across>
  [[gnu::noinline]] static void tile(const Tile& t) {
    constexpr int64_t V = Words::kVectors;
    for_pieces<kBlock>(t, [&](const Piece& piece) OCTET_INLINE_LAMBDA {
      f32x16 acc[rows][V];
      each_sum<rows, V>([&](auto i, auto v) { acc[i][v] = splat(0.0f); });
      const int64_t w = piece.k / Words::kElements;
      multiply<Words, across, rows>(t.a + w * kWordStep<across>, t.b + w * 16 * V,
                                    (piece.depth + 1) / 2 * (2 / Words::kElements), acc);
      promote(t, piece, acc);
    });
  }
};

// The tensor core of compute capability 9.0 (docs/numerics.md): 32 products and the sum so far, as significands times
// 2^exponent, the exponent of a product being the sum of its operands' (-6 for subnormal codes) and its significand
// below 4; all are brought to the largest exponent e and cut toward zero at 2^(e-13), added exactly, and the sum is cut
// toward zero to 13 bits behind its leading one. A zero has no part in the largest exponent.
// Products are exact in float32, so cutting is a multiplication by 2^(13-e) and a conversion to integers.
struct HopperMath : ScaledMath {
  using Words = FloatWords;
  using Total = float;
  static constexpr int64_t kStep = 32;   // k that are added at once
  static constexpr int32_t kZero = -64;  // as exponent of a zero; below every sum of two others, and twice it a byte

  // Exponents of codes in the low bytes; the other bits are anything.
  OCTET_INLINE static i32x16 exponents(f32x16 x) {
    const i32x16 e = max_i32(shift_right<23>(abs_bits(x)) - splat_i32(127), splat_i32(-6));
    return select(equal_i32(abs_bits(x), splat_i32(0)), splat_i32(kZero), e);
  }
  static void pack_column_extras(const auto& b, int64_t first, int64_t columns, int64_t k0, int64_t depth,
                                 Panels& panels) {
    ScaledMath::pack_column_extras(b, first, columns, k0, depth, panels);
    const i32x16 byte = splat_i32(0xff);
    for (int64_t j = 0; j < columns; j += 16) {
      for (int64_t k = 0; k < depth; k += 4) {
        const float* x = panels.b + j * kWords + k * 16;
        const i32x16 e0 = exponents(load(x)) & byte, e1 = shift_left<8>(exponents(load(x + 16)) & byte);
        const i32x16 e2 = shift_left<16>(exponents(load(x + 32)) & byte), e3 = shift_left<24>(exponents(load(x + 48)));
        store_i32(panels.b_exponents + (j * kWords / 4) + k / 4 * 16, (e0 | e1) | (e2 | e3));
      }
      // Up to a whole step.
      for (int64_t k = (depth + 3) / 4 * 4; k % kStep != 0; k += 4) {
        store_i32(panels.b_exponents + (j * kWords / 4) + k / 4 * 16, splat_i32(int32_t(0xc0c0c0c0u)));
      }
    }
  }
  static void pack_row_extras(const auto& a, int64_t first, int64_t rows, int64_t k0, int64_t depth, Panels& panels) {
    ScaledMath::pack_row_extras(a, first, rows, k0, depth, panels);
    constexpr bool kAcross = std::remove_cvref_t<decltype(a)>::kAcross;
    const int64_t whole = (depth + kStep - 1) / kStep * kStep;
    if constexpr (kAcross) {
      for (const RowTile& tile : RowTiles(rows)) {
        for (int64_t k = 0; k < whole; ++k) {
          uint8_t lanes[16];
          store_low_bytes(lanes, exponents(load(panels.a + place_of<true>(tile) + k * kTileLine)));
          for (int64_t j = 0; j < tile.rows; ++j) panels.a_exponents[(tile.first + j) * kWords + k] = lanes[j];
        }
      }
    } else {
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t k = 0; k < whole; k += 16) {
          store_low_bytes(panels.a_exponents + i * kWords + k, exponents(load(panels.a + i * kWords + k)));
        }
      }
    }
  }

  // sum[i] = sum[i] and the 32 products at k, for `rows` rows from row r on.
  template <int64_t rows, bool across>
  OCTET_INLINE static void add_step(const Tile& t, int64_t r, int64_t k, f32x16 (*sum)[1]) {
    const float* a = t.a + r * kRowStep<across> + k * kWordStep<across>;
    i32x16 top[rows];
    for (auto& e : top) e = splat_i32(int32_t(0xc0c0c0c0u));  // kZero in each byte
    for (int64_t q = 0; q < kStep; q += 4) {
      const i32x16 column = load_i32(t.b_exponents + (k + q) / 4 * 16);
      for (int64_t i = 0; i < rows; ++i) {
        int32_t four;
        std::memcpy(&four, t.a_exponents + (r + i) * kWords + k + q, 4);
        top[i] = max_bytes(top[i], add_bytes(splat_i32(four), column));
      }
    }
    f32x16 up[rows], down[rows];
    i32x16 whole[rows];
    for (int64_t i = 0; i < rows; ++i) {
      top[i] = max_bytes(top[i], shift_right<16>(top[i]));
      top[i] = max_bytes(top[i], shift_right<8>(top[i]));
      i32x16 e = shift_right_signed<24>(shift_left<24>(top[i]));
      e = max_i32(e, shift_right<23>(abs_bits(sum[i][0])) - splat_i32(127));
      up[i] = from_bits(shift_left<23>(splat_i32(127 + 13) - e));
      down[i] = from_bits(shift_left<23>(splat_i32(127 - 13) + e));
      whole[i] = to_i32(sum[i][0] * up[i]);
    }
    for (int64_t q = 0; q < kStep; ++q) {
      const f32x16 column = load(t.b + (k + q) * 16);
      for (int64_t i = 0; i < rows; ++i)
        whole[i] = whole[i] + to_i32(splat(a[i * kRowStep<across> + q * kWordStep<across>]) * up[i] * column);
    }
    // 33 terms below 2^15: exact in float32, whose last 10 of 23 fraction bits are cut.
    for (int64_t i = 0; i < rows; ++i) {
      sum[i][0] = from_bits(bits(to_f32(whole[i])) & splat_i32(int32_t(0xfffffc00u))) * down[i];
    }
  }

  template <int64_t rows, bool across>
  [[gnu::noinline]] static void tile(const Tile& t) {
    for_pieces<kBlock>(t, [&](const Piece& piece) OCTET_INLINE_LAMBDA {
      f32x16 sum[rows][1];
      unrolled<rows>([&](auto i) { sum[i][0] = splat(0.0f); });
      for (int64_t k = piece.k; k < piece.k + piece.depth; k += kStep) {
        unrolled<rows / 2>([&](auto half) { add_step<2, across>(t, 2 * half, k, sum + 2 * half); });
        if constexpr (rows % 2 == 1) add_step<1, across>(t, rows - 1, k, sum + rows - 1);
      }
      promote(t, piece, sum);
    });
  }
};

// Every product and every sum within 128 of k is exact in float64 (docs/numerics.md).
struct Fp64Math : ScaledMath {
  using Words = FloatWords;
  using Total = double;

  template <int64_t rows, bool across>
  [[gnu::noinline]] static void tile(const Tile& t) {
    for_pieces<kBlock>(t, [&](const Piece& piece) OCTET_INLINE_LAMBDA {
      for (int64_t i = 0; i < rows; ++i) {
        f64x16 sum = splat_f64(0.0);
        for (int64_t w = piece.k; w < piece.k + piece.depth; ++w)
          sum = sum + widen(splat(t.a[i * kRowStep<across> + w * kWordStep<across>]) * load(t.b + w * 16));
        double* total = static_cast<double*>(t.total) + i * kTotalStride;
        f64x16 before = splat_f64(0.0);
        if (!piece.first) std::memcpy(&before, total, sizeof before);
        const f64x16 a_scale = splat_f64(double(t.a_scale[piece.number * kPackRows + i]));
        const f64x16 after = before + sum * (a_scale * widen(load(t.b_scale + piece.number * kTaskColumns)));
        std::memcpy(total, &after, sizeof after);
        if (!piece.last) continue;
        float rounded[16];
        for (int64_t j = 0; j < 16; ++j) rounded[j] = float(total[j]);
        t.result->visit([&](auto&& put) { put(AllLanes{}, t.row + i, t.column, load(rounded)); });
      }
    });
  }
};

template <class A, class B>
void sum_task(Emulation emulation, const Task& task, int64_t K, const A& a, const B& b, const Result& result) {
  Panels& panels = panels_of_this_thread();
  switch (emulation) {
    case Emulation::kIdeal:
      return sum_products<IdealMath>(task, K, a, b, panels, result);
    case Emulation::kHopper:
      return sum_products<HopperMath>(task, K, a, b, panels, result);
    case Emulation::kFp64:
      return sum_products<Fp64Math>(task, K, a, b, panels, result);
  }
}

}  // namespace

void fp8_grouped_gemm(const Fp8GroupedGemm& args, Stream& stream) {
  const int64_t R = args.c.rows(), N = args.c.cols(), K = args.a.cols();
  const int64_t G = args.offsets.is_defined() ? args.offsets.num_elements() - 1 : 1;
  const int64_t all_rows[2] = {0, R};
  const int64_t* offsets = args.offsets.is_defined() ? args.offsets.data<int64_t>() : all_rows;
  const int32_t* gather = args.rows.is_defined() ? args.rows.data<int32_t>() : nullptr;
  const int64_t n_blocks = (N + kBlock - 1) / kBlock, k_blocks = (K + kBlock - 1) / kBlock;
  std::vector<GroupSize> groups;
  for (int64_t g = 0; g < G; ++g) groups.push_back({offsets[g + 1] - offsets[g], K});
  const Tasks tasks = cut_tasks(stream.pool().num_threads(), groups, N, kUnit);
  stream.parallel_shares(tasks.ends, [&](int64_t index) {
    const Task& task = tasks.all[size_t(index)];
    const int64_t first = offsets[task.group], g = task.group;
    const auto a = codes<false>(
        lines_of<uint8_t>(args.a, first, gather),
        [scales = lines_of<float>(args.a_scale, first, gather)](int64_t i, int64_t kb) { return scales(i)[kb]; });
    const Result result = result_in(args.c, first + task.row, task, /*accumulate=*/false);
    if (args.b_is_kn) {
      const auto b =
          codes<true>(lines_of<uint8_t>(args.b, g * K), [scales = lines_of<float>(args.b_scale, g * k_blocks)](
                                                            int64_t n, int64_t kb) { return scales(kb)[n / kBlock]; });
      sum_task(args.emulation, task, K, a, b, result);
    } else {
      const auto b =
          codes<false>(lines_of<uint8_t>(args.b, g * N), [scales = lines_of<float>(args.b_scale, g * n_blocks)](
                                                             int64_t n, int64_t kb) { return scales(n / kBlock)[kb]; });
      sum_task(args.emulation, task, K, a, b, result);
    }
  });
}

void fp8_grouped_wgrad(const Fp8GroupedWgrad& args, Stream& stream) {
  const int64_t N = args.dw.shape()[-2], K = args.dw.shape()[-1], G = args.block_offsets.num_elements() - 1;
  const int64_t* blocks = args.block_offsets.data<int64_t>();
  const int64_t* offsets = args.offsets.data<int64_t>();
  std::vector<GroupSize> groups;
  for (int64_t g = 0; g < G; ++g) groups.push_back(gradient_group(N, offsets[g + 1] - offsets[g], args.accumulate));
  const Tasks tasks = cut_tasks(stream.pool().num_threads(), groups, K, kUnit);
  stream.parallel_shares(tasks.ends, [&](int64_t index) {
    const Task& task = tasks.all[size_t(index)];
    const int64_t first = blocks[task.group], depth = groups[size_t(task.group)].depth;
    const auto operand = [&](const ConstView& x, const ConstView& scale) {
      return codes<true>(lines_of<uint8_t>(x, kBlock * first),
                         [scales = lines_of<float>(scale, first), by_tiles = args.by_tiles](int64_t i, int64_t block) {
                           return scales(block)[by_tiles ? i / kBlock : i];
                         });
    };
    const auto a = operand(args.dy, args.dy_scale), b = operand(args.x, args.x_scale);
    sum_task(args.emulation, task, depth, a, b, gradient_in(args.dw, task, args.accumulate));
  });
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(fp8_grouped_gemm, Fp8GroupedGemm)
OCTET_CPU_KERNEL(fp8_grouped_wgrad, Fp8GroupedWgrad)
