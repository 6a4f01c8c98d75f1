// How ranks are laid out over the axes of the mesh (parallel/mesh.h).
#pragma once

#include <cstdint>

#include "core/base/problems.h"
#include "parallel/mesh.h"

namespace octet {

struct ParallelConfig {
  int64_t dp = 1;
  int64_t ep = 1;

  void fields(auto&& visit) {
    visit("dp", dp, "data-parallel ranks, all ranks of the run; each reads samples of its own");
    visit("ep", ep, "neighbouring ranks that hold the experts between them, a divisor of dp");
  }
  void validate(Problems& problems) const {
    problems.require(dp == 1, "dp", "is {}; this build runs one rank, wanted 1", dp);
    constexpr int64_t kMostRanks = int64_t(1) << 20;  // beyond it dp is no number of ranks, and its divisors no help
    if (1 < dp && dp <= kMostRanks && (ep < 1 || dp % ep != 0)) {
      problems.require(false, "ep", "is {}; wanted a divisor of parallel.dp, {}: {}", ep, dp,
                       list_choices(divisors_of(dp)));
    } else {
      problems.require(ep == 1, "ep", "is {}; this build runs one rank, wanted 1", ep);
    }
  }
};

}  // namespace octet
