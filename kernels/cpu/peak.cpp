#include "kernels/peak.h"

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"
//
#include "kernels/cpu/fp8_simd.inc"

namespace {

// As many sums as hide the latency of the multiply-add and still fit the registers.
constexpr int64_t kSums = OCTET_ISA_LEVEL == 2 ? 16 : 6;

template <class Step>
OCTET_INLINE float run(int64_t rounds, Step&& step) {
  f32x16 sums[kSums];
  for (f32x16& sum : sums) sum = splat(0.0f);
  for (int64_t round = 0; round < rounds; ++round) {
    for (f32x16& sum : sums) sum = step(sum);
  }
  f32x16 all = sums[0];
  for (int64_t i = 1; i < kSums; ++i) all = all + sums[i];
  return reduce_add(all);
}

}  // namespace

void peak_loop(const PeakLoop& args, Stream& stream) {
  float* sink = args.sink.data<float>();
  const double flops = 2.0 * 16 * kSums * double(args.rounds) * double(args.pieces);
#if OCTET_ISA_LEVEL == 2
  if (args.arithmetic == Arithmetic::kBFloat16Pairs) {
    const int32_t tiny = 0x30003000;  // two bfloat16 of 2^-31: sums stay finite
    stream.parallel_for(args.pieces, [&](int64_t i) {
      const i32x16 a = splat_i32(tiny + int32_t(i % 2)), b = splat_i32(tiny);
      sink[i] = run(args.rounds, [&](f32x16 sum) { return dot_pair(sum, a, b); });
    });
    *args.flops = 2 * flops;
    return;
  }
#endif
  stream.parallel_for(args.pieces, [&](int64_t i) {
    const f32x16 a = splat(0.5f + float(i % 2) * 0.25f), b = splat(1.0f);
    sink[i] = run(args.rounds, [&](f32x16 sum) { return fma(sum, a, b); });
  });
  *args.flops = flops;
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(peak_loop, PeakLoop)

#if OCTET_ISA_LEVEL == 0
namespace octet::kernels {

double measure_peak_flops(Arithmetic arithmetic, Stream& stream, Clock& clock) {
  constexpr double kLeastOfTry = 2e-3, kMostOfAll = 60e-3;  // seconds
  const int64_t pieces = 100 * stream.pool().num_threads();
  std::vector<float> sink(static_cast<size_t>(pieces));
  int64_t rounds = 16;
  double best = 0, all = 0;
  for (int tries = 0; tries < 12 && all < kMostOfAll;) {
    double flops = 0;
    const int64_t begin = clock.monotonic_ns();
    cpu::peak_loop({.arithmetic = arithmetic,
                    .pieces = pieces,
                    .rounds = rounds,
                    .sink = View(sink.data(), {pieces}, DType::kFloat32),
                    .flops = &flops},
                   stream);
    const double seconds = double(std::max<int64_t>(clock.monotonic_ns() - begin, 1)) * 1e-9;
    best = std::max(best, flops / seconds);
    all += seconds;
    if (seconds < kLeastOfTry) {
      rounds *= 2;
    } else {
      ++tries;
    }
  }
  return best;
}

double measure_copy_bandwidth(Stream& stream, Clock& clock) {
  constexpr int64_t kBytes = int64_t(128) << 20;
  std::vector<char> from(size_t(kBytes), 1), to(size_t(kBytes), 2);
  double best = 0;
  for (int repeat = 0; repeat < 6; ++repeat) {
    const int64_t begin = clock.monotonic_ns();
    stream.parallel_chunks(kBytes, int64_t(1) << 20, [&](int64_t first, int64_t last) {
      std::memcpy(to.data() + first, from.data() + first, size_t(last - first));
    });
    const double seconds = double(std::max<int64_t>(clock.monotonic_ns() - begin, 1)) * 1e-9;
    best = std::max(best, 2.0 * double(kBytes) / seconds);
  }
  return best;
}

}  // namespace octet::kernels
#endif
