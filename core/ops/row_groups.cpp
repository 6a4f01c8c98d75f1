#include "core/ops/row_groups.h"

namespace octet {

RowGroups RowGroups::dense(int64_t num_rows) {
  return of_offsets(from_vector<int64_t>({0, num_rows}, {2}), Tensor(), num_rows);
}

RowGroups RowGroups::of_offsets(const Tensor& offsets, const Tensor& source, int64_t num_rows) {
  const int64_t G = offsets.size(0) - 1;
  Tensor block_offsets = empty({G + 1}, DType::kInt64);
  const int64_t* rows = offsets.data<int64_t>();
  int64_t* blocks = block_offsets.data<int64_t>();
  blocks[0] = 0;
  for (int64_t g = 0; g < G; ++g) blocks[g + 1] = blocks[g] + (rows[g + 1] - rows[g] + 127) / 128;
  return {.offsets = offsets, .block_offsets = block_offsets, .source = source, .num_rows = num_rows};
}

}  // namespace octet
