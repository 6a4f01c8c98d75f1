// Which tokens a training sample reads: a pure function of the seed, the length of the data and the number of the
// sample. There is no state, so a run can continue at any sample, on any number of ranks, and read what it would have
// read.
//
// The tokens of all shards, in order, are one stream of n tokens. A window is seq_len + 1 of them from a multiple of
// seq_len on, so windows share one token, which is the last target of one and the first input of the next:
//   samples_per_epoch = (n - 1) / seq_len, rounded down; fewer than seq_len tokens at the end are not read
//   epoch(i) = i / samples_per_epoch,   window(i) = permutation_epoch(i % samples_per_epoch)
// The permutation is a Feistel network over the smallest even number of bits that can hold samples_per_epoch (Black and
// Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002), applied again while the result lies outside. Its
// round function is Philox4x32-10 under a key drawn for (seed, epoch).
#pragma once

#include <cstdint>

namespace octet {

// What a checkpoint stores of the position in the data. `sample` alone decides; the others let a reader see, and a
// resumed run check, that it continues the same order.
struct SampleCursor {
  int64_t epoch = 0;
  uint64_t permutation_key = 0;
  int64_t sample = 0;  // counted over all epochs and ranks
  bool operator==(const SampleCursor&) const = default;
};

// A permutation of 0 .. size - 1, in constant memory.
class Permutation {
 public:
  Permutation(uint64_t size, uint64_t key);
  uint64_t operator()(uint64_t index) const;

 private:
  uint64_t size_, key_;
  int half_bits_ = 1;
};

class SampleOrder {
 public:
  // Shuffled. Throws kData where the data has fewer than seq_len + 1 tokens.
  SampleOrder(int64_t num_tokens, int64_t seq_len, uint64_t seed);
  // Window i is sample i: for validation.
  static SampleOrder in_order(int64_t num_tokens, int64_t seq_len);

  int64_t seq_len() const { return seq_len_; }
  int64_t samples_per_epoch() const { return samples_per_epoch_; }
  int64_t epoch_of(int64_t sample) const { return sample / samples_per_epoch_; }
  SampleCursor cursor(int64_t sample) const;
  // The first of the sample's seq_len + 1 tokens.
  int64_t first_token(int64_t sample) const;

 private:
  uint64_t key_of(int64_t epoch) const;

  int64_t seq_len_, samples_per_epoch_;
  uint64_t seed_ = 0;
  bool is_shuffled_ = true;
};

}  // namespace octet
