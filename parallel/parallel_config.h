// How ranks are laid out over the axes of the mesh.
#pragma once

#include <cstdint>

#include "core/base/problems.h"

namespace octet {

struct ParallelConfig {
  int64_t dp = 1;
  int64_t ep = 1;

  void fields(auto&& visit) {
    visit("dp", dp, "ranks along the data-parallel axis");
    visit("ep", ep, "ranks along the expert-parallel axis");
  }
  void validate(Problems& problems) const {
    problems.require(dp == 1, "dp", "is {}; this build runs one rank, wanted 1", dp);
    problems.require(ep == 1, "ep", "is {}; this build runs one rank, wanted 1", ep);
  }
};

}  // namespace octet
