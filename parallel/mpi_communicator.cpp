#include "parallel/mpi_communicator.h"

#define OMPI_SKIP_MPICXX 1  // the C++ bindings, which MPI itself has dropped
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <chrono>
#include <cstdlib>
#include <mutex>

#include "parallel/message_communicator.h"

namespace octet {
namespace {

void check(int status, const char* call) {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(status, text, &length);
  require(ErrorKind::kCommunication, false, "{}: {}", call, text);
}

// Calls come from one thread at a time already; this is for mpi_abort, which any thread may call.
std::timed_mutex one_call_at_a_time;

class MpiTransport final : public Transport {
 public:
  MpiTransport() {
    int level = 0;
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &level), "MPI_Init_thread");
    check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    require(level >= MPI_THREAD_SERIALIZED, "mpi_communicator: this MPI gives thread level {}; wanted {}, serialized",
            level, MPI_THREAD_SERIALIZED);
    check(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank");
    check(MPI_Comm_size(MPI_COMM_WORLD, &size_), "MPI_Comm_size");
    void* limit = nullptr;
    int is_set = 0;
    check(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &limit, &is_set), "MPI_Comm_get_attr");
    constexpr int kLargestTag = 0x7fffffff;
    require(is_set != 0 && *static_cast<int*>(limit) >= kLargestTag,
            "mpi_communicator: this MPI has tags up to {}; wanted {}", is_set != 0 ? *static_cast<int*>(limit) : 0,
            kLargestTag);
  }

  // Without close: an error has left receives open, and MPI may still move messages while the process ends. Those that
  // no message has met yet give up their memory here.
  ~MpiTransport() override {
    const std::lock_guard lock(one_call_at_a_time);
    for (size_t i = 0; i < requests_.size(); ++i) {
      if (open_[i].is_receive) MPI_Cancel(&requests_[i]);
    }
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  ProcessIdentity identity() const override { return this_process(); }

  void send(int to, int tag, const void* from, int64_t bytes, const Ticket& ticket) override {
    const std::lock_guard lock(one_call_at_a_time);
    check(MPI_Isend(from, int(bytes), MPI_BYTE, to, tag, MPI_COMM_WORLD, add(ticket, /*is_receive=*/false)),
          "MPI_Isend");
  }
  void receive(int from, int tag, void* to, int64_t bytes, const Ticket& ticket) override {
    const std::lock_guard lock(one_call_at_a_time);
    check(MPI_Irecv(to, int(bytes), MPI_BYTE, from, tag, MPI_COMM_WORLD, add(ticket, /*is_receive=*/true)),
          "MPI_Irecv");
  }

  void poll(std::vector<Ticket>& done) override {
    if (requests_.empty()) return;
    const std::lock_guard lock(one_call_at_a_time);
    indices_.resize(requests_.size());
    statuses_.resize(requests_.size());
    int count = 0;
    const int status = MPI_Testsome(int(requests_.size()), requests_.data(), &count, indices_.data(), statuses_.data());
    if (status == MPI_ERR_IN_STATUS) {
      for (int i = 0; i < count; ++i) check(statuses_[size_t(i)].MPI_ERROR, "MPI_Testsome");
    }
    check(status, "MPI_Testsome");
    if (count == MPI_UNDEFINED || count == 0) return;
    for (int i = 0; i < count; ++i) done.push_back(open_[size_t(indices_[size_t(i)])].ticket);
    // MPI has set those that are done to MPI_REQUEST_NULL. The others keep their order.
    size_t kept = 0;
    for (size_t i = 0; i < requests_.size(); ++i) {
      if (requests_[i] == MPI_REQUEST_NULL) continue;
      requests_[kept] = requests_[i];
      open_[kept++] = open_[i];
    }
    requests_.resize(kept);
    open_.resize(kept);
  }

  PeerState state_of(int, const ProcessIdentity& process) override { return octet::state_of(process); }
  void close() override {
    const std::lock_guard lock(one_call_at_a_time);
    check(MPI_Finalize(), "MPI_Finalize");
  }

 private:
  struct Open {
    Ticket ticket;
    bool is_receive;
  };
  MPI_Request* add(const Ticket& ticket, bool is_receive) {
    open_.push_back({ticket, is_receive});
    return &requests_.emplace_back(MPI_REQUEST_NULL);
  }

  int rank_ = 0, size_ = 0;
  std::vector<MPI_Request> requests_;
  std::vector<Open> open_;  // of each request
  std::vector<int> indices_;
  std::vector<MPI_Status> statuses_;
};

}  // namespace

bool is_mpi_built() { return true; }

bool is_mpi_rank() { return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr; }

std::unique_ptr<Communicator> make_mpi_communicator(const CommunicatorOptions& options) {
  require(is_mpi_rank(), "mpi_communicator: this process is no rank of a launch; start it with mpirun -n RANKS");
  int is_initialised = 0;
  check(MPI_Initialized(&is_initialised), "MPI_Initialized");
  require(is_initialised == 0, "mpi_communicator: made twice in one process; wanted once, and groups of it");
  return make_message_communicator(std::make_unique<MpiTransport>(), options);
}

void mpi_abort(int exit_code) {
  int is_initialised = 0, is_finalised = 0;
  const bool is_alone = one_call_at_a_time.try_lock_for(std::chrono::seconds(1));
  static_cast<void>(is_alone);  // it ends either way
  MPI_Initialized(&is_initialised);
  MPI_Finalized(&is_finalised);
  if (is_initialised != 0 && is_finalised == 0) MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

}  // namespace octet
