#include "kernels/row_groups.h"

#include "kernels/cuda/device.cuh"

namespace octet::kernels::cuda {
namespace {

// One thread does it: there are as many numbers as experts, and each needs the one before.
__global__ void __launch_bounds__(kWarp) block_offsets_kernel(const int64_t* rows, int64_t* blocks, int64_t groups,
                                                              int64_t num_rows, gpu::FaultRecord* record) {
  if (threadIdx.x != 0) return;
  int64_t at = 0;
  blocks[0] = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t count = rows[g + 1] - rows[g];
    if (is_in_range(count, num_rows - rows[g] + 1, gpu::Fault::kGroups, record)) at += (count + 127) / 128;
    blocks[g + 1] = at;
  }
}

}  // namespace

void block_offsets(const BlockOffsets& args, Stream& stream) {
  launch("block_offsets", blocks(1), kWarp, 0, stream, block_offsets_kernel, args.offsets.data<int64_t>(),
         args.block_offsets.data<int64_t>(), args.offsets.num_elements() - 1, args.num_rows,
         gpu::fault_record(stream.device()));
}

}  // namespace octet::kernels::cuda
