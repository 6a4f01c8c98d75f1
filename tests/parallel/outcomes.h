// What ranks that are threads threw.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/base/fault_file_system.h"
#include "parallel/local_communicator.h"

namespace octet::test {

struct Outcome {
  int code = 0;      // of the Error; -1 for a rank that a fault ended
  std::string text;  // all of the report; "" where nothing was thrown, "stopped" for a rank that a fault ended
};
inline std::vector<Outcome> outcomes(int ranks, const LocalOptions& options,
                                     const std::function<void(Communicator&)>& body) {
  std::vector<Outcome> all;
  for (const std::exception_ptr& error : run_local_ranks(ranks, options, body)) {
    Outcome& outcome = all.emplace_back();
    if (!error) continue;
    try {
      std::rethrow_exception(error);
    } catch (const Error& e) {
      outcome = {.code = e.code(), .text = e.block()};
    } catch (const LocalRankStopped&) {
      outcome = {.code = -1, .text = "stopped"};
    } catch (const FaultFileSystem::Stopped&) {
      outcome = {.code = -1, .text = "stopped"};
    }
  }
  return all;
}

}  // namespace octet::test
