#include "kernels/fp8_gemm.h"

#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/fp8_product.cuh"
#include "kernels/cuda/gemm_plain.cuh"
#include "kernels/cuda/gemm_tensor.cuh"
#include "kernels/transpose_codes.h"

namespace octet::kernels::cuda {
namespace {

template <class Body>
void visit_tile(Emulation emulation, Body&& body) {
  switch (emulation) {
    case Emulation::kIdeal:
      return body.template operator()<PlainTile<IdealMath>>();
    case Emulation::kHopper:
      return body.template operator()<TensorTile<E4m3Products>>();
    case Emulation::kFp64:
      return body.template operator()<PlainTile<Fp64Math>>();
  }
}

constexpr int kRepackThreads = 256;

// to[i * to_step + j] = from[i * row_step + j * column_step] for j below columns, 0 behind them.
__global__ void __launch_bounds__(kRepackThreads)
    repack_scales_kernel(const float* from, int64_t row_step, int64_t column_step, int64_t columns, float* to,
                         int64_t to_step) {
  const int64_t i = blockIdx.x, j = int64_t(blockIdx.y) * kRepackThreads + threadIdx.x;
  if (j < to_step) to[i * to_step + j] = j < columns ? from[i * row_step + j * column_step] : 0.0f;
}
void repack_scales(const float* from, int64_t row_step, int64_t column_step, int64_t rows, int64_t columns, float* to,
                   Stream& stream) {
  const int64_t to_step = scale_step(columns);
  launch("repack_scales", blocks(rows, ceil_div<int64_t>(to_step, kRepackThreads)), kRepackThreads, 0, stream,
         repack_scales_kernel, from, row_step, column_step, columns, to, to_step);
}

bool is_done_by_library(const Fp8GroupedGemm& args, Stream& stream) {
  if (dense_gemm() != DenseGemm::kCublaslt || args.emulation != Emulation::kHopper) return false;
  std::optional<DenseProduct> product = as_dense_product(args);
  if (!product) return false;
  const int64_t k_blocks = ceil_div<int64_t>(product->k, 128), m_blocks = ceil_div<int64_t>(product->m, 128);
  Workspace<float> left("scales of weights", m_blocks * scale_step(k_blocks), stream);
  Workspace<float> right("scales of activations", k_blocks * scale_step(product->n), stream);
  repack_scales(args.b_scale.data<float>(), k_blocks, 1, m_blocks, k_blocks, left.data(), stream);
  repack_scales(args.a_scale.data<float>(), 1, k_blocks, k_blocks, product->n, right.data(), stream);
  product->left_scale = left.data(), product->right_scale = right.data();
  return multiply_dense(*product, stream);
}

// wgmma takes FP8 along k only: B that lies along n is transposed first.
template <class Result>
bool is_done_by_tiles(const Fp8GroupedGemm& args, Stream& stream) {
  const int64_t R = args.c.rows(), N = args.c.cols(), K = args.a.cols();
  if (args.emulation != Emulation::kHopper || R == 0 || N == 0 || K == 0) return false;
  const PersistentProduct<uint8_t, RowSpans, Result> product =
      persistent_product_of<Result>(args, {args.c.data<Result>(), args.c.row_stride(), /*accumulate=*/false});
  const int64_t groups = product.groups;
  const auto launch_with = [&](const uint8_t* b) {
    const PersistentLaunch<E4m3Products, Scales::kLinesByTiles, RowSpans, Result> persistent(
        args.a.rows(), {b, groups * N, K}, /*b_is_transposed=*/false, product);
    if (!persistent.is_possible()) return false;
    persistent.launch("fp8_grouped_gemm", stream);
    return true;
  };
  if (!args.b_is_kn) return launch_with(args.b.data<uint8_t>());
  if (args.b_transposed.is_defined()) return launch_with(args.b_transposed.data<uint8_t>());
  if (!reads_b_transposed(DeviceType::kCuda, args.emulation, K)) return false;
  Workspace<uint8_t> transposed("transposed weights", groups * N * K, stream);
  transpose_codes({.codes = args.b, .out = View(transposed.data(), {groups, N, K}, args.b.dtype(), args.b.device())},
                  stream);
  return launch_with(transposed.data());
}

}  // namespace

void fp8_grouped_gemm(const Fp8GroupedGemm& args, Stream& stream) {
  if (is_done_by_library(args, stream)) return;
  const int64_t R = args.c.rows(), N = args.c.cols(), K = args.a.cols();
  const int64_t k_blocks = ceil_div<int64_t>(K, 128), n_blocks = ceil_div<int64_t>(N, 128);
  const Operand<uint8_t> a{.data = args.a.data<uint8_t>(),
                           .line_step = args.a.row_stride(),
                           .k_step = 1,
                           .lines = args.rows.is_defined() ? args.rows.data<int32_t>() : nullptr,
                           .scale = args.a_scale.data<float>(),
                           .scale_line_step = k_blocks,
                           .scale_block_step = 1};
  const Operand<uint8_t> b{.data = args.b.data<uint8_t>(),
                           .line_step = args.b_is_kn ? 1 : K,
                           .k_step = args.b_is_kn ? N : 1,
                           .scale = args.b_scale.data<float>(),
                           .scale_line_step = args.b_is_kn ? 1 : k_blocks,
                           .scale_block_step = args.b_is_kn ? n_blocks : 1,
                           .lines_of_scale = 128};
  visit_float(args.c.dtype(), [&]<class Result>() {
    if (is_done_by_tiles<Result>(args, stream)) return;
    const ResultMatrix<Result> c{args.c.data<Result>(), args.c.row_stride(), /*accumulate=*/false};
    visit_tile(args.emulation, [&]<class Tile>() {
      launch_grouped_rows<Tile>("fp8_grouped_gemm", a, b, N * K, n_blocks * k_blocks, args.offsets, R, N, K, c, stream);
    });
  });
}

namespace {

// Codes lie along the summed rows (column_codes_shape), and so the scales of neighbouring lines side by side.
template <Scales scales>
bool is_done_by_tiles(const Fp8GroupedWgrad& args, int64_t N, int64_t K, Stream& stream) {
  const int64_t P = args.x.cols();
  const int groups = int(args.offsets.num_elements() - 1);
  if (args.emulation != Emulation::kHopper || P == 0 || N == 0 || K == 0) return false;
  const PersistentProduct<uint8_t, SumSpans, float> product{
      .a = args.dy.data<uint8_t>(),
      .a_step = args.dy.row_stride(),
      .a_scale = args.dy_scale.data<float>(),
      .a_scale_line = 1,
      .a_scale_block = args.dy_scale.cols(),
      .b_scale = args.x_scale.data<float>(),
      .b_scale_column = 1,
      .b_scale_block = args.x_scale.cols(),
      .spans = {args.offsets.data<int64_t>(), args.block_offsets.data<int64_t>(), int(N), int(P), args.accumulate},
      .groups = groups,
      .R = groups * N,
      .N = K,
      .K = P,
      .c = {args.dw.data<float>(), args.dw.row_stride(), args.accumulate}};
  const PersistentLaunch<E4m3Products, scales, SumSpans, float> persistent(
      N, {args.x.data<uint8_t>(), K, args.x.row_stride()}, /*b_is_transposed=*/false, product);
  if (!persistent.is_possible()) return false;
  persistent.launch("fp8_grouped_wgrad", stream);
  return true;
}

}  // namespace

void fp8_grouped_wgrad(const Fp8GroupedWgrad& args, Stream& stream) {
  const int64_t N = args.dw.shape()[-2], K = args.dw.shape()[-1];
  if (args.by_tiles ? is_done_by_tiles<Scales::kTiles>(args, N, K, stream)
                    : is_done_by_tiles<Scales::kLines>(args, N, K, stream)) {
    return;
  }
  const auto operand = [&](const ConstView& codes, const ConstView& scale) {
    return Operand<uint8_t>{.data = codes.data<uint8_t>(),
                            .line_step = codes.row_stride(),
                            .k_step = 1,
                            .scale = scale.data<float>(),
                            .scale_line_step = 1,
                            .scale_block_step = scale.cols(),
                            .lines_of_scale = args.by_tiles ? 128 : 1};
  };
  const ResultMatrix<float> dw{args.dw.data<float>(), args.dw.row_stride(), args.accumulate};
  visit_tile(args.emulation, [&]<class Tile>() {
    launch_grouped_sums<Tile>("fp8_grouped_wgrad", operand(args.dy, args.dy_scale), operand(args.x, args.x_scale),
                              args.offsets, args.block_offsets, args.x.cols(), N, K, dw, stream);
  });
}

}  // namespace octet::kernels::cuda
