// Where a kernel under test runs: each instruction set of this machine, and, where the build has them, the CUDA
// kernels, on a GPU if there is one or emulated in both orders of their threads (kernels/cuda/emulation/block.h).
//
//   const Backend backend = GENERATE(from_range(backends()));
//   const UseBackend use(backend);
//   kernels::scale({.x = view(x, {n}), .factor = 2.0f}, here());
//
// A GPU reads and writes the tests' own vectors, which lie in managed memory then: what a kernel gets a pointer to must
// lie in a vector, not on the stack.
#pragma once

#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "core/base/isa.h"
#include "core/base/stream.h"

namespace octet::test {

struct Backend {
  std::string name;
  Isa isa = Isa::kGeneric;
  bool is_cuda = false, is_backward = false;
};
inline std::ostream& operator<<(std::ostream& out, const Backend& backend) { return out << backend.name; }

std::vector<Backend> cpu_backends();
std::vector<Backend> cuda_backends();
std::vector<Backend> backends();  // both; of CPUs only AVX-512 where that is emulated

// Uses one backend, and a pool of threads, for the life of the object.
class UseBackend {
 public:
  explicit UseBackend(const Backend& backend, ThreadPool& pool = default_thread_pool());
  ~UseBackend();
  UseBackend(const UseBackend&) = delete;
  UseBackend& operator=(const UseBackend&) = delete;

 private:
  Isa isa_before_;
  std::unique_ptr<Stream> stream_;
  Stream* before_;
};

// The stream of the backend in use. Results are there when the expression ends: here() as an argument waits for them.
class Here {
 public:
  ~Here() noexcept(false);
  operator Stream&() const;
};
inline Here here() { return {}; }
inline Device device_here() { return static_cast<Stream&>(here()).device(); }

// Codes as kernels::column_codes_shape has them on the device of the backend in use, of or as a matrix of P rows and C
// columns that lies row by row.
std::vector<uint8_t> column_codes_of(const std::vector<uint8_t>& rows, int64_t P, int64_t C);
std::vector<uint8_t> rows_of_column_codes(const std::vector<uint8_t>& codes, int64_t P, int64_t C);

}  // namespace octet::test
