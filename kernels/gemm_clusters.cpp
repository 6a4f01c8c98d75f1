#include "kernels/gemm_clusters.h"

#include <fmt/core.h>

#include <cstdlib>
#include <string_view>

#include "core/base/error.h"

namespace octet::kernels {
namespace {

GemmClusters wanted_at_start() {
  const char* const wanted = std::getenv("OCTET_GEMM_CLUSTERS");
  const std::string_view word = wanted == nullptr ? "" : wanted;
  if (word.empty() || word == "auto") return GemmClusters::kAuto;
  if (word == "off") return GemmClusters::kOff;
  if (word == "on") return GemmClusters::kOn;
  fail(ErrorKind::kConfig, {.what = fmt::format("OCTET_GEMM_CLUSTERS is \"{}\"; wanted auto, off or on", word),
                            .where = "environment variable OCTET_GEMM_CLUSTERS",
                            .why = {},
                            .fix = "unset OCTET_GEMM_CLUSTERS to have clusters where they pay"});
}
GemmClusters& chosen() {
  static GemmClusters wanted = wanted_at_start();
  return wanted;
}

}  // namespace

GemmClusters gemm_clusters() { return chosen(); }
void set_gemm_clusters(GemmClusters wanted) { chosen() = wanted; }

}  // namespace octet::kernels
