// The training loop: how long, how many tokens at a time, and what it shows on the way.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/enum_names.h"
#include "core/base/problems.h"

namespace octet {

// Parts of a block whose forward pass is computed again in the backward pass instead of being stored.
enum class Recompute { kNorm, kSwiglu, kAttention, kBlock };
enum class OnNonFinite {
  kStop,  // stop with exit code 6 and the name of the first bad tensor
  kSkip,  // leave this step out, count it, and go on
};

// Whether a step of a GPU becomes one CUDA graph (tools/train/step_graph.h).
enum class CudaGraph {
  kAuto,  // where a rank is alone
  kOff,   // its kernels are launched one by one
};

template <>
struct EnumNames<Recompute> {
  static constexpr std::pair<Recompute, std::string_view> values[] = {{Recompute::kNorm, "norm"},
                                                                      {Recompute::kSwiglu, "swiglu"},
                                                                      {Recompute::kAttention, "attention"},
                                                                      {Recompute::kBlock, "block"}};
};
template <>
struct EnumNames<OnNonFinite> {
  static constexpr std::pair<OnNonFinite, std::string_view> values[] = {{OnNonFinite::kStop, "stop"},
                                                                        {OnNonFinite::kSkip, "skip"}};
};

template <>
struct EnumNames<CudaGraph> {
  static constexpr std::pair<CudaGraph, std::string_view> values[] = {{CudaGraph::kAuto, "auto"},
                                                                      {CudaGraph::kOff, "off"}};
};

struct TrainConfig {
  int64_t steps = 1000;
  int64_t seed = 1;
  int64_t batch_size = 8;
  int64_t micro_batch = 0;
  int64_t log_every_steps = 10;
  int64_t eval_every_steps = 100;
  int64_t eval_batches = 8;
  int64_t sample_every_steps = 0;
  std::string sample_prompt;
  int64_t sample_tokens = 64;
  std::vector<Recompute> recompute;
  int64_t threads = 0;
  OnNonFinite on_non_finite = OnNonFinite::kStop;
  CudaGraph cuda_graph = CudaGraph::kAuto;

  void fields(auto&& visit) {
    visit("steps", steps, "optimizer steps of the whole run");
    visit("seed", seed, "of every random stream: initial weights, sample order, sampling");
    visit("batch_size", batch_size, "sequences in the global batch of one step");
    visit("micro_batch", micro_batch,
          "sequences in one forward and backward pass of a rank, a divisor of batch_size / parallel.dp; 0 means all of "
          "the rank's");
    visit("log_every_steps", log_every_steps, "steps between progress lines where stderr is no terminal");
    visit("eval_every_steps", eval_every_steps, "steps between validations; 0 turns them off");
    visit("eval_batches", eval_batches, "batches of batch_size sequences in one validation");
    visit("sample_every_steps", sample_every_steps, "steps between samples of generated text; 0 turns them off");
    visit("sample_prompt", sample_prompt, "text that samples continue; empty starts from the end-of-text token");
    visit("sample_tokens", sample_tokens, "tokens in one sample");
    visit("recompute", recompute, "parts computed again in the backward pass, which saves their activation memory");
    visit("threads", threads,
          "threads of a rank; 0 means the cores of its host, shared among the host's ranks. The result never depends "
          "on it");
    visit("on_non_finite", on_non_finite, "what to do with a step whose loss or gradient is not finite");
    visit(
        "cuda_graph", cuda_graph,
        "auto: a step of a GPU that trains alone is captured as a CUDA graph and launched in one call; off: kernel by "
        "kernel. The result is the same");
  }

  bool recomputes(Recompute part) const {
    for (const Recompute each : recompute) {
      if (each == part) return true;
    }
    return false;
  }

  void validate(Problems& problems) const {
    problems.require(steps >= 1 && steps <= 100'000'000, "steps", "is {}; wanted 1 to 100000000", steps);
    problems.require(seed >= 0, "seed", "is {}; wanted 0 or more", seed);
    problems.require(batch_size >= 1 && batch_size <= 1 << 24, "batch_size", "is {}; wanted 1 to 16777216", batch_size);
    problems.require(micro_batch >= 0, "micro_batch", "is {}; wanted 0 (the whole batch) or more", micro_batch);
    problems.require(log_every_steps >= 1, "log_every_steps", "is {}; wanted 1 or more", log_every_steps);
    problems.require(eval_every_steps >= 0, "eval_every_steps", "is {}; wanted 0 (never) or more", eval_every_steps);
    problems.require(eval_batches >= 1, "eval_batches", "is {}; wanted 1 or more", eval_batches);
    problems.require(sample_every_steps >= 0, "sample_every_steps", "is {}; wanted 0 (never) or more",
                     sample_every_steps);
    problems.require(sample_prompt.size() <= 4096, "sample_prompt", "has {} bytes; wanted at most 4096",
                     sample_prompt.size());
    problems.require(sample_tokens >= 1 && sample_tokens <= 1 << 20, "sample_tokens", "is {}; wanted 1 to 1048576",
                     sample_tokens);
    problems.require(threads >= 0 && threads <= 1024, "threads", "is {}; wanted 0 (one per core) to 1024", threads);
    for (size_t i = 0; i < recompute.size(); ++i) {
      for (size_t j = 0; j < i; ++j) {
        if (!problems.require(recompute[i] != recompute[j], "recompute", "has {} twice; wanted it once",
                              name_of(recompute[i]))) {
          return;
        }
      }
    }
  }
};

}  // namespace octet
