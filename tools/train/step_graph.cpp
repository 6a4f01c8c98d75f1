#include "tools/train/step_graph.h"

#include <algorithm>

#include "core/base/log.h"
#include "kernels/kernel_profile.h"

namespace octet {

StepGraph::StepGraph(Device device, CudaGraph wanted, int ranks)
    : device_(device), may_capture_(!device.is_cpu() && wanted == CudaGraph::kAuto && ranks == 1) {}

StepGraph::Known* StepGraph::find(const Kind& kind) {
  const auto found = std::find_if(known_.begin(), known_.end(), [&](const Known& one) { return one.kind == kind; });
  return found == known_.end() ? nullptr : &*found;
}

void StepGraph::run(const Kind& kind, const std::function<void()>& ask, const std::function<void()>& forget) {
  if (!may_capture_ || kernels::KernelProfile::current() != nullptr) return ask();
  // What was captured before a weight changed its form is never launched again.
  std::erase_if(known_, [&](const Known& one) { return one.kind.wgrad_columns != kind.wgrad_columns; });
  Known* const known = find(kind);
  if (known == nullptr) {
    known_.push_back({.kind = kind, .graph = {}});
    return ask();
  }
  if (!known->graph.is_defined()) {
    try {
      gpu::Capture capture(default_stream(device_));
      ask();
      known->graph = capture.finish();
    } catch (const Error& error) {
      may_capture_ = false;
      known_.clear();
      log_warning(
          "a step cannot be captured as a CUDA graph; kernels are launched one by one, as with "
          "train.cuda_graph: off. {}",
          error.what());
      forget();
      return ask();
    }
  }
  known->graph.launch(default_stream(device_));
  ++launches_;
}

void ask_for_step(StepGraph& graph, Transformer& model, AdamW& optimizer, const StepPlan& plan,
                  const StepTokens& tokens, const StepLosses& losses, Fp8Counts* counts, const StepRanks& ranks) {
  const auto ask = [&] {
    run_micro_batches(
        model, plan, [&tokens](int64_t m) { return tokens.of(m); }, losses, ranks);
    optimizer.measure();
    apply_update(model, optimizer, losses, counts, ranks);
  };
  const WgradTiles* const tiles = model.wgrad_tiles();
  graph.run({.plan = plan, .counts = counts, .wgrad_columns = tiles == nullptr ? 0 : tiles->num_columns()}, ask,
            [&optimizer] { optimizer.clear_gradients(); });
}

}  // namespace octet
