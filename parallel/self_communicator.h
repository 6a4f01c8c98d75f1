// One rank by itself: sums are the values, pieces go from one place to another, and nothing waits.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace octet {

std::unique_ptr<Communicator> make_self_communicator();

}  // namespace octet
