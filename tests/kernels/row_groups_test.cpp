#include "kernels/row_groups.h"

#include "tests/kernels/backend.h"
#include "tests/support/numeric.h"

namespace octet::test {

TEST_CASE("each group is padded to whole blocks of 128 rows", "[kernels][row_groups]") {
  const Backend backend = GENERATE(from_range(backends()));
  CAPTURE(backend);
  const UseBackend use(backend);
  std::vector<int64_t> offsets = {0, 0, 1, 129, 257, 257, 386}, blocks(7, -1);
  kernels::block_offsets({.offsets = view(offsets, {7}), .block_offsets = view(blocks, {7}), .num_rows = 386}, here());
  CHECK(blocks == std::vector<int64_t>{0, 0, 1, 2, 3, 3, 5});
}

}  // namespace octet::test
