// How ranks are laid out over the axes of the mesh (parallel/mesh.h), and how they talk.
#pragma once

#include <cstdint>

#include "core/base/problems.h"
#include "core/nn/model_config.h"
#include "parallel/expert_dispatcher.h"
#include "parallel/mesh.h"

namespace octet {

enum class TwoStage {
  kAuto,  // where the router is group-limited and an ep group spans nodes
  kOn,    // wherever an ep group spans nodes of several ranks
  kOff,
};
template <>
struct EnumNames<TwoStage> {
  static constexpr std::pair<TwoStage, std::string_view> values[] = {
      {TwoStage::kAuto, "auto"}, {TwoStage::kOn, "on"}, {TwoStage::kOff, "off"}};
};

// What moves messages between ranks on GPUs. The bits are the same.
enum class GpuTransport {
  kAuto,    // NCCL where every rank has a GPU of its own, and NCCL is there; else staged
  kNccl,    // parallel/nccl_communicator.h
  kStaged,  // by way of pinned host memory and MPI: parallel/staged_communicator.h
};
template <>
struct EnumNames<GpuTransport> {
  static constexpr std::pair<GpuTransport, std::string_view> values[] = {
      {GpuTransport::kAuto, "auto"}, {GpuTransport::kNccl, "nccl"}, {GpuTransport::kStaged, "staged"}};
};

struct ParallelConfig {
  int64_t dp = 1;
  int64_t ep = 1;
  Wire wire = Wire::kFp8;
  TwoStage two_stage = TwoStage::kAuto;
  int64_t interleave = 1;
  int64_t ranks_per_node = 0;
  double timeout_s = 30;
  GpuTransport gpu_transport = GpuTransport::kAuto;
  double dispatch_bound = 0;

  void fields(auto&& visit) {
    visit("dp", dp, "data-parallel ranks, all ranks of the run; each reads samples of its own");
    visit("ep", ep, "neighbouring ranks that hold the experts between them, a divisor of dp");
    visit("wire", wire,
          "form in which tokens travel to experts; fp8 is half the bytes of bf16 and gives the same bits, and is read "
          "by fp8_block only");
    visit("two_stage", two_stage,
          "send one copy of a token to a node and spread it there, rather than one to each rank");
    visit("interleave", interleave,
          "micro-batches of a rank that are computed in turn, layer by layer, so that the tokens of one travel while "
          "another computes; the activations of all are held at once");
    visit("ranks_per_node", ranks_per_node, "neighbouring ranks that share a fast network; 0 means those of one host");
    visit("timeout_s", timeout_s, "seconds without any sign of life after which a rank counts as hung");
    visit("gpu_transport", gpu_transport,
          "what moves messages between ranks on GPUs: nccl, for which each rank needs a GPU of its own, or staged, by "
          "way of host memory; auto takes nccl where it can");
    visit("dispatch_bound", dispatch_bound,
          "rows of experts that a message between GPUs has room for, as a multiple of the rows where all ranks get "
          "equally many; 0 is room for whatever tokens choose. Rows without room end the run");
  }
  // Where an ep group spans nodes of several ranks.
  bool wants_two_stages(const MoeConfig& moe) const {
    return two_stage == TwoStage::kOn || (two_stage == TwoStage::kAuto && moe.kept_groups < moe.num_groups);
  }

  void validate(Problems& problems) const {
    constexpr int64_t kMostRanks = int64_t(1) << 20;  // beyond it dp is no number of ranks, and its divisors no help
    if (problems.require(1 <= dp && dp <= kMostRanks, "dp", "is {}; wanted 1 to {}", dp, kMostRanks)) {
      problems.require(ep >= 1 && dp % ep == 0, "ep", "is {}; wanted a divisor of parallel.dp, {}: {}", ep, dp,
                       list_choices(divisors_of(dp)));
    }
    problems.require(1 <= interleave && interleave <= 64, "interleave", "is {}; wanted 1 to 64", interleave);
    problems.require(ranks_per_node >= 0, "ranks_per_node", "is {}; wanted 0 (as the hosts say) or more",
                     ranks_per_node);
    problems.require(dispatch_bound == 0 || (dispatch_bound >= 1 && dispatch_bound <= 65536), "dispatch_bound",
                     "is {}; wanted 0 or 1 to 65536", dispatch_bound);
    problems.require(timeout_s >= 0.1 && timeout_s <= 86400, "timeout_s", "is {}; wanted 0.1 to 86400", timeout_s);
  }
};

}  // namespace octet
