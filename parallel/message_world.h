// All that the communicators of one run share on one rank: one thread at a time moves the messages of all operations
// under way (message_exchange.cpp), finds ranks that do not get on and ends the run with the others
// (message_peers.cpp).
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/base/clock.h"
#include "core/base/stream.h"
#include "parallel/message_operation.h"
#include "parallel/transport.h"

namespace octet::message {

// Looks again at once for as long as a neighbour on the same machine would take; then, for as long as an exchange in a
// training step may take, lets other processes run; then sleeps, so that a rank that waits for long costs nothing.
void pause_after(double waited_s);

class World {
 public:
  World(std::unique_ptr<Transport> transport, const CommunicatorOptions& options);
  ~World();

  int rank() const { return transport_->rank(); }
  int size() const { return transport_->size(); }
  const ProcessIdentity& identity(int world_rank) const { return identities_[size_t(world_rank)]; }
  const std::vector<std::string>& hosts() const { return hosts_; }

  std::shared_ptr<Group> make_world_group();

  // Tells every rank who the others are.
  void meet(const std::shared_ptr<Group>& world);

  // All members agree on a number for their messages: the first that is free on each of them.
  std::shared_ptr<Group> make_group(std::vector<int> ranks, std::string name);

  // traffic is null for what a run does by itself.
  std::shared_ptr<Op> start(const std::shared_ptr<Group>& group, CollectiveCall call, Stream& stream, Traffic* traffic);

  bool is_done(Op& op);
  void progress();
  void wait(Op& op);
  void set_phase(std::string_view phase);

  // unless_done: the operation that an exception has left, if it is one.
  void give_up(ErrorKind kind, std::string_view reason, const Op* unless_done = nullptr) noexcept;

 private:
  template <class Body>
  void unlocked(Body&& body) {
    mutex_.unlock();
    try {
      body();
    } catch (...) {
      mutex_.lock();
      throw;
    }
    mutex_.lock();
  }

  void refuse_if_broken() const {
    if (broken_) throw Error(*broken_);
  }

  [[noreturn]] void break_down(Error error);
  std::string shown_process(int world_rank) const;
  std::string where() const { return shown_process(rank()) + in_phase(phase_); }

  // While a thread is in wait.
  class Waiting {
   public:
    Waiting(World& world, Op& op) : world_(world), op_(op) {
      ++world_.waiters_;
      op_.ages.assign(size_t(op.size()), 0.0);
    }
    ~Waiting() {
      --world_.waiters_;
      op_.ages.clear();
      world_.last_call_ = real_clock().seconds();
      if (!world_.active_.empty()) world_.wake_mover();
    }

   private:
    World& world_;
    Op& op_;
  };

  // ---- The thread that moves messages while no other does

  void start_mover();
  void stop_mover();
  void wake_mover();

  // While an operation is under way and nobody waits, it looks again after an eighth of the time in which nothing came.
  // Otherwise it looks rarely, and need not be woken for an operation that is waited for at once.
  void move_messages();

  // ---- An operation

  void begin(Op& op, Traffic* traffic);
  static bool has_second(const Op& op);
  void copy_own(Op& op);
  static void copy_parts(const std::byte* from, std::span<const Piece> parts, std::byte* to);
  void post_send(Op& op, int to, Lane lane, const std::byte* from, int64_t bytes, Part part);
  void post_receive(Op& op, int from, Lane lane, std::byte* to, int64_t bytes);

  // Moves messages, takes note of those that are done, and starts what follows from them.
  void advance();

  // The piece that follows a header is received only after it, and so is not held back once more.
  void hold_back();
  void take(Op& op, const Ticket& ticket);
  void take_header(Op& op, int from);
  Header own_header(const Op& op) const;
  void check_header(Op& op, int from);
  void next_exchange(Op& op);

  // ---- Ranks that do not answer

  std::vector<int> missing(const Op& op) const;
  bool is_lost(int world_rank);
  void fail_if_lost(Op& op);

  // "rank 2 has not entered it; ..."
  std::string shown_last(const Op& op, int peer);

  // What this rank tells those that ask, and for how long it has not got on: since its last call or, in a wait, as long
  // as the worst of the ranks it waits for, as far as it knows.
  Notice answer() const;
  void take_answer(int from, const Notice& notice);
  void ask_if_due(int world_rank, double age);

  // By its last answer, if it still answers.
  bool is_waiting(int world_rank) const;

  // A rank that waits itself knows better who holds it up: it is left some time to say so.
  double limit_for(int world_rank) const;
  void ask_and_judge(Op& op, double waited);
  [[noreturn]] void fail_late(const Op& op, double waited);

  // ---- Notices, giving up and ending

  void receive_notice(int from);
  void send_notice(int to, const Notice& notice);
  void send_notices(const Notice& notice);
  void take_notice_ticket(const Ticket& ticket);
  void take_notice(int from);

  // Sends why this rank gives up, for as long as that may reasonably take.
  void tell_all();

  // Two rounds, so that no question is under way when the transport is closed.
  void end();
  void wait_for_all(const std::vector<bool>& has_come);

  struct Seen {
    Header header;
    std::shared_ptr<Group> group;
    double at = 0;  // seconds of real_clock; 0 is never
  };

  struct Entered {
    Header header;
    std::shared_ptr<Group> group;  // null before the first operation
  };

  struct Answer {
    double asked_at = 0, unanswered_at = 0;  // last, and first since `at`: seconds of real_clock, 0 is never
    double at = 0;
    bool is_waiting = false;  // for other ranks
    std::string text;         // "had made no call for 3.1 s, in step 4, save"
  };

  struct Held {
    double due = 0;  // seconds of real_clock
    Ticket ticket;
  };

  std::mutex mutex_;
  std::unique_ptr<Transport> transport_;
  CommunicatorOptions options_;
  std::vector<std::shared_ptr<Op>> active_;
  std::vector<Ticket> done_;
  std::deque<Held> held_;
  std::string phase_;
  Entered last_entered_;
  double last_call_;      // seconds of real_clock
  int next_context_ = 1;  // 0 is for making groups and for notices
  std::atomic<int64_t> collectives_{0};

  std::thread mover_;
  std::condition_variable wake_;
  bool is_ending_ = false;
  bool mover_sleeps_ = false;  // for long
  bool is_mover_ = false;      // the thread that holds the lock
  int waiters_ = 0;            // threads in wait: they move messages themselves
  ThreadPool one_thread_{1};
  Stream alone_{one_thread_};

  std::vector<Notice> notices_;                // the next of each rank
  std::vector<std::unique_ptr<Notice>> sent_;  // those under way, by the `bytes` of their tickets
  int notices_open_ = 0;
  std::vector<bool> has_ended_, has_closed_;
  std::vector<double> ages_at_end_;  // as Op::ages, of all ranks
  std::vector<ProcessIdentity> identities_;
  std::vector<std::string> hosts_;
  std::vector<Seen> seen_;
  std::vector<Answer> answers_;
  std::optional<Error> broken_;  // the first error of this rank
  int exceptions_;
};

}  // namespace octet::message
