#include "kernels/row_groups.h"

namespace octet::kernels {

void cpu::block_offsets(const BlockOffsets& args, Stream&) {
  const int64_t* rows = args.offsets.data<int64_t>();
  int64_t* blocks = args.block_offsets.data<int64_t>();
  blocks[0] = 0;
  for (int64_t g = 0; g + 1 < args.offsets.num_elements(); ++g) {
    blocks[g + 1] = blocks[g] + (rows[g + 1] - rows[g] + 127) / 128;
  }
}

}  // namespace octet::kernels
