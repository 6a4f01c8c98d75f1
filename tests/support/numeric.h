// Help for numeric tests: references are written in float64 by plain loops and compared with NearAll.
#pragma once

#include <catch2/catch.hpp>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "core/base/isa.h"
#include "core/base/random.h"
#include "core/base/view.h"

namespace octet::test {

using Doubles = std::vector<double>;
inline constexpr double kEpsilonF32 = 0x1p-23, kEpsilonBF16 = 0x1p-7;  // distance from 1 to the next number

// n uniform numbers on [-1, 1), the same for the same seed, exact in T.
template <class T = float>
std::vector<T> uniform(int64_t n, uint64_t seed) {
  const RandomStream stream(seed, "test");
  std::vector<T> values(static_cast<size_t>(n));
  for (size_t i = 0; i < values.size(); ++i) values[i] = T(stream.uniform(i) * 2.0f - 1.0f);
  return values;
}

template <class T>
Doubles doubles(const std::vector<T>& values) {
  Doubles wide;
  wide.reserve(values.size());
  for (const T& value : values) wide.push_back(double(value));
  return wide;
}

// Views of a vector. A vector of no elements still gives a defined view: its shape has a zero.
template <class T>
View view(std::vector<T>& values, Shape shape) {
  REQUIRE(int64_t(values.size()) == shape.num_elements());
  if (values.empty()) values.reserve(1);
  return View(values.data(), shape, dtype_of<T>);
}

// The gradient of sum(dy * f(x)) for each x by central differences in float64.
inline Doubles central_difference(const std::function<Doubles(const Doubles&)>& f, const Doubles& dy, Doubles x,
                                  double h = 1e-5) {
  Doubles dx(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double kept = x[i];
    x[i] = kept + h;
    const Doubles above = f(x);
    x[i] = kept - h;
    const Doubles below = f(x);
    x[i] = kept;
    double sum = 0;
    for (size_t j = 0; j < dy.size(); ++j) sum += dy[j] * (above[j] - below[j]);
    dx[i] = sum / (2 * h);
  }
  return dx;
}

// Every element within tolerance * max(largest |wanted|, floor) of the wanted one; NaN never is. `floor` is the size of
// the terms that were added, for a result that may be a small difference of large ones.
class NearAll : public Catch::MatcherBase<Doubles> {
 public:
  NearAll(Doubles wanted, double tolerance, double floor = 1e-30)
      : wanted_(std::move(wanted)), tolerance_(tolerance), floor_(floor) {}
  bool match(const Doubles& got) const override {
    if (got.size() != wanted_.size()) {
      note_ = "sizes " + std::to_string(got.size()) + " and " + std::to_string(wanted_.size());
      return false;
    }
    double largest = floor_;
    for (const double value : wanted_) largest = std::max(largest, std::abs(value));
    double worst = -1;
    size_t at = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      double off = std::abs(got[i] - wanted_[i]) / largest;
      if (std::isnan(off)) off = INFINITY;
      if (off > worst) worst = off, at = i;
    }
    if (worst <= tolerance_) return true;
    note_ = "element " + std::to_string(at) + ": got " + std::to_string(got[at]) + ", wanted " +
            std::to_string(wanted_[at]) + ", off by " + std::to_string(worst) + " of the largest; tolerance " +
            std::to_string(tolerance_);
    return false;
  }
  std::string describe() const override { return note_; }

 private:
  Doubles wanted_;
  double tolerance_, floor_;
  mutable std::string note_;
};

// Uses one instruction set for the life of the object.
class UseIsa {
 public:
  explicit UseIsa(Isa isa) : before_(current_isa()) { set_current_isa(isa); }
  ~UseIsa() { set_current_isa(before_); }

 private:
  Isa before_;
};

}  // namespace octet::test
