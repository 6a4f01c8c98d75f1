#include "tools/bench/kernel_bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "core/tensor/transfer.h"
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/fp8_gemm.h"
#include "kernels/gemm.h"
#include "kernels/permute.h"
#include "kernels/quantize.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/router.h"
#include "kernels/row_groups.h"
#include "kernels/swiglu.h"
#include "tools/bench/kernel_cases.h"
#include "tools/train/device.h"
#include "tools/train/timing.h"

namespace octet {
namespace {

constexpr CaseSizes kOnCpu = {
    .tokens = 2048, .hidden = 1024, .experts = 16, .top_k = 2, .expert_hidden = 512, .vocab = 8192};
constexpr CaseSizes kOnGpu = {
    .tokens = 32768, .hidden = 4096, .experts = 64, .top_k = 4, .expert_hidden = 1024, .vocab = 32768};
// Of the answers that are compared: every kind of edge, and little to compute.
constexpr CaseSizes kCompared = {
    .tokens = 96, .hidden = 256, .experts = 8, .top_k = 2, .expert_hidden = 128, .vocab = 300};
constexpr int64_t kHeadDim = 128;

CaseOptions parse(const std::vector<std::string>& args) {
  const std::string fix = "octet bench kernels tokens=2048 hidden=1024";
  const CaseOptions options = parse_case_options(args, "kernels", fix, kOnCpu, kOnGpu);
  if (options.sizes.hidden % kHeadDim != 0) {
    fail(ErrorKind::kArgument,
         {.what = fmt::format("bench kernels: hidden is {}, no multiple of {}", options.sizes.hidden, kHeadDim),
          .where = "command line",
          .why = {},
          .fix = fix});
  }
  return options;
}

// In an order in which each kernel finds what an earlier one made.
void build(KernelCases& cases, const CaseSizes& sizes) {
  using namespace kernels;
  constexpr DType kBf16 = DType::kBFloat16, kF32 = DType::kFloat32, kE4m3 = DType::kFloat8E4M3;
  const auto blocks = [](int64_t n) { return (n + 127) / 128; };
  const auto made = [&](Shape shape, DType dtype) { return cases.made(shape, dtype); };
  const auto normal = [&](Shape shape, DType dtype, const char* name) { return cases.normal(shape, dtype, name); };
  const auto below = [&](Shape shape, int64_t limit, const char* name) { return cases.below(shape, limit, name); };
  const Device device = cases.device();
  const int64_t T = sizes.tokens, D = sizes.hidden, E = sizes.experts, K = sizes.top_k, F = sizes.expert_hidden,
                V = sizes.vocab;
  const int64_t R = T * K, heads = D / kHeadDim;
  const Emulation emulation = device.is_cpu() ? Emulation::kIdeal : Emulation::kHopper;

  const Tensor x = normal({T, D}, kBf16, "x"), dy = normal({T, D}, kBf16, "dy");
  const Tensor weight = normal({D}, kF32, "weight");
  const Tensor y = made({T, D}, kBf16), dx = made({T, D}, kBf16);
  const Tensor rstd = made({T}, kF32), dweight = made({D}, kF32);

  const Tensor ids = below({T}, V, "ids"), table = normal({V, D}, kBf16, "table");
  const Tensor dtable = made({V, D}, kF32), embedded = made({T, D}, kBf16);
  cases.add<EmbeddingForward>(embedding_forward, {.ids = ids, .weight = table, .y = embedded}, {embedded});
  cases.add<EmbeddingBackward>(embedding_backward, {.ids = ids, .dy = dy, .dweight = dtable}, {dtable});
  cases.add<RmsNormForward>(rms_norm_forward, {.x = x, .weight = weight, .y = y, .rstd = rstd, .eps = 1e-5f},
                            {y, rstd});
  const Tensor normed_codes = made({T, D}, kE4m3), normed_scale = made({T, blocks(D)}, kF32);
  cases.add<RmsNormForwardFp8>(rms_norm_forward_fp8,
                               {.x = x,
                                .weight = weight,
                                .y = y,
                                .codes = normed_codes,
                                .scale = normed_scale,
                                .rstd = rstd,
                                .stats = nullptr,
                                .eps = 1e-5f},
                               {y, normed_codes, normed_scale, rstd});
  cases.add<RmsNormBackward>(rms_norm_backward,
                             {.dy = dy, .x = x, .weight = weight, .rstd = rstd, .dx = dx, .dweight = dweight},
                             {dx, dweight});
  cases.add<AddInto>(add_into, {.a = x, .b = dy, .y = dx}, {dx});

  const Tensor positions = below({T}, T, "positions"), turned = normal({T, D}, kBf16, "turned");
  const Tensor angles = empty({T, kHeadDim}, kF32);
  fill_rope_table(angles, kHeadDim, 10000.0);
  const Tensor cos_sin = cases.there(angles);
  cases.add<Rope>(rope,
                  {.x = turned,
                   .positions = positions,
                   .cos_sin = cos_sin,
                   .head_dim = kHeadDim,
                   .layout = RopeLayout::kHalf,
                   .inverse = false},
                  {turned});

  const Tensor logits = normal({T, E}, kF32, "logits"), scores = made({T, E}, kF32);
  const Tensor indices = made({T, K}, DType::kInt32), weights = made({T, K}, kF32);
  cases.add<RouterForward>(router_forward,
                           {.logits = logits,
                            .bias = {},
                            .replayed = {},
                            .scores = scores,
                            .indices = indices,
                            .weights = weights,
                            .options = {}},
                           {scores, indices, weights});
  const Tensor offsets = made({E + 1}, DType::kInt64), block_starts = made({E + 1}, DType::kInt64);
  const Tensor row_of = made({T, K}, DType::kInt32), source = made({R}, DType::kInt32);
  cases.add<BuildPermutation>(build_permutation,
                              {.indices = indices, .offsets = offsets, .row_of = row_of, .source = source},
                              {offsets, row_of, source});
  cases.add<BlockOffsets>(block_offsets, {.offsets = offsets, .block_offsets = block_starts, .num_rows = R},
                          {block_starts});

  const Tensor codes = made({T, D}, kE4m3), scale = made({T, blocks(D)}, kF32);
  cases.add<QuantizeRows>(quantize_rows, {.x = x, .codes = codes, .scale = scale, .stats = nullptr}, {codes, scale});
  const int64_t P = (R + E * 127 + 127) / 128 * 128;  // the most rows that the padded groups of R take
  const Tensor gathered = made({R, D}, kE4m3);
  cases.add<GatherRows>(gather_rows, {.x = codes, .source = source, .y = gathered}, {gathered});
  const Tensor columns = made(column_codes_shape(P, D, device), kE4m3), column_scale = made({P / 128, D}, kF32);
  cases.add<RequantizeColumns>(requantize_columns,
                               {.codes = codes,
                                .scale = scale,
                                .rows = source,
                                .offsets = offsets,
                                .block_offsets = block_starts,
                                .out_codes = columns,
                                .out_scale = column_scale,
                                .stats = nullptr},
                               {columns, column_scale});

  // An expert's two matrices, and what is between them.
  const Tensor w13 = normal({E, 2 * F, D}, kF32, "w13"), w13_codes = made({E, 2 * F, D}, kE4m3);
  const Tensor w13_scale = made({E, blocks(2 * F), blocks(D)}, kF32);
  cases.add<QuantizeBlocks>(quantize_blocks, {.x = w13, .codes = w13_codes, .scale = w13_scale, .stats = nullptr},
                            {w13_codes, w13_scale});
  const Tensor h = made({R, 2 * F}, kBf16);
  cases.add<Fp8GroupedGemm>(fp8_grouped_gemm,
                            {.a = codes,
                             .a_scale = scale,
                             .b = w13_codes,
                             .b_scale = w13_scale,
                             .offsets = offsets,
                             .rows = source,
                             .c = h,
                             .emulation = emulation},
                            {h});
  const Tensor row_weights = normal({R}, kF32, "row_weights"), dweights = made({R}, kF32);
  const Tensor h_codes = made({R, 2 * F}, kE4m3), h_scale = made({R, blocks(2 * F)}, kF32);
  const Tensor y_codes = made({R, F}, kE4m3), y_scale = made({R, blocks(F)}, kF32);
  // Not the product's: of its arithmetic there are two, and where they differ a scale may be twice the other.
  const Tensor h_in = normal({R, 2 * F}, kBf16, "h_in");
  cases.add<SwigluForwardFp8>(swiglu_forward_fp8,
                              {.h = h_in,
                               .weights = row_weights,
                               .h_codes = h_codes,
                               .h_scale = h_scale,
                               .y_codes = y_codes,
                               .y_scale = y_scale,
                               .stats = nullptr},
                              {h_codes, h_scale, y_codes, y_scale});
  const Tensor dh_in = normal({R, F}, kBf16, "dh_in");
  const Tensor y_columns = made(column_codes_shape(P, F, device), kE4m3), y_column_scale = made({P / 128, F}, kF32);
  const Tensor dh_codes = made({R, 2 * F}, kE4m3), dh_scale = made({R, blocks(2 * F)}, kF32);
  const Tensor dh_columns = made(column_codes_shape(P, 2 * F, device), kE4m3),
               dh_column_scale = made({P / 128, 2 * F}, kF32);
  cases.add<SwigluBackwardFp8>(swiglu_backward_fp8,
                               {.dy = dh_in,
                                .h_codes = h_codes,
                                .h_scale = h_scale,
                                .weights = row_weights,
                                .offsets = offsets,
                                .block_offsets = block_starts,
                                .y_codes = y_columns,
                                .y_scale = y_column_scale,
                                .dh_codes = dh_codes,
                                .dh_scale = dh_scale,
                                .dh_column_codes = dh_columns,
                                .dh_column_scale = dh_column_scale,
                                .dweights = dweights,
                                .y_stats = nullptr,
                                .dh_stats = nullptr,
                                .dh_column_stats = nullptr},
                               {y_columns, y_column_scale, dh_codes, dh_scale, dh_columns, dh_column_scale, dweights});
  const Tensor dw13 = made({E, 2 * F, D}, kF32);
  cases.add<Fp8GroupedWgrad>(fp8_grouped_wgrad,
                             {.dy = dh_columns,
                              .dy_scale = dh_column_scale,
                              .x = columns,
                              .x_scale = column_scale,
                              .offsets = offsets,
                              .block_offsets = block_starts,
                              .dw = dw13,
                              .accumulate = false,
                              .num_rows = R,
                              .emulation = emulation},
                             {dw13});
  const Tensor expert_rows = normal({R, D}, kBf16, "rows"), combined = made({T, D}, kBf16);
  cases.add<CombineForward>(combine_forward, {.rows = expert_rows, .row_of = row_of, .base = x, .y = combined},
                            {combined});
  const Tensor row_columns = made(column_codes_shape(P, D, device), kE4m3), row_column_scale = made({P / 128, D}, kF32);
  cases.add<QuantizeColumns>(quantize_columns,
                             {.x = dy,
                              .rows = source,
                              .offsets = offsets,
                              .block_offsets = block_starts,
                              .codes = row_columns,
                              .scale = row_column_scale,
                              .stats = nullptr},
                             {row_columns, row_column_scale});

  // The same in bfloat16.
  const Tensor w13_bf16 = normal({E, 2 * F, D}, kBf16, "w13"), h_bf16 = made({R, 2 * F}, kBf16);
  const Tensor y_bf16 = made({R, F}, kBf16), dh_bf16 = made({R, 2 * F}, kBf16);
  cases.add<GroupedGemm>(grouped_gemm, {.a = x, .b = w13_bf16, .offsets = offsets, .rows = source, .c = h_bf16},
                         {h_bf16});
  cases.add<SwigluForward>(swiglu_forward, {.h = h_bf16, .weights = row_weights, .y = y_bf16}, {y_bf16});
  cases.add<SwigluBackward>(swiglu_backward,
                            {.dy = dh_in, .h = h_bf16, .weights = row_weights, .dh = dh_bf16, .dweights = dweights},
                            {dh_bf16, dweights});
  cases.add<GroupedWgrad>(grouped_wgrad,
                          {.dy = dh_bf16, .x = x, .offsets = offsets, .rows = source, .dw = dw13, .accumulate = false},
                          {dw13});

  // Attention over one sequence after the other, 4,096 tokens at most; products of whole matrices; the loss; the step.
  const int64_t batch = std::max<int64_t>(1, T % 4096 == 0 ? T / 4096 : 1);
  const Tensor o = made({T, D}, kBf16), lse = made({T, heads}, kF32);
  const Tensor dq = made({T, D}, kBf16), dk = made({T, D}, kBf16), dv = made({T, D}, kBf16);
  const float softmax_scale = 1.0f / std::sqrt(float(kHeadDim));
  cases.add<AttentionForward>(attention_forward,
                              {.q = x,
                               .k = dy,
                               .v = turned,
                               .o = o,
                               .lse = lse,
                               .batch = batch,
                               .num_heads = heads,
                               .num_kv_heads = heads,
                               .scale = softmax_scale},
                              {o, lse});
  cases.add<AttentionBackward>(attention_backward,
                               {.grad_o = dx,
                                .q = x,
                                .k = dy,
                                .v = turned,
                                .o = o,
                                .lse = lse,
                                .dq = dq,
                                .dk = dk,
                                .dv = dv,
                                .batch = batch,
                                .num_heads = heads,
                                .num_kv_heads = heads,
                                .scale = softmax_scale},
                               {dq, dk, dv});
  const Tensor square = normal({D, D}, kBf16, "square"), product = made({T, D}, kBf16);
  cases.add<GroupedGemm>(grouped_gemm, {.a = x, .b = square, .c = product}, {product});

  const int64_t chunk = std::max<int64_t>(1, T / 8);
  const Tensor vocab_logits = normal({chunk, V}, kF32, "vocab_logits");
  const Tensor targets = below({chunk}, V, "targets"), loss = made({chunk}, kF32);
  const Tensor dlogits = made({chunk, V}, kBf16);
  cases.add<CrossEntropy>(
      cross_entropy, {.logits = vocab_logits, .targets = targets, .loss = loss, .dlogits = dlogits, .grad_scale = 1.0f},
      {loss, dlogits});
  const Tensor master = normal({E, 2 * F, D}, kF32, "master");
  const Tensor m = made({E, 2 * F, D}, kBf16), v = made({E, 2 * F, D}, kBf16);
  const auto words = UpdateFactors::of_step(1, 1e-3f, 0.9f, 0.95f).words();
  const Tensor factors =
      cases.keep(from_vector(std::vector<int64_t>(words.begin(), words.end()), {int64_t(words.size())}, device));
  cases.add<AdamwStep>(adamw_step,
                       {.master = master,
                        .grad = w13,
                        .m = m,
                        .v = v,
                        .weight = {},
                        .codes = w13_codes,
                        .code_scale = w13_scale,
                        .factors = static_cast<const UpdateFactors*>(factors.view().raw()),
                        .beta1 = 0.9f,
                        .beta2 = 0.95f,
                        .eps = 1e-8f,
                        .weight_decay = 0.1f},
                       {master, m, v, w13_codes, w13_scale});
}

}  // namespace

int bench_kernels(const std::vector<std::string>& args) {
  const CaseOptions options = parse(args);
  const Device device = open_device(options.device);

  const CaseSizes& s = options.sizes;
  fmt::print("{}; {} tokens, width {}, {} experts of width {}, {} for each token, vocabulary {}\n", describe(device),
             s.tokens, s.hidden, s.experts, s.expert_hidden, s.top_k, s.vocab);
  return time_cases(
      device, options.repeats, [](KernelCases& cases) { build(cases, kCompared); },
      [&](KernelCases& cases) { build(cases, options.sizes); });
}

}  // namespace octet
