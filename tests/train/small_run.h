// A dataset of made-up text and a run on it that takes a second.
#pragma once

#include "core/base/random.h"
#include "tools/data/prepare.h"
#include "tools/train/trainer.h"

namespace octet::test {

// About 600 tokens: an epoch is a few steps long.
inline void write_dataset(FileSystem& files) {
  const RandomStream stream(3, "text");
  static const char* const kWords[] = {"expert", "router", "token", "scale", "block", "the", "of", "and", "\n", "gate"};
  files.make_directories("texts");
  for (uint64_t document = 0; document < 12; ++document) {
    std::string text;
    for (uint64_t i = 0; i < 45; ++i) text += std::string(kWords[stream.below(10, i, document)]) + " ";
    files.create("texts/" + std::to_string(document) + ".txt")->append(text.data(), text.size());
  }
  PrepareOptions options;
  options.source.inputs = {"texts"};
  options.output = "data";
  options.vocab_size = 290;
  options.val_fraction = 0.2;
  ThreadPool pool(1);
  prepare_dataset(options, files, real_clock(), pool);
}

inline Config small_run() {
  Config config;
  config.model.layers = 2;
  config.model.hidden = 32;
  config.model.heads = 2;
  config.model.dense_layers = 1;
  config.model.ffn_hidden = 32;
  config.model.moe.num_experts = 4;
  config.model.moe.shared_experts = 1;
  config.model.moe.expert_hidden = 16;
  config.model.moe.aux_loss = AuxLoss::kGlobalBatch;  // has state that must survive
  // Said, since a GPU would find out by itself, and for these sizes decide by chance.
  config.precision.products = {
      .attention = ProductFormat::kFp8, .dense = ProductFormat::kFp8, .experts = ProductFormat::kFp8};
  config.data.path = "data";
  config.data.seq_len = 16;
  config.train.steps = 24;
  config.train.batch_size = 4;
  config.train.micro_batch = 2;
  config.train.eval_every_steps = 6;
  config.train.eval_batches = 1;
  config.train.sample_every_steps = 8;
  config.train.sample_tokens = 4;
  config.checkpoint.every_steps = 3;
  config.optim.warmup_steps = 3;
  return config;
}

}  // namespace octet::test
