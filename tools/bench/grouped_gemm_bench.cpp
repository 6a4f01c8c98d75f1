#include "tools/bench/grouped_gemm_bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "core/base/clock.h"
#include "core/tensor/transfer.h"
#include "kernels/device_runtime.h"
#include "kernels/elementwise.h"
#include "kernels/fp8_gemm.h"
#include "kernels/fp8_swiglu_gemm.h"
#include "kernels/fp8_tensor_gemm.h"
#include "kernels/gemm.h"
#include "kernels/gemm_clusters.h"
#include "kernels/peak.h"
#include "kernels/quantize.h"
#include "kernels/requantize_tiles.h"
#include "tools/bench/made_up_tensors.h"
#include "tools/bench/whole_number.h"
#include "tools/train/device.h"
#include "tools/train/timing.h"

namespace octet {
namespace {

using kernels::Emulation;

struct Shape4 {
  int64_t G, M, N, K;
};
// DeepSeek-V3's experts, and those of arXiv:2512.14080, figure 14.
const std::vector<Shape4> kOnGpu = {{4, 8192, 4096, 7168}, {4, 8192, 7168, 2048},  {8, 4096, 4096, 7168},
                                    {8, 4096, 7168, 2048}, {64, 2048, 2048, 4096}, {64, 2048, 4096, 1024},
                                    {128, 2560, 512, 768}};
const std::vector<Shape4> kOnCpu = {{4, 128, 512, 256}};
constexpr int64_t kFlushedBytes = int64_t(256) << 20;  // more than any L2 cache

struct Options {
  DeviceType device = DeviceType::kCpu;
  std::vector<Shape4> shapes;
  int64_t repeats = 9;
  int64_t peak = 8192;  // rows, columns and k of the products whose speed is a GPU's peak
};
Options parse(const std::vector<std::string>& args) {
  Options options;
  const auto refuse = [](const std::string& arg) {
    fail(ErrorKind::kArgument,
         {.what = fmt::format(
              "bench grouped-gemm: \"{}\" came; wanted device=cpu|cuda, a shape GxMxNxK, repeats=N or peak=N", arg),
          .where = "command line",
          .why = {},
          .fix = "octet bench grouped-gemm 4x128x512x256 repeats=9"});
  };
  for (const std::string& arg : args) {
    if (arg == "device=cpu" || arg == "device=cuda") {
      options.device = arg == "device=cuda" ? DeviceType::kCuda : DeviceType::kCpu;
    } else if (!take_number(arg, {{"repeats", &options.repeats}, {"peak", &options.peak}})) {
      const std::vector<int64_t> axes = whole_numbers(arg);
      if (axes.size() != 4) refuse(arg);
      options.shapes.push_back({axes[0], axes[1], axes[2], axes[3]});
    }
  }
  if (options.shapes.empty()) options.shapes = options.device == DeviceType::kCpu ? kOnCpu : kOnGpu;
  return options;
}

int64_t blocks(int64_t n) { return (n + 127) / 128; }

// One direction: a [R, K] times the experts' matrices, [G, N, K] along k, or [G, K, N] along the columns.
struct Direction {
  const char* name;
  bool b_is_kn;
  int64_t N, K;
};

struct Problem {
  int64_t G, M, R;
  Direction direction;
  Tensor a, codes, scale;          // [R, K] bfloat16, E4M3, [R, ceil(K/128)]
  Tensor b, b_codes, b_scale;      // as in the direction
  Tensor offsets, fp8, bf16, one;  // [G + 1]; the results [R, N]; the matrix of the dense product
  Stream& stream;

  Problem(const Shape4& s, bool is_dgrad, Device device)
      : G(s.G),
        M(s.M),
        R(s.G * s.M),
        direction(is_dgrad ? Direction{"dgrad", true, s.K, s.N} : Direction{"fprop", false, s.N, s.K}),
        stream(default_stream(device)) {
    const auto [name, b_is_kn, N, K] = direction;
    const AllocateAs as(MemoryCategory::kWorkspace);
    a = made_up_normal({R, K}, DType::kBFloat16, "a", device);
    b = made_up_normal({G, s.N, s.K}, DType::kBFloat16, "b", device);
    const Tensor wide = empty(b.shape(), DType::kFloat32, device);
    kernels::cast({.x = b, .y = wide}, stream);
    codes = empty({R, K}, DType::kFloat8E4M3, device), scale = empty({R, blocks(K)}, DType::kFloat32, device);
    b_codes = empty(b.shape(), DType::kFloat8E4M3, device);
    b_scale = empty({G, blocks(s.N), blocks(s.K)}, DType::kFloat32, device);
    kernels::quantize_rows({.x = a, .codes = codes, .scale = scale, .stats = nullptr}, stream);
    kernels::quantize_blocks({.x = wide, .codes = b_codes, .scale = b_scale, .stats = nullptr}, stream);
    std::vector<int64_t> starts;
    for (int64_t g = 0; g <= G; ++g) starts.push_back(g * M);
    offsets = from_vector(starts, {G + 1}, device);
    fp8 = empty({R, N}, DType::kBFloat16, device), bf16 = empty_like(fp8);
    one = made_up_normal({N, K}, DType::kBFloat16, "one", device);
  }
  Emulation emulation() const { return stream.device().is_cpu() ? Emulation::kIdeal : Emulation::kHopper; }
  void multiply_fp8() const {
    kernels::fp8_grouped_gemm({.a = codes,
                               .a_scale = scale,
                               .b = b_codes,
                               .b_scale = b_scale,
                               .offsets = offsets,
                               .rows = {},
                               .c = fp8,
                               .b_is_kn = direction.b_is_kn,
                               .emulation = emulation()},
                              stream);
  }
  void multiply_bf16() const {
    kernels::grouped_gemm({.a = a, .b = b, .offsets = offsets, .rows = {}, .c = bf16, .b_is_kn = direction.b_is_kn},
                          stream);
  }
  void multiply_dense(const Tensor& c) const { kernels::grouped_gemm({.a = a, .b = one, .c = c}, stream); }
};

// The first product of a gated layer and its activation, of the operands of a product along k: by a kernel each, or by
// one that makes the codes of both.
struct Gated {
  const Problem& p;
  Tensor h, h_codes, h_scale, y_codes, y_scale;

  explicit Gated(const Problem& problem) : p(problem) {
    const AllocateAs as(MemoryCategory::kWorkspace);
    const Device device = p.stream.device();
    const int64_t N = p.direction.N, F = N / 2;
    h = empty({p.R, N}, DType::kBFloat16, device);
    h_codes = empty({p.R, N}, DType::kFloat8E4M3, device), h_scale = empty({p.R, blocks(N)}, DType::kFloat32, device);
    y_codes = empty({p.R, F}, DType::kFloat8E4M3, device), y_scale = empty({p.R, blocks(F)}, DType::kFloat32, device);
  }
  void run(bool in_one) const {
    const kernels::Fp8SwigluGemm args{.a = p.codes,
                                      .a_scale = p.scale,
                                      .b = p.b_codes,
                                      .b_scale = p.b_scale,
                                      .offsets = p.offsets,
                                      .emulation = p.emulation(),
                                      .h_codes = h_codes,
                                      .h_scale = h_scale,
                                      .y_codes = y_codes,
                                      .y_scale = y_scale,
                                      .stats = nullptr};
    if (in_one) return kernels::fp8_swiglu_gemm(args, p.stream);
    kernels::fp8_grouped_gemm(kernels::product_of(args, h), p.stream);
    kernels::swiglu_forward_fp8(kernels::activation_of(args, h), p.stream);
  }
  std::string bytes() const {
    std::string all;
    for (const Tensor* x : {&h_codes, &h_scale, &y_codes, &y_scale}) {
      const Tensor there = on_host(*x);
      all.append(static_cast<const char*>(there.view().raw()), size_t(x->num_elements() * size_of(x->dtype())));
    }
    return all;
  }
  // The rows that one call leaves, made of zeros before.
  std::string made(bool in_one) const {
    for (const Tensor* x : {&h_codes, &h_scale, &y_codes, &y_scale}) fill_zero(*x);
    run(in_one);
    return bytes();
  }
};

struct Check {
  bool fp8_is_right, bf16_is_right;
  double diff, sqnr;  // of FP8 against the numbers before they were quantised
};
// The first and the last row of the first and the last expert, anew on the CPU.
Check check(const Problem& p) {
  const auto [name, b_is_kn, N, K] = p.direction;
  std::vector<int64_t> rows = {0, p.M - 1, (p.G - 1) * p.M, p.R - 1};
  const Tensor a = on_host(p.a), b = on_host(p.b), codes = on_host(p.codes), scale = on_host(p.scale);
  const Tensor fp8 = on_host(p.fp8), bf16 = on_host(p.bf16), b_codes = on_host(p.b_codes), b_scale = on_host(p.b_scale);
  const Tensor some_codes = empty({4, K}, DType::kFloat8E4M3), some_scale = empty({4, blocks(K)}, DType::kFloat32);
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t r = rows[size_t(i)];
    std::memcpy(some_codes.data<uint8_t>() + i * K, codes.data<uint8_t>() + r * K, size_t(K));
    std::copy_n(scale.data<float>() + r * blocks(K), blocks(K), some_scale.data<float>() + i * blocks(K));
  }
  std::vector<int64_t> starts(size_t(p.G) + 1, 2);
  starts.front() = 0, starts.back() = 4;
  if (p.G == 1) starts = {0, 4};
  const Tensor wanted = empty({4, N}, DType::kBFloat16);
  kernels::fp8_grouped_gemm({.a = some_codes,
                             .a_scale = some_scale,
                             .b = b_codes,
                             .b_scale = b_scale,
                             .offsets = from_vector(starts, {p.G + 1}),
                             .rows = {},
                             .c = wanted,
                             .b_is_kn = b_is_kn,
                             .emulation = p.emulation()},
                            default_stream(Device()));
  int64_t other_bits = 0;
  double both = 0, squares = 0, error = 0, exact_squares = 0, worst = 0, largest = 0;
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t r = rows[size_t(i)], g = r / p.M;
    std::vector<double> exact(size_t(N), 0.0);
    const bfloat16* const left = a.data<bfloat16>() + r * K;
    const bfloat16* const right = b.data<bfloat16>() + g * N * K;
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t k = 0; k < K; ++k) {
        exact[size_t(n)] += double(float(left[k])) * double(float(right[b_is_kn ? k * N + n : n * K + k]));
      }
    }
    for (int64_t n = 0; n < N; ++n) {
      const bfloat16 got = fp8.data<bfloat16>()[r * N + n];
      other_bits += got.bits != wanted.data<bfloat16>()[i * N + n].bits;
      const double x = double(float(got)), y = exact[size_t(n)];
      both += x * y, squares += x * x, exact_squares += y * y, error += (x - y) * (x - y);
      worst = std::max(worst, std::abs(double(float(bf16.data<bfloat16>()[r * N + n])) - y));
      largest = std::max(largest, std::abs(y));
    }
  }
  const double diff = 1 - 2 * both / (squares + exact_squares), sqnr = 10 * std::log10(exact_squares / error);
  return {.fp8_is_right = other_bits == 0 && diff < 1e-3 && sqnr >= 28,
          .bf16_is_right = worst <= 0x1p-8 * largest,
          .diff = diff,
          .sqnr = sqnr};
}

// Codes and scales of both operands of a weight gradient, in one of its two forms (kernels/quantize.h).
struct WgradCodes {
  Tensor dy, dy_scale, x, x_scale;
};
// rows: those of dy and x, of which groups take offsets, and whole blocks of 128 of P rows.
WgradCodes wgrad_codes(const Tensor& dy, const Tensor& x, const Tensor& offsets, const Tensor& block_offsets, int64_t P,
                       bool by_tiles) {
  const Device device = dy.device();
  Stream& stream = default_stream(device);
  const auto quantised = [&](const Tensor& from) {
    const int64_t R = from.rows(), C = from.cols();
    Tensor codes = empty(kernels::column_codes_shape(P, C, device), DType::kFloat8E4M3, device);
    Tensor scale = empty({P / 128, by_tiles ? blocks(C) : C}, DType::kFloat32, device);
    if (by_tiles) {
      const Tensor row_codes = empty({R, C}, DType::kFloat8E4M3, device);
      const Tensor row_scale = empty({R, blocks(C)}, DType::kFloat32, device);
      kernels::quantize_rows({.x = from, .codes = row_codes, .scale = row_scale, .stats = nullptr}, stream);
      kernels::requantize_tiles({.codes = row_codes,
                                 .scale = row_scale,
                                 .offsets = offsets,
                                 .block_offsets = block_offsets,
                                 .out_codes = codes,
                                 .out_scale = scale,
                                 .stats = nullptr},
                                stream);
    } else {
      kernels::quantize_columns({.x = from,
                                 .offsets = offsets,
                                 .block_offsets = block_offsets,
                                 .codes = codes,
                                 .scale = scale,
                                 .stats = nullptr},
                                stream);
    }
    return std::pair(codes, scale);
  };
  const auto [dy_codes, dy_scale] = quantised(dy);
  const auto [x_codes, x_scale] = quantised(x);
  return {dy_codes, dy_scale, x_codes, x_scale};
}
void multiply_wgrad(const WgradCodes& codes, const Tensor& offsets, const Tensor& block_offsets, bool by_tiles,
                    Emulation emulation, const Tensor& dw) {
  kernels::fp8_grouped_wgrad({.dy = codes.dy,
                              .dy_scale = codes.dy_scale,
                              .x = codes.x,
                              .x_scale = codes.x_scale,
                              .offsets = offsets,
                              .block_offsets = block_offsets,
                              .dw = dw,
                              .accumulate = true,
                              .by_tiles = by_tiles,
                              .emulation = emulation},
                             default_stream(dw.device()));
}

// The gradient of the experts' matrices, [G, N, K], added to one in float32.
struct WgradProblem {
  int64_t G, M, R, N, K, P;
  Tensor dy, x;                   // [R, N] and [R, K] bfloat16
  Tensor offsets, block_offsets;  // [G + 1]
  Tensor dw;                      // [G, N, K] float32
  Tensor left, right, one;        // the dense product of as many FLOPs, [N, K]
  Stream& stream;

  WgradProblem(const Shape4& s, Device device)
      : G(s.G), M(s.M), R(s.G * s.M), N(s.N), K(s.K), P(s.G * 128 * blocks(s.M)), stream(default_stream(device)) {
    const AllocateAs as(MemoryCategory::kWorkspace);
    dy = made_up_normal({R, N}, DType::kBFloat16, "dy", device);
    x = made_up_normal({R, K}, DType::kBFloat16, "x", device);
    std::vector<int64_t> starts, block_starts;
    for (int64_t g = 0; g <= G; ++g) starts.push_back(g * M), block_starts.push_back(g * blocks(M));
    offsets = from_vector(starts, {G + 1}, device), block_offsets = from_vector(block_starts, {G + 1}, device);
    dw = zeros({G, N, K}, DType::kFloat32, device);
    left = made_up_normal({N, R}, DType::kBFloat16, "left", device);
    right = made_up_normal({K, R}, DType::kBFloat16, "right", device);
    one = empty({N, K}, DType::kBFloat16, device);
  }
  Emulation emulation() const { return stream.device().is_cpu() ? Emulation::kIdeal : Emulation::kHopper; }
  void multiply_bf16() const {
    kernels::grouped_wgrad({.dy = dy, .x = x, .offsets = offsets, .rows = {}, .dw = dw, .accumulate = true}, stream);
  }
  void multiply_dense() const { kernels::grouped_gemm({.a = left, .b = right, .c = one}, stream); }
};

// The first 128 rows of the gradients of the first and the last expert: in FP8 anew on the CPU, from the numbers before
// they were quantised; and two of the rows exactly.
struct WgradCheck {
  bool has_bits = true;
  double diff, sqnr, worst;  // against the exact ones; worst: relative to the largest
};
WgradCheck check(const WgradProblem& p, bool is_fp8, bool by_tiles) {
  const int64_t experts = p.G > 1 ? 2 : 1, n = std::min<int64_t>(128, p.N), M = p.M, K = p.K;
  const Tensor dy = on_host(p.dy), x = on_host(p.x), dw = on_host(p.dw);
  const Tensor some_dy = empty({experts * M, n}, DType::kBFloat16), some_x = empty({experts * M, K}, DType::kBFloat16);
  const auto group = [&](int64_t e) { return e == 0 ? 0 : p.G - 1; };
  for (int64_t e = 0; e < experts; ++e) {
    for (int64_t m = 0; m < M; ++m) {
      const int64_t from = group(e) * M + m, to = e * M + m;
      std::copy_n(dy.data<bfloat16>() + from * p.N, n, some_dy.data<bfloat16>() + to * n);
      std::copy_n(x.data<bfloat16>() + from * K, K, some_x.data<bfloat16>() + to * K);
    }
  }
  WgradCheck found;
  if (is_fp8) {
    std::vector<int64_t> starts, block_starts;
    for (int64_t e = 0; e <= experts; ++e) starts.push_back(e * M), block_starts.push_back(e * blocks(M));
    const Tensor offsets = from_vector(starts, {experts + 1}), block_offsets = from_vector(block_starts, {experts + 1});
    const Tensor wanted = zeros({experts, n, K}, DType::kFloat32, Device());
    multiply_wgrad(wgrad_codes(some_dy, some_x, offsets, block_offsets, experts * 128 * blocks(M), by_tiles), offsets,
                   block_offsets, by_tiles, p.emulation(), wanted);
    for (int64_t e = 0; e < experts; ++e) {
      found.has_bits &= std::memcmp(dw.data<float>() + group(e) * p.N * K, wanted.data<float>() + e * n * K,
                                    size_t(n * K) * sizeof(float)) == 0;
    }
  }
  double both = 0, squares = 0, error = 0, exact_squares = 0, worst = 0, largest = 0;
  for (int64_t e = 0; e < experts; ++e) {
    for (const int64_t row : {int64_t(0), n - 1}) {
      std::vector<double> exact(size_t(K), 0.0);
      for (int64_t m = e * M; m < (e + 1) * M; ++m) {
        const double factor = double(float(some_dy.data<bfloat16>()[m * n + row]));
        for (int64_t k = 0; k < K; ++k) exact[size_t(k)] += factor * double(float(some_x.data<bfloat16>()[m * K + k]));
      }
      for (int64_t k = 0; k < K; ++k) {
        const double got = double(dw.data<float>()[(group(e) * p.N + row) * K + k]), y = exact[size_t(k)];
        both += got * y, squares += got * got, exact_squares += y * y, error += (got - y) * (got - y);
        worst = std::max(worst, std::abs(got - y)), largest = std::max(largest, std::abs(y));
      }
    }
  }
  found.diff = 1 - 2 * both / (squares + exact_squares), found.sqnr = 10 * std::log10(exact_squares / error);
  found.worst = worst / largest;
  return found;
}

// 1 - 2 xy / (xx + yy), of bfloat16.
double difference(const Tensor& x, const Tensor& y) {
  double both = 0, squares = 0;
  for (int64_t i = 0; i < x.num_elements(); ++i) {
    const double left = double(float(x.data<bfloat16>()[i])), right = double(float(y.data<bfloat16>()[i]));
    both += left * right, squares += left * left + right * right;
  }
  return 1 - 2 * both / squares;
}

// Each call with cold caches, by the device's own clock.
Timing time_of(int64_t repeats, const Tensor& flushed, Stream& stream, const std::function<void()>& run) {
  run();
  std::vector<double> seconds;
  for (int64_t i = 0; i < repeats; ++i) {
    if (stream.device().is_cpu()) {
      std::memset(flushed.data<uint8_t>(), int(i), size_t(flushed.num_elements()));
    } else {
      gpu::fill(flushed.view().raw(), int(i % 2), flushed.num_elements(), stream);
    }
    seconds.push_back(seconds_of(run, stream));
  }
  return timing_of(seconds);
}

// Whether a GPU's blocks work in pairs, each form of which is timed.
struct Form {
  kernels::GemmClusters clusters;
  const char* name;
};
std::vector<Form> forms_of(Device device) {
  using kernels::GemmClusters;
  if (device.is_cpu()) return {{GemmClusters::kAuto, ""}};
  return {{GemmClusters::kOff, "off"}, {GemmClusters::kOn, "on"}};
}
struct UseForm {
  explicit UseForm(const Form& form) : before(kernels::gemm_clusters()) { kernels::set_gemm_clusters(form.clusters); }
  ~UseForm() { kernels::set_gemm_clusters(before); }
  UseForm(const UseForm&) = delete;
  UseForm& operator=(const UseForm&) = delete;
  kernels::GemmClusters before;
};
struct Measured {
  Form form;
  Timing timing;
  bool has_same_bits;  // as the first form
};
// Leaves in `result` what one call makes of it, from zeros where it is added to.
std::vector<Measured> measure(int64_t repeats, const Tensor& flushed, Stream& stream,
                              const std::function<void()>& multiply, const Tensor& result, bool is_added_to) {
  std::vector<Measured> all;
  std::vector<Tensor> found;
  for (const Form& form : forms_of(stream.device())) {
    const UseForm use(form);
    const Timing timing = time_of(repeats, flushed, stream, multiply);
    if (is_added_to) fill_zero(result), multiply();
    if (!stream.device().is_cpu()) found.push_back(on_host(result));
    const bool is_same = all.empty() || std::memcmp(found.front().view().raw(), found.back().view().raw(),
                                                    size_t(result.num_elements() * size_of(result.dtype()))) == 0;
    all.push_back({form, timing, is_same});
  }
  return all;
}

// FLOP/s that products reach where nothing but the arithmetic is in their way.
struct Peaks {
  double fp8, bf16;
  bool is_right = true;
};
// Of a GPU those of cuBLASLt's dense products, in FP8 with one scale for each matrix, whose answer is compared with
// that of Octet's own.
Peaks measure_peaks(const Options& options, const Tensor& flushed, Stream& stream) {
  const Device device = stream.device();
  if (device.is_cpu()) {
    const double pairs = kernels::measure_peak_flops(kernels::Arithmetic::kBFloat16Pairs, stream, real_clock());
    return {.fp8 = pairs, .bf16 = pairs};
  }
  const AllocateAs as(MemoryCategory::kWorkspace);
  const int64_t n = options.peak;
  const auto time_of_dense = [&](const std::function<void()>& multiply) {
    return 2.0 * double(n) * double(n) * double(n) / time_of(options.repeats, flushed, stream, multiply).median;
  };
  const Tensor a = made_up_normal({n, n}, DType::kBFloat16, "a", device),
               b = made_up_normal({n, n}, DType::kBFloat16, "b", device);
  const Tensor c = empty({n, n}, DType::kBFloat16, device), own = empty_like(c);
  const double bf16 = time_of_dense([&] { kernels::grouped_gemm({.a = a, .b = b, .c = c}, stream); });
  // Of what is quantised only the codes are taken.
  const Tensor one = from_vector(std::vector<float>{1.0f}, {1}, device);
  const Tensor ones = from_vector(std::vector<float>(size_t(n * blocks(n)), 1.0f), {n, blocks(n)}, device);
  const Tensor scale = empty_like(ones);
  const auto codes_of = [&](const Tensor& x) {
    Tensor codes = empty({n, n}, DType::kFloat8E4M3, device);
    kernels::quantize_rows({.x = x, .codes = codes, .scale = scale, .stats = nullptr}, stream);
    return codes;
  };
  const Tensor a_codes = codes_of(a), b_codes = codes_of(b);
  const double fp8 = time_of_dense(
      [&] { kernels::fp8_tensor_gemm({.a = a_codes, .a_scale = one, .b = b_codes, .b_scale = one, .c = c}, stream); });
  kernels::fp8_grouped_gemm(
      {.a = a_codes, .a_scale = ones, .b = b_codes, .b_scale = ones, .c = own, .emulation = Emulation::kHopper},
      stream);
  return {.fp8 = fp8, .bf16 = bf16, .is_right = difference(on_host(c), on_host(own)) < 1e-3};
}

}  // namespace

int bench_grouped_gemm(const std::vector<std::string>& args) {
  const Options options = parse(args);
  const Device device = open_device(options.device);
  Stream& stream = default_stream(device);
  const Tensor flushed = zeros({kFlushedBytes}, DType::kUInt8, device);
  const Peaks peaks = measure_peaks(options, flushed, stream);
  fmt::print(
      "{}; G experts with M rows each\n"
      "% peak: of {:.4g} TFLOP/s for FP8 and {:.4g} for bfloat16, measured by {}{}\n"
      "x dense, x bf16: the speed over that of a dense bfloat16 product of as many FLOPs, and of the experts' in bf16\n"
      "diff and SQNR: of FP8 against the product of the numbers before they were quantised, on 4 rows, whose bits are\n"
      "also those of the CPU\n"
      "fp8 t: weight gradients of operands with a scale for each 128x128, not 128x1\n"
      "swiglu: fprop in FP8 and its gated activation, N columns to the codes of N and of N/2, in two kernels and in one"
      "\nwith their bits; TFLOP/s are those of the product alone{}\n\n",
      describe(device), peaks.fp8 * 1e-12, peaks.bf16 * 1e-12,
      device.is_cpu() ? "pairs of products in registers"
                      : fmt::format("dense {0}x{0}x{0}, of FP8 with one scale a matrix", options.peak),
      peaks.is_right ? "" : "  WRONG",
      device.is_cpu() ? "" : "\npairs: blocks that share what they read (OCTET_GEMM_CLUSTERS), with the same bits");
  const int pairs_width = device.is_cpu() ? 0 : 6;
  fmt::print("{:<24} {:<6} {:<6} {:<{}}{:>9} {:>8} {:>9} {:>7} {:>8} {:>7} {:>9} {:>8}\n", "G x M x N x K", "what",
             "type", device.is_cpu() ? "" : "pairs", pairs_width, "median ms", "spread", "TFLOP/s", "% peak", "x dense",
             "x bf16", "diff", "SQNR dB");
  int failures = peaks.is_right ? 0 : 1;
  const auto print = [&](const Shape4& s, const char* what, const char* type, const Measured& measured,
                         const Timing& dense, const std::vector<Measured>& bf16, double peak, const std::string& off,
                         bool has_right_numbers) {
    const Timing& timing = measured.timing;
    const bool is_right = has_right_numbers && measured.has_same_bits;
    failures += !is_right;
    double rival = bf16.front().timing.median;
    for (const Measured& one : bf16) rival = std::min(rival, one.timing.median);
    const double flops = 2.0 * double(s.G * s.M) * double(s.N) * double(s.K);
    fmt::print("{:<24} {:<6} {:<6} {:<{}}{:>9.3f} {:>7.1f}% {:>9.3f} {:>7.1f} {:>8.2f} {:>7.2f} {}{}\n",
               fmt::format("{} x {} x {} x {}", s.G, s.M, s.N, s.K), what, type, measured.form.name, pairs_width,
               timing.median * 1e3, 100 * timing.spread(), flops / timing.median * 1e-12,
               100 * flops / timing.median / peak, dense.median / timing.median, rival / timing.median, off,
               is_right ? "" : "  WRONG");
  };
  for (const Shape4& shape : options.shapes) {
    for (const bool is_dgrad : {false, true}) {
      const Problem p(shape, is_dgrad, device);
      const Timing dense = time_of(options.repeats, flushed, stream, [&] { p.multiply_dense(p.bf16); });
      const auto bf16 = measure(
          options.repeats, flushed, stream, [&] { p.multiply_bf16(); }, p.bf16, false);
      const auto fp8 = measure(
          options.repeats, flushed, stream, [&] { p.multiply_fp8(); }, p.fp8, false);
      const Check found = check(p);
      const Shape4 s{shape.G, shape.M, p.direction.N, p.direction.K};
      const std::string off = fmt::format("{:>9.1e} {:>8.1f}", found.diff, found.sqnr);
      for (const Measured& one : fp8) {
        print(s, p.direction.name, "fp8", one, dense, bf16, peaks.fp8, off, found.fp8_is_right);
      }
      for (const Measured& one : bf16) {
        print(s, p.direction.name, "bf16", one, dense, bf16, peaks.bf16, "", found.bf16_is_right);
      }
      if (is_dgrad || s.N % 256 != 0) continue;
      const Gated gated(p);
      const std::string wanted = gated.made(/*in_one=*/false);
      for (const bool in_one : {false, true}) {
        const bool is_right = gated.made(in_one) == wanted;
        for (const Form& form : forms_of(device)) {
          const UseForm use(form);
          const Timing timing = time_of(options.repeats, flushed, stream, [&] { gated.run(in_one); });
          print(s, "swiglu", in_one ? "one" : "two", {form, timing, gated.bytes() == wanted}, dense, bf16, peaks.fp8,
                "", is_right);
        }
      }
    }
    const WgradProblem p(shape, device);
    const Timing dense = time_of(options.repeats, flushed, stream, [&] { p.multiply_dense(); });
    const auto bf16 = measure(
        options.repeats, flushed, stream, [&] { p.multiply_bf16(); }, p.dw, /*is_added_to=*/true);
    const bool bf16_is_right = check(p, /*is_fp8=*/false, /*by_tiles=*/false).worst <= 0x1p-10;
    for (const bool by_tiles : {false, true}) {
      const WgradCodes codes = wgrad_codes(p.dy, p.x, p.offsets, p.block_offsets, p.P, by_tiles);
      const auto multiply = [&] { multiply_wgrad(codes, p.offsets, p.block_offsets, by_tiles, p.emulation(), p.dw); };
      const auto fp8 = measure(options.repeats, flushed, stream, multiply, p.dw, /*is_added_to=*/true);
      const WgradCheck found = check(p, /*is_fp8=*/true, by_tiles);
      const bool is_right = found.has_bits && found.diff < 1e-3 && found.sqnr >= 28;
      for (const Measured& one : fp8) {
        print(shape, "wgrad", by_tiles ? "fp8 t" : "fp8", one, dense, bf16, peaks.fp8,
              fmt::format("{:>9.1e} {:>8.1f}", found.diff, found.sqnr), is_right);
      }
    }
    for (const Measured& one : bf16) {
      print(shape, "wgrad", "bf16", one, dense, bf16, peaks.bf16, "", bf16_is_right);
    }
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace octet
