#include "tools/data/made_up_batch.h"

#include <fmt/core.h>

#include "core/base/random.h"

namespace octet {

Batch made_up_batch(uint64_t seed, int64_t number, int64_t sequences, int64_t seq_len, int64_t vocab_size) {
  const RandomStream stream(seed, fmt::format("made-up batch {}", number));
  Batch batch{.num_samples = sequences, .seq_len = seq_len, .inputs = {}, .targets = {}};
  uint64_t draw = 0;
  const auto token = [&] { return int64_t(stream.below(uint64_t(vocab_size), draw++)); };
  for (int64_t s = 0; s < sequences; ++s) {
    int64_t last = token();
    for (int64_t i = 0; i < seq_len; ++i) {
      const int64_t next = stream.below(4, draw++) < 3 ? (last * 5 + 7) % vocab_size : token();
      batch.inputs.push_back(int32_t(last));
      batch.targets.push_back(int32_t(next));
      last = next;
    }
  }
  return batch;
}

}  // namespace octet
