#include "tools/bench/kernel_cases.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/base/clock.h"
#include "core/base/fp8.h"
#include "core/base/isa.h"
#include "core/base/random.h"
#include "core/tensor/transfer.h"
#include "kernels/device_runtime.h"
#include "tools/bench/made_up_tensors.h"
#include "tools/bench/whole_number.h"
#include "tools/train/timing.h"

namespace octet {
namespace {

std::vector<double> numbers_of(const Tensor& x) {
  std::vector<double> values;
  const auto take = [&](const auto& all, auto&& number) {
    for (const auto& each : all) values.push_back(number(each));
  };
  const auto plain = [](auto each) { return double(each); };
  switch (x.dtype()) {
    case DType::kFloat32:
      take(to_vector<float>(x), plain);
      break;
    case DType::kBFloat16:
      take(to_vector<bfloat16>(x), [](bfloat16 each) { return double(float(each)); });
      break;
    case DType::kInt32:
      take(to_vector<int32_t>(x), plain);
      break;
    case DType::kInt64:
      take(to_vector<int64_t>(x), plain);
      break;
    default:
      take(to_vector<float8_e4m3>(x), [](float8_e4m3 each) { return double(decode(each)); });
  }
  return values;
}

// The largest difference of two results over the largest number. Codes of columns lie transposed on a GPU
// (column_codes_shape of kernels/quantize.h).
double difference(const Tensor& got, const Tensor& wanted) {
  std::vector<double> a = numbers_of(got);
  const std::vector<double> b = numbers_of(wanted);
  if (got.shape() != wanted.shape()) {
    const std::vector<double> lying = a;
    const int64_t rows = got.rows(), columns = got.cols();
    for (int64_t i = 0; i < rows * columns; ++i) a[size_t(i % columns * rows + i / columns)] = lying[size_t(i)];
  }
  double off = 0, largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    off = a[i] == b[i] ? off : std::isfinite(a[i] - b[i]) ? std::max(off, std::abs(a[i] - b[i])) : INFINITY;
    largest = std::max(largest, std::abs(b[i]));
  }
  return off == 0 ? 0 : off / largest;
}

// Seconds of one call, from `calls` of them at a time.
double time_of(const std::function<void()>& run, int64_t calls, Stream& stream) {
  const int64_t begin = real_clock().monotonic_ns();
  for (int64_t i = 0; i < calls; ++i) run();
  if (!stream.device().is_cpu()) gpu::synchronize(stream);
  return double(real_clock().monotonic_ns() - begin) * 1e-9 / double(calls);
}

}  // namespace

CaseOptions parse_case_options(const std::vector<std::string>& args, const std::string& benchmark,
                               const std::string& fix, const CaseSizes& on_cpu, const CaseSizes& on_gpu) {
  const auto refuse = [&](const std::string& what) {
    fail(ErrorKind::kArgument, {.what = fmt::format("bench {}: {}; wanted device=cpu|cuda, tokens=N, hidden=N, "
                                                    "experts=N, top_k=N, expert_hidden=N{} or repeats=N",
                                                    benchmark, what, on_cpu.vocab > 0 ? ", vocab=N" : ""),
                                .where = "command line",
                                .why = {},
                                .fix = fix});
  };
  CaseOptions options{.sizes = on_cpu};
  for (const std::string& arg : args) {
    if (arg == "device=cuda") options.device = DeviceType::kCuda, options.sizes = on_gpu;
  }
  CaseSizes& s = options.sizes;
  for (const std::string& arg : args) {
    if (arg == "device=cuda" || arg == "device=cpu") continue;
    if (take_number(arg, {{"tokens", &s.tokens},
                          {"hidden", &s.hidden},
                          {"experts", &s.experts},
                          {"top_k", &s.top_k},
                          {"expert_hidden", &s.expert_hidden},
                          {"repeats", &options.repeats}})) {
      continue;
    }
    if (s.vocab == 0 || !take_number(arg, {{"vocab", &s.vocab}})) refuse(fmt::format("\"{}\" came", arg));
  }
  if (s.top_k > s.experts) refuse(fmt::format("top_k is {} of {} experts", s.top_k, s.experts));
  return options;
}

Tensor KernelCases::made(Shape shape, DType dtype) { return keep(zeros(shape, dtype, device_)); }
Tensor KernelCases::normal(Shape shape, DType dtype, const char* name) {
  return keep(made_up_normal(shape, dtype, name, device_));
}
Tensor KernelCases::below(Shape shape, int64_t limit, const char* name) {
  const RandomStream random(1, name);
  Tensor host = empty(shape, DType::kInt32);
  for (int64_t i = 0; i < host.num_elements(); ++i) {
    host.data<int32_t>()[i] = int32_t(random.below(uint64_t(limit), uint64_t(i)));
  }
  return there(host);
}
Tensor KernelCases::there(const Tensor& host) { return keep(on_device(host, device_)); }

int time_cases(Device device, int64_t repeats, const std::function<void(KernelCases&)>& compared,
               const std::function<void(KernelCases&)>& timed) {
  Stream& stream = default_stream(device);
  // The reference of a GPU is the CPU; that of the CPU, its plain form.
  std::vector<double> off;
  {
    KernelCases tested(device);
    compared(tested);
    const Isa isa = current_isa();
    if (device.is_cpu()) set_current_isa(Isa::kGeneric);
    KernelCases reference{Device()};
    compared(reference);
    set_current_isa(isa);
    for (size_t i = 0; i < tested.all().size(); ++i) {
      double worst = 0;
      for (size_t r = 0; r < tested.all()[i].results.size(); ++r) {
        worst = std::max(worst, difference(tested.all()[i].results[r], reference.all()[i].results[r]));
      }
      off.push_back(worst);
    }
  }

  KernelCases workload(device);
  timed(workload);
  fmt::print(
      "x copy: the share of the speed at which this device copies as many bytes; off: the largest difference from {}\n"
      "on a small problem, over the largest number\n\n",
      device.is_cpu() ? "the generic instruction set" : "the CPU");
  fmt::print("{:<26} {:>9} {:>8} {:>9} {:>8} {:>8} {:>9} {:>9}\n", "kernel", "median ms", "spread", "MB", "GB/s",
             "x copy", "GFLOP/s", "off");
  double largest = 0;
  for (const KernelCases::Case& each : workload.all()) largest = std::max(largest, each.cost.bytes);
  const Tensor from = zeros({int64_t(largest / 2) + 1}, DType::kUInt8, device), to = empty_like(from);
  const int64_t calls = device.is_cpu() ? 1 : 8;
  int failures = 0;
  for (size_t i = 0; i < workload.all().size(); ++i) {
    const KernelCases::Case& each = workload.all()[i];
    const int64_t half = std::max<int64_t>(1, int64_t(each.cost.bytes / 2));
    const auto copied = [&] {
      if (!device.is_cpu()) return gpu::copy(to.view().raw(), from.view().raw(), half, stream);
      stream.parallel_chunks(half, int64_t(1) << 20, [&](int64_t begin, int64_t end) {
        std::memcpy(to.data<uint8_t>() + begin, from.data<uint8_t>() + begin, size_t(end - begin));
      });
    };
    std::vector<double> seconds, of_copy;
    time_of(each.run, 1, stream), time_of(copied, 1, stream);
    for (int64_t repeat = 0; repeat < repeats; ++repeat) {
      seconds.push_back(time_of(each.run, calls, stream));
      of_copy.push_back(time_of(copied, calls, stream));
    }
    const Timing timing = timing_of(seconds);
    const double flops = each.cost.float_flops + each.cost.pair_flops;
    // bfloat16 keeps 8 bits and E4M3 4: one rounding apart.
    const bool is_wrong = !(off[i] <= 0x1p-4);
    failures += is_wrong;
    fmt::print("{:<26} {:>9.3f} {:>7.1f}% {:>9.1f} {:>8.1f} {:>8.2f} {:>9} {:>9.1e}{}\n", each.cost.name,
               timing.median * 1e3, 100 * timing.spread(), each.cost.bytes * 1e-6,
               each.cost.bytes / timing.median * 1e-9, timing_of(of_copy).median / timing.median,
               flops > 0 ? fmt::format("{:.1f}", flops / timing.median * 1e-9) : "", off[i], is_wrong ? "  WRONG" : "");
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace octet
