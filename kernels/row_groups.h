// Where the groups of rows begin that a product reads by their offsets (core/ops/row_groups.h). The numbers stay on the
// device that made them: the host never waits for them.
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

struct BlockOffsets {
  // block_offsets[0] = 0;  block_offsets[g+1] = block_offsets[g] + ceil((offsets[g+1] - offsets[g]) / 128)
  ConstView offsets;   // [G + 1] int64, rising from 0
  View block_offsets;  // [G + 1] int64
  int64_t num_rows;    // that there is room for: a GPU records offsets beyond

  KernelCost cost() const { return {.name = "block_offsets", .bytes = bytes_of(offsets, block_offsets)}; }
};
namespace cpu {
void block_offsets(const BlockOffsets& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void block_offsets(const BlockOffsets& args, Stream& stream);
}  // namespace cuda
inline void block_offsets(const BlockOffsets& args, Stream& stream) {
  dispatch<cpu::block_offsets, cuda::block_offsets>(args, stream);
}

}  // namespace octet::kernels
