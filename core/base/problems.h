// Collects what is wrong with a configuration, so that a user sees all of it at once.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace octet {

struct Problem {
  std::string key;   // "model.moe.top_k"
  std::string what;  // "is 9; wanted 1 to model.moe.num_experts, 8"
};

class Problems {
 public:
  // Notes "<key> <message>" where the condition is false; returns the condition. The key is relative to the sections
  // that are open.
  template <class... Args>
  bool require(bool condition, std::string_view key, fmt::format_string<Args...> message, Args&&... args) {
    if (!condition) found_.push_back({prefix_ + std::string(key), fmt::format(message, std::forward<Args>(args)...)});
    return condition;
  }

  // Runs check() with "name." before every key.
  template <class Check>
  void section(std::string_view name, Check&& check) {
    const size_t before = prefix_.size();
    prefix_ += std::string(name) + ".";
    check();
    prefix_.resize(before);
  }

  bool empty() const { return found_.empty(); }
  const std::vector<Problem>& found() const { return found_; }

 private:
  std::string prefix_;
  std::vector<Problem> found_;
};

}  // namespace octet
