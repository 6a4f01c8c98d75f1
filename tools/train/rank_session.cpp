#include "tools/train/rank_session.h"

#include <algorithm>
#include <cstdio>
#include <sstream>
#include <thread>

#include "core/base/file_system.h"
#include "core/base/thread_pool.h"
#include "core/io/checksum.h"
#include "parallel/agreement.h"
#include "parallel/launch_environment.h"
#include "parallel/mpi_communicator.h"
#include "tools/train/end_with_parent.h"
#include "tools/train/rank_output.h"
#include "tools/train/yaml_reader.h"

namespace octet {
namespace {

// A rank that ends with an error makes mpirun end the others: they are given the time to write what they know.
constexpr auto kLastWords = std::chrono::milliseconds(500);

std::string program_digest() {
  try {
    const auto file = real_file_system().open("/proc/self/exe");
    std::string bytes(file->size(), '\0');
    file->read_at(0, bytes.data(), bytes.size());
    return checksum_hex(bytes);
  } catch (const Error&) {  // no /proc: the versions are compared by the configuration's keys alone
    return "";
  }
}

// The first line in which two texts differ.
std::string first_difference(const std::string& first, const std::string& other) {
  std::istringstream a(first), b(other);
  std::string of_first, of_other;
  while (std::getline(a, of_first) && std::getline(b, of_other)) {
    if (of_first != of_other) return fmt::format("\"{}\" in place of \"{}\"", of_other, of_first);
  }
  return "more keys, or fewer";
}

}  // namespace

int threads_of_rank() { return std::max(1, usable_cores() / local_ranks()); }

void require_same_program(Communicator& world, const Config& config) {
  const std::vector<std::string> configs = gather_texts(world, print_config(config));
  const std::vector<std::string> programs = gather_texts(world, program_digest());
  for (int rank = 1; rank < world.size(); ++rank) {
    const bool same_config = configs[size_t(rank)] == configs[0];
    if (same_config && programs[size_t(rank)] == programs[0]) continue;
    fail(ErrorKind::kConfig,
         {.what = same_config ? fmt::format("rank {} is another build of octet than rank 0", rank)
                              : fmt::format("rank {} has another configuration than rank 0: {}", rank,
                                            first_difference(configs[0], configs[size_t(rank)])),
          .where = fmt::format("rank {} on host {}, rank 0 on host {}", rank, world.host(rank), world.host(0)),
          .why = "the ranks would train different models, or wait for each other",
          .fix = "copy the same octet and the same configuration to every host"});
  }
}

int run_as_rank(const SessionOptions& options, const std::function<void()>& check,
                const std::function<int(Communicator& world)>& body) {
  end_with_parent();
  bool has_log = false, is_first = true;
  try {
    const std::optional<Error> fault = error_in(check);
    const auto world = make_mpi_communicator(options.communicator);
    is_first = world->rank() == 0;
    try {
      vote(*world, fault);
      if (!options.run_dir.empty()) {
        const RankOutput output(world->rank(), options.run_dir);
        has_log = true;
      }
      return body(*world);
    } catch (const Error& error) {
      world->abort(error.kind(), error.report().what);
      throw;
    } catch (const std::bad_alloc&) {
      world->abort(ErrorKind::kMemory, "out of memory");
      throw;
    } catch (const std::exception& error) {
      world->abort(ErrorKind::kCommunication, error.what());
      throw;
    }
  } catch (const Error& error) {
    const bool is_lost = error.kind() == ErrorKind::kCommunication || error.kind() == ErrorKind::kHang;
    if (has_log || is_first || is_lost) std::fputs(error.block().c_str(), stderr);
    std::fflush(stderr);
    std::this_thread::sleep_for(kLastWords);
    return error.code();
  }
}

}  // namespace octet
