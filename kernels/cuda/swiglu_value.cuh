// The value of kernels/swiglu.h, for the kernels that make it.
#pragma once

#include "kernels/cuda/device.cuh"

namespace octet::kernels::cuda {

// NaN stays.
__device__ __forceinline__ float limited_gate(float gate, float limit) { return limit < gate ? limit : gate; }
__device__ __forceinline__ float limited_up(float up, float limit) {
  return limit < up ? limit : up < -limit ? -limit : up;
}
__device__ __forceinline__ float swiglu_of(float h_gate, float h_up, float limit) {
  const float gate = limited_gate(h_gate, limit);
  return gate * sigmoid_of(gate) * limited_up(h_up, limit);
}
// The same bits where neither is beyond the limit and the gate is not beyond kMostGate.
inline constexpr float kMostGate = 87.0f;
__device__ __forceinline__ float swiglu_within(float gate, float up) { return gate * sigmoid_within(gate) * up; }

__device__ __forceinline__ float weight_of_row(const float* weights, int64_t row) {
  return weights == nullptr ? 1.0f : weights[row];
}
// What a kernel takes: beyond every number where there is none.
inline float limit_of(float limit) { return limit > 0.0f ? limit : kInfinity; }

}  // namespace octet::kernels::cuda
