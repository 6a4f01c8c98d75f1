#include "core/base/nearest.h"

#include <catch2/catch.hpp>

namespace octet::test {

TEST_CASE("edit_distance counts insertions, deletions, replacements and exchanges", "[config][nearest]") {
  CHECK(edit_distance("", "") == 0);
  CHECK(edit_distance("", "abc") == 3);
  CHECK(edit_distance("steps", "steps") == 0);
  CHECK(edit_distance("steps", "step") == 1);
  CHECK(edit_distance("steps", "stepss") == 1);
  CHECK(edit_distance("steps", "stebs") == 1);
  CHECK(edit_distance("steps", "setps") == 1);
  CHECK(edit_distance("kitten", "sitting") == 3);
  CHECK(edit_distance("ca", "abc") == 3);  // 2 where an exchange may be edited again, which this distance does not
  CHECK(edit_distance("abcdef", "badcfe") == 3);
}

TEST_CASE("nearest_name takes the most plausible candidate, or none", "[config][nearest]") {
  const std::vector<std::string> names = {"layers", "hidden", "heads", "kv_heads", "batch_size"};
  CHECK(nearest_name("layer", names) == "layers");
  CHECK(nearest_name("num_layers", names) == "layers");
  CHECK(nearest_name("HEADS", names) == "heads");
  CHECK(nearest_name("batch-size", names) == "batch_size");
  CHECK(nearest_name("num_kv_heads", names) == "kv_heads");  // the longer common part
  CHECK(nearest_name("frobnicate", names).empty());
  CHECK(nearest_name(std::string(100000, 'x'), names).empty());
  CHECK(nearest_name("", names).empty());
}

}  // namespace octet::test
