// The root of the configuration tree: one of these is one complete run.
#pragma once

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
    visit("device", device, "where the model runs; this build has no CUDA");
  }

  // Notes every problem there is, those between sections too.
  void validate(Problems& problems) const {
    problems.section("model", [&] { model.validate(problems); });
    problems.section("precision", [&] { precision.validate(problems); });
    problems.section("data", [&] { data.validate(problems); });
    problems.section("optim", [&] { optim.validate(problems, train.steps); });
    problems.section("train", [&] { train.validate(problems); });
    problems.section("checkpoint", [&] { checkpoint.validate(problems); });
    problems.section("parallel", [&] { parallel.validate(problems); });
    problems.require(device == DeviceType::kCpu, "device", "is {}; this build has no CUDA, wanted cpu",
                     name_of(device));
  }
};

}  // namespace octet
