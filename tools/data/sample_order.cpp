#include "tools/data/sample_order.h"

#include "core/base/error.h"
#include "core/base/random.h"

namespace octet {
namespace {
// Four rounds of a good round function make a pseudorandom permutation (Luby and Rackoff, 1988); two more cost nothing
// beside reading the tokens.
constexpr uint64_t kRounds = 6;
}  // namespace

Permutation::Permutation(uint64_t size, uint64_t key) : size_(size), key_(key) {
  require(size >= 1 && size <= uint64_t(1) << 62, "permutation of {} elements; wanted 1 to 2^62", size);
  while ((uint64_t(1) << (2 * half_bits_)) < size) ++half_bits_;
}

uint64_t Permutation::operator()(uint64_t index) const {
  const uint64_t mask = (uint64_t(1) << half_bits_) - 1;
  do {  // the domain is at most four times the size, so this ends soon
    uint64_t left = index >> half_bits_, right = index & mask;
    for (uint64_t round = 0; round < kRounds; ++round) {
      const auto words = philox4x32(key_, right, round);
      const uint64_t mixed = left ^ ((uint64_t(words[0]) | uint64_t(words[1]) << 32) & mask);
      left = right;
      right = mixed;
    }
    index = left << half_bits_ | right;
  } while (index >= size_);
  return index;
}

SampleOrder::SampleOrder(int64_t num_tokens, int64_t seq_len, uint64_t seed)
    : seq_len_(seq_len), samples_per_epoch_(0), seed_(seed) {
  require(seq_len >= 1, "sample order: seq_len is {}; wanted at least 1", seq_len);
  if (num_tokens < seq_len + 1) {
    fail(ErrorKind::kData,
         {.what = fmt::format("the data has {} tokens; wanted at least {}, data.seq_len + 1", num_tokens, seq_len + 1),
          .where = {},
          .why = "there is not one whole training sample in it",
          .fix = "prepare more text, or make data.seq_len smaller"});
  }
  samples_per_epoch_ = (num_tokens - 1) / seq_len;
}

SampleOrder SampleOrder::in_order(int64_t num_tokens, int64_t seq_len) {
  SampleOrder order(num_tokens, seq_len, 0);
  order.is_shuffled_ = false;
  return order;
}

uint64_t SampleOrder::key_of(int64_t epoch) const {
  return is_shuffled_ ? RandomStream(seed_, "data/permutation").bits(uint64_t(epoch)) : 0;
}

SampleCursor SampleOrder::cursor(int64_t sample) const {
  require(sample >= 0, "sample order: sample {}; wanted at least 0", sample);
  return {.epoch = epoch_of(sample), .permutation_key = key_of(epoch_of(sample)), .sample = sample};
}

int64_t SampleOrder::first_token(int64_t sample) const {
  require(sample >= 0, "sample order: sample {}; wanted at least 0", sample);
  const auto index = uint64_t(sample % samples_per_epoch_);
  if (!is_shuffled_) return int64_t(index) * seq_len_;
  return int64_t(Permutation(uint64_t(samples_per_epoch_), key_of(epoch_of(sample)))(index)) * seq_len_;
}

}  // namespace octet
