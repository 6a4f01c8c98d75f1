// A hash map from a pair of token ids to a value, by open addressing: the merge table of an encoder is looked up for
// every pair of neighbours, which std::unordered_map makes several times slower.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace octet {

inline uint64_t pair_key(int32_t left, int32_t right) { return uint64_t(uint32_t(left)) << 32 | uint32_t(right); }

template <class Value>
class PairMap {
 public:
  explicit PairMap(size_t expected = 0) {
    size_t slots = 16;
    while (slots < expected * 2) slots *= 2;
    resize(slots);
  }
  size_t size() const { return size_; }

  // The value, or null.
  const Value* find(uint64_t key) const {
    for (size_t at = slot_of(key);; at = (at + 1) & mask_) {
      if (keys_[at] == key) return &values_[at];
      if (keys_[at] == kEmpty) return nullptr;
    }
  }
  Value* find(uint64_t key) { return const_cast<Value*>(std::as_const(*this).find(key)); }

  // The value, made with Value() where there is none. Pointers to values are good until the next insertion.
  Value& operator[](uint64_t key) {
    if ((size_ + 1) * 2 > keys_.size()) grow();
    for (size_t at = slot_of(key);; at = (at + 1) & mask_) {
      if (keys_[at] == key) return values_[at];
      if (keys_[at] == kEmpty) {
        keys_[at] = key;
        ++size_;
        return values_[at];
      }
    }
  }

  template <class Visit>
  void for_each(Visit&& visit) const {
    for (size_t at = 0; at < keys_.size(); ++at) {
      if (keys_[at] != kEmpty) visit(keys_[at], values_[at]);
    }
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t(0);  // ids are not negative, so no pair has this key
  size_t slot_of(uint64_t key) const { return size_t((key * 0x9E3779B97F4A7C15u) >> shift_) & mask_; }
  void resize(size_t slots) {
    keys_.assign(slots, kEmpty);
    values_.assign(slots, Value());
    mask_ = slots - 1;
    shift_ = 64 - __builtin_ctzll(slots);
  }
  void grow() {
    auto keys = std::move(keys_);
    auto values = std::move(values_);
    resize(keys.size() * 2);
    for (size_t i = 0; i < keys.size(); ++i) {
      if (keys[i] == kEmpty) continue;
      size_t at = slot_of(keys[i]);
      while (keys_[at] != kEmpty) at = (at + 1) & mask_;
      keys_[at] = keys[i];
      values_[at] = std::move(values[i]);
    }
  }

  std::vector<uint64_t> keys_;
  std::vector<Value> values_;
  size_t size_ = 0, mask_ = 0;
  int shift_ = 0;
};

}  // namespace octet
