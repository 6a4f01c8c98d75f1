#include "tools/bench/fused_quantise_bench.h"

#include <fmt/core.h>

#include <algorithm>

#include "core/tensor/transfer.h"
#include "kernels/permute.h"
#include "kernels/quantize.h"
#include "kernels/requantize_tiles.h"
#include "kernels/rms_norm.h"
#include "kernels/row_groups.h"
#include "kernels/swiglu.h"
#include "kernels/transpose_codes.h"
#include "tools/bench/kernel_cases.h"
#include "tools/train/device.h"

namespace octet {
namespace {

constexpr CaseSizes kOnCpu = {.tokens = 512, .hidden = 1024, .experts = 16, .top_k = 4, .expert_hidden = 512};
constexpr CaseSizes kOnGpu = {.tokens = 4096, .hidden = 7168, .experts = 256, .top_k = 8, .expert_hidden = 2048};
// Of the answers that are compared: every kind of edge, and little to compute.
constexpr CaseSizes kCompared = {.tokens = 96, .hidden = 256, .experts = 8, .top_k = 2, .expert_hidden = 128};

// In an order in which each kernel finds what an earlier one made.
void build(KernelCases& cases, const CaseSizes& s) {
  using namespace kernels;
  constexpr DType kBf16 = DType::kBFloat16, kF32 = DType::kFloat32, kE4m3 = DType::kFloat8E4M3;
  const auto blocks = [](int64_t n) { return (n + 127) / 128; };
  const int64_t T = s.tokens, D = s.hidden, E = s.experts, K = s.top_k, F = s.expert_hidden, R = T * K;

  // Each token has different experts, and each expert nearly as many tokens as any other.
  std::vector<int32_t> choices;
  std::vector<int64_t> rows_of(size_t(E), 0);
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t k = 0; k < K; ++k) {
      choices.push_back(int32_t((t * 7 + k * (E / K)) % E));
      ++rows_of[size_t(choices.back())];
    }
  }
  int64_t P = 0;  // rows of all experts in whole blocks
  for (const int64_t rows : rows_of) P += 128 * blocks(rows);

  // Before the experts: tokens are quantised once, and their rows read through an index.
  const Tensor x = cases.normal({T, D}, kBf16, "x"), weight = cases.normal({D}, kF32, "weight");
  const Tensor y = cases.made({T, D}, kBf16), rstd = cases.made({T}, kF32);
  const Tensor codes = cases.made({T, D}, kE4m3), scale = cases.made({T, blocks(D)}, kF32);
  RmsNormForwardFp8 norm{
      .x = x, .weight = weight, .y = y, .codes = codes, .scale = scale, .rstd = rstd, .stats = nullptr, .eps = 1e-5f};
  cases.add<RmsNormForwardFp8>(rms_norm_forward_fp8, norm, {y, codes, scale, rstd}, "rms_norm, y too");
  norm.y = {};
  cases.add<RmsNormForwardFp8>(rms_norm_forward_fp8, norm, {codes, scale, rstd}, "rms_norm, codes alone");
  const Tensor indices = cases.there(from_vector(choices, {T, K}));
  const Tensor offsets = cases.made({E + 1}, DType::kInt64), starts = cases.made({E + 1}, DType::kInt64);
  const Tensor row_of = cases.made({T, K}, DType::kInt32), source = cases.made({R}, DType::kInt32);
  cases.add<BuildPermutation>(build_permutation,
                              {.indices = indices, .offsets = offsets, .row_of = row_of, .source = source},
                              {offsets, row_of, source});
  cases.add<BlockOffsets>(block_offsets, {.offsets = offsets, .block_offsets = starts, .num_rows = R}, {starts});

  // Between an expert's two products.
  const Tensor h = cases.normal({R, 2 * F}, kBf16, "h"), w = cases.normal({R}, kF32, "w"), dw = cases.made({R}, kF32);
  const Tensor h_codes = cases.made({R, 2 * F}, kE4m3), h_scale = cases.made({R, blocks(2 * F)}, kF32);
  const Tensor y_codes = cases.made({R, F}, kE4m3), y_scale = cases.made({R, blocks(F)}, kF32);
  SwigluForwardFp8 swiglu{.h = h,
                          .weights = w,
                          .h_codes = h_codes,
                          .h_scale = h_scale,
                          .y_codes = y_codes,
                          .y_scale = y_scale,
                          .stats = nullptr};
  cases.add<SwigluForwardFp8>(swiglu_forward_fp8, swiglu, {h_codes, h_scale, y_codes, y_scale}, "swiglu, h kept");
  swiglu.h_codes = swiglu.h_scale = {};
  cases.add<SwigluForwardFp8>(swiglu_forward_fp8, swiglu, {y_codes, y_scale}, "swiglu, y alone");
  const Tensor dy = cases.normal({R, F}, kBf16, "dy");
  const Tensor y_columns = cases.made(column_codes_shape(P, F, cases.device()), kE4m3),
               y_column_scale = cases.made({P / 128, F}, kF32);
  const Tensor dh_codes = cases.made({R, 2 * F}, kE4m3), dh_scale = cases.made({R, blocks(2 * F)}, kF32);
  const Tensor dh_columns = cases.made(column_codes_shape(P, 2 * F, cases.device()), kE4m3),
               dh_column_scale = cases.made({P / 128, 2 * F}, kF32);
  SwigluBackwardFp8 backward{.dy = dy,
                             .h_codes = h_codes,
                             .h_scale = h_scale,
                             .weights = w,
                             .offsets = offsets,
                             .block_offsets = starts,
                             .y_codes = y_columns,
                             .y_scale = y_column_scale,
                             .dh_codes = dh_codes,
                             .dh_scale = dh_scale,
                             .dh_column_codes = dh_columns,
                             .dh_column_scale = dh_column_scale,
                             .dweights = dw,
                             .y_stats = nullptr,
                             .dh_stats = nullptr,
                             .dh_column_stats = nullptr};
  cases.add<SwigluBackwardFp8>(swiglu_backward_fp8, backward,
                               {y_columns, y_column_scale, dh_codes, dh_scale, dh_columns, dh_column_scale, dw});
  // The same for weight gradients by tiles.
  backward.y_codes = backward.y_scale = backward.dh_column_codes = backward.dh_column_scale = {};
  const Tensor y_again = cases.made({R, F}, kE4m3), y_again_scale = cases.made({R, blocks(F)}, kF32);
  backward.y_row_codes = y_again, backward.y_row_scale = y_again_scale;
  cases.add<SwigluBackwardFp8>(swiglu_backward_fp8, backward, {y_again, y_again_scale, dh_codes, dh_scale, dw},
                               "swiglu_backward_fp8, rows alone");

  // What weight gradients read, permuted and padded: of tokens kept in FP8, and of the gradient of the results.
  const Tensor columns = cases.made(column_codes_shape(P, D, cases.device()), kE4m3),
               column_scale = cases.made({P / 128, D}, kF32);
  cases.add<RequantizeColumns>(requantize_columns,
                               {.codes = codes,
                                .scale = scale,
                                .rows = source,
                                .offsets = offsets,
                                .block_offsets = starts,
                                .out_codes = columns,
                                .out_scale = column_scale,
                                .stats = nullptr},
                               {columns, column_scale});
  const Tensor tiles = cases.made(column_codes_shape(P, D, cases.device()), kE4m3),
               tile_scale = cases.made({P / 128, blocks(D)}, kF32);
  cases.add<RequantizeTiles>(requantize_tiles,
                             {.codes = codes,
                              .scale = scale,
                              .rows = source,
                              .offsets = offsets,
                              .block_offsets = starts,
                              .out_codes = tiles,
                              .out_scale = tile_scale,
                              .stats = nullptr},
                             {tiles, tile_scale});
  cases.add<QuantizeColumns>(quantize_columns,
                             {.x = x,
                              .rows = source,
                              .offsets = offsets,
                              .block_offsets = starts,
                              .codes = columns,
                              .scale = column_scale,
                              .stats = nullptr},
                             {columns, column_scale}, "quantize_columns, permuted");
  // The weights of a few experts, as dgrad reads them on a GPU.
  const int64_t few = std::min<int64_t>(E, 8);
  const Tensor w13 = cases.normal({few, 2 * F, D}, kBf16, "w13"), w13_codes = cases.made({few, 2 * F, D}, kE4m3),
               w13_scale = cases.made({few, blocks(2 * F), blocks(D)}, kF32);
  cases.add<QuantizeBlocks>(quantize_blocks, {.x = w13, .codes = w13_codes, .scale = w13_scale, .stats = nullptr},
                            {w13_codes, w13_scale});
  const Tensor transposed = cases.made({few, D, 2 * F}, kE4m3);
  cases.add<TransposeCodes>(transpose_codes, {.codes = w13_codes, .out = transposed}, {transposed});
  // Rows back to their tokens, forwards and backwards.
  const Tensor rows = cases.normal({R, D}, kBf16, "rows"), combined = cases.made({T, D}, kBf16);
  cases.add<CombineForward>(combine_forward, {.rows = rows, .row_of = row_of, .base = {}, .y = combined}, {combined});
}

}  // namespace

int bench_fused_quantise(const std::vector<std::string>& args) {
  const CaseOptions options =
      parse_case_options(args, "quantise", "octet bench quantise device=cpu tokens=512 hidden=1024", kOnCpu, kOnGpu);
  const Device device = open_device(options.device);
  const CaseSizes& s = options.sizes;
  fmt::print("{}; {} tokens, width {}, {} experts of width {}, {} for each token\n", describe(device), s.tokens,
             s.hidden, s.experts, s.expert_hidden, s.top_k);
  return time_cases(
      device, options.repeats, [](KernelCases& cases) { build(cases, kCompared); },
      [&](KernelCases& cases) { build(cases, s); });
}

}  // namespace octet
