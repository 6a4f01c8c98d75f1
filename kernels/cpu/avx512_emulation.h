// The AVX-512 intrinsics of the kernels on a processor with AVX2, so that their code for AVX-512 is executed and tested
// where there is none (OCTET_EMULATE_AVX512). SIMDe has most of them and gives them Intel's names; what it lacks, or
// computes in another order, follows here, after the pseudocode of the Intel 64 and IA-32 Architectures Software
// Developer's Manual, volume 2. An intrinsic that neither has does not compile: isa_begin.inc switches on no more than
// AVX2, and GCC refuses its own then.
#pragma once

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
// A pragma does not define __AVX2__ and __FMA__ in GCC's C++, and without them SIMDe's fmadd rounds twice.
#define SIMDE_X86_AVX2_NATIVE
#define SIMDE_X86_FMA_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

namespace octet::kernels::cpu::emulated {

#define OCTET_EMULATED [[gnu::always_inline]] inline

template <class Lane, class Vector>
using Lanes = std::array<Lane, sizeof(Vector) / sizeof(Lane)>;
template <class Lane, class Vector>
OCTET_EMULATED Lanes<Lane, Vector> lanes(Vector a) {
  return std::bit_cast<Lanes<Lane, Vector>>(a);
}
// To, of lanes ToLane: f(i) for each lane.
template <class To, class ToLane, class F>
OCTET_EMULATED To each_lane(F&& f) {
  Lanes<ToLane, To> to;
  for (size_t i = 0; i < to.size(); ++i) to[i] = f(i);
  return std::bit_cast<To>(to);
}
// To, of two halves: f(0), f(1).
template <class To, class F>
OCTET_EMULATED To each_half(F&& f) {
  const std::array<decltype(f(0)), 2> halves = {f(0), f(1)};
  return std::bit_cast<To>(halves);
}
template <class Half, class From>
OCTET_EMULATED Half half(From a, int i) {
  return std::bit_cast<std::array<Half, 2>>(a)[size_t(i)];
}

OCTET_EMULATED __m256i cvtepi32_epi16(__m512i a) {
  return each_lane<__m256i, uint16_t>([&](size_t i) { return uint16_t(lanes<uint32_t>(a)[i]); });
}
OCTET_EMULATED __m128i cvtepi32_epi8(__m512i a) {
  return each_lane<__m128i, uint8_t>([&](size_t i) { return uint8_t(lanes<uint32_t>(a)[i]); });
}
OCTET_EMULATED __m512 cvtepi32_ps(__m512i a) {
  return each_half<__m512>([&](int i) { return _mm256_cvtepi32_ps(half<__m256i>(a, i)); });
}
OCTET_EMULATED __m512i cvttps_epi32(__m512 a) {
  return each_half<__m512i>([&](int i) { return _mm256_cvttps_epi32(half<__m256>(a, i)); });
}
OCTET_EMULATED __m512i cvtepu16_epi32(__m256i a) {
  return each_half<__m512i>([&](int i) { return _mm256_cvtepu16_epi32(half<__m128i>(a, i)); });
}
OCTET_EMULATED __m512i cvtepu8_epi32(__m128i a) {
  return each_half<__m512i>([&](int i) { return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(half<int64_t>(a, i))); });
}
OCTET_EMULATED __m512 cvtph_ps(__m256i a) {
  return each_half<__m512>([&](int i) { return _mm256_cvtph_ps(half<__m128i>(a, i)); });
}
OCTET_EMULATED __m512d cvtps_pd(__m256 a) {
  return each_half<__m512d>([&](int i) { return _mm256_cvtps_pd(half<__m128>(a, i)); });
}
OCTET_EMULATED __m256 extractf32x8_ps(__m512 a, int i) { return half<__m256>(a, i & 1); }
OCTET_EMULATED __m512 i32gather_ps(__m512i index, const void* base, int scale) {
  return each_lane<__m512, float>([&](size_t i) {
    float lane;
    std::memcpy(&lane, static_cast<const char*>(base) + int64_t(lanes<int32_t>(index)[i]) * scale, sizeof lane);
    return lane;
  });
}
// Within each four lanes, lane j takes the one that bits 2j and 2j + 1 of the control name.
OCTET_EMULATED __m512 permute_ps(__m512 a, int control) {
  return each_lane<__m512, float>(
      [&](size_t i) { return lanes<float>(a)[i / 4 * 4 + (unsigned(control) >> (i % 4 * 2) & 3)]; });
}
OCTET_EMULATED __m512i srai_epi32(__m512i a, unsigned count) {
  return each_half<__m512i>([&](int i) { return _mm256_srai_epi32(half<__m256i>(a, i), int(count)); });
}
OCTET_EMULATED __mmask32 cmpgt_epi16_mask(__m512i a, __m512i b) {
  __mmask32 mask = 0;
  for (size_t i = 0; i < 32; ++i) mask |= __mmask32(lanes<int16_t>(a)[i] > lanes<int16_t>(b)[i]) << i;
  return mask;
}
OCTET_EMULATED __mmask32 cmplt_epu16_mask(__m512i a, __m512i b) {
  __mmask32 mask = 0;
  for (size_t i = 0; i < 32; ++i) mask |= __mmask32(lanes<uint16_t>(a)[i] < lanes<uint16_t>(b)[i]) << i;
  return mask;
}
OCTET_EMULATED void stream_ps(float* p, __m512 a) {
  _mm256_stream_ps(p, half<__m256>(a, 0));
  _mm256_stream_ps(p + 8, half<__m256>(a, 1));
}
// Lanes whose bit is not set are not touched in memory, and read as zero.
template <class Vector, class Lane>
OCTET_EMULATED Vector load_masked(unsigned mask, const void* p) {
  return each_lane<Vector, Lane>([&](size_t i) {
    Lane lane = 0;
    if ((mask >> i & 1) != 0) std::memcpy(&lane, static_cast<const Lane*>(p) + i, sizeof lane);
    return lane;
  });
}
template <class Lane, class Vector>
OCTET_EMULATED void store_masked(void* p, unsigned mask, Vector a) {
  for (size_t i = 0; i < lanes<Lane>(a).size(); ++i) {
    if ((mask >> i & 1) != 0) std::memcpy(static_cast<Lane*>(p) + i, &lanes<Lane>(a)[i], sizeof(Lane));
  }
}
OCTET_EMULATED __m512 maskz_loadu_ps(unsigned mask, const void* p) { return load_masked<__m512, float>(mask, p); }
OCTET_EMULATED __m256i maskz_loadu_epi16(unsigned mask, const void* p) {
  return load_masked<__m256i, uint16_t>(mask, p);
}
OCTET_EMULATED void mask_storeu_ps(void* p, unsigned mask, __m512 a) { store_masked<float>(p, mask, a); }
OCTET_EMULATED void mask_storeu_epi16(void* p, unsigned mask, __m256i a) { store_masked<uint16_t>(p, mask, a); }
OCTET_EMULATED int32_t reduce_max_epi32(__m512i a) {
  const auto all = lanes<int32_t>(a);
  return *std::max_element(all.begin(), all.end());
}

// The numbers that are not zero and have a least exponent: the only class that is asked for.
OCTET_EMULATED __mmask16 subnormal_ps_mask(__m512 a) {
  __mmask16 mask = 0;
  for (size_t i = 0; i < 16; ++i) {
    const uint32_t magnitude = lanes<uint32_t>(a)[i] & 0x7fffffffu;
    mask = __mmask16(mask | unsigned(magnitude - 1 < 0x7fffffu) << i);
  }
  return mask;
}
// VCVTNEPS2BF16 and VCVTNE2PS2BF16, whose second operand comes first: to nearest even, subnormal numbers as zero, NaN
// cut and quiet.
OCTET_EMULATED uint16_t bf16_of(uint32_t u) {
  const uint32_t exponent = u & 0x7f800000u, fraction = u & 0x7fffffu;
  if (exponent == 0) return uint16_t(u >> 16 & 0x8000u);
  if (exponent == 0x7f800000u && fraction != 0) return uint16_t(u >> 16 | 0x40u);
  return uint16_t((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
OCTET_EMULATED __m256bh cvtneps_pbh(__m512 a) {
  return each_lane<__m256bh, uint16_t>([&](size_t i) { return bf16_of(lanes<uint32_t>(a)[i]); });
}
OCTET_EMULATED __m512bh cvtne2ps_pbh(__m512 a, __m512 b) {
  return each_lane<__m512bh, uint16_t>([&](size_t i) { return bf16_of(lanes<uint32_t>(i < 16 ? b : a)[i % 16]); });
}

// VDPBF16PS: two fused multiply-adds, the odd elements first, to nearest even, with subnormal inputs and results taken
// as zero and no regard to MXCSR; which therefore holds that for the time. The empty assembler lines keep the
// arithmetic between the two writes to MXCSR, of which GCC does not know that it depends on them.
OCTET_EMULATED __m512 dpbf16_ps(__m512 sums, __m512bh a, __m512bh b) {
  return each_half<__m512>([&](int i) {
    const auto even = [](__m256i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); };
    const auto odd = [](__m256i x) { return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(-65536))); };
    const __m256i x = half<__m256i>(a, i), y = half<__m256i>(b, i);
    const __m256 x_even = even(x), y_even = even(y), x_odd = odd(x), y_odd = odd(y);
    __m256 sum = half<__m256>(sums, i);
    const unsigned saved = _mm_getcsr();
    _mm_setcsr(0x9fc0u);  // flush to zero, no exceptions, to nearest, denormals are zero
    asm volatile("" : "+x"(sum));
    sum = _mm256_fmadd_ps(x_odd, y_odd, sum);
    sum = _mm256_fmadd_ps(x_even, y_even, sum);
    asm volatile("" : "+x"(sum));
    _mm_setcsr(saved);
    return sum;
  });
}

#undef OCTET_EMULATED

}  // namespace octet::kernels::cpu::emulated
#pragma GCC pop_options

#undef _mm512_i32gather_ps  // macros of GCC's where it does not optimise
#undef _mm512_permute_ps
#undef _mm512_srai_epi32
#undef _mm512_extractf32x8_ps
#undef _mm512_fpclass_ps_mask
#undef _mm512_dpbf16_ps  // SIMDe's
#define _mm256_maskz_loadu_epi16 octet::kernels::cpu::emulated::maskz_loadu_epi16
#define _mm256_mask_storeu_epi16 octet::kernels::cpu::emulated::mask_storeu_epi16
#define _mm512_cmpgt_epi16_mask octet::kernels::cpu::emulated::cmpgt_epi16_mask
#define _mm512_cmplt_epu16_mask octet::kernels::cpu::emulated::cmplt_epu16_mask
#define _mm512_cvtepi32_epi16 octet::kernels::cpu::emulated::cvtepi32_epi16
#define _mm512_cvtepi32_epi8 octet::kernels::cpu::emulated::cvtepi32_epi8
#define _mm512_cvtepi32_ps octet::kernels::cpu::emulated::cvtepi32_ps
#define _mm512_cvtepu16_epi32 octet::kernels::cpu::emulated::cvtepu16_epi32
#define _mm512_cvtepu8_epi32 octet::kernels::cpu::emulated::cvtepu8_epi32
#define _mm512_cvtph_ps octet::kernels::cpu::emulated::cvtph_ps
#define _mm512_cvtps_pd octet::kernels::cpu::emulated::cvtps_pd
#define _mm512_cvttps_epi32 octet::kernels::cpu::emulated::cvttps_epi32
#define _mm512_cvtne2ps_pbh octet::kernels::cpu::emulated::cvtne2ps_pbh
#define _mm512_cvtneps_pbh octet::kernels::cpu::emulated::cvtneps_pbh
#define _mm512_dpbf16_ps octet::kernels::cpu::emulated::dpbf16_ps
#define _mm512_extractf32x8_ps octet::kernels::cpu::emulated::extractf32x8_ps
#define _mm512_fpclass_ps_mask(a, classes) octet::kernels::cpu::emulated::subnormal_ps_mask(a)
#define _mm512_i32gather_ps octet::kernels::cpu::emulated::i32gather_ps
#define _mm512_mask_storeu_ps octet::kernels::cpu::emulated::mask_storeu_ps
#define _mm512_maskz_loadu_ps octet::kernels::cpu::emulated::maskz_loadu_ps
#define _mm512_permute_ps octet::kernels::cpu::emulated::permute_ps
#define _mm512_reduce_max_epi32 octet::kernels::cpu::emulated::reduce_max_epi32
#define _mm512_srai_epi32 octet::kernels::cpu::emulated::srai_epi32
#define _mm512_stream_ps octet::kernels::cpu::emulated::stream_ps
