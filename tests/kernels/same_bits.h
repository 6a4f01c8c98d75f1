// Runs a kernel with every instruction set of this machine, on one thread and on three: all must give the same bytes.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "core/base/stream.h"
#include "tests/support/numeric.h"

namespace octet::test {

template <class T>
void append_bytes(std::string& bytes, const std::vector<T>& values) {
  bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

// run(stream, bytes) makes its outputs afresh, runs the kernel and appends them.
template <class Run>
void check_same_bits(Run&& run) {
  std::string first;
  for (const Isa isa : supported_isas()) {
    const UseIsa use(isa);
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads);
      Stream stream(pool);
      std::string bytes;
      run(stream, bytes);
      REQUIRE(!bytes.empty());
      if (first.empty()) first = bytes;
      CAPTURE(name_of(isa), threads);
      const bool same = bytes == first;
      CHECK(same);
    }
  }
}

}  // namespace octet::test
