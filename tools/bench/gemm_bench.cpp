#include "tools/bench/gemm_bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "core/base/clock.h"
#include "core/base/fp8.h"
#include "core/base/isa.h"
#include "core/base/random.h"
#include "kernels/fp8_gemm.h"
#include "kernels/gemm.h"
#include "kernels/peak.h"
#include "kernels/quantize.h"
#include "kernels/requantize_tiles.h"
#include "tools/bench/eigen_gemm.h"
#include "tools/bench/whole_number.h"
#include "tools/train/timing.h"

namespace octet {
namespace {

using kernels::Emulation;

struct Options {
  std::vector<std::vector<int64_t>> shapes;
  int64_t repeats = 9;
  std::vector<int> threads;
  bool warm = false;  // operands are where the call before left them, not in memory
};

Options parse(const char* bench, const std::vector<std::string>& args, size_t axes, const char* form) {
  Options options;
  const auto refuse = [&](const std::string& arg) {
    fail(ErrorKind::kArgument,
         {.what = fmt::format("bench {}: \"{}\" came; wanted {}, repeats=N, threads=1|all or caches=cold|warm", bench,
                              arg, form),
          .where = "command line",
          .why = {},
          .fix =
              fmt::format("octet bench {} {} repeats=9 threads=1", bench, axes == 3 ? "1024x1024x1024" : "4096x2048")});
  };
  for (const std::string& arg : args) {
    if (take_number(arg, {{"repeats", &options.repeats}})) continue;
    if (arg == "threads=1") {
      options.threads = {1};
    } else if (arg == "threads=all") {
      options.threads = {0};
    } else if (arg == "caches=cold" || arg == "caches=warm") {
      options.warm = arg == "caches=warm";
    } else {
      const std::vector<int64_t> shape = whole_numbers(arg);
      if (shape.size() != axes) refuse(arg);
      options.shapes.push_back(shape);
    }
  }
  if (options.threads.empty()) options.threads = {1, 0};
  return options;
}

Timing time_of(const Options& options, const std::function<void()>& body) {
  static std::vector<char> cold(size_t(64) << 20);  // larger than the caches: writing it empties them
  body();
  std::vector<double> seconds;
  for (int64_t i = 0; i < options.repeats; ++i) {
    if (!options.warm) std::memset(cold.data(), int(i), cold.size());
    const int64_t begin = real_clock().monotonic_ns();
    body();
    seconds.push_back(double(real_clock().monotonic_ns() - begin) * 1e-9);
  }
  return timing_of(std::move(seconds));
}

std::vector<float> normal(int64_t n, const char* name) {
  const RandomStream stream(1, name);
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i) x[i] = stream.normal(i);
  return x;
}

int64_t blocks(int64_t n) { return (n + 127) / 128; }

View view_of(auto& values, Shape shape, DType dtype) { return View(values.data(), shape, dtype); }

struct Problem {
  int64_t M, N, K;
  std::vector<float> a, b, c;
  std::vector<bfloat16> a16, b16;
  std::vector<uint8_t> a8, b8;
  std::vector<float> a_scale, b_scale;

  Problem(int64_t m, int64_t n, int64_t k, Stream& stream) : M(m), N(n), K(k) {
    a = normal(M * K, "a"), b = normal(N * K, "b");
    c.resize(size_t(M * N));
    for (const float x : a) a16.emplace_back(x);
    for (const float x : b) b16.emplace_back(x);
    a8.resize(a.size()), b8.resize(b.size());
    a_scale.resize(size_t(M * blocks(K))), b_scale.resize(size_t(blocks(N) * blocks(K)));
    kernels::quantize_rows({.x = view_of(a, {M, K}, DType::kFloat32),
                            .codes = view_of(a8, {M, K}, DType::kFloat8E4M3),
                            .scale = view_of(a_scale, {M, blocks(K)}, DType::kFloat32),
                            .stats = nullptr},
                           stream);
    kernels::quantize_blocks({.x = view_of(b, {N, K}, DType::kFloat32),
                              .codes = view_of(b8, {N, K}, DType::kFloat8E4M3),
                              .scale = view_of(b_scale, {blocks(N), blocks(K)}, DType::kFloat32),
                              .stats = nullptr},
                             stream);
  }

  // The largest difference from float64 over some elements of c, relative to the largest of them.
  double worst(const std::function<double(int64_t m, int64_t n, int64_t k)>& product) const {
    const RandomStream stream(2, "elements");
    double off = 0, largest = 0;
    for (uint64_t i = 0; i < 200; ++i) {
      const int64_t m = int64_t(stream.below(uint64_t(M), i, 0)), n = int64_t(stream.below(uint64_t(N), i, 1));
      double sum = 0;
      for (int64_t k = 0; k < K; ++k) sum += product(m, n, k);
      const double got = double(c[size_t(m * N + n)]);
      off = std::isfinite(got) ? std::max(off, std::abs(got - sum)) : INFINITY;
      largest = std::max(largest, std::abs(sum));
    }
    return off / largest;
  }
  double float_worst() const {
    return worst(
        [&](int64_t m, int64_t n, int64_t k) { return double(a[size_t(m * K + k)]) * double(b[size_t(n * K + k)]); });
  }
  double bf16_worst() const {
    return worst([&](int64_t m, int64_t n, int64_t k) {
      return double(a16[size_t(m * K + k)]) * double(b16[size_t(n * K + k)]);
    });
  }
  double fp8_worst() const {
    return worst([&](int64_t m, int64_t n, int64_t k) {
      const double scale =
          double(a_scale[size_t(m * blocks(K) + k / 128)]) * double(b_scale[size_t(n / 128 * blocks(K) + k / 128)]);
      return double(decode(float8_e4m3{a8[size_t(m * K + k)]})) * double(decode(float8_e4m3{b8[size_t(n * K + k)]})) *
             scale;
    });
  }
};

void print_machine(Stream& stream, double fma, double pairs) {
  fmt::print("\n{} thread{}, {}: multiply-add peak {:.1f} GFLOP/s", stream.pool().num_threads(),
             stream.pool().num_threads() == 1 ? "" : "s", name_of(current_isa()), fma * 1e-9);
  if (current_isa() == Isa::kAvx512) fmt::print(", vdpbf16ps peak {:.1f} GFLOP/s", pairs * 1e-9);
  fmt::print("\n");
}

}  // namespace

int bench_gemm(const std::vector<std::string>& args) {
  Options options = parse("gemm", args, 3, "a shape MxNxK");
  if (options.shapes.empty()) {
    options.shapes = {{1024, 1024, 1024}, {256, 1024, 1024}, {128, 1024, 1024}, {64, 1024, 1024}, {16, 1024, 1024}};
  }
  int failures = 0;
  for (const int threads : options.threads) {
    ThreadPool pool(threads);
    Stream stream(pool);
    const double fma = measure_peak_flops(kernels::Arithmetic::kFloat32, stream, real_clock());
    const double pairs = measure_peak_flops(kernels::Arithmetic::kBFloat16Pairs, stream, real_clock());
    print_machine(stream, fma, pairs);
    fmt::print("{:<18} {:<20} {:>10} {:>8} {:>9} {:>7} {:>8} {:>9}\n", "M x N x K", "kernel", "median ms", "spread",
               "GFLOP/s", "% peak", "x Eigen", "off by");
    for (const auto& shape : options.shapes) {
      Problem p(shape[0], shape[1], shape[2], stream);
      const int64_t M = p.M, N = p.N, K = p.K;
      const View c = view_of(p.c, {M, N}, DType::kFloat32);
      double eigen_seconds = 0;
      const auto row = [&](const char* name, double peak, double tolerance, const std::function<void()>& body,
                           const std::function<double()>& worst) {
        std::fill(p.c.begin(), p.c.end(), NAN);
        const Timing timing = time_of(options, body);
        if (eigen_seconds == 0) eigen_seconds = timing.median;
        const double flops = 2.0 * double(M) * double(N) * double(K), off = worst();
        const bool wrong = !(off <= tolerance);
        failures += wrong;
        fmt::print("{:<18} {:<20} {:>10.3f} {:>7.1f}% {:>9.1f} {:>7.1f} {:>8.2f} {:>9.1e}{}\n",
                   fmt::format("{} x {} x {}", M, N, K), name, timing.median * 1e3, 100 * timing.spread(),
                   flops / timing.median * 1e-9, 100 * flops / timing.median / peak, eigen_seconds / timing.median, off,
                   wrong ? "  WRONG" : "");
      };
      const double sum_error = 2 * std::sqrt(double(K)) * 0x1p-23;
      row(
          "Eigen float32", fma, sum_error, [&] { eigen_gemm(p.a.data(), p.b.data(), p.c.data(), M, N, K, stream); },
          [&] { return p.float_worst(); });
      row(
          "float32", fma, sum_error,
          [&] {
            kernels::grouped_gemm(
                {.a = view_of(p.a, {M, K}, DType::kFloat32), .b = view_of(p.b, {N, K}, DType::kFloat32), .c = c},
                stream);
          },
          [&] { return p.float_worst(); });
      row(
          "bfloat16", pairs, sum_error,
          [&] {
            kernels::grouped_gemm(
                {.a = view_of(p.a16, {M, K}, DType::kBFloat16), .b = view_of(p.b16, {N, K}, DType::kBFloat16), .c = c},
                stream);
          },
          [&] { return p.bf16_worst(); });
      const auto fp8 = [&](const char* name, Emulation emulation, double peak, double tolerance) {
        row(
            name, peak, tolerance,
            [&, emulation] {
              kernels::fp8_grouped_gemm({.a = view_of(p.a8, {M, K}, DType::kFloat8E4M3),
                                         .a_scale = view_of(p.a_scale, {M, blocks(K)}, DType::kFloat32),
                                         .b = view_of(p.b8, {N, K}, DType::kFloat8E4M3),
                                         .b_scale = view_of(p.b_scale, {blocks(N), blocks(K)}, DType::kFloat32),
                                         .c = c,
                                         .emulation = emulation},
                                        stream);
            },
            [&] { return p.fp8_worst(); });
      };
      fp8("FP8 block, ideal", Emulation::kIdeal, pairs, sum_error);
      // 13 fraction bits, cut at every 32 of k.
      fp8("FP8 block, hopper", Emulation::kHopper, pairs, 33 * 0x1p-13);
      fp8("FP8 block, fp64", Emulation::kFp64, pairs, 0x1p-22);
    }
  }
  return failures == 0 ? 0 : 1;
}

int bench_quantise(const std::vector<std::string>& args) {
  Options options = parse("quantise", args, 2, "a shape RxC");
  if (options.shapes.empty()) options.shapes = {{4096, 2048}};
  int failures = 0;
  for (const int threads : options.threads) {
    ThreadPool pool(threads);
    Stream stream(pool);
    fmt::print("\n{} thread{}, {}\n", pool.num_threads(), pool.num_threads() == 1 ? "" : "s", name_of(current_isa()));
    fmt::print("{:<14} {:<30} {:>10} {:>8} {:>8} {:>8} {:>8}\n", "R x C", "kernel", "median ms", "spread", "Gelem/s",
               "GB/s", "x copy");
    for (const auto& shape : options.shapes) {
      const int64_t R = shape[0], C = shape[1];
      std::vector<float> x = normal(R * C, "x");
      std::vector<bfloat16> x16;
      for (const float value : x) x16.emplace_back(value);
      std::vector<uint8_t> codes(x.size()), column_codes(x.size() + size_t(C * 128)), wanted(x.size());
      std::vector<float> scale(size_t(R * blocks(C))), column_scale(size_t(C * blocks(R))), back(x.size());
      std::vector<int64_t> offsets = {0, R}, block_offsets = {0, blocks(R)};
      const View codes_view = view_of(codes, {R, C}, DType::kFloat8E4M3);
      const View scale_view = view_of(scale, {R, blocks(C)}, DType::kFloat32);
      const int64_t P = 128 * blocks(R);
      const View columns_view = view_of(column_codes, {P, C}, DType::kFloat8E4M3);
      const View column_scale_view = view_of(column_scale, {blocks(R), C}, DType::kFloat32);
      kernels::QuantizeStats stats;

      // bytes: read and written by one call. The rival moves as many with memcpy, half of them read and half written.
      const auto row = [&](const char* name, int64_t bytes, const std::function<void()>& body, bool right) {
        const Timing timing = time_of(options, body);
        std::vector<char> from(size_t(bytes / 2), 1), to(size_t(bytes / 2));
        const Timing copy = time_of(options, [&] {
          stream.parallel_chunks(bytes / 2, int64_t(1) << 20, [&](int64_t begin, int64_t end) {
            std::memcpy(to.data() + begin, from.data() + begin, size_t(end - begin));
          });
        });
        failures += !right;
        fmt::print("{:<14} {:<30} {:>10.3f} {:>7.1f}% {:>8.2f} {:>8.1f} {:>8.2f}{}\n", fmt::format("{} x {}", R, C),
                   name, timing.median * 1e3, 100 * timing.spread(), double(R * C) / timing.median * 1e-9,
                   double(bytes) / timing.median * 1e-9, copy.median / timing.median, right ? "" : "  WRONG");
      };
      const auto rows_right = [&](const auto& from) {
        for (int64_t r = 0; r < R; r += 37) {
          for (int64_t c = 0; c < C; ++c) {
            const float s = scale[size_t(r * blocks(C) + c / 128)];
            if (encode_e4m3(float(from[size_t(r * C + c)]) / s).bits != codes[size_t(r * C + c)]) return false;
          }
        }
        return true;
      };
      const int64_t n = R * C;
      const auto quantise_rows = [&](View from) {
        kernels::quantize_rows({.x = from, .codes = codes_view, .scale = scale_view, .stats = &stats}, stream);
      };
      const View x_view = view_of(x, {R, C}, DType::kFloat32), x16_view = view_of(x16, {R, C}, DType::kBFloat16);
      quantise_rows(x16_view);
      const bool right16 = rows_right(x16);
      row(
          "rows 1x128, bfloat16", 3 * n, [&] { quantise_rows(x16_view); }, right16);
      quantise_rows(x_view);
      const bool right = rows_right(x);
      row(
          "rows 1x128, float32", 5 * n, [&] { quantise_rows(x_view); }, right);
      const auto dequantise = [&] {
        kernels::dequantize_rows(
            {.codes = codes_view, .scale = scale_view, .x = view_of(back, {R, C}, DType::kFloat32)}, stream);
      };
      dequantise();
      bool back_right = true;
      for (size_t i = 0; i < back.size(); i += 37) {
        back_right &=
            back[i] == decode(float8_e4m3{codes[i]}) * scale[i / size_t(C) * size_t(blocks(C)) + i % size_t(C) / 128];
      }
      row("dequantise rows to float32", 5 * n, dequantise, back_right);
      const auto requantise = [&] {
        kernels::requantize_columns({.codes = codes_view,
                                     .scale = scale_view,
                                     .rows = {},
                                     .offsets = view_of(offsets, {2}, DType::kInt64),
                                     .block_offsets = view_of(block_offsets, {2}, DType::kInt64),
                                     .out_codes = columns_view,
                                     .out_scale = column_scale_view,
                                     .stats = &stats},
                                    stream);
      };
      const auto columns_right = [&](const std::vector<float>& from) {
        for (int64_t r = 0; r < R; r += 37) {
          for (int64_t c = 0; c < C; ++c) {
            const float s = column_scale[size_t(r / 128 * C + c)];
            if (encode_e4m3(from[size_t(r * C + c)] / s).bits != column_codes[size_t(r * C + c)]) return false;
          }
        }
        return true;
      };
      requantise();
      const bool requantise_right = columns_right(back);
      row("columns 128x1 from codes", 2 * n, requantise, requantise_right);
      std::vector<uint8_t> tile_codes(column_codes.size());
      std::vector<float> tile_scale(size_t(blocks(R) * blocks(C)));
      const auto to_tiles = [&] {
        kernels::requantize_tiles({.codes = codes_view,
                                   .scale = scale_view,
                                   .rows = {},
                                   .offsets = view_of(offsets, {2}, DType::kInt64),
                                   .block_offsets = view_of(block_offsets, {2}, DType::kInt64),
                                   .out_codes = view_of(tile_codes, {P, C}, DType::kFloat8E4M3),
                                   .out_scale = view_of(tile_scale, {blocks(R), blocks(C)}, DType::kFloat32),
                                   .stats = &stats},
                                  stream);
      };
      to_tiles();
      bool shifted_right = true;
      for (size_t i = 0; i < back.size(); i += 37) {
        const size_t r = i / size_t(C), c = i % size_t(C);
        shifted_right &= tile_codes[i] == encode_e4m3(back[i] / tile_scale[r / 128 * size_t(blocks(C)) + c / 128]).bits;
      }
      row("tiles 128x128 from codes", 2 * n, to_tiles, shifted_right);
      const auto columns = [&] {
        kernels::quantize_columns({.x = x16_view,
                                   .offsets = view_of(offsets, {2}, DType::kInt64),
                                   .block_offsets = view_of(block_offsets, {2}, DType::kInt64),
                                   .codes = columns_view,
                                   .scale = column_scale_view,
                                   .stats = &stats},
                                  stream);
      };
      const auto both = [&] {
        kernels::quantize_columns({.x = x16_view,
                                   .offsets = view_of(offsets, {2}, DType::kInt64),
                                   .block_offsets = view_of(block_offsets, {2}, DType::kInt64),
                                   .codes = columns_view,
                                   .scale = column_scale_view,
                                   .stats = &stats,
                                   .row_codes = codes_view,
                                   .row_scale = scale_view,
                                   .row_stats = &stats},
                                  stream);
      };
      columns();
      std::vector<float> wide;
      for (const bfloat16 value : x16) wide.push_back(float(value));
      const bool column_right = columns_right(wide);
      row("columns 128x1, bfloat16", 3 * n, columns, column_right);
      both();
      row("rows and columns, bfloat16", 4 * n, both, columns_right(wide) && rows_right(x16));
      const View block_scale = view_of(scale, {blocks(R), blocks(C)}, DType::kFloat32);
      const auto tiles = [&] {
        kernels::quantize_blocks({.x = x_view, .codes = codes_view, .scale = block_scale, .stats = &stats}, stream);
      };
      tiles();
      bool tiles_right = true;
      for (int64_t i = 0; i < n; i += 37) {
        const int64_t r = i / C, c = i % C;
        const float s = scale[size_t(r / 128 * blocks(C) + c / 128)];
        tiles_right &= codes[size_t(i)] == encode_e4m3(x[size_t(i)] / s).bits;
      }
      row("tiles 128x128, float32", 5 * n, tiles, tiles_right);
    }
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace octet
