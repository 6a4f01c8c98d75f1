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
#include "kernels/cpu/quantize_tile.inc"

namespace {

// Rows that one thread takes at a time: about 16384 elements of h.
OCTET_INLINE int64_t swiglu_grain(int64_t F) { return std::max<int64_t>(1, 8192 / std::max<int64_t>(1, F)); }

// min and max give their second operand where one is NaN, which so stays one.
OCTET_INLINE f32x16 limit_of(float limit) {
  return splat(limit > 0.0f ? limit : std::numeric_limits<float>::infinity());
}
OCTET_INLINE f32x16 limited(f32x16 up, f32x16 limit) { return max(splat(0.0f) - limit, min(limit, up)); }
OCTET_INLINE f32x16 swiglu(f32x16 h_gate, f32x16 h_up, f32x16 limit) {
  const f32x16 gate = min(limit, h_gate);
  return gate * sigmoid(gate) * limited(h_up, limit);
}
struct SwigluSlopes {
  f32x16 y, gate, up;  // y before the weight of its row; dh
};
// dot += dy y.
OCTET_INLINE SwigluSlopes swiglu_slopes(f32x16 h_gate, f32x16 h_up, f32x16 limit, f32x16 dy, f32x16 weight,
                                        f32x16& dot) {
  const f32x16 gate = min(limit, h_gate), up = limited(h_up, limit);
  const f32x16 s = sigmoid(gate), slope = s * fma(gate, splat(1.0f) - s, splat(1.0f));
  const f32x16 silu = gate * s, y = silu * up, grad = weight * dy;
  dot = fma(dy, y, dot);
  return {y, select(less(limit, h_gate), splat(0.0f), grad * up * slope),
          select(less(limit, abs(h_up)), splat(0.0f), grad * silu)};
}
OCTET_INLINE f32x16 weight_of_row(const ConstView& weights, int64_t r) {
  return splat(weights.is_defined() ? weights.data<float>()[r] : 1.0f);
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
        lanes.store(y + f, weight * swiglu(lanes.load(gate + f), lanes.load(up + f), limit));
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
          const SwigluSlopes slopes =
              swiglu_slopes(lanes.load(gate + f), lanes.load(gate + F + f), limit, lanes.load(dy + f), weight, dot);
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
  visit_counting(args.stats != nullptr, [&](auto counting) {
    const int64_t R = rows_there(args.num_rows, args.h.rows()), F = args.y_codes.cols();
    stream.parallel_chunks(R, swiglu_grain(F), [&](int64_t begin, int64_t end) {
      bfloat16* y = scratch(F);
      Counts counts;
      for (int64_t r = begin; r < end; ++r) {
        const bfloat16* h = args.h.row<bfloat16>(r);
        if (args.h_codes.is_defined()) {
          quantize_row<counting>(h, 2 * F, args.h_codes.row<uint8_t>(r), args.h_scale.row<float>(r), counts);
        }
        const f32x16 weight = weight_of_row(args.weights, r), limit = limit_of(args.limit);
        for_lanes(F, [=](int64_t f, auto lanes) {
          lanes.store(y + f, weight * swiglu(lanes.load(h + f), lanes.load(h + F + f), limit));
        });
        quantize_row<counting>(y, F, args.y_codes.row<uint8_t>(r), args.y_scale.row<float>(r), counts);
      }
      counts.add_to(args.stats, (end - begin) * (args.h_codes.is_defined() ? 3 : 1) * F);
    });
  });
}

// A task makes y and dh of 128 rows of a group and of some columns, in memory that stays in cache, and quantises them
// there: 128 columns of the gate and the same of up, whose blocks of a row are whole; or, where 128 does not divide F
// and blocks run from the gate into up, all of them.
void swiglu_backward_fp8(const SwigluBackwardFp8& args, Stream& stream) {
  visit_counting(args.y_stats != nullptr, [&](auto counting) {
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
      for (int64_t r = 0; r < block.rows; ++r) {
        const uint8_t* gate = args.h_codes.row<uint8_t>(block.first + r) + f0;
        const float* scale = args.h_scale.row<float>(block.first + r);
        const bfloat16* dy = args.dy.row<bfloat16>(block.first + r) + f0;
        const f32x16 weight = weight_of_row(args.weights, block.first + r), limit = limit_of(args.limit);
        f32x16 dot = splat(0.0f);
        const auto add_dot = [&](int64_t f) {
          if (dots != nullptr) dots[size_t((block.first + r) * blocks_of_row + f / kBlock)] = reduce_add(dot);
          dot = splat(0.0f);
        };
        const auto make = [&](int64_t f, auto lanes, f32x16 g, f32x16 up) OCTET_INLINE_LAMBDA {
          const SwigluSlopes slopes = swiglu_slopes(g, up, limit, lanes.load(dy + f), weight, dot);
          lanes.store(y + r * width + f, weight * slopes.y);
          lanes.store(dh + r * 2 * width + f, slopes.gate);
          lanes.store(dh + r * 2 * width + width + f, slopes.up);
        };
        if (width == kBlock) {
          // The row is too short a piece for the processor to foresee the next.
          const int64_t ahead = std::min(r + 4, block.rows - 1) - r;
          for (int64_t line = 0; line < kBlock; line += 64) {
            __builtin_prefetch(gate + ahead * args.h_codes.row_stride() + line);
            __builtin_prefetch(gate + ahead * args.h_codes.row_stride() + F + line);
            __builtin_prefetch(dy + ahead * args.dy.row_stride() + line);
            __builtin_prefetch(dy + ahead * args.dy.row_stride() + line + 32);
          }
          const f32x16 gate_scale = splat(scale[f0 / kBlock]), up_scale = splat(scale[(F + f0) / kBlock]);
          for (int64_t f = 0; f < kBlock; f += 16) {
            make(f, AllLanes{}, load_e4m3(gate + f) * gate_scale, load_e4m3(gate + F + f) * up_scale);
          }
          add_dot(f0);
        } else {
          for_lanes(F, [&](int64_t f, auto lanes) {
            const int64_t n = std::min<int64_t>(16, F - f);
            const auto h = [&](int64_t column) {
              uint8_t codes[16] = {};
              float factors[16] = {};
              for (int64_t i = 0; i < n; ++i) {
                codes[i] = gate[column + i], factors[i] = scale[(column + i) / kBlock];
              }
              return load_e4m3(codes) * load(factors);
            };
            make(f, lanes, h(f), h(F + f));
            if (f % kBlock == kBlock - 16 || f + 16 >= F) add_dot(f);
          });
        }
        const auto quantize_part = [&](int64_t from, int64_t n, int64_t column) {
          quantize_row<counting>(dh + r * 2 * width + from, n, args.dh_codes.row<uint8_t>(block.first + r) + column,
                                 args.dh_scale.row<float>(block.first + r) + column / kBlock, row_counts);
        };
        if (args.y_row_codes.is_defined()) {
          quantize_row<counting>(y + r * width, width, args.y_row_codes.row<uint8_t>(block.first + r) + f0,
                                 args.y_row_scale.row<float>(block.first + r) + f0 / kBlock, y_counts);
        }
        if (width == F) {
          quantize_part(0, 2 * F, 0);
        } else {
          quantize_part(0, width, f0);
          quantize_part(width, width, F + f0);
        }
      }
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
