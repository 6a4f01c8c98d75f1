// Everything a CPU kernel file includes before isa_begin.inc. A kernel file reads
//
//   #include "kernels/rms_norm.h"
//   #include "kernels/cpu/isa_headers.h"
//   ... other headers ...
//   #include "kernels/cpu/isa_begin.inc"
//   void rms_norm_forward(const RmsNormForward& args, Stream& stream) { ... f32x16 ... }
//   #include "kernels/cpu/isa_end.inc"
//   OCTET_CPU_KERNEL(rms_norm_forward, RmsNormForward)
//
// and is compiled once for each instruction set, with OCTET_ISA_LEVEL 0 (generic), 1 (avx2) and 2 (avx512); the code
// between the two .inc lines lands in a namespace of its own, kernels::cpu::generic and so on. The instruction set is
// switched on by a pragma after the headers and not by a compiler flag: an inline function of the standard library
// compiled with AVX-512 could otherwise be the copy that the linker keeps for everyone.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/error.h"
#include "core/base/isa.h"
#include "core/base/stream.h"
#include "core/base/view.h"

#ifndef OCTET_ISA_LEVEL
#define OCTET_ISA_LEVEL 0
#endif
#if OCTET_ISA_LEVEL == 2 && defined(OCTET_EMULATE_AVX512)
#include "kernels/cpu/avx512_emulation.h"
#endif

// Defines kernels::cpu::name, which calls the variant of the current instruction set.
#if OCTET_ISA_LEVEL == 0 && defined(__x86_64__)
#define OCTET_CPU_KERNEL(name, Args)            \
  namespace octet::kernels::cpu {               \
  namespace avx2 {                              \
  void name(const Args& args, Stream& stream);  \
  }                                             \
  namespace avx512 {                            \
  void name(const Args& args, Stream& stream);  \
  }                                             \
  void name(const Args& args, Stream& stream) { \
    switch (current_isa()) {                    \
      case Isa::kAvx512:                        \
        return avx512::name(args, stream);      \
      case Isa::kAvx2:                          \
        return avx2::name(args, stream);        \
      case Isa::kGeneric:                       \
        return generic::name(args, stream);     \
    }                                           \
  }                                             \
  }
#elif OCTET_ISA_LEVEL == 0
#define OCTET_CPU_KERNEL(name, Args)                                           \
  namespace octet::kernels::cpu {                                              \
  void name(const Args& args, Stream& stream) { generic::name(args, stream); } \
  }
#else
#define OCTET_CPU_KERNEL(name, Args)
#endif
