#include "core/ops/row_groups.h"

#include <map>

#include "core/tensor/transfer.h"
#include "kernels/row_groups.h"

namespace octet {

int64_t RowGroups::num_padded_rows() const {
  if (offsets.device().is_cpu()) return block_offsets.data<int64_t>()[num_groups()] * 128;
  return (num_rows + num_groups() * 127) / 128 * 128;  // each group ends at most 127 rows into padding
}

RowGroups RowGroups::dense(int64_t num_rows, Device device) {
  // Kept, since a captured step reads them ever after: as many as there are lengths of a prompt, of two blocks each.
  static thread_local std::map<std::pair<int, int64_t>, RowGroups> made;
  const std::pair<int, int64_t> key{device.is_cpu() ? -1 : device.index, num_rows};
  const auto found = made.find(key);
  if (found != made.end()) return found->second;
  const AllocateAs workspace(MemoryCategory::kWorkspace);
  RowGroups groups = of_offsets(from_vector<int64_t>({0, num_rows}, {2}, device), Tensor(), num_rows);
  groups.is_dense = true;
  return made[key] = groups;
}

RowGroups RowGroups::of_offsets(const Tensor& offsets, const Tensor& source, int64_t num_rows) {
  const Tensor block_offsets = empty(offsets.shape(), DType::kInt64, offsets.device());
  kernels::block_offsets({.offsets = offsets, .block_offsets = block_offsets, .num_rows = num_rows}, offsets.stream());
  return {.offsets = offsets, .block_offsets = block_offsets, .source = source, .num_rows = num_rows};
}

}  // namespace octet
