// A step of a GPU as one CUDA graph: what the host asks for in a step is the same every time (training_step.h), so it
// is written down once and asked for again in one call.
#pragma once

#include <functional>
#include <vector>

#include "kernels/device_runtime.h"
#include "tools/train/train_config.h"
#include "tools/train/training_step.h"

namespace octet {

class StepGraph {
 public:
  // What the launches of a step depend on.
  struct Kind {
    StepPlan plan;
    const Fp8Counts* counts = nullptr;  // what quantising did is counted there; null: it is not
    int64_t wgrad_columns = 0;          // weights that take no tiles (core/nn/wgrad_tiles.h), never fewer than before

    bool operator==(const Kind&) const = default;
  };

  // Nothing is captured on the CPU, where a step has several ranks, since they wait for each other in it, and where
  // `wanted` is kOff.
  StepGraph(Device device, CudaGraph wanted, int ranks);

  // ask() asks for all of a step between AdamW::prepare and sum_step, and waits for nothing. The first step of a kind
  // runs as it is, which makes what is made once; the second is captured; every later one is a launch of that graph. A
  // step whose kernels are timed (KernelProfile) runs as it is. Where a capture fails, a warning says why, forget()
  // takes back what ask() has changed on the host, and all steps run as they are from then on.
  void run(const Kind& kind, const std::function<void()>& ask, const std::function<void()>& forget);

  int64_t launches() const { return launches_; }  // steps that were launched as a graph

 private:
  struct Known {
    Kind kind;
    gpu::Graph graph;
  };
  Known* find(const Kind& kind);

  Device device_;
  bool may_capture_;
  std::vector<Known> known_;
  int64_t launches_ = 0;
};

// All of a step of a rank that is alone, between AdamW::prepare and sum_step.
void ask_for_step(StepGraph& graph, Transformer& model, AdamW& optimizer, const StepPlan& plan,
                  const StepTokens& tokens, const StepLosses& losses, Fp8Counts* counts, const StepRanks& ranks = {});

}  // namespace octet
