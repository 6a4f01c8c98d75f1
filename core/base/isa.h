// The instruction set that CPU kernels use. Each kernel is compiled for all of them and the best one is chosen at
// start-up; all give the same bits, so a choice is about speed only.
#pragma once

#include <string_view>
#include <vector>

namespace octet {

enum class Isa {
  kGeneric,  // what every x86-64 (or other) processor has
  kAvx2,     // AVX2, FMA, F16C
  kAvx512,   // AVX-512 F, BW, DQ, VL, VBMI and BF16; emulated by AVX2 where built with OCTET_EMULATE_AVX512
};

std::string_view name_of(Isa isa);
// What this processor and operating system can run, slowest first.
std::vector<Isa> supported_isas();
// The one in use: the best supported one, or the one that OCTET_ISA=generic|avx2|avx512 names.
Isa current_isa();
// For tests and benchmarks; it must be a supported one. Not while a kernel runs.
void set_current_isa(Isa isa);

}  // namespace octet
