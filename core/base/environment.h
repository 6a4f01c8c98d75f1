// The environment variables that Octet reads.
#pragma once

#include <string>
#include <vector>

namespace octet {

struct EnvironmentVariable {
  std::string name;
  std::vector<std::string> values;  // that it may have; none here: numbers, which their reader checks
};
// All of them: OCTET_LOG (core/base/log.h), OCTET_ISA (core/base/isa.h), OCTET_DENSE_GEMM
// (kernels/cuda/dense_product.h), OCTET_GEMM_CLUSTERS (kernels/gemm_clusters.h), OCTET_SWIGLU_IN_GEMM
// (core/ops/swiglu_ffn.h), the two of an emulated GPU (docs/gpu.md), and OCTET_LAUNCHED, which octet launch sets for
// its ranks (tools/launch/launch_plan.h).
std::vector<EnvironmentVariable> environment_variables();

// Throws Error(kConfig) that lists every variable OCTET_* that Octet does not read, with the name it may have meant,
// and every one whose value cannot be used. A misspelt variable would otherwise be a setting that silently does
// nothing.
void check_environment();

// What a variable says of something that is otherwise decided by what pays: auto where it is not set.
enum class Wanted { kAuto, kOff, kOn };
Wanted wanted_of(const char* variable);

}  // namespace octet
