// Runs a kernel with every instruction set of this machine, on one thread and on three, and where the CUDA kernel keeps
// the CPU's order of sums with that too: all must give the same bytes.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "core/base/stream.h"
#include "tests/kernels/backend.h"
#include "tests/support/numeric.h"

namespace octet::test {

template <class T>
void append_bytes(std::string& bytes, const std::vector<T>& values) {
  bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

// run(bytes) makes its outputs afresh, runs the kernel on here() and appends them.
template <class Run>
void check_same_bits(const std::vector<Backend>& of, Run&& run) {
  std::string first;
  for (const Backend& backend : of) {
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads);
      const UseBackend use(backend, pool);
      std::string bytes;
      run(bytes);
      REQUIRE(!bytes.empty());
      if (first.empty()) first = bytes;
      CAPTURE(backend.name, threads);
      const bool same = bytes == first;
      CHECK(same);
    }
  }
}
template <class Run>
void check_same_bits(Run&& run) {
  check_same_bits(cpu_backends(), static_cast<Run&&>(run));
}

}  // namespace octet::test
