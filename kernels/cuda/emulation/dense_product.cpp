// multiply_dense without cuBLASLt: the same matrices, read as DenseProduct says, with the arithmetic of the tensor
// core.
#include "kernels/cuda/dense_product.h"

#include <cmath>
#include <vector>

#include "kernels/cuda/emulation/launch.h"
#include "kernels/cuda/emulation/tensor_core.h"

namespace octet::kernels::cuda {
namespace {

// Element [row, column] of an operand.
template <class Bits>
uint32_t at(const DenseOperand& x, int64_t row, int64_t column) {
  const Bits* data = static_cast<const Bits*>(x.data);
  return x.is_transposed ? data[row * x.step + column] : data[column * x.step + row];
}

// Products of the k from `begin` to `end`, none behind it.
template <class Format, class Bits>
float sum_of(const DenseProduct& p, int64_t i, int64_t j, int64_t begin, int64_t end) {
  float sum = 0.0f;
  for (int64_t k0 = begin; k0 < end; k0 += Format::kDepth) {
    uint32_t left[Format::kDepth] = {}, right[Format::kDepth] = {};
    for (int64_t k = k0; k < std::min(k0 + Format::kDepth, end); ++k) {
      left[k - k0] = at<Bits>(p.left, i, k), right[k - k0] = at<Bits>(p.right, k, j);
    }
    sum = emulation::multiply_add<Format>(left, right, sum);
  }
  return sum;
}

float element(const DenseProduct& p, int64_t i, int64_t j) {
  if (p.operands == DType::kBFloat16) return sum_of<emulation::Bf16, uint16_t>(p, i, j, 0, p.k);
  if (p.scales == DenseScales::kOne) {
    return sum_of<emulation::E4m3, uint8_t>(p, i, j, 0, p.k) * (*p.left_scale * *p.right_scale);
  }
  float sum = 0.0f;
  for (int64_t block = 0; block * 128 < p.k; ++block) {
    const float left = p.left_scale[i / 128 * scale_step((p.k + 127) / 128) + block];
    const float right = p.right_scale[block * scale_step(p.n) + j];
    const float products = sum_of<emulation::E4m3, uint8_t>(p, i, j, block * 128, std::min(block * 128 + 128, p.k));
    sum = std::fma(products, left * right, sum);
  }
  return std::isnan(sum) ? std::bit_cast<float>(0x7fffffffu) : sum;
}

}  // namespace

bool multiply_dense(const DenseProduct& p, Stream& stream) {
  emulation::launch("multiply_dense", stream, [p, &stream] {
    stream.parallel_for(p.n, [&](int64_t j) {
      for (int64_t i = 0; i < p.m; ++i) {
        const float sum = element(p, i, j);
        if (p.result_type == DType::kFloat32) {
          float& to = static_cast<float*>(p.result)[j * p.result_step + i];
          to = p.accumulate ? to + sum : sum;
        } else {
          static_cast<bfloat16*>(p.result)[j * p.result_step + i] = bfloat16(sum);
        }
      }
    });
  });
  return true;
}

}  // namespace octet::kernels::cuda
