// Operands that a benchmark makes up.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/base/random.h"
#include "core/tensor/transfer.h"

namespace octet {

// Numbers of unit size, float32 or bfloat16, that repeat after a while.
inline Tensor made_up_normal(Shape shape, DType dtype, const char* name, Device device) {
  constexpr size_t kPeriod = 65521;
  const RandomStream random(1, name);
  Tensor host = empty(shape, dtype);
  const auto fill = [&]<class T>() {
    std::vector<T> pattern;
    const size_t n = size_t(host.num_elements()), period = std::min(n, kPeriod);
    for (size_t i = 0; i < period; ++i) pattern.emplace_back(T(random.normal(i)));
    for (size_t i = 0; i < n; i += period) {
      std::memcpy(host.data<T>() + i, pattern.data(), std::min(period, n - i) * sizeof(T));
    }
  };
  dtype == DType::kFloat32 ? fill.template operator()<float>() : fill.template operator()<bfloat16>();
  return on_device(host, device);
}

}  // namespace octet
