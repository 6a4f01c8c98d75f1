#include "core/base/isa.h"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "core/base/error.h"

namespace octet {
namespace {

Isa chosen_at_start() {
  const std::vector<Isa> isas = supported_isas();
  const char* wanted = std::getenv("OCTET_ISA");
  if (wanted == nullptr || *wanted == '\0') return isas.back();
  for (const Isa isa : isas) {
    if (name_of(isa) == wanted) return isa;
  }
  std::string names;
  for (const Isa isa : isas) names += (names.empty() ? "" : ", ") + std::string(name_of(isa));
  fail(ErrorKind::kConfig, {.what = fmt::format("OCTET_ISA is \"{}\"; this machine has {}", wanted, names),
                            .where = "environment variable OCTET_ISA",
                            .why = {},
                            .fix = "unset OCTET_ISA to use the fastest one"});
}

Isa& current() {
  static Isa isa = chosen_at_start();
  return isa;
}

}  // namespace

std::string_view name_of(Isa isa) {
  switch (isa) {
    case Isa::kGeneric:
      return "generic";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "?";
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas = {Isa::kGeneric};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (avx2) isas.push_back(Isa::kAvx2);
#ifdef OCTET_EMULATE_AVX512
  const bool avx512 = true;
#else
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16");
#endif
  if (avx2 && avx512) isas.push_back(Isa::kAvx512);
#endif
  return isas;
}

Isa current_isa() { return current(); }

void set_current_isa(Isa isa) {
  const std::vector<Isa> isas = supported_isas();
  require(std::find(isas.begin(), isas.end(), isa) != isas.end(), "set_current_isa: this machine has no {}",
          name_of(isa));
  current() = isa;
}

}  // namespace octet
