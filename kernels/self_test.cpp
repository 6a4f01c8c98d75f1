#include "kernels/self_test.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "core/base/fp8.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "kernels/fp8_gemm.h"
#include "kernels/gemm.h"
#include "kernels/quantize.h"

namespace octet::kernels {
namespace {

constexpr int64_t kBlock = 128;

template <class T>
View view_of(std::vector<T>& values, Shape shape, DType dtype = dtype_of<T>) {
  return View(values.data(), shape, dtype);
}
bool same_bits(float a, float b) { return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b); }

// Every number that a block of scale 1 may hold, NaN and infinities too, in blocks that begin with 448.
std::string cast_fault(Stream& stream) {
  std::vector<bfloat16> x;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    bfloat16 value;
    value.bits = uint16_t(bits);
    if (std::isfinite(float(value)) && std::abs(float(value)) > kLargestE4M3) continue;
    if (x.size() % kBlock == 0) x.emplace_back(kLargestE4M3);
    x.push_back(value);
  }
  x.resize((x.size() + kBlock - 1) / kBlock * kBlock);
  const int64_t rows = int64_t(x.size()) / kBlock;
  std::vector<uint8_t> codes(x.size());
  std::vector<float> scale(static_cast<size_t>(rows));
  quantize_rows({.x = view_of(x, {rows, kBlock}),
                 .codes = view_of(codes, {rows, kBlock}, DType::kFloat8E4M3),
                 .scale = view_of(scale, {rows, 1}),
                 .stats = nullptr},
                stream);
  for (size_t i = 0; i < x.size(); ++i) {
    const uint8_t wanted = encode_e4m3(float(x[i])).bits;
    if (codes[i] != wanted) {
      return fmt::format("the E4M3 code of {} came out as {:#04x}; wanted {:#04x}", float(x[i]), codes[i], wanted);
    }
  }
  codes.resize(256);
  for (size_t i = 0; i < 256; ++i) codes[i] = uint8_t(i);
  std::vector<float> back(256), ones = {1.0f, 1.0f};
  dequantize_rows({.codes = view_of(codes, {1, 256}, DType::kFloat8E4M3),
                   .scale = view_of(ones, {1, 2}),
                   .x = view_of(back, {1, 256})},
                  stream);
  for (size_t i = 0; i < 256; ++i) {
    const float wanted = decode(float8_e4m3{uint8_t(i)});
    if (!same_bits(back[i], wanted)) {
      return fmt::format("the E4M3 code {:#04x} came out as {}; wanted {}", i, back[i], wanted);
    }
  }
  return "";
}

// The orders of sums as kernels/gemm.h and kernels/fp8_gemm.h state them, over at most one block of k.
float sum_in_order(const float* a, const float* b, int64_t n) {
  float sum = 0;
  for (int64_t k = 0; k < n; ++k) sum = std::fma(a[k], b[k], sum);
  return sum;
}
float sum_in_pairs(const float* a, const float* b, int64_t n) {
  float sum = 0;
  for (int64_t k = 0; k < n; k += 2) {
    if (k + 1 < n) sum = std::fma(a[k + 1], b[k + 1], sum);
    sum = std::fma(a[k], b[k], sum);
  }
  return sum;
}
// As the tensor core adds, on integers in units of 2^-31: operands are multiples of 2^-9 and products of 2^-18, and a
// sum of 13 fraction bits that has just been cut is a multiple of 2^-12-13 at least.
float sum_of_tensor_core(const float* a, const float* b, int64_t n) {
  const auto exponent = [](float x) { return x == 0 ? -1000 : std::max(std::ilogb(x), -6); };
  const auto cut = [](int64_t x, int bits) { return x < 0 ? -(-x >> bits << bits) : x >> bits << bits; };
  constexpr int kUnit = 31;
  int64_t sum = 0;
  for (int64_t k0 = 0; k0 < n; k0 += 32) {
    const int64_t end = std::min(n, k0 + 32);
    int top = sum == 0 ? -1000 : std::ilogb(double(sum)) - kUnit;
    for (int64_t k = k0; k < end; ++k) top = std::max(top, exponent(a[k]) + exponent(b[k]));
    if (top < -100) continue;  // nothing but zeros
    const int last = std::max(0, top - 13 + kUnit);
    int64_t next = cut(sum, last);
    for (int64_t k = k0; k < end; ++k) {
      next += cut(int64_t(std::ldexp(double(a[k]) * double(b[k]), kUnit)), last);
    }
    sum = next == 0 ? 0 : cut(next, std::max(0, std::ilogb(double(next)) - 13));
  }
  return float(std::ldexp(double(sum), -kUnit));
}

std::string product_fault(Stream& stream) {
  constexpr int64_t M = 7, N = 67, K = 101;  // ragged in every direction of every tile
  const RandomStream random(1, "self_test");
  std::vector<uint8_t> a8, b8;
  std::vector<float> a, b;
  std::vector<bfloat16> a16, b16;
  const auto fill = [&](int64_t n, uint64_t lane, std::vector<uint8_t>& codes, std::vector<float>& values,
                        std::vector<bfloat16>& halves) {
    for (int64_t i = 0; i < n; ++i) {
      codes.push_back(uint8_t(random.below(127, uint64_t(i), lane) | random.below(2, uint64_t(i), lane + 1) << 7));
      values.push_back(decode(float8_e4m3{codes.back()}));
      halves.emplace_back(values.back());
    }
  };
  fill(M * K, 0, a8, a, a16);
  fill(N * K, 2, b8, b, b16);
  std::vector<float> c(size_t(M * N)), a_scale(size_t(M), 0.5f), b_scale = {4.0f};
  const auto check = [&](const char* name, auto&& sum) -> std::string {
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t n = 0; n < N; ++n) {
        const float got = c[size_t(m * N + n)], wanted = sum(a.data() + m * K, b.data() + n * K, K);
        if (!same_bits(got, wanted)) return fmt::format("a {} product came out as {}; wanted {}", name, got, wanted);
      }
    }
    return "";
  };
  const View result = view_of(c, {M, N});
  grouped_gemm({.a = view_of(a, {M, K}), .b = view_of(b, {N, K}), .c = result}, stream);
  if (const std::string fault = check("float32", sum_in_order); !fault.empty()) return fault;
  grouped_gemm({.a = view_of(a16, {M, K}), .b = view_of(b16, {N, K}), .c = result}, stream);
  if (const std::string fault = check("bfloat16", sum_in_pairs); !fault.empty()) return fault;
  const auto fp8 = [&](Emulation emulation) {
    fp8_grouped_gemm({.a = view_of(a8, {M, K}, DType::kFloat8E4M3),
                      .a_scale = view_of(a_scale, {M, 1}),
                      .b = view_of(b8, {N, K}, DType::kFloat8E4M3),
                      .b_scale = view_of(b_scale, {1, 1}),
                      .c = result,
                      .emulation = emulation},
                     stream);
  };
  fp8(Emulation::kIdeal);
  if (const std::string fault =
          check("FP8", [](const float* x, const float* y, int64_t n) { return 2.0f * sum_in_pairs(x, y, n); });
      !fault.empty()) {
    return fault;
  }
  fp8(Emulation::kHopper);
  if (const std::string fault = check(
          "Hopper FP8", [](const float* x, const float* y, int64_t n) { return 2.0f * sum_of_tensor_core(x, y, n); });
      !fault.empty()) {
    return fault;
  }
  fp8(Emulation::kFp64);
  return check("float64 FP8", [](const float* x, const float* y, int64_t n) {
    double sum = 0;
    for (int64_t k = 0; k < n; ++k) sum += double(x[k]) * double(y[k]);
    return float(2.0 * sum);
  });
}

// Subnormal numbers: a bfloat16 product takes them as zero and forgets no one's setting of the processor for others.
std::string subnormal_fault(Stream& stream) {
  std::vector<bfloat16> a = {bfloat16(-15 * 0x1p-70f), bfloat16(0x1p-66f)}, b(2, bfloat16(0x1p-60f));
  std::vector<float> c = {-1.0f};
  grouped_gemm({.a = view_of(a, {1, 2}), .b = view_of(b, {1, 2}), .c = view_of(c, {1, 1})}, stream);
  if (c[0] != 0) return fmt::format("a subnormal bfloat16 sum came out as {}; wanted 0", c[0]);
  std::vector<float> x = {-15 * 0x1p-70f, 0x1p-66f}, y(2, 0x1p-60f);
  grouped_gemm({.a = view_of(x, {1, 2}), .b = view_of(y, {1, 2}), .c = view_of(c, {1, 1})}, stream);
  if (c[0] != 0x1p-130f) return fmt::format("a subnormal float32 sum came out as {}; wanted {}", c[0], 0x1p-130f);
  return "";
}

}  // namespace

std::string self_test_fault() {
  ThreadPool pool(1);
  Stream stream(pool);
  for (auto* test : {cast_fault, product_fault, subnormal_fault}) {
    if (std::string fault = test(stream); !fault.empty()) return fault;
  }
  return "";
}

Isa sound_isa(Isa from, const std::function<std::string(Isa)>& fault,
              const std::function<void(Isa, const std::string&)>& warned) {
  const std::vector<Isa> isas = supported_isas();  // slowest first
  for (size_t i = isas.size(); i-- > 0;) {
    if (isas[i] > from) continue;
    const std::string what = fault(isas[i]);
    if (what.empty()) return isas[i];
    warned(isas[i], what);
  }
  return isas.front();
}

void run_self_test() {
  const Isa sound = sound_isa(
      current_isa(),
      [](Isa isa) {
        set_current_isa(isa);
        return self_test_fault();
      },
      [](Isa isa, const std::string& fault) {
        log_warning("self-test of the {} kernels failed: {}; {}", name_of(isa), fault,
                    isa == Isa::kGeneric ? "there is no simpler set of kernels, results may be wrong"
                                         : "the next simpler set of kernels is used, which is slower");
      });
  set_current_isa(sound);
}

}  // namespace octet::kernels
