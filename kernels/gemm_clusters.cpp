#include "kernels/gemm_clusters.h"

namespace octet::kernels {
namespace {

GemmClusters& chosen() {
  static GemmClusters wanted = wanted_of("OCTET_GEMM_CLUSTERS");
  return wanted;
}

}  // namespace

GemmClusters gemm_clusters() { return chosen(); }
void set_gemm_clusters(GemmClusters wanted) { chosen() = wanted; }

}  // namespace octet::kernels
