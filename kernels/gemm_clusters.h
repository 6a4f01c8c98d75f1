// Whether blocks of a GPU's matrix products work in pairs that share what they read (kernels/cuda/gemm_persistent.cuh).
// The sums and their order are the same either way.
#pragma once

#include "core/base/environment.h"

namespace octet::kernels {

// By default where it pays (kernels/cuda/tile_schedule.h). The environment variable OCTET_GEMM_CLUSTERS=auto|off|on
// says otherwise: on, wherever it is possible.
using GemmClusters = Wanted;
GemmClusters gemm_clusters();
void set_gemm_clusters(GemmClusters wanted);

}  // namespace octet::kernels
