// When checkpoints are saved, and how many stay on the disk.
#pragma once

#include <cstdint>

#include "core/base/problems.h"

namespace octet {

struct CheckpointConfig {
  int64_t every_steps = 100;
  int64_t keep_last = 2;  // one to go back to when the newest is damaged
  int64_t max_failed_saves = 3;

  void fields(auto&& visit) {
    visit("every_steps", every_steps,
          "steps between saves; the end of the run and a stop signal save too; 0 leaves "
          "only those");
    visit("keep_last", keep_last, "newest checkpoints that stay on the disk; 0 keeps all");
    visit("max_failed_saves", max_failed_saves, "saves in a row that may fail before the run stops with exit code 5");
  }
  void validate(Problems& problems) const {
    problems.require(every_steps >= 0, "every_steps", "is {}; wanted 0 (only at the end) or more", every_steps);
    problems.require(keep_last >= 0, "keep_last", "is {}; wanted 0 (all) or more", keep_last);
    problems.require(max_failed_saves >= 0, "max_failed_saves", "is {}; wanted 0 or more", max_failed_saves);
  }
};

}  // namespace octet
