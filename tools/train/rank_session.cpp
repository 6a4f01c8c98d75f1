#include "tools/train/rank_session.h"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <optional>
#include <sstream>
#include <thread>

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

// "" where there is no /proc: the configuration's keys alone are compared. Not by FileSystem, which refuses links.
std::string program_digest() {
  std::ifstream file("/proc/self/exe", std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return file ? checksum_hex(bytes.str()) : std::string();
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

// Ends the process where it is not destroyed within the limit: MPI itself waits without one for a rank that is not
// there.
class MeetingLimit {
 public:
  explicit MeetingLimit(double limit_s) : limit_s_(limit_s), thread_([this] { watch(); }) {}
  ~MeetingLimit() {
    {
      const std::lock_guard lock(mutex_);
      is_over_ = true;
    }
    over_.notify_one();
    thread_.join();
  }
  MeetingLimit(const MeetingLimit&) = delete;
  MeetingLimit& operator=(const MeetingLimit&) = delete;

 private:
  void watch() {
    std::unique_lock lock(mutex_);
    if (over_.wait_for(lock, std::chrono::duration<double>(limit_s_), [this] { return is_over_; })) return;
    char host[256] = {};
    if (::gethostname(host, sizeof host - 1) != 0) host[0] = '?';
    const Error error(ErrorKind::kHang,
                      {.what = fmt::format("the ranks have not all met within {} s", limit_s_),
                       .where = fmt::format("rank {} on host {}, where MPI begins", launched_rank(), host),
                       .why = "another rank was not started, is stopped, or cannot be reached",
                       .fix = "look at the processes of octet on every host, and at the network between them"});
    std::fputs(error.block().c_str(), stderr);
    std::fflush(stderr);
    ::_exit(error.code());
  }

  const double limit_s_;
  std::mutex mutex_;
  std::condition_variable over_;
  bool is_over_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace

int threads_of_rank() { return std::max(1, usable_cores() / local_ranks()); }

void require_same_program(Communicator& world, const Config& config) {
  const std::vector<std::string> configs = gather_texts(world, print_config(config));
  const std::vector<std::string> programs = gather_texts(world, program_digest());
  for (int rank = 1; rank < world.size(); ++rank) {
    const bool same_config = configs[size_t(rank)] == configs[0];
    if (same_config && programs[size_t(rank)] == programs[0]) continue;
    const std::string what = same_config ? fmt::format("rank {} is another build of octet than rank 0", rank)
                                         : fmt::format("rank {} has another configuration than rank 0: {}", rank,
                                                       first_difference(configs[0], configs[size_t(rank)]));
    fail_together(world,
                  Error(ErrorKind::kConfig, {.what = what,
                                             .where = fmt::format("rank {} on host {}, rank 0 on host {}", rank,
                                                                  world.host(rank), world.host(0)),
                                             .why = "the ranks would train different models, or wait for each other",
                                             .fix = "copy the same octet and the same configuration to every host"}));
  }
}

int run_as_rank(const SessionOptions& options, const std::function<void()>& check,
                const std::function<int(Communicator& world)>& body) {
  end_with_parent();
  std::optional<RankOutput> output;
  bool is_first = true;
  try {
    const std::optional<Error> fault = error_in(check);
    std::unique_ptr<Communicator> world;
    {
      const MeetingLimit limit(options.meet_limit_s);
      world = make_mpi_communicator(options.communicator);
    }
    is_first = world->rank() == 0;
    try {
      vote(*world, fault);
      if (!options.run_dir.empty()) output.emplace(world->rank(), options.run_dir);
      const int code = body(*world);
      // A rank that is lost by now would be missed by no one, and mpirun would wait for it.
      world->set_phase("end");
      world->barrier();
      if (is_first && std::getenv("OCTET_LAUNCHED") != nullptr) {
        std::fputs(fmt::format("{}{}\n", kEndedWithCode, code).c_str(), stderr);
      }
      return code;
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
    if (output) {
      output->say(error.block(), is_first || is_lost);
    } else if (is_first || is_lost) {
      std::fputs(error.block().c_str(), stderr);
      std::fflush(stderr);
    }
    std::this_thread::sleep_for(kLastWords);
    return error.code();
  }
}

}  // namespace octet
