#include "kernels/swiglu.h"

#include "kernels/cuda/quantize_tile.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/swiglu_value.cuh"

namespace octet::kernels::cuda {
namespace {

__device__ __forceinline__ float round_bf16(float x) { return to_float(from_float<bfloat16>(x)); }

// y before the weight of its row, and dh of the gate and of up. dot += dy y.
struct Slopes {
  float y, gate, up;
};
__device__ __forceinline__ Slopes slopes_of(float h_gate, float h_up, float limit, float dy, float weight, float& dot) {
  const float gate = limited_gate(h_gate, limit), up = limited_up(h_up, limit);
  const float s = sigmoid_of(gate);
  const float slope = s * fmaf(gate, 1.0f - s, 1.0f), silu = gate * s, y = silu * up, grad = weight * dy;
  dot = fmaf(dy, y, dot);
  return {y, limit < h_gate ? 0.0f : grad * up * slope, limit < fabsf(h_up) ? 0.0f : grad * silu};
}

template <class Scalar>
__global__ void __launch_bounds__(kRowThreads)
    forward_kernel(const Scalar* h, int64_t h_stride, const float* weights, float limit, Scalar* y, int64_t y_stride,
                   int64_t R, const int64_t* num_rows, int64_t F, uint32_t pieces) {
  const RowPlace at = row_place(pieces);
  if (at.row >= rows_there(num_rows, R)) return;
  const int64_t f = at.column, n = F - f;
  const float weight = weight_of_row(weights, at.row);
  Floats8 gate = load8(h + at.row * h_stride + f, n);
  const Floats8 up = load8(h + at.row * h_stride + F + f, n);
  for (int j = 0; j < kVector; ++j) gate.v[j] = weight * swiglu_of(gate.v[j], up.v[j], limit);
  store8(y + at.row * y_stride + f, gate, n);
}

// A warp to a row, half of it to each 128 columns.
template <class Scalar>
__global__ void __launch_bounds__(kRowThreads)
    backward_kernel(const Scalar* dy, int64_t dy_stride, const Scalar* h, int64_t h_stride, const float* weights,
                    float limit, Scalar* dh, int64_t dh_stride, float* dweights, int64_t R, const int64_t* num_rows,
                    int64_t F) {
  const int64_t row = int64_t(blockIdx.x) * (kRowThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= rows_there(num_rows, R)) return;
  const int lane = int(threadIdx.x) % kWarp;
  const float weight = weight_of_row(weights, row);
  float dweight = 0.0f;
  for (int64_t first = 0; first < F; first += kWarp * kVector) {
    const int64_t f = first + lane * kVector, n = F - f;
    float dot = 0.0f;
    if (n > 0) {
      Floats8 gate = load8(h + row * h_stride + f, n), up = load8(h + row * h_stride + F + f, n);
      const Floats8 grad = load8(dy + row * dy_stride + f, n);
      for (int j = 0; j < kVector; ++j) {
        const Slopes slopes = slopes_of(gate.v[j], up.v[j], limit, grad.v[j], weight, dot);
        gate.v[j] = slopes.gate, up.v[j] = slopes.up;
      }
      store8(dh + row * dh_stride + f, gate, n);
      store8(dh + row * dh_stride + F + f, up, n);
    }
    if (dweights == nullptr) continue;
    dot = warp_sum<kTileLanes>(dot);
    const float other = shuffle_xor(dot, kTileLanes);
    dweight = dweight + (lane < kTileLanes ? dot : other);
    if (first + kBlock < F) dweight = dweight + (lane < kTileLanes ? other : dot);
  }
  if (dweights != nullptr && lane == 0) dweights[row] = dweight;
}

// Sixteen threads to a block of a row of y. Where h_codes is not null, 128 divides F, and they have a block of the gate
// and one of up too.
__global__ void __launch_bounds__(kRowThreads)
    forward_fp8_kernel(const bfloat16* h, int64_t h_stride, const float* weights, float limit, uint8_t* h_codes,
                       int64_t h_codes_stride, float* h_scale, int64_t h_scale_stride, uint8_t* y_codes,
                       int64_t y_codes_stride, float* y_scale, int64_t y_scale_stride, QuantizeStats* stats,
                       int64_t room, const int64_t* num_rows, int64_t F, uint32_t pieces) {
  const int64_t R = rows_there(num_rows, room);
  const RowPlace at = row_place(pieces);
  const bool is_there = at.row < R;
  const int64_t row = is_there ? at.row : 0, f = at.column, n = is_there ? F - f : 0;
  const float weight = is_there ? weight_of_row(weights, row) : 0.0f;
  Floats8 gate = load8(h + row * h_stride + f, n);
  const Floats8 up = load8(h + row * h_stride + F + f, n);
  Counts counts;
  if (h_codes != nullptr) {
    quantize_row_block(gate, n, h_codes + row * h_codes_stride + f, h_scale + row * h_scale_stride + f / kBlock,
                       counts);
    quantize_row_block(up, n, h_codes + row * h_codes_stride + F + f, h_scale + row * h_scale_stride + (F + f) / kBlock,
                       counts);
  }
  for (int j = 0; j < kVector; ++j) gate.v[j] = round_bf16(weight * swiglu_of(gate.v[j], up.v[j], limit));
  quantize_row_block(gate, n, y_codes + row * y_codes_stride + f, y_scale + row * y_scale_stride + f / kBlock, counts);
  add_counts<kRowThreads>(counts, blockIdx.x == 0 ? R * F * (h_codes != nullptr ? 3 : 1) : 0, stats);
}

// A tile of y and the two of dh from 128 rows of a group and 128 columns of the gate and of up; 128 divides F. Those
// whose columns nobody wants, where y_codes and column_codes are null, take no memory.
__global__ void __launch_bounds__(kTileThreads)
    backward_fp8_kernel(const bfloat16* dy, int64_t dy_stride, const uint8_t* h_codes, int64_t h_codes_stride,
                        const float* h_scale, int64_t h_scale_stride, const float* weights, float limit, float* dots,
                        const int64_t* offsets, const int64_t* block_offsets, int groups, uint8_t* y_codes,
                        int64_t y_stride, float* y_scale, int64_t y_scale_stride, uint8_t* y_row_codes,
                        int64_t y_row_stride, float* y_row_scale, int64_t y_row_scale_stride, uint8_t* dh_codes,
                        int64_t dh_stride, float* dh_scale, int64_t dh_scale_stride, uint8_t* column_codes,
                        int64_t column_stride, float* column_scale, int64_t column_scale_stride, QuantizeStats* y_stats,
                        QuantizeStats* dh_stats, QuantizeStats* column_stats, int64_t F) {
  const RowBlock block = row_block(offsets, block_offsets, groups, blockIdx.x);
  if (!block.is_there) return;
  const int64_t f = int64_t(blockIdx.y) * kBlock, up_block = F / kBlock + blockIdx.y;
  const int column = tile_column();
  using Bf16Tile = Tile<Bf16Piece>;
  const int tiles_of_y = y_codes == nullptr ? 0 : 1;
  const auto y = [] { return Bf16Tile::number(0); };
  const auto gate = [tiles_of_y] { return Bf16Tile::number(tiles_of_y); };
  const auto up = [tiles_of_y] { return Bf16Tile::number(tiles_of_y + 1); };
  Counts y_counts, row_counts, column_counts;
  for (int pass = 0; pass < kTilePasses; ++pass) {
    const bool is_there = tile_row(pass) < block.rows;
    const int64_t row = is_there ? block.first + tile_row(pass) : 0, n = is_there ? kBlock - column : 0;
    const uint8_t* const codes = h_codes + row * h_codes_stride + f + column;
    const float* const scale = h_scale + row * h_scale_stride;
    Floats8 gates = numbers_of(load_codes(codes, n), is_there ? scale[blockIdx.y] : 0.0f);
    Floats8 ups = numbers_of(load_codes(codes + F, n), is_there ? scale[up_block] : 0.0f);
    Floats8 ys = load8(dy + row * dy_stride + f + column, n);
    const float weight = is_there ? weight_of_row(weights, row) : 0.0f;
    float dot = 0.0f;
    for (int j = 0; j < kVector; ++j) {
      const Slopes slopes = slopes_of(gates.v[j], ups.v[j], limit, ys.v[j], weight, dot);
      ys.v[j] = weight * slopes.y, gates.v[j] = slopes.gate, ups.v[j] = slopes.up;
    }
    if (dots != nullptr) {
      dot = warp_sum<kTileLanes>(dot);
      if (is_there && column == 0) dots[row * gridDim.y + blockIdx.y] = dot;
    }
    const Bf16Piece y_piece = Bf16Piece::of(ys), gate_piece = Bf16Piece::of(gates), up_piece = Bf16Piece::of(ups);
    if (y_codes != nullptr) {
      y().set(pass, y_piece);
    } else {
      quantize_row_block(y_piece.numbers(), n, y_row_codes + row * y_row_stride + f + column,
                         y_row_scale + row * y_row_scale_stride + blockIdx.y, y_counts);
    }
    if (column_codes != nullptr) gate().set(pass, gate_piece), up().set(pass, up_piece);
    uint8_t* const to = dh_codes + row * dh_stride + f + column;
    quantize_row_block(gate_piece.numbers(), n, to, dh_scale + row * dh_scale_stride + blockIdx.y, row_counts);
    quantize_row_block(up_piece.numbers(), n, to + F, dh_scale + row * dh_scale_stride + up_block, row_counts);
  }
  const int64_t first = kBlock * int64_t(blockIdx.x);
  if (y_codes != nullptr) {
    quantize_tile_columns(y(), kBlock, y_codes + f * y_stride + first, y_stride,
                          y_scale + blockIdx.x * y_scale_stride + f, y_counts);
  }
  const int64_t count = int64_t(block.rows) * kBlock;
  if (column_codes != nullptr) {
    uint8_t* const to = column_codes + f * column_stride + first;
    float* const to_scale = column_scale + blockIdx.x * column_scale_stride + f;
    quantize_tile_columns(gate(), kBlock, to, column_stride, to_scale, column_counts);
    quantize_tile_columns(up(), kBlock, to + F * column_stride, column_stride, to_scale + F, column_counts);
    add_counts<kTileThreads>(column_counts, 2 * count, column_stats);
  }
  add_counts<kTileThreads>(y_counts, count, y_stats);
  add_counts<kTileThreads>(row_counts, 2 * count, dh_stats);
}

// y and dh of codes of h, for the sizes at which a block of h has columns of both the gate and up. Sixteen threads to
// 128 columns.
__global__ void __launch_bounds__(kRowThreads)
    backward_of_codes_kernel(const bfloat16* dy, int64_t dy_stride, const uint8_t* h_codes, int64_t h_codes_stride,
                             const float* h_scale, int64_t h_scale_stride, const float* weights, float limit,
                             float* dots, bfloat16* y, bfloat16* dh, int64_t R, int64_t F, uint32_t pieces) {
  const RowPlace at = row_place(pieces);
  const bool is_there = at.row < R;
  const int64_t row = is_there ? at.row : 0;
  const auto h = [&](int64_t column) {
    return ptx::float_from_e4m3(h_codes[row * h_codes_stride + column]) *
           h_scale[row * h_scale_stride + column / kBlock];
  };
  const float weight = weight_of_row(weights, row);
  float dot = 0.0f;
  for (int64_t f = at.column; is_there && f < at.column + kVector && f < F; ++f) {
    const Slopes slopes = slopes_of(h(f), h(F + f), limit, to_float(dy[row * dy_stride + f]), weight, dot);
    y[row * F + f] = from_float<bfloat16>(weight * slopes.y);
    dh[row * 2 * F + f] = from_float<bfloat16>(slopes.gate);
    dh[row * 2 * F + F + f] = from_float<bfloat16>(slopes.up);
  }
  if (dots == nullptr) return;
  dot = warp_sum<kTileLanes>(dot);
  if (is_there && at.column % kBlock == 0) dots[row * (pieces / kTileLanes) + at.column / kBlock] = dot;
}

// dweights of the sums of each 128 columns, a thread to a row.
__global__ void __launch_bounds__(kRowThreads)
    add_dots_kernel(const float* dots, float* dweights, const int64_t* num_rows, int64_t count) {
  const int64_t row = int64_t(blockIdx.x) * kRowThreads + threadIdx.x;
  if (row >= *num_rows) return;
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) sum = sum + dots[row * count + i];
  dweights[row] = sum;
}

template <class Scalar>
__global__ void __launch_bounds__(kRowThreads)
    count_clamped_kernel(const Scalar* h, int64_t h_stride, float limit, ClampCounts* counts, int64_t R,
                         const int64_t* num_rows, int64_t F, uint32_t pieces) {
  const RowPlace at = row_place(pieces);
  int count = 0, clamped = 0;
  if (at.row < rows_there(num_rows, R)) {
    const int64_t f = at.column, n = F - f;
    const Floats8 gate = load8(h + at.row * h_stride + f, n), up = load8(h + at.row * h_stride + F + f, n);
    for (int j = 0; j < kVector; ++j) clamped += (limit < gate.v[j] ? 1 : 0) + (limit < fabsf(up.v[j]) ? 1 : 0);
    count = 2 * int(n < kVector ? n : kVector);
  }
  count = block_sum<kRowThreads>(count), clamped = block_sum<kRowThreads>(clamped);
  if (threadIdx.x != 0 || count == 0) return;
  atomic_add(&counts->count, count);
  if (clamped != 0) atomic_add(&counts->clamped, clamped);
}

}  // namespace

void count_clamped(const CountClamped& args, Stream& stream) {
  const int64_t R = args.h.rows(), F = args.h.cols() / 2, pieces = ceil_div<int64_t>(F, kVector);
  if (F == 0) return;
  visit_float(args.h.dtype(), [&]<class Scalar>() {
    launch("count_clamped", row_grid(R, pieces), kRowThreads, 0, stream, count_clamped_kernel<Scalar>,
           args.h.data<Scalar>(), args.h.row_stride(), args.limit, args.counts, R, args.num_rows.data<int64_t>(), F,
           uint32_t(pieces));
  });
}

void swiglu_forward(const SwigluForward& args, Stream& stream) {
  const int64_t R = args.y.rows(), F = args.y.cols(), pieces = ceil_div<int64_t>(F, kVector);
  if (F == 0) return;
  visit_float(args.h.dtype(), [&]<class Scalar>() {
    launch("swiglu_forward", row_grid(R, pieces), kRowThreads, 0, stream, forward_kernel<Scalar>, args.h.data<Scalar>(),
           args.h.row_stride(), args.weights.data<float>(), limit_of(args.limit), args.y.data<Scalar>(),
           args.y.row_stride(), R, args.num_rows.data<int64_t>(), F, uint32_t(pieces));
  });
}

void swiglu_backward(const SwigluBackward& args, Stream& stream) {
  const int64_t R = args.dy.rows(), F = args.dy.cols();
  if (F == 0) return;
  visit_float(args.h.dtype(), [&]<class Scalar>() {
    launch("swiglu_backward", blocks(ceil_div<int64_t>(R, kRowThreads / kWarp)), kRowThreads, 0, stream,
           backward_kernel<Scalar>, args.dy.data<Scalar>(), args.dy.row_stride(), args.h.data<Scalar>(),
           args.h.row_stride(), args.weights.data<float>(), limit_of(args.limit), args.dh.data<Scalar>(),
           args.dh.row_stride(), args.dweights.data<float>(), R, args.num_rows.data<int64_t>(), F);
  });
}

void swiglu_forward_fp8(const SwigluForwardFp8& args, Stream& stream) {
  const int64_t R = args.h.rows(), F = args.y_codes.cols(), pieces = ceil_div<int64_t>(F, kBlock) * kTileLanes;
  if (F == 0) return;
  const bool in_one_pass = args.h_codes.is_defined() && F % kBlock == 0;
  if (args.h_codes.is_defined() && !in_one_pass) {
    quantize_rows(
        {.x = args.h, .codes = args.h_codes, .scale = args.h_scale, .stats = args.stats, .num_rows = args.num_rows},
        stream);
  }
  launch("swiglu_forward_fp8", row_grid(R, pieces), kRowThreads, 0, stream, forward_fp8_kernel, args.h.data<bfloat16>(),
         args.h.row_stride(), args.weights.data<float>(), limit_of(args.limit),
         in_one_pass ? args.h_codes.data<uint8_t>() : nullptr, args.h_codes.row_stride(), args.h_scale.data<float>(),
         args.h_scale.row_stride(), args.y_codes.data<uint8_t>(), args.y_codes.row_stride(), args.y_scale.data<float>(),
         args.y_scale.row_stride(), args.stats, R, args.num_rows.data<int64_t>(), F, uint32_t(pieces));
}

void swiglu_backward_fp8(const SwigluBackwardFp8& args, Stream& stream) {
  const int64_t R = args.dy.rows(), F = args.dy.cols();
  if (F == 0) return;
  const int64_t blocks_of_row = ceil_div<int64_t>(F, kBlock), groups = args.offsets.num_elements() - 1;
  // Of each row and 128 columns what they add to the gradient of its weight.
  const bool has_dots = args.dweights.is_defined();
  Workspace<float> dots("swiglu_backward_fp8", has_dots ? R * blocks_of_row : 0, stream);
  const auto add_dots = [&] {
    if (!has_dots) return;
    launch("swiglu_backward_fp8, weights", blocks(ceil_div<int64_t>(R, kRowThreads)), kRowThreads, 0, stream,
           add_dots_kernel, dots.data(), args.dweights.data<float>(), args.offsets.data<int64_t>() + groups,
           blocks_of_row);
  };
  if (F % kBlock != 0) {
    Workspace<bfloat16> y("swiglu_backward_fp8", R * F, stream), dh("swiglu_backward_fp8", R * 2 * F, stream);
    const int64_t pieces = blocks_of_row * kTileLanes;
    launch("swiglu_backward_fp8", row_grid(R, pieces), kRowThreads, 0, stream, backward_of_codes_kernel,
           args.dy.data<bfloat16>(), args.dy.row_stride(), args.h_codes.data<uint8_t>(), args.h_codes.row_stride(),
           args.h_scale.data<float>(), args.h_scale.row_stride(), args.weights.data<float>(), limit_of(args.limit),
           dots.data(), y.data(), dh.data(), R, F, uint32_t(pieces));
    add_dots();
    const Device device = args.dy.device();
    const View y_there(y.data(), {R, F}, DType::kBFloat16, device),
        dh_there(dh.data(), {R, 2 * F}, DType::kBFloat16, device);
    const ConstView num_rows(args.offsets.data<int64_t>() + groups, {1}, DType::kInt64, device);
    if (args.y_codes.is_defined()) {
      quantize_columns({.x = y_there,
                        .offsets = args.offsets,
                        .block_offsets = args.block_offsets,
                        .codes = args.y_codes,
                        .scale = args.y_scale,
                        .stats = args.y_stats},
                       stream);
    } else {
      quantize_rows({.x = y_there,
                     .codes = args.y_row_codes,
                     .scale = args.y_row_scale,
                     .stats = args.y_stats,
                     .num_rows = num_rows},
                    stream);
    }
    if (!args.dh_column_codes.is_defined()) {
      return quantize_rows(
          {.x = dh_there, .codes = args.dh_codes, .scale = args.dh_scale, .stats = args.dh_stats, .num_rows = num_rows},
          stream);
    }
    return quantize_columns({.x = dh_there,
                             .offsets = args.offsets,
                             .block_offsets = args.block_offsets,
                             .codes = args.dh_column_codes,
                             .scale = args.dh_column_scale,
                             .stats = args.dh_column_stats,
                             .row_codes = args.dh_codes,
                             .row_scale = args.dh_scale,
                             .row_stats = args.dh_stats},
                            stream);
  }
  // As many blocks as R rows of so many groups can be.
  const int64_t row_blocks = (R + groups * (kBlock - 1)) / kBlock;
  const int tiles = (args.y_codes.is_defined() ? 1 : 0) + (args.dh_column_codes.is_defined() ? 2 : 0);
  launch("swiglu_backward_fp8", blocks(row_blocks, F / kBlock), kTileThreads, tiles * Tile<Bf16Piece>::kSharedBytes,
         stream, backward_fp8_kernel, args.dy.data<bfloat16>(), args.dy.row_stride(), args.h_codes.data<uint8_t>(),
         args.h_codes.row_stride(), args.h_scale.data<float>(), args.h_scale.row_stride(), args.weights.data<float>(),
         limit_of(args.limit), dots.data(), args.offsets.data<int64_t>(), args.block_offsets.data<int64_t>(),
         int(groups), args.y_codes.data<uint8_t>(), args.y_codes.row_stride(), args.y_scale.data<float>(),
         args.y_scale.row_stride(), args.y_row_codes.data<uint8_t>(), args.y_row_codes.row_stride(),
         args.y_row_scale.data<float>(), args.y_row_scale.row_stride(), args.dh_codes.data<uint8_t>(),
         args.dh_codes.row_stride(), args.dh_scale.data<float>(), args.dh_scale.row_stride(),
         args.dh_column_codes.data<uint8_t>(), args.dh_column_codes.row_stride(), args.dh_column_scale.data<float>(),
         args.dh_column_scale.row_stride(), args.y_stats, args.dh_stats, args.dh_column_stats, F);
  add_dots();
}

}  // namespace octet::kernels::cuda
