// The root of the configuration tree: one of these is one complete run.
#pragma once

#include <numeric>

#include "core/base/device.h"
#include "core/nn/model_config.h"
#include "core/nn/precision_config.h"
#include "optim/optim_config.h"
#include "parallel/parallel_config.h"
#include "tools/data/data_config.h"
#include "tools/train/checkpoint_config.h"
#include "tools/train/train_config.h"

namespace octet {

template <>
struct EnumNames<DeviceType> {
  static constexpr std::pair<DeviceType, std::string_view> values[] = {{DeviceType::kCpu, "cpu"},
                                                                       {DeviceType::kCuda, "cuda"}};
};

struct Config {
  ModelConfig model;
  PrecisionConfig precision;
  DataConfig data;
  OptimConfig optim;
  TrainConfig train;
  CheckpointConfig checkpoint;
  ParallelConfig parallel;
  DeviceType device = DeviceType::kCpu;

  // Each struct of the tree has such a list: visit(key, member, documentation with the unit). Reading, printing and
  // docs/configuration.md walk it, so a key is added in one place.
  void fields(auto&& visit) {
    visit("model", model, "the transformer");
    visit("precision", precision, "number formats");
    visit("data", data, "the tokens a run reads");
    visit("optim", optim, "AdamW and the learning rate");
    visit("train", train, "the training loop");
    visit("checkpoint", checkpoint, "saving and keeping checkpoints");
    visit("parallel", parallel, "ranks");
    visit("device", device, "where the model runs; cuda is an NVIDIA Hopper GPU for each rank (octet doctor)");
  }

  // The global batch of a step is cut into micro-batches, and each rank has equally many neighbouring ones.
  int64_t sequences_per_micro_batch() const {
    return train.micro_batch == 0 ? train.batch_size / parallel.dp : train.micro_batch;
  }
  int64_t num_micro_batches() const { return train.batch_size / sequences_per_micro_batch(); }

  // Notes every problem there is, those between sections too.
  void validate(Problems& problems) const {
    problems.section("model", [&] { model.validate(problems); });
    problems.section("precision", [&] { precision.validate(problems); });
    problems.section("data", [&] { data.validate(problems); });
    problems.section("optim", [&] { optim.validate(problems, train.steps); });
    problems.section("train", [&] { train.validate(problems); });
    problems.section("checkpoint", [&] { checkpoint.validate(problems); });
    problems.section("parallel", [&] { parallel.validate(problems); });
    validate_layout(problems);
    problems.require(device != DeviceType::kCpu || parallel.gpu_transport == GpuTransport::kAuto,
                     "parallel.gpu_transport", "is {} with device {}, whose ranks talk MPI; wanted auto",
                     name_of(parallel.gpu_transport), name_of(device));
    problems.require(device != DeviceType::kCpu || parallel.dispatch_bound == 0, "parallel.dispatch_bound",
                     "is {} with device {}, where messages are as long as what is in them; wanted 0",
                     parallel.dispatch_bound, name_of(device));
  }

 private:
  void validate_layout(Problems& problems) const {
    const int64_t dp = parallel.dp, batch = train.batch_size;
    // Noted already; and numbers out of their range have divisors that nobody should wait for.
    constexpr int64_t kMostRanks = int64_t(1) << 20, kLargestBatch = int64_t(1) << 24, kMostExperts = 65536;
    if (dp < 1 || dp > kMostRanks || batch < 1 || batch > kLargestBatch || train.micro_batch < 0) return;
    if (!problems.require(batch % dp == 0, "train.batch_size",
                          "is {} over {} ranks (parallel.dp), which leaves {} over; wanted a multiple of {}", batch, dp,
                          batch % dp, dp)) {
      return;
    }
    const int64_t of_rank = batch / dp, sequences = train.micro_batch == 0 ? of_rank : train.micro_batch;
    if (!problems.require(of_rank % sequences == 0, "train.micro_batch",
                          "is {}; wanted a divisor of train.batch_size / parallel.dp, {}: {}", sequences, of_rank,
                          list_choices(divisors_of(of_rank)))) {
      return;
    }
    const int64_t passes = of_rank / sequences;
    problems.require(parallel.interleave < 1 || passes % parallel.interleave == 0, "parallel.interleave",
                     "is {}; wanted a divisor of the {} micro-batches of a rank: {}", parallel.interleave, passes,
                     list_choices(divisors_of(passes)));
    const int64_t experts = model.moe.num_experts;
    if (parallel.ep > 1 && dp % parallel.ep == 0 && experts <= kMostExperts) {
      problems.require(experts > 0, "parallel.ep", "is {}, and the model has no experts; wanted 1", parallel.ep);
      problems.require(experts <= 0 || experts % parallel.ep == 0, "parallel.ep",
                       "is {} over {} experts (model.moe.num_experts), which leaves {} over; wanted a divisor of both "
                       "that and parallel.dp, {}: {}",
                       parallel.ep, experts, experts % parallel.ep, dp,
                       list_choices(divisors_of(std::gcd(std::max<int64_t>(experts, 1), dp))));
    }
  }
};

}  // namespace octet
