// For the files that call CUDA: a call that fails is an Error(kDevice) that names it.
#pragma once

#include <cuda_runtime_api.h>

#include "core/base/error.h"

namespace octet {

inline void check(cudaError_t status, const char* call) {
  require(ErrorKind::kDevice, status == cudaSuccess, "{}: {}", call, cudaGetErrorString(status));
}

}  // namespace octet
