// octet train as one rank, with a fault at a chosen moment of its training:
//   train_rank CONFIG RUN_DIR KEY=VALUE... [-- RANK WHAT PHASE OPERATION NUMBER]
// RANK does WHAT when it comes to that NUMBER, from 1, of the operations of this name in a phase that begins with
// PHASE. OPERATION "phase" is the beginning of the phase itself; PHASE "launch" comes before all others, without a
// number. WHAT is kill, stop (until it is continued), loop, lock (a mutex that it holds already), read (a pipe that
// nobody writes to), memory (it finds none) or slow (from then on, each of these operations begins late).
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <mutex>

#include "core/base/thread_pool.h"
#include "parallel/launch_environment.h"
#include "tools/train/check_run.h"
#include "tools/train/rank_session.h"
#include "tools/train/stop_signal.h"
#include "tools/train/trainer.h"

namespace octet {
namespace {

struct Fault {
  int rank = -1;
  std::string what, phase, operation;
  int64_t number = 0;
};

void commit(const std::string& what) {
  if (what == "kill") std::raise(SIGKILL);
  if (what == "stop") std::raise(SIGSTOP);
  if (what == "memory") throw std::bad_alloc();
  if (what == "slow") ::usleep(10'000);
  if (what == "loop") {
    for (volatile bool is_on = true; is_on;) {
    }
  }
  if (what == "lock") {
    std::timed_mutex mutex;
    mutex.lock();
    while (!mutex.try_lock_for(std::chrono::hours(1))) {
    }
  }
  if (what == "read") {
    int pipe[2] = {-1, -1};
    char byte = 0;
    if (::pipe(pipe) == 0) [[maybe_unused]]
      const auto bytes = ::read(pipe[0], &byte, 1);
  }
}

struct Moments {
  Fault fault;  // of this rank
  std::string phase;
  int64_t count = 0;

  void come_to(std::string_view operation) {
    if (fault.rank < 0 || fault.operation != operation || !phase.starts_with(fault.phase)) return;
    ++count;
    if (count == fault.number || (count > fault.number && fault.what == "slow")) commit(fault.what);
  }
};

// A communicator and its groups, at whose calls the fault comes.
class FaultyCommunicator final : public Communicator {
 public:
  FaultyCommunicator(Communicator& inner, Moments& moments)
      : Communicator(inner.rank(), inner.size(), inner.name()), inner_(inner), moments_(moments) {}
  FaultyCommunicator(std::unique_ptr<Communicator> inner, Moments& moments) : FaultyCommunicator(*inner, moments) {
    owned_ = std::move(inner);
  }

  int world_rank(int rank) const override { return inner_.world_rank(rank); }
  const std::string& host(int rank) const override { return inner_.host(rank); }
  std::unique_ptr<Communicator> group(std::span<const int> ranks, std::string name) override {
    return std::make_unique<FaultyCommunicator>(inner_.group(ranks, std::move(name)), moments_);
  }
  Pending start(CollectiveCall call, Stream& stream) override {
    moments_.come_to(name_of(call.operation));
    return inner_.start(std::move(call), stream);
  }
  void set_phase(std::string_view phase) override {
    inner_.set_phase(phase);
    moments_.phase = phase;
    moments_.come_to("phase");
  }
  void progress() override { inner_.progress(); }
  void abort(ErrorKind kind, std::string_view reason) noexcept override { inner_.abort(kind, reason); }

 private:
  Communicator& inner_;
  Moments& moments_;
  std::unique_ptr<Communicator> owned_;
};

int run(const std::vector<std::string>& words) {
  const std::string config_path = words.at(0), run_dir = words.at(1);
  std::vector<std::string> sets;
  Moments moments;
  double meet_limit_s = 60;
  for (size_t i = 2; i < words.size(); ++i) {
    if (words[i] != "--") {
      sets.push_back(words[i]);
      continue;
    }
    Fault fault{.rank = std::stoi(words.at(i + 1)),
                .what = words.at(i + 2),
                .phase = words.at(i + 3),
                .operation = words.at(i + 4),
                .number = std::stoll(words.at(i + 5))};
    if (fault.phase == "launch") meet_limit_s = 5;
    if (fault.rank == launched_rank()) moments.fault = fault;
    break;
  }
  if (moments.fault.phase == "launch") commit(moments.fault.what);
  FileSystem& files = real_file_system();
  const Config config = load_config(files, config_path, sets);
  set_num_threads(1);
  const StopSignal signals;
  CheckedRun run;
  return run_as_rank(
      {.run_dir = run_dir, .communicator = {.timeout_s = config.parallel.timeout_s}, .meet_limit_s = meet_limit_s},
      [&] { run = check_run(files, config_path, sets, run_dir); },
      [&](Communicator& world) {
        FaultyCommunicator faulty(world, moments);
        require_same_program(faulty, run.config);
        int code = 0;
        {
          Trainer trainer(run.config, run.origins, run_dir, files, real_clock(), &faulty);
          code = trainer.run();
        }
        faulty.set_phase("after training");
        return code;
      });
}

}  // namespace
}  // namespace octet

int main(int argc, char** argv) {
  try {
    return octet::run({argv + 1, argv + argc});
  } catch (const octet::Error& error) {
    std::fputs(error.block().c_str(), stderr);
    return error.code();
  } catch (const std::bad_alloc&) {
    std::fputs("octet: error: out of memory\n", stderr);
    return octet::exit_code(octet::ErrorKind::kMemory);
  }
}
