#include "parallel/message_world.h"

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <exception>

#include "core/base/log.h"

namespace octet::message {

void pause_after(double waited_s) {
  constexpr double kLookAgain = 20e-6, kLetRun = 5e-3, kLongest = 1e-3;
  if (waited_s < kLookAgain) return;
  if (waited_s < kLetRun) {
    std::this_thread::yield();
    return;
  }
  std::this_thread::sleep_for(std::chrono::duration<double>(std::min(waited_s / 16, kLongest)));
}

World::World(std::unique_ptr<Transport> transport, const CommunicatorOptions& options)
    : transport_(std::move(transport)),
      options_(options),
      last_call_(real_clock().seconds()),
      notices_(size_t(transport_->size())),
      has_ended_(size_t(transport_->size()), false),
      has_closed_(size_t(transport_->size()), false),
      identities_(size_t(transport_->size())),
      seen_(size_t(transport_->size())),
      answers_(size_t(transport_->size())),
      exceptions_(std::uncaught_exceptions()) {
  require(options.timeout_s > 0, "communicator: a timeout of {} s; wanted more than 0", options.timeout_s);
  require(options.link_delay_us >= 0, "communicator: a link delay of {} us; wanted 0 or more", options.link_delay_us);
  for (int peer = 0; peer < size(); ++peer) {
    if (peer != rank()) receive_notice(peer);
  }
}

World::~World() {
  stop_mover();
  try {
    end();
  } catch (const std::exception& error) {
    log_error("rank {} could not end together with the others: {}", rank(), error.what());
  }
  transport_.reset();  // first: after an error its receives still have the memory of this
}

std::shared_ptr<Group> World::make_world_group() {
  auto group = std::make_shared<Group>();
  group->name = "world";
  for (int r = 0; r < size(); ++r) group->ranks.push_back(r);
  group->me = rank();
  group->context = next_context_++;
  group->sends.resize(group->ranks.size());
  group->receives.resize(group->ranks.size());
  return group;
}

void World::meet(const std::shared_ptr<Group>& world) {
  identities_[size_t(rank())] = transport_->identity();
  CollectiveCall call;
  call.operation = Operation::kGroup;
  call.from = reinterpret_cast<const std::byte*>(&identities_[size_t(rank())]);
  call.to = reinterpret_cast<std::byte*>(identities_.data());
  call.from_pieces.assign(size_t(size()), {.offset = 0, .bytes = sizeof(ProcessIdentity)});
  for (int r = 0; r < size(); ++r) {
    call.to_pieces.push_back({.offset = int64_t(sizeof(ProcessIdentity)) * r, .bytes = sizeof(ProcessIdentity)});
  }
  call.agreed = uint64_t(size());
  wait(*start(world, std::move(call), default_stream(), nullptr));
  for (const ProcessIdentity& process : identities_) hosts_.emplace_back(process.host);
  if (size() > 1) start_mover();
}

std::shared_ptr<Group> World::make_group(std::vector<int> ranks, std::string name) {
  auto group = std::make_shared<Group>();
  group->name = std::move(name);
  group->ranks = std::move(ranks);
  group->me = int(std::find(group->ranks.begin(), group->ranks.end(), rank()) - group->ranks.begin());
  group->sends.resize(group->ranks.size());
  group->receives.resize(group->ranks.size());
  std::vector<int64_t> free(group->ranks.size());
  int64_t mine = 0;
  {
    const std::lock_guard lock(mutex_);
    mine = next_context_;
  }
  CollectiveCall call;
  call.operation = Operation::kGroup;
  call.from = reinterpret_cast<const std::byte*>(&mine);
  call.to = reinterpret_cast<std::byte*>(free.data());
  call.from_pieces.assign(free.size(), {.offset = 0, .bytes = sizeof mine});
  for (size_t r = 0; r < free.size(); ++r) {
    call.to_pieces.push_back({.offset = int64_t(r * sizeof mine), .bytes = sizeof mine});
    call.agree_on(uint64_t(group->ranks[r]));
  }
  for (const char c : group->name) call.agree_on(uint64_t(c));
  wait(*start(group, std::move(call), default_stream(), nullptr));
  const int64_t agreed = *std::max_element(free.begin(), free.end());
  require(agreed <= kMaxContext, "group: {} groups were made in this run; wanted at most {}", agreed - 1,
          kMaxContext - 1);
  const std::lock_guard lock(mutex_);
  next_context_ = int(agreed) + 1;
  group->context = int(agreed);
  group->collectives = 0;
  return group;
}

std::shared_ptr<Op> World::start(const std::shared_ptr<Group>& group, CollectiveCall call, Stream& stream,
                                 Traffic* traffic) {
  require(call.device.is_cpu(), "{}: on {}; this communicator moves host memory", name_of(call.operation), call.device);
  const bool counts = traffic != nullptr && call.operation != Operation::kSend && call.operation != Operation::kReceive;
  const Fault fault = counts ? transport_->before_collective(++collectives_) : Fault::kNone;
  const std::lock_guard lock(mutex_);
  refuse_if_broken();
  last_call_ = real_clock().seconds();
  auto op = std::make_shared<Op>();
  op->group = group;
  op->call = std::move(call);
  op->stream = &stream;
  op->phase = phase_;
  op->peers.resize(group->ranks.size());
  op->number = op->call.operation == Operation::kSend      ? ++group->sends[size_t(op->call.peer)]
               : op->call.operation == Operation::kReceive ? ++group->receives[size_t(op->call.peer)]
                                                           : ++group->collectives;
  if (fault == Fault::kMiscount) op->number = ++group->collectives;
  last_entered_ = {.header = own_header(*op), .group = group};
  if (traffic != nullptr) ++(*traffic)[op->call.operation].calls;
  active_.push_back(op);  // from here on messages may point into it, whatever happens
  try {
    begin(*op, traffic);
  } catch (const Error& error) {
    break_down(Error(error.kind(), {.what = error.report().what, .where = where(), .why = {}, .fix = {}}));
  }
  if (!op->is_done) advance();
  if (!op->is_done) wake_mover();
  return op;
}

bool World::is_done(Op& op) {
  const std::lock_guard lock(mutex_);
  if (!op.is_done) advance();
  if (op.is_done) last_call_ = real_clock().seconds();
  return op.is_done;
}

void World::progress() {
  const std::lock_guard lock(mutex_);
  last_call_ = real_clock().seconds();
  refuse_if_broken();
  if (!active_.empty()) advance();
}

void World::wait(Op& op) {
  // A step of time longer than this was no wait: this process did not run.
  constexpr double kLongestStep = 0.25;
  constexpr double kLookEvery = 0.2, kAgeEvery = 1e-3;
  const std::lock_guard lock(mutex_);
  if (op.is_done) return;
  const Waiting waiting(*this, op);
  double waited = 0, idle = 0, last_look = 0, last_aged = 0, last = real_clock().seconds();
  int64_t moved = op.moved;
  for (;;) {
    advance();
    if (op.is_done) return;
    const double now = real_clock().seconds(), step = std::min(now - last, kLongestStep);
    last = now;
    waited += step, idle += step;
    if (op.moved != moved) {
      moved = op.moved;
      idle = last_look = last_aged = 0;
      std::fill(op.ages.begin(), op.ages.end(), 0.0);
    }
    if (idle - last_aged >= kAgeEvery) {
      for (double& age : op.ages) age += idle - last_aged;
      last_aged = idle;
      ask_and_judge(op, waited);
    }
    if (idle - last_look >= kLookEvery) {
      last_look = idle;
      fail_if_lost(op);
    }
    // The lock stays while this thread sleeps at most a millisecond, only if nobody else wants it.
    unlocked([&] { pause_after(idle); });
  }
}

void World::set_phase(std::string_view phase) {
  const std::lock_guard lock(mutex_);
  last_call_ = real_clock().seconds();
  phase_ = phase;
}

void World::give_up(ErrorKind kind, std::string_view reason, const Op* unless_done) noexcept {
  try {
    const std::lock_guard lock(mutex_);
    if (!broken_ && (unless_done == nullptr || !unless_done->is_done)) {
      broken_ = Error(kind, {.what = std::string(reason), .where = where(), .why = {}, .fix = {}});
      tell_all();
    }
  } catch (const std::exception& error) {
    log_error("rank {} gave up and could not tell the others: {}", rank(), error.what());
  }
}

void World::break_down(Error error) {
  if (!broken_) {
    broken_ = std::move(error);
    tell_all();
  }
  throw Error(*broken_);
}

std::string World::shown_process(int world_rank) const {
  const ProcessIdentity& process = identities_[size_t(world_rank)];
  if (process.pid == 0) return fmt::format("rank {}", world_rank);
  return fmt::format("rank {} (host {}, process {})", world_rank, process.host, process.pid);
}

// ---- The thread that moves messages while no other does

void World::start_mover() {
  // Signals are for the threads that expect them.
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  mover_ = std::thread([this] { move_messages(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void World::stop_mover() {
  {
    const std::lock_guard lock(mutex_);
    is_ending_ = true;
    wake_.notify_one();
  }
  if (mover_.joinable()) mover_.join();
}

void World::wake_mover() {
  if (!mover_sleeps_ || waiters_ > 0) return;
  mover_sleeps_ = false;
  wake_.notify_one();
}

void World::move_messages() {
  constexpr double kShortest = 100e-6, kUnderWay = 2e-3, kWorthWaking = 1e-3;
  const double longest = std::min(20e-3, options_.timeout_s / 64);
  double pause = kShortest, quiet = 0;
  std::unique_lock lock(mutex_);
  while (!is_ending_ && !broken_) {
    bool has_moved = false;
    if (waiters_ == 0) {
      try {
        is_mover_ = true;
        advance();
        has_moved = !done_.empty();
      } catch (const std::exception& error) {
        if (!broken_) {
          broken_ = Error(ErrorKind::kCommunication, {.what = error.what(), .where = where(), .why = {}, .fix = {}});
          tell_all();
        }
      }
      is_mover_ = false;
    }
    if (waiters_ > 0 || active_.empty()) {
      pause = std::min(pause * 2, longest);
      quiet = 0;
    } else {
      quiet = has_moved ? 0 : quiet + pause;
      pause = std::clamp(quiet / 8, kShortest, kUnderWay);
    }
    mover_sleeps_ = pause > kWorthWaking;
    const bool was_asleep = mover_sleeps_;
    wake_.wait_for(lock, std::chrono::duration<double>(pause));
    if (was_asleep && !mover_sleeps_) pause = kShortest, quiet = 0;
    mover_sleeps_ = false;
  }
}

}  // namespace octet::message
