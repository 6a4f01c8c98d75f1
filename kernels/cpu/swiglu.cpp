#include "kernels/swiglu.h"

#include <atomic>
#include <limits>
#include <memory>

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"
//
#include "kernels/cpu/fp8_simd.inc"
//
#include "kernels/cpu/bf16_simd.inc"
#include "kernels/cpu/exp_simd.inc"
#include "kernels/cpu/quantize_tile.inc"

namespace {

// Rows that one thread takes at a time: about 16384 elements of h.
OCTET_INLINE int64_t swiglu_grain(int64_t F) { return std::max<int64_t>(1, 8192 / std::max<int64_t>(1, F)); }

// min and max give their second operand where one is NaN, which so stays one. kLimited: whether there is a limit.
OCTET_INLINE f32x16 limit_of(float limit) {
  return splat(limit > 0.0f ? limit : std::numeric_limits<float>::infinity());
}
template <bool kLimited>
OCTET_INLINE f32x16 limited_gate(f32x16 gate, f32x16 limit) {
  return kLimited ? min(limit, gate) : gate;
}
template <bool kLimited>
OCTET_INLINE f32x16 limited_up(f32x16 up, f32x16 limit) {
  return kLimited ? max(splat(0.0f) - limit, min(limit, up)) : up;
}
template <bool kLimited>
OCTET_INLINE f32x16 swiglu(f32x16 h_gate, f32x16 h_up, f32x16 limit) {
  const f32x16 gate = limited_gate<kLimited>(h_gate, limit);
  return gate * sigmoid(gate) * limited_up<kLimited>(h_up, limit);
}
struct SwigluSlopes {
  f32x16 y, gate, up;  // y before the weight of its row; dh
};
// s: sigmoid of the limited gate. dot += dy y.
template <bool kLimited>
OCTET_INLINE SwigluSlopes swiglu_slopes(f32x16 h_gate, f32x16 s, f32x16 h_up, f32x16 limit, f32x16 dy, f32x16 weight,
                                        f32x16& dot) {
  const f32x16 gate = limited_gate<kLimited>(h_gate, limit), up = limited_up<kLimited>(h_up, limit);
  const f32x16 slope = s * fma(gate, splat(1.0f) - s, splat(1.0f));
  const f32x16 silu = gate * s, y = silu * up, grad = weight * dy;
  dot = fma(dy, y, dot);
  const f32x16 dgate = grad * up * slope, dup = grad * silu;
  if constexpr (!kLimited) return {y, dgate, dup};
  return {y, select(less(limit, h_gate), splat(0.0f), dgate), select(less(limit, abs(h_up)), splat(0.0f), dup)};
}
OCTET_INLINE f32x16 weight_of_row(const ConstView& weights, int64_t r) {
  return splat(weights.is_defined() ? weights.data<float>()[r] : 1.0f);
}
// With a NaN of which AnyOrder's store makes one.
OCTET_INLINE f32x16 weight_of_fp8_row(const ConstView& weights, int64_t r) {
  const f32x16 weight = weight_of_row(weights, r);
  return select(is_nan(weight), splat(std::numeric_limits<float>::quiet_NaN()), weight);
}

// Sigmoids in steps that several vectors take together: one alone is a long chain of dependent instructions.
constexpr int kTogether = OCTET_ISA_LEVEL == 2 ? 4 : 2;
constexpr float kMostModerate = 64.0f;
// kModerate: no |x| is above kMostModerate, or NaN.
template <bool kModerate>
OCTET_INLINE void sigmoids(f32x16 (&x)[kTogether]) {
  const auto each = [](auto&& step) OCTET_INLINE_LAMBDA { for_constants<kTogether>(step); };
  each([&](auto i) OCTET_INLINE_LAMBDA { x[i] = -x[i]; });
  if constexpr (kModerate) {
    exp_to_88<kTogether, /*kAbove87=*/true>(x);
  } else {
    each([&](auto i) OCTET_INLINE_LAMBDA { x[i] = exp(x[i]); });
  }
  const f32x16 one = splat(1.0f);
  each([&](auto i) OCTET_INLINE_LAMBDA { x[i] = one / (one + x[i]); });
}

// y and dh of 128 columns of a row, whose codes have no NaN, and its dot.
template <bool kLimited, bool kModerate>
OCTET_INLINE f32x16 slopes_of_block(const uint8_t* gate_codes, const uint8_t* up_codes, float gate_scale,
                                    float up_scale, const bfloat16* dy, f32x16 limit, f32x16 weight, bfloat16* y,
                                    bfloat16* dgate, bfloat16* dup) {
  f32x16 dot = splat(0.0f);
  for (int64_t f = 0; f < kBlock; f += 16 * kTogether) {
    f32x16 gate[kTogether], s[kTogether];
    for_constants<kTogether>([&](auto i) OCTET_INLINE_LAMBDA {
      gate[i] = load_e4m3_finite_any_order(gate_codes + f + 16 * i) * splat(gate_scale);
      s[i] = limited_gate<kLimited>(gate[i], limit);
    });
    sigmoids<kModerate>(s);
    for_constants<kTogether / 2>([&](auto half) OCTET_INLINE_LAMBDA {
      constexpr int i = 2 * half;
      const auto slopes_of = [&](auto part) OCTET_INLINE_LAMBDA {
        const int64_t at = f + 16 * part;
        const f32x16 up = load_e4m3_finite_any_order(up_codes + at) * splat(up_scale);
        return swiglu_slopes<kLimited>(gate[part], s[part], up, limit, load_any_order(dy + at), weight, dot);
      };
      const SwigluSlopes first = slopes_of(std::integral_constant<int, i>{});
      const SwigluSlopes second = slopes_of(std::integral_constant<int, i + 1>{});
      store_u16(y + f + 16 * i, round_any_order(weight * first.y, weight * second.y));
      store_u16(dgate + f + 16 * i, round_any_order(first.gate, second.gate));
      store_u16(dup + f + 16 * i, round_any_order(first.up, second.up));
    });
  }
  return in_order(dot);
}

// y of 128 columns of a row.
template <bool kLimited, bool kModerate>
OCTET_INLINE void swiglu_of_block(const bfloat16* h_gate, const bfloat16* h_up, f32x16 limit, f32x16 weight,
                                  bfloat16* y) {
  for (int64_t f = 0; f < kBlock; f += 16 * kTogether) {
    f32x16 gate[kTogether], s[kTogether];
    for_constants<kTogether>([&](auto i) OCTET_INLINE_LAMBDA {
      gate[i] = s[i] = limited_gate<kLimited>(load_any_order(h_gate + f + 16 * i), limit);
    });
    sigmoids<kModerate>(s);
    for_constants<kTogether>([&](auto i) OCTET_INLINE_LAMBDA {
      const f32x16 up = limited_up<kLimited>(load_any_order(h_up + f + 16 * i), limit);
      s[i] = weight * (gate[i] * s[i] * up);
    });
    for_constants<kTogether / 2>([&](auto half) OCTET_INLINE_LAMBDA {
      store_u16(y + f + 32 * half, round_any_order(s[2 * half], s[2 * half + 1]));
    });
  }
}
// Of 128 numbers.
OCTET_INLINE bool are_moderate(const bfloat16* x) {
  constexpr int kMost = std::bit_cast<int32_t>(kMostModerate) >> 16;
  u16x32 top = splat_u16(0);
  for (int64_t d = 0; d < kBlock; d += 32) top = max_u16(top, load_u16(x + d) & splat_u16(0x7fff));
  return !any_less(splat_u16(kMost), top);
}

// bfloat16 scratch of this thread.
inline bfloat16* scratch(int64_t n) {
  thread_local std::vector<bfloat16> memory;
  if (int64_t(memory.size()) < n) memory.resize(size_t(n));
  return memory.data();
}

}  // namespace

void swiglu_forward(const SwigluForward& args, Stream& stream) {
  visit_float(args.h.dtype(), [&]<class Scalar>() {
    const int64_t F = args.y.cols();
    stream.parallel_for(rows_there(args.num_rows, args.y.rows()), swiglu_grain(F), [&](int64_t r) {
      const Scalar* gate = args.h.row<Scalar>(r);
      const Scalar* up = gate + F;
      Scalar* y = args.y.row<Scalar>(r);
      const f32x16 weight = weight_of_row(args.weights, r), limit = limit_of(args.limit);
      for_lanes(F, [=](int64_t f, auto lanes) {
        lanes.store(y + f, weight * swiglu<true>(lanes.load(gate + f), lanes.load(up + f), limit));
      });
    });
  });
}

void swiglu_backward(const SwigluBackward& args, Stream& stream) {
  visit_float(args.h.dtype(), [&]<class Scalar>() {
    const int64_t F = args.dy.cols();
    stream.parallel_for(rows_there(args.num_rows, args.dy.rows()), swiglu_grain(F), [&](int64_t r) {
      const Scalar* dy = args.dy.row<Scalar>(r);
      const Scalar* gate = args.h.row<Scalar>(r);
      Scalar* dgate = args.dh.row<Scalar>(r);
      const f32x16 weight = weight_of_row(args.weights, r), limit = limit_of(args.limit);
      float dweight = 0.0f;
      for (int64_t block = 0; block < F; block += kBlock) {
        f32x16 dot = splat(0.0f);
        for_lanes(std::min(kBlock, F - block), [&](int64_t from_block, auto lanes) {
          const int64_t f = block + from_block;
          const f32x16 g = lanes.load(gate + f), s = sigmoid(limited_gate<true>(g, limit));
          const SwigluSlopes slopes =
              swiglu_slopes<true>(g, s, lanes.load(gate + F + f), limit, lanes.load(dy + f), weight, dot);
          lanes.store(dgate + f, slopes.gate);
          lanes.store(dgate + F + f, slopes.up);
        });
        dweight += reduce_add(dot);
      }
      if (args.dweights.is_defined()) args.dweights.data<float>()[r] = dweight;
    });
  });
}

void swiglu_forward_fp8(const SwigluForwardFp8& args, Stream& stream) {
  visit_flag(args.stats != nullptr, [&](auto counting) {
    visit_flag(args.limit > 0.0f, [&](auto limited) {
      const int64_t R = rows_there(args.num_rows, args.h.rows()), F = args.y_codes.cols();
      stream.parallel_chunks(R, swiglu_grain(F), [&](int64_t begin, int64_t end) {
        // Rows that are quantised together, near enough to be in cache then.
        const int64_t rows_together = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, F));
        bfloat16* kept = scratch(rows_together * F);
        Counts counts;
        RowBlocks<counting> blocks(counts);
        for (int64_t r = begin; r < end; ++r) {
          const bfloat16* h = args.h.row<bfloat16>(r);
          bfloat16* const y = kept + (r - begin) % rows_together * F;
          if (args.h_codes.is_defined()) {
            quantize_row<counting>(h, 2 * F, args.h_codes.row<uint8_t>(r), args.h_scale.row<float>(r), blocks);
          }
          const f32x16 weight = weight_of_fp8_row(args.weights, r), limit = limit_of(args.limit);
          int64_t c = 0;
          for (; c + kBlock <= F; c += kBlock) {
            visit_flag(are_moderate(h + c), [&](auto moderate) OCTET_INLINE_LAMBDA {
              swiglu_of_block<limited, moderate>(h + c, h + F + c, limit, weight, y + c);
            });
          }
          for_lanes_any_order(F - c, [=](int64_t from_c, auto lanes) {
            const int64_t f = c + from_c;
            lanes.store(y + f, weight * swiglu<limited>(lanes.load(h + f), lanes.load(h + F + f), limit));
          });
          quantize_row<counting>(y, F, args.y_codes.row<uint8_t>(r), args.y_scale.row<float>(r), blocks);
          if ((r - begin) % rows_together == rows_together - 1) blocks.flush();
        }
        blocks.flush();
        counts.add_to(args.stats, (end - begin) * (args.h_codes.is_defined() ? 3 : 1) * F);
      });
    });
  });
}

// A task makes y and dh of 128 rows of a group and of some columns, in memory that stays in cache, and quantises them
// there: 128 columns of the gate and the same of up, whose blocks of a row are whole; or, where 128 does not divide F
// and blocks run from the gate into up, all of them.
void swiglu_backward_fp8(const SwigluBackwardFp8& args, Stream& stream) {
  visit_flag(args.y_stats != nullptr, [&](auto counting) {
    visit_flag(args.limit > 0.0f, [&](auto limited) {
      const int64_t F = args.dy.cols(), width = F % kBlock == 0 ? kBlock : F;
      if (F == 0) return;
      const int64_t pieces = F / width, blocks_of_row = (F + kBlock - 1) / kBlock;
      // Of each row and 128 columns what they add to the gradient of its weight.
      std::unique_ptr<float[]> dots;
      if (args.dweights.is_defined()) dots.reset(new float[size_t(args.dy.rows() * blocks_of_row)]);
      stream.parallel_for(num_blocks(args.block_offsets) * pieces, [&](int64_t task) {
        const int64_t b = task / pieces, f0 = task % pieces * width;
        const RowBlock block = row_block(args.offsets, args.block_offsets, b);
        bfloat16* dh = scratch(3 * width * kBlock);  // [128, 2 width]: gate, then up
        bfloat16* y = dh + 2 * width * kBlock;       // [128, width]
        Counts y_counts, row_counts, column_counts;
        RowBlocks<counting> y_blocks(y_counts), dh_blocks(row_counts);
        for (int64_t r = 0; r < block.rows; ++r) {
          const uint8_t* gate = args.h_codes.row<uint8_t>(block.first + r) + f0;
          const float* scale = args.h_scale.row<float>(block.first + r);
          const bfloat16* dy = args.dy.row<bfloat16>(block.first + r) + f0;
          const f32x16 weight = weight_of_fp8_row(args.weights, block.first + r), limit = limit_of(args.limit);
          bfloat16 *const y_row = y + r * width, *const dgate = dh + r * 2 * width;
          f32x16 dot = splat(0.0f);
          const auto add_dot = [&](int64_t f) {
            if (dots != nullptr) dots[size_t((block.first + r) * blocks_of_row + (f0 + f) / kBlock)] = reduce_add(dot);
            dot = splat(0.0f);
          };
          const auto make = [&](int64_t f, auto lanes, f32x16 g, f32x16 s, f32x16 up) OCTET_INLINE_LAMBDA {
            const SwigluSlopes slopes = swiglu_slopes<limited>(g, s, up, limit, lanes.load(dy + f), weight, dot);
            lanes.store(y_row + f, weight * slopes.y);
            lanes.store(dgate + f, slopes.gate);
            lanes.store(dgate + width + f, slopes.up);
          };
          if (width == kBlock) {
            // Pieces of rows are too short for the processor to foresee the next.
            const int64_t next = block.first + std::min(r + 4, block.rows - 1);
            prefetch(args.h_codes.row<uint8_t>(next) + f0, kBlock);
            prefetch(args.h_codes.row<uint8_t>(next) + F + f0, kBlock);
            prefetch(args.dy.row<bfloat16>(next) + f0, kBlock);
            prefetch(args.dh_codes.row<uint8_t>(next) + f0, kBlock);
            prefetch(args.dh_codes.row<uint8_t>(next) + F + f0, kBlock);
            if (args.y_codes.is_defined()) prefetch(args.y_codes.row<uint8_t>(kBlock * b + r) + f0, kBlock);
            if (args.dh_column_codes.is_defined()) {
              prefetch(args.dh_column_codes.row<uint8_t>(kBlock * b + r) + f0, kBlock);
              prefetch(args.dh_column_codes.row<uint8_t>(kBlock * b + r) + F + f0, kBlock);
            }
          }
          if (width == kBlock && !has_nan_e4m3(gate, kBlock) && !has_nan_e4m3(gate + F, kBlock)) {
            const float gate_scale = scale[f0 / kBlock], up_scale = scale[(F + f0) / kBlock];
            visit_flag(448.0f * gate_scale <= kMostModerate, [&](auto moderate) OCTET_INLINE_LAMBDA {
              dot = slopes_of_block<limited, moderate>(gate, gate + F, gate_scale, up_scale, dy, limit, weight, y_row,
                                                       dgate, dgate + width);
            });
            add_dot(0);
          } else {
            for_lanes(width, [&](int64_t f, auto lanes) {
              const int64_t n = std::min<int64_t>(16, width - f);
              const auto h = [&](int64_t column) {
                uint8_t codes[16] = {};
                float factors[16] = {};
                for (int64_t i = 0; i < n; ++i) {
                  codes[i] = gate[column + i], factors[i] = scale[(f0 + column + i) / kBlock];
                }
                return load_e4m3(codes) * load(factors);
              };
              const f32x16 g = h(f);
              make(f, lanes, g, sigmoid(limited_gate<limited>(g, limit)), h(F + f));
              if (f % kBlock == kBlock - 16 || f + 16 >= width) add_dot(f);
            });
          }
          const auto quantize_part = [&](int64_t from, int64_t n, int64_t column) OCTET_INLINE_LAMBDA {
            quantize_row<counting>(dgate + from, n, args.dh_codes.row<uint8_t>(block.first + r) + column,
                                   args.dh_scale.row<float>(block.first + r) + column / kBlock, dh_blocks);
          };
          if (args.y_row_codes.is_defined()) {
            quantize_row<counting>(y_row, width, args.y_row_codes.row<uint8_t>(block.first + r) + f0,
                                   args.y_row_scale.row<float>(block.first + r) + f0 / kBlock, y_blocks);
          }
          if (width == F) {
            quantize_part(0, 2 * F, 0);
          } else {
            quantize_part(0, kBlock, f0);
            quantize_part(width, kBlock, F + f0);
          }
        }
        y_blocks.flush(), dh_blocks.flush();
        const auto quantize_columns = [&](const bfloat16* from, int64_t step, const View& codes, const View& scales,
                                          int64_t column, Counts& counts) {
          quantize_columns_block<counting>(
              block.rows, width, [=](int64_t r) -> const bfloat16* { return from + r * step; },
              codes.row<uint8_t>(kBlock * b) + column, codes.row_stride(), scales.row<float>(b) + column, counts);
        };
        if (args.y_codes.is_defined()) quantize_columns(y, width, args.y_codes, args.y_scale, f0, y_counts);
        y_counts.add_to(args.y_stats, block.rows * width);
        row_counts.add_to(args.dh_stats, block.rows * 2 * width);
        if (!args.dh_column_codes.is_defined()) return;
        quantize_columns(dh, 2 * width, args.dh_column_codes, args.dh_column_scale, f0, column_counts);
        quantize_columns(dh + width, 2 * width, args.dh_column_codes, args.dh_column_scale, F + f0, column_counts);
        column_counts.add_to(args.dh_column_stats, block.rows * 2 * width);
      });
      if (dots == nullptr) return;
      const int64_t R = args.offsets.data<int64_t>()[args.offsets.num_elements() - 1];
      stream.parallel_for(R, 16384, [&](int64_t r) {
        float sum = 0.0f;
        for (int64_t i = 0; i < blocks_of_row; ++i) sum += dots[size_t(r * blocks_of_row + i)];
        args.dweights.data<float>()[r] = sum;
      });
    });
  });
}

void count_clamped(const CountClamped& args, Stream& stream) {
  const int64_t R = rows_there(args.num_rows, args.h.rows()), F = args.h.cols() / 2;
  std::vector<int64_t> of_rows(static_cast<size_t>(R));
  visit_float(args.h.dtype(), [&]<class Scalar>() {
    stream.parallel_for(R, swiglu_grain(F), [&](int64_t r) {
      const Scalar* gate = args.h.row<Scalar>(r);
      const f32x16 limit = splat(args.limit);
      int64_t found = 0;
      for_lanes(F, [&](int64_t f, auto lanes) {
        found += count(less(limit, lanes.load(gate + f))) + count(less(limit, abs(lanes.load(gate + F + f))));
      });
      of_rows[size_t(r)] = found;
    });
  });
  args.counts->count += R * 2 * F;
  for (const int64_t found : of_rows) args.counts->clamped += found;
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(count_clamped, CountClamped)
OCTET_CPU_KERNEL(swiglu_forward, SwigluForward)
OCTET_CPU_KERNEL(swiglu_backward, SwigluBackward)
OCTET_CPU_KERNEL(swiglu_forward_fp8, SwigluForwardFp8)
OCTET_CPU_KERNEL(swiglu_backward_fp8, SwigluBackwardFp8)
