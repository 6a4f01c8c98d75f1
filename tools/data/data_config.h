// The tokens a run reads.
#pragma once

#include <cstdint>
#include <string>

#include "core/base/problems.h"

namespace octet {

struct DataConfig {
  std::string path;
  int64_t seq_len = 256;

  void fields(auto&& visit) {
    visit("path", path, "directory that `octet prepare` wrote");
    visit("seq_len", seq_len, "length of one training sequence, tokens");
  }
  void validate(Problems& problems) const {
    problems.require(!path.empty(), "path", "is empty; wanted the directory that `octet prepare` wrote");
    problems.require(path.size() <= 4096, "path", "has {} bytes; wanted at most 4096", path.size());
    problems.require(seq_len >= 1 && seq_len <= 1 << 20, "seq_len", "is {}; wanted 1 to 1048576", seq_len);
  }
};

}  // namespace octet
