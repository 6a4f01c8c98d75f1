#include "core/ops/head_loss.h"

#include "kernels/cross_entropy.h"
#include "kernels/gemm.h"

namespace octet {

double sum_of_losses(std::span<const float> losses) {
  double sum = 0;
  for (const float loss : losses) sum += double(loss);
  return sum;
}

HeadLoss::Reading HeadLoss::read() const {
  Reading reading;
  reading.losses_ = Readback(losses), reading.targets_ = Readback(targets);
  return reading;
}

double HeadLoss::Reading::sum() const { return sum_of_losses(losses_.wait<float>()); }

int64_t HeadLoss::Reading::tokens() const {
  const auto ids = targets_.wait<int32_t>();
  return std::count_if(ids.begin(), ids.end(), [](int32_t id) { return id >= 0; });
}

HeadLoss head_loss(const Tensor& x, Parameter& weight, const Tensor& targets, float grad_scale) {
  const int64_t T = x.rows(), D = x.cols(), V = weight.shape()[0];
  require(weight.shape() == Shape{V, D} && targets.shape() == Shape{T},
          "head_loss: x is {}, weight {}, targets {}; wanted [T, D], [V, D], [T]", x.shape(), weight.shape(),
          targets.shape());
  const bool with_gradient = is_recording();
  const int64_t chunk = std::min(T, head_chunk_tokens(V));
  const Tensor logits = empty({chunk, V}, DType::kFloat32, MemoryCategory::kWorkspace, x.device());
  Tensor dlogits = logits;  // float32: in place
  if (with_gradient && x.dtype() != DType::kFloat32) {
    dlogits = empty({chunk, V}, x.dtype(), MemoryCategory::kWorkspace, x.device());
  }
  const Tensor losses = empty({T}, DType::kFloat32, MemoryCategory::kWorkspace, x.device());
  const Tensor dx = with_gradient ? empty_like(x) : Tensor();
  Stream& stream = x.stream();
  for (int64_t begin = 0; begin < T; begin += chunk) {
    const int64_t count = std::min(chunk, T - begin);
    const Tensor xs = x.detach().slice_rows(begin, count), zs = logits.slice_rows(0, count);
    const Tensor dzs = dlogits.slice_rows(0, count);
    kernels::grouped_gemm({.a = xs, .b = weight.weight(), .offsets = {}, .rows = {}, .c = zs}, stream);
    kernels::cross_entropy({.logits = zs,
                            .targets = targets.slice_rows(begin, count),
                            .loss = losses.slice_rows(begin, count),
                            .dlogits = with_gradient ? View(dzs) : View(),
                            .grad_scale = grad_scale},
                           stream);
    if (!with_gradient) continue;
    kernels::grouped_gemm(
        {.a = dzs, .b = weight.weight(), .offsets = {}, .rows = {}, .c = dx.slice_rows(begin, count), .b_is_kn = true},
        stream);
    const Parameter::GradTarget target = weight.grad_target();
    kernels::grouped_wgrad(
        {.dy = dzs, .x = xs, .offsets = {}, .rows = {}, .dw = target.grad, .accumulate = target.accumulate}, stream);
  }
  HeadLoss loss{.anchor = zeros({1}, DType::kFloat32, x.device()), .losses = losses, .targets = targets};
  loss.anchor = record("head_loss", loss.anchor, {x}, [dx](const Tensor&) -> Gradients { return {dx}; });
  return loss;
}

Tensor head_logits(const Tensor& x, const Parameter& weight) {
  return fprop_plain(x, RowGroups::dense(x.rows(), x.device()), weight, DType::kFloat32);
}

}  // namespace octet
