#include "parallel/message_communicator.h"

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "core/tensor/allocator.h"
#include "parallel/ordered_sum.h"

namespace octet {
namespace {

using Element = CollectiveCall::Element;
using Piece = CollectiveCall::Piece;

// A message of up to 1 KiB goes with its header: a second one would cost as much again.
constexpr int64_t kInlineBytes = 928;
constexpr uint32_t kMagic = 0x4f435431;  // "OCT1"; another byte order or version differs

// What a rank tells another when it enters an operation with it.
struct Header {
  uint32_t magic = kMagic;
  Operation operation = Operation::kBarrier;
  uint8_t is_inline = 0;
  uint8_t unused[2] = {};
  int32_t root = -1;
  uint32_t parts = 0;  // a hash of the sizes of the parts in which the piece comes; 0: it comes whole
  int64_t number = 0;
  uint64_t agreed = 0;
  int64_t elements = 0;
  int64_t piece_bytes = 0;
  char dtype[16] = {};
  char phase[32] = {};
};
static_assert(sizeof(Header) == 96);

// Travels as far as its piece goes.
struct Entry {
  Entry() {}  // leaves the piece as it is
  Header header;
  std::byte piece[kInlineBytes];
};
static_assert(sizeof(Entry) == 1024);

// What a rank tells another outside of any operation.
struct Notice {
  enum class Kind : uint8_t {
    kAsks,     // whether the other gets on
    kAnswers,  // how long it has not, and what it does
    kGivesUp,  // and why: what, a line feed, why
    kEnds,     // in order: it starts no operation any more
    kCloses,   // all ranks have ended, and this is its last notice
  };
  uint32_t magic = kMagic;
  Kind kind = Kind::kAsks;
  uint8_t error_kind = 0;  // ErrorKind of one that gives up
  uint8_t is_waiting = 0;  // one that answers waits for other ranks
  uint8_t unused = 0;
  double age_s = 0;  // of one that answers
  char text[1008] = {};
};
static_assert(sizeof(Notice) == 1024);

template <size_t N>
void copy_text(char (&to)[N], std::string_view from) {
  if (!from.empty()) std::memcpy(to, from.data(), std::min(from.size(), N - 1));
}

// A tag is the number of a group, what the message is, and the low bits of the operation's number. Headers carry no
// number: they arrive in order, so that a rank in another operation is met and not missed.
enum class Lane : int { kHeader, kPiece, kSecondPiece, kPairHeader, kPairPiece, kNotice };
constexpr int kMaxContext = 255;
int tag_of(int context, Lane lane, int64_t number = 0) {
  return context << 23 | int(lane) << 20 | int(number & ((1 << 20) - 1));
}

enum class Part : int32_t { kHeaderOut, kHeaderIn, kPieceOut, kPieceIn, kNoticeOut, kNoticeIn };

struct Group {
  std::string name;
  std::vector<int> ranks;  // of the world
  int me = 0;              // index of this rank in `ranks`
  int context = 0;
  int64_t collectives = 0;               // entered by this rank
  std::vector<int64_t> sends, receives;  // entered by this rank, with each other

  int size() const { return int(ranks.size()); }
};

class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t bytes)
      : memory_(static_cast<std::byte*>(allocate(bytes, MemoryCategory::kWorkspace))), bytes_(bytes) {}
  ~Scratch() { free(); }
  Scratch& operator=(Scratch&& other) noexcept {
    free();
    memory_ = std::exchange(other.memory_, nullptr);
    bytes_ = other.bytes_;
    return *this;
  }
  std::byte* data() const { return memory_; }

 private:
  void free() {
    if (memory_ != nullptr) release(memory_, bytes_, MemoryCategory::kWorkspace);
    memory_ = nullptr;
  }
  std::byte* memory_ = nullptr;
  int64_t bytes_ = 0;
};

// An operation under way.
struct Op {
  struct Peer {
    Peer() {}  // and not `= default`, which would first fill the pieces with zeros
    Entry out, in;
    bool is_awaited = false;  // its header has not come
    int64_t to_receive = 0;   // bytes of the exchange under way, as far as they are known
    int64_t to_send = 0;
  };

  std::shared_ptr<Group> group;
  CollectiveCall call;
  Stream* stream = nullptr;
  int64_t number = 0;
  std::string phase;

  std::vector<Peer> peers;
  std::vector<Piece> slices;  // of an all_reduce: what each rank sums
  // Of a reduction: the pieces of the other ranks, in their order. Of an all_to_all: small parts that go together.
  Scratch scratch;
  int open = 0;  // messages of this exchange that are not done
  bool is_second = false;
  bool is_done = false;
  int64_t moved = 0;         // messages done; rises while anything happens
  std::vector<double> ages;  // while somebody waits for it: for how long each rank has not got on, seconds

  bool is_pair() const { return call.operation == Operation::kSend || call.operation == Operation::kReceive; }
  bool is_sum() const { return call.element != Element::kBytes; }
  int me() const { return group->me; }
  int size() const { return group->size(); }

  // What goes to a rank in the first exchange, and what of that comes back from it.
  Piece outgoing(int rank) const { return slices.empty() ? call.from_pieces[size_t(rank)] : slices[size_t(rank)]; }
  int64_t incoming_bytes(int rank) const {
    return is_sum() ? outgoing(me()).bytes : call.to_pieces[size_t(rank)].bytes;
  }
  std::byte* incoming(int rank) const {
    if (!is_sum()) return call.to + call.to_pieces[size_t(rank)].offset;
    return scratch.data() + outgoing(me()).bytes * (rank < me() ? rank : rank - 1);
  }
};

std::string shown_operation(const Header& header, std::string_view group) {
  std::string text(name_of(header.operation));
  const bool shows_size = header.operation != Operation::kBarrier && header.operation != Operation::kGroup;
  if (header.operation == Operation::kAllToAll) {
    text += fmt::format(" of rows of {} {}", header.elements, header.dtype);
  } else if (shows_size) {
    text += fmt::format(" of {} {}", header.elements, header.dtype);
  }
  if (header.operation == Operation::kBroadcast) text += fmt::format(" from rank {}", header.root);
  return text + fmt::format(", number {} of group {}", header.number, group);
}

std::string in_phase(std::string_view phase) { return phase.empty() ? std::string() : fmt::format(", in {}", phase); }

std::string list_ranks(const std::vector<int>& ranks) {
  constexpr size_t kMostShown = 16;
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  if (ranks.size() > kMostShown) return text + fmt::format("{}, {} and {} more", ranks[0], ranks[1], ranks.size() - 2);
  for (size_t i = 0; i < ranks.size(); ++i) {
    text += fmt::format("{}{}", i == 0 ? "" : i + 1 == ranks.size() ? " and " : ", ", ranks[i]);
  }
  return text;
}

// Looks again at once for as long as a neighbour on the same machine would take; then, for as long as an exchange in a
// training step may take, lets other processes run; then sleeps, so that a rank that waits for long costs nothing.
void pause_after(double waited_s) {
  constexpr double kLookAgain = 20e-6, kLetRun = 5e-3, kLongest = 1e-3;
  if (waited_s < kLookAgain) return;
  if (waited_s < kLetRun) {
    std::this_thread::yield();
    return;
  }
  std::this_thread::sleep_for(std::chrono::duration<double>(std::min(waited_s / 16, kLongest)));
}

// Whether the parts of a piece are messages of their own; both ends come to the same answer.
bool go_by_themselves(std::span<const Piece> parts) {
  int64_t bytes = 0, count = 0;
  for (const Piece& part : parts) bytes += part.bytes, count += part.bytes > 0;
  return parts.size() > 1 && bytes >= kPartBytes * count;
}

uint32_t hash_of(std::span<const Piece> parts) {
  if (parts.size() <= 1) return 0;
  CollectiveCall hash;
  for (const Piece& part : parts) hash.agree_on(uint64_t(part.bytes));
  return uint32_t(hash.agreed >> 32 ^ hash.agreed) | 1;
}

// All that the communicators of one run share on one rank.
class World {
 public:
  World(std::unique_ptr<Transport> transport, const CommunicatorOptions& options)
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

  ~World() {
    stop_mover();
    try {
      end();
    } catch (const std::exception& error) {
      log_error("rank {} could not end together with the others: {}", rank(), error.what());
    }
    transport_.reset();  // first: after an error its receives still have the memory of this
  }

  int rank() const { return transport_->rank(); }
  int size() const { return transport_->size(); }
  const ProcessIdentity& identity(int world_rank) const { return identities_[size_t(world_rank)]; }
  const std::vector<std::string>& hosts() const { return hosts_; }

  std::shared_ptr<Group> make_world_group() {
    auto group = std::make_shared<Group>();
    group->name = "world";
    for (int r = 0; r < size(); ++r) group->ranks.push_back(r);
    group->me = rank();
    group->context = next_context_++;
    group->sends.resize(group->ranks.size());
    group->receives.resize(group->ranks.size());
    return group;
  }

  // Tells every rank who the others are.
  void meet(const std::shared_ptr<Group>& world) {
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

  // All members agree on a number for their messages: the first that is free on each of them.
  std::shared_ptr<Group> make_group(std::vector<int> ranks, std::string name) {
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

  // traffic is null for what a run does by itself.
  std::shared_ptr<Op> start(const std::shared_ptr<Group>& group, CollectiveCall call, Stream& stream,
                            Traffic* traffic) {
    require(call.device.is_cpu(), "{}: on {}; this communicator moves host memory", name_of(call.operation),
            call.device);
    const bool counts =
        traffic != nullptr && call.operation != Operation::kSend && call.operation != Operation::kReceive;
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

  bool is_done(Op& op) {
    const std::lock_guard lock(mutex_);
    if (!op.is_done) advance();
    if (op.is_done) last_call_ = real_clock().seconds();
    return op.is_done;
  }

  void progress() {
    const std::lock_guard lock(mutex_);
    last_call_ = real_clock().seconds();
    refuse_if_broken();
    if (!active_.empty()) advance();
  }

  void wait(Op& op) {
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

  void set_phase(std::string_view phase) {
    const std::lock_guard lock(mutex_);
    last_call_ = real_clock().seconds();
    phase_ = phase;
  }

  // unless_done: the operation that an exception has left, if it is one.
  void give_up(ErrorKind kind, std::string_view reason, const Op* unless_done = nullptr) noexcept {
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

  [[noreturn]] void break_down(Error error) {
    if (!broken_) {
      broken_ = std::move(error);
      tell_all();
    }
    throw Error(*broken_);
  }

  std::string shown_process(int world_rank) const {
    const ProcessIdentity& process = identities_[size_t(world_rank)];
    if (process.pid == 0) return fmt::format("rank {}", world_rank);
    return fmt::format("rank {} (host {}, process {})", world_rank, process.host, process.pid);
  }
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

  void start_mover() {
    // Signals are for the threads that expect them.
    sigset_t all, before;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    mover_ = std::thread([this] { move_messages(); });
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void stop_mover() {
    {
      const std::lock_guard lock(mutex_);
      is_ending_ = true;
      wake_.notify_one();
    }
    if (mover_.joinable()) mover_.join();
  }

  void wake_mover() {
    if (!mover_sleeps_ || waiters_ > 0) return;
    mover_sleeps_ = false;
    wake_.notify_one();
  }

  // While an operation is under way and nobody waits, it looks again after an eighth of the time in which nothing came.
  // Otherwise it looks rarely, and need not be woken for an operation that is waited for at once.
  void move_messages() {
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

  // ---- An operation

  void begin(Op& op, Traffic* traffic) {
    const int n = op.size(), me = op.me();
    CollectiveCall& call = op.call;
    if (op.is_sum() && call.operation == Operation::kAllReduce) op.slices = all_reduce_pieces(call, n);
    std::byte* together = nullptr;
    if (op.is_sum()) {
      if (n > 1) op.scratch = Scratch(op.outgoing(me).bytes * (n - 1));
    } else if (!op.is_pair()) {
      copy_own(op);
    }
    if (call.parts > 1) {
      int64_t bytes = 0;
      for (int r = 0; r < n; ++r) bytes += r == me || go_by_themselves(call.parts_to(r)) ? 0 : op.outgoing(r).bytes;
      op.scratch = Scratch(bytes);
      together = op.scratch.data();
    }

    Header header;
    header.operation = call.operation;
    header.root = call.peer;
    header.number = op.number;
    header.agreed = call.agreed;
    header.elements = call.elements;
    copy_text(header.dtype, call.dtype);
    copy_text(header.phase, op.phase);
    const Lane lane = op.is_pair() ? Lane::kPairHeader : Lane::kHeader;
    // Each rank begins with its right neighbour, so that not all send to one at a time.
    for (int step = 1; step < n; ++step) {
      const int from = (me + n - step) % n;
      if (call.operation == Operation::kSend || (op.is_pair() && from != call.peer)) continue;
      Op::Peer& peer = op.peers[size_t(from)];
      peer.is_awaited = true;
      ++op.open;
      transport_->receive(op.group->ranks[size_t(from)], tag_of(op.group->context, lane), &peer.in, sizeof(Entry),
                          {.owner = &op, .peer = from, .part = int32_t(Part::kHeaderIn), .bytes = 0});
    }
    for (int step = 1; step < n; ++step) {
      const int to = (me + step) % n;
      if (call.operation == Operation::kReceive || (op.is_pair() && to != call.peer)) continue;
      Op::Peer& peer = op.peers[size_t(to)];
      const Piece piece = op.outgoing(to);
      const std::span<const Piece> parts = op.is_sum() ? std::span(&piece, 1) : call.parts_to(to);
      Header& out = peer.out.header;
      out = header;
      out.piece_bytes = piece.bytes;
      out.parts = hash_of(parts);
      out.is_inline = piece.bytes <= kInlineBytes;
      if (traffic != nullptr) (*traffic)[call.operation].bytes += piece.bytes;
      const int64_t inline_bytes = out.is_inline ? piece.bytes : 0;
      if (out.is_inline) copy_parts(call.from, parts, peer.out.piece);
      post_send(op, to, lane, reinterpret_cast<const std::byte*>(&peer.out), int64_t(sizeof(Header)) + inline_bytes,
                Part::kHeaderOut);
      if (out.is_inline) continue;
      const Lane of_piece = op.is_pair() ? Lane::kPairPiece : Lane::kPiece;
      if (parts.size() == 1 || go_by_themselves(parts)) {
        for (const Piece& part : parts)
          post_send(op, to, of_piece, call.from + part.offset, part.bytes, Part::kPieceOut);
      } else {
        copy_parts(call.from, parts, together);
        post_send(op, to, of_piece, together, piece.bytes, Part::kPieceOut);
        together += piece.bytes;
      }
    }
    if (traffic != nullptr && has_second(op)) {
      (*traffic)[call.operation].bytes += op.slices[size_t(me)].bytes * (n - 1);
    }
    if (op.open == 0) next_exchange(op);
  }

  static bool has_second(const Op& op) {
    return !op.slices.empty() && op.call.from_pieces[0].bytes > kWholeReduceBytes;
  }

  void copy_own(Op& op) {
    if (op.call.operation == Operation::kBroadcast) return;
    constexpr int64_t kGrain = int64_t(1) << 20;
    std::byte* target = op.call.to + op.call.to_pieces[size_t(op.me())].offset;
    for (const Piece& part : op.call.parts_to(op.me())) {
      const std::byte* source = op.call.from + part.offset;
      if (part.bytes > 0 && source != target) {
        op.stream->parallel_chunks(part.bytes, kGrain, [&](int64_t begin, int64_t end) {
          std::memcpy(target + begin, source + begin, size_t(end - begin));
        });
      }
      target += part.bytes;
    }
  }

  static void copy_parts(const std::byte* from, std::span<const Piece> parts, std::byte* to) {
    for (const Piece& part : parts) {
      if (part.bytes > 0) std::memcpy(to, from + part.offset, size_t(part.bytes));
      to += part.bytes;
    }
  }

  void post_send(Op& op, int to, Lane lane, const std::byte* from, int64_t bytes, Part part) {
    for (int64_t at = 0; at < bytes; at += kMaxMessageBytes) {
      const int64_t part_bytes = std::min(bytes - at, kMaxMessageBytes);
      ++op.open;
      op.peers[size_t(to)].to_send += part_bytes;
      transport_->send(op.group->ranks[size_t(to)],
                       tag_of(op.group->context, lane, part == Part::kHeaderOut ? 0 : op.number), from + at, part_bytes,
                       {.owner = &op, .peer = to, .part = int32_t(part), .bytes = part_bytes});
    }
  }

  void post_receive(Op& op, int from, Lane lane, std::byte* to, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += kMaxMessageBytes) {
      const int64_t part_bytes = std::min(bytes - at, kMaxMessageBytes);
      ++op.open;
      op.peers[size_t(from)].to_receive += part_bytes;
      transport_->receive(op.group->ranks[size_t(from)], tag_of(op.group->context, lane, op.number), to + at,
                          part_bytes,
                          {.owner = &op, .peer = from, .part = int32_t(Part::kPieceIn), .bytes = part_bytes});
    }
  }

  // Moves messages, takes note of those that are done, and starts what follows from them.
  void advance() {
    refuse_if_broken();
    done_.clear();
    try {
      transport_->poll(done_);
    } catch (const Error& error) {
      break_down(Error(error.kind(), {.what = error.report().what, .where = where(), .why = {}, .fix = {}}));
    }
    if (options_.link_delay_us > 0) hold_back();
    // Notices last: what has arrived in order is worth more than that its sender has ended.
    for (const Ticket& ticket : done_) {
      if (ticket.owner != nullptr) take(*static_cast<Op*>(ticket.owner), ticket);
    }
    for (const Ticket& ticket : done_) {
      if (ticket.owner == nullptr) take_notice_ticket(ticket);
    }
  }

  // The piece that follows a header is received only after it, and so is not held back once more.
  void hold_back() {
    const double now = real_clock().seconds(), due = now + double(options_.link_delay_us) * 1e-6;
    std::erase_if(done_, [&](const Ticket& ticket) {
      const auto part = Part(ticket.part);
      const bool is_second = part == Part::kPieceIn && static_cast<const Op*>(ticket.owner)->is_second;
      if (part != Part::kHeaderIn && part != Part::kNoticeIn && !is_second) return false;
      held_.push_back({.due = due, .ticket = ticket});
      return true;
    });
    for (; !held_.empty() && held_.front().due <= now; held_.pop_front()) done_.push_back(held_.front().ticket);
  }

  void take(Op& op, const Ticket& ticket) {
    Op::Peer& peer = op.peers[size_t(ticket.peer)];
    ++op.moved;
    switch (Part(ticket.part)) {
      case Part::kHeaderIn:
        take_header(op, ticket.peer);
        break;
      case Part::kPieceIn:
        peer.to_receive -= ticket.bytes;
        break;
      default:
        peer.to_send -= ticket.bytes;
    }
    if (--op.open == 0) next_exchange(op);
  }

  void take_header(Op& op, int from) {
    Op::Peer& peer = op.peers[size_t(from)];
    peer.is_awaited = false;
    const Header& in = peer.in.header;
    seen_[size_t(op.group->ranks[size_t(from)])] = {.header = in, .group = op.group, .at = real_clock().seconds()};
    check_header(op, from);
    if (in.piece_bytes == 0) return;
    if (in.is_inline) {
      std::memcpy(op.incoming(from), peer.in.piece, size_t(in.piece_bytes));
      return;
    }
    const Lane lane = op.is_pair() ? Lane::kPairPiece : Lane::kPiece;
    if (op.call.parts > 1 && go_by_themselves(op.call.parts_from(from))) {
      for (const Piece& part : op.call.parts_from(from)) {
        post_receive(op, from, lane, op.call.to + part.offset, part.bytes);
      }
    } else {
      post_receive(op, from, lane, op.incoming(from), in.piece_bytes);
    }
  }

  Header own_header(const Op& op) const {
    Header header;
    header.operation = op.call.operation;
    header.root = op.call.peer;
    header.number = op.number;
    header.elements = op.call.elements;
    copy_text(header.dtype, op.call.dtype);
    return header;
  }

  void check_header(Op& op, int from) {
    const Header& in = op.peers[size_t(from)].in.header;
    const int theirs = op.group->ranks[size_t(from)];
    if (in.magic != kMagic) {
      break_down(Error(ErrorKind::kCommunication,
                       {.what = fmt::format("rank {} sent rank {} a message that is none of ours", theirs, rank()),
                        .where = where(),
                        .why = "ranks of one run must run one build of Octet on machines of one byte order",
                        .fix = "start all ranks with the same program"}));
    }
    const Operation wanted = op.call.operation == Operation::kReceive ? Operation::kSend : op.call.operation;
    const char* difference = nullptr;
    if (in.operation != wanted || in.number != op.number) {
      difference = "they entered different operations, or one of them left one out";
    } else if (in.agreed != op.call.agreed) {
      difference = "the element types, sizes or pieces differ";
    } else if (!op.is_pair() &&
               std::string_view(in.phase) != std::string_view(op.phase).substr(0, sizeof in.phase - 1)) {
      difference = "the same operation in different phases";
    }
    if (difference != nullptr) {
      break_down(Error(
          ErrorKind::kCommunication,
          {.what = fmt::format("rank {} is in {}{}; rank {} is in {}{}", theirs, shown_operation(in, op.group->name),
                               in_phase(in.phase), rank(), shown_operation(own_header(op), op.group->name),
                               in_phase(op.phase)),
           .where = where(),
           .why = difference,
           .fix = "this is a fault of the program or of differing configurations: compare what the two ranks run"}));
    }
    const int64_t expected = op.incoming_bytes(from);
    std::string difference_of_sizes;
    if (in.piece_bytes != expected || (in.is_inline != 0) != (expected <= kInlineBytes)) {
      difference_of_sizes = fmt::format("rank {} sends rank {} {} bytes in {}; it expects {}", theirs, rank(),
                                        in.piece_bytes, shown_operation(own_header(op), op.group->name), expected);
    } else if (op.call.parts > 1 && in.parts != hash_of(op.call.parts_from(from))) {
      difference_of_sizes =
          fmt::format("rank {} sends rank {} its {} bytes in {} in other parts than it expects", theirs, rank(),
                      in.piece_bytes, shown_operation(own_header(op), op.group->name));
    }
    if (!difference_of_sizes.empty()) {
      break_down(
          Error(ErrorKind::kCommunication, {.what = std::move(difference_of_sizes),
                                            .where = where(),
                                            .why = "the counts of the two ranks differ",
                                            .fix = "this is a fault of the program: exchange the counts first"}));
    }
  }

  void next_exchange(Op& op) {
    if (op.is_sum() && !op.is_second) {
      const Piece mine = op.outgoing(op.me());
      std::vector<const std::byte*> from;
      for (int r = 0; r < op.size(); ++r) {
        from.push_back(r == op.me() ? op.call.from + mine.offset : op.incoming(r));
      }
      const bool is_all = op.call.operation == Operation::kAllReduce;
      std::byte* to = op.call.to + (is_all ? mine.offset : 0);
      // The mover leaves the threads of the stream to those that compute.
      ordered_sum(op.call.element, from, mine.bytes / size_of(op.call.element), to, is_mover_ ? alone_ : *op.stream);
      op.scratch = Scratch();
      if (has_second(op)) {
        op.is_second = true;
        for (int step = 1; step < op.size(); ++step) {
          const int peer = (op.me() + op.size() - step) % op.size();
          const Piece theirs = op.slices[size_t(peer)];
          post_receive(op, peer, Lane::kSecondPiece, op.call.to + theirs.offset, theirs.bytes);
        }
        for (int step = 1; step < op.size(); ++step) {
          post_send(op, (op.me() + step) % op.size(), Lane::kSecondPiece, to, mine.bytes, Part::kPieceOut);
        }
        if (op.open > 0) return;
      }
    }
    op.is_done = true;
    // Whoever waits for it holds it too.
    std::erase_if(active_, [&](const std::shared_ptr<Op>& each) { return each.get() == &op; });
  }

  // ---- Ranks that do not answer

  std::vector<int> missing(const Op& op) const {
    std::vector<int> peers;
    for (int r = 0; r < op.size(); ++r) {
      const Op::Peer& peer = op.peers[size_t(r)];
      if (peer.is_awaited || peer.to_receive > 0 || peer.to_send > 0) peers.push_back(r);
    }
    return peers;
  }

  bool is_lost(int world_rank) {
    return has_ended_[size_t(world_rank)] ||
           transport_->state_of(world_rank, identities_[size_t(world_rank)]) == PeerState::kGone;
  }

  void fail_if_lost(Op& op) {
    const auto find_lost = [&] {
      for (const int peer : missing(op)) {
        if (is_lost(op.group->ranks[size_t(peer)])) return peer;
      }
      return -1;
    };
    if (find_lost() < 0) return;
    // What it sent before it went may still be on its way.
    const double until = real_clock().seconds() + 0.1 + double(options_.link_delay_us) * 1e-6;
    while (!op.is_done && real_clock().seconds() < until) {
      unlocked([] { pause_after(1e-3); });
      advance();
    }
    if (op.is_done) return;
    const int peer = find_lost();
    if (peer < 0) return;
    const int lost = op.group->ranks[size_t(peer)];
    break_down(Error(
        ErrorKind::kCommunication,
        {.what = fmt::format("{} {}, while rank {} waits for it in {}", shown_process(lost),
                             has_ended_[size_t(lost)] ? "has ended its run" : "is gone", rank(),
                             shown_operation(own_header(op), op.group->name)),
         .where = where(),
         .why = shown_last(op, peer),
         .fix = "see the log of that rank for why it ended; the same command continues from the last checkpoint"}));
  }

  // "rank 2 has not entered it; ..."
  std::string shown_last(const Op& op, int peer) {
    const int world_rank = op.group->ranks[size_t(peer)];
    const Op::Peer& state = op.peers[size_t(peer)];
    std::string text = shown_process(world_rank);
    if (state.is_awaited) {
      text += " has not entered it";
    } else if (state.to_receive > 0) {
      text += fmt::format(" still owes {} bytes", state.to_receive);
    } else {
      text += fmt::format(" has not taken {} bytes", state.to_send);
    }
    switch (transport_->state_of(world_rank, identities_[size_t(world_rank)])) {
      case PeerState::kStopped:
        text += ", is stopped";
        break;
      case PeerState::kRunning:
        text += ", is running";
        break;
      default:
        break;
    }
    const Seen& seen = seen_[size_t(world_rank)];
    const double now = real_clock().seconds();
    if (seen.at == 0) {
      text += ", and was never heard of";
    } else {
      text += fmt::format(", and was last heard of {:.1f} s ago in {}{}", now - seen.at,
                          shown_operation(seen.header, seen.group->name), in_phase(seen.header.phase));
    }
    const Answer& answer = answers_[size_t(world_rank)];
    const double time_to_answer = options_.timeout_s / 16;
    if (answer.unanswered_at > 0 && now - answer.unanswered_at > time_to_answer) {
      text += fmt::format("; asked {:.1f} s ago, it did not answer", now - answer.unanswered_at);
    } else if (answer.at > 0) {
      text += fmt::format("; {:.1f} s ago it {}", now - answer.at, answer.text);
    }
    return text;
  }

  // What this rank tells those that ask, and for how long it has not got on: since its last call or, in a wait, as long
  // as the worst of the ranks it waits for, as far as it knows.
  Notice answer() const {
    Notice notice;
    notice.kind = Notice::Kind::kAnswers;
    notice.age_s = real_clock().seconds() - last_call_;
    std::string text = fmt::format("had made no call for {:.1f} s{}", notice.age_s, in_phase(phase_));
    if (last_entered_.group != nullptr) {
      text += fmt::format(", after {}", shown_operation(last_entered_.header, last_entered_.group->name));
    }
    for (const std::shared_ptr<Op>& op : active_) {
      if (op->ages.empty()) continue;
      notice.is_waiting = 1;
      double worst = 0;
      std::vector<int> ranks;
      for (const int peer : missing(*op)) {
        worst = std::max(worst, op->ages[size_t(peer)]);
        ranks.push_back(op->group->ranks[size_t(peer)]);
      }
      notice.age_s = std::min(notice.age_s, worst);
      text = fmt::format("waited for {} in {}{}", list_ranks(ranks), shown_operation(own_header(*op), op->group->name),
                         in_phase(op->phase));
    }
    if (!ages_at_end_.empty()) {
      notice.is_waiting = 1;
      double worst = 0;
      for (int r = 0; r < size(); ++r) {
        if (!has_ended_[size_t(r)]) worst = std::max(worst, ages_at_end_[size_t(r)]);
      }
      notice.age_s = std::min(notice.age_s, worst);
      text = "has ended its run";
    }
    copy_text(notice.text, text);
    return notice;
  }

  void take_answer(int from, const Notice& notice) {
    Answer& answer = answers_[size_t(from)];
    answer.at = real_clock().seconds();
    answer.unanswered_at = 0;
    answer.is_waiting = notice.is_waiting != 0;
    answer.text = notice.text;
    for (const std::shared_ptr<Op>& op : active_) {
      for (size_t peer = 0; peer < op->ages.size(); ++peer) {
        if (op->group->ranks[peer] == from) op->ages[peer] = std::min(op->ages[peer], notice.age_s);
      }
    }
    if (!ages_at_end_.empty()) ages_at_end_[size_t(from)] = std::min(ages_at_end_[size_t(from)], notice.age_s);
  }

  void ask_if_due(int world_rank, double age) {
    const double every = options_.timeout_s / 8, now = real_clock().seconds();
    Answer& answer = answers_[size_t(world_rank)];
    if (age < every || now - answer.asked_at < every) return;
    answer.asked_at = now;
    if (answer.unanswered_at == 0) answer.unanswered_at = now;
    send_notice(world_rank, {});
  }

  // By its last answer, if it still answers.
  bool is_waiting(int world_rank) const {
    const Answer& answer = answers_[size_t(world_rank)];
    const double silent = answer.unanswered_at > 0 ? real_clock().seconds() - answer.unanswered_at : 0;
    return answer.is_waiting && silent < options_.timeout_s / 4;
  }

  // A rank that waits itself knows better who holds it up: it is left some time to say so.
  double limit_for(int world_rank) const {
    constexpr double kGrace = 0.4;
    return options_.timeout_s + (is_waiting(world_rank) ? kGrace : 0);
  }

  void ask_and_judge(Op& op, double waited) {
    const double oldest = *std::max_element(op.ages.begin(), op.ages.end());
    if (oldest < options_.timeout_s / 8) return;
    for (const int peer : missing(op)) {
      const int world_rank = op.group->ranks[size_t(peer)];
      const double age = op.ages[size_t(peer)];
      if (age >= limit_for(world_rank)) fail_late(op, waited);
      ask_if_due(world_rank, age);
    }
  }

  [[noreturn]] void fail_late(const Op& op, double waited) {
    // Those that do not get on; those that wait for one only where all do, in a circle.
    std::vector<int> peers, waiting;
    for (const int peer : missing(op)) {
      if (op.ages[size_t(peer)] < 0.9 * options_.timeout_s) continue;
      (is_waiting(op.group->ranks[size_t(peer)]) ? waiting : peers).push_back(peer);
    }
    if (peers.empty()) peers = waiting;
    std::vector<int> world_ranks;
    std::string why;
    for (const int peer : peers) world_ranks.push_back(op.group->ranks[size_t(peer)]);
    constexpr size_t kMostShown = 4;
    for (size_t i = 0; i < std::min(peers.size(), kMostShown); ++i) {
      why += (i == 0 ? "" : "; ") + shown_last(op, peers[i]);
    }
    break_down(
        Error(ErrorKind::kHang,
              {.what = fmt::format("rank {} has waited {:.1f} s for {} in {}", rank(), waited, list_ranks(world_ranks),
                                   shown_operation(own_header(op), op.group->name)),
               .where = where(),
               .why = why,
               .fix = fmt::format("see what {} does; the limit is {} s, and the same command continues from the last "
                                  "checkpoint",
                                  list_ranks(world_ranks), options_.timeout_s)}));
  }

  // ---- Notices, giving up and ending

  void receive_notice(int from) {
    transport_->receive(from, tag_of(0, Lane::kNotice), &notices_[size_t(from)], sizeof(Notice),
                        {.owner = nullptr, .peer = from, .part = int32_t(Part::kNoticeIn), .bytes = 0});
  }

  void send_notice(int to, const Notice& notice) {
    auto slot = std::find(sent_.begin(), sent_.end(), nullptr);
    if (slot == sent_.end()) slot = sent_.insert(slot, nullptr);
    *slot = std::make_unique<Notice>(notice);
    ++notices_open_;
    transport_->send(to, tag_of(0, Lane::kNotice), slot->get(), sizeof(Notice),
                     {.owner = nullptr, .peer = to, .part = int32_t(Part::kNoticeOut), .bytes = slot - sent_.begin()});
  }

  void send_notices(const Notice& notice) {
    for (int step = 1; step < size(); ++step) send_notice((rank() + step) % size(), notice);
  }

  void take_notice_ticket(const Ticket& ticket) {
    if (Part(ticket.part) == Part::kNoticeIn) return take_notice(ticket.peer);
    sent_[size_t(ticket.bytes)] = nullptr;
    --notices_open_;
  }

  void take_notice(int from) {
    const Notice notice = notices_[size_t(from)];
    switch (notice.kind) {
      case Notice::Kind::kAsks:
        if (!has_closed_[size_t(rank())]) send_notice(from, answer());
        break;
      case Notice::Kind::kAnswers:
        take_answer(from, notice);
        break;
      case Notice::Kind::kEnds:
        has_ended_[size_t(from)] = true;
        break;
      case Notice::Kind::kCloses:
        has_closed_[size_t(from)] = true;
        return;  // nothing comes after it
      case Notice::Kind::kGivesUp: {
        const std::string_view text = notice.text;
        const size_t end = std::min(text.find('\n'), text.size());
        broken_ =
            Error(ErrorKind(notice.error_kind), {.what = fmt::format("rank {} gave up: {}", from, text.substr(0, end)),
                                                 .where = where(),
                                                 .why = std::string(text.substr(std::min(end + 1, text.size()))),
                                                 .fix = "see the log of that rank"});
        throw Error(*broken_);
      }
    }
    receive_notice(from);
  }

  // Sends why this rank gives up, for as long as that may reasonably take.
  void tell_all() {
    if (!transport_->is_alive()) return;
    Notice notice;
    notice.kind = Notice::Kind::kGivesUp;
    notice.error_kind = uint8_t(broken_->kind());
    const Report& report = broken_->report();
    std::string text = report.what;
    if (!report.why.empty()) text += "\n" + report.why;
    copy_text(notice.text, text);
    try {
      send_notices(notice);
      const double until = real_clock().seconds() + 0.2;
      while (notices_open_ > 0 && real_clock().seconds() < until) {
        done_.clear();
        transport_->poll(done_);
        for (const Ticket& ticket : done_) notices_open_ -= Part(ticket.part) == Part::kNoticeOut;
        std::this_thread::yield();
      }
    } catch (const Error& error) {
      log_debug("rank {} could not tell the others: {}", rank(), error.what());
    }
  }

  // Two rounds, so that no question is under way when the transport is closed.
  void end() {
    const std::lock_guard lock(mutex_);
    if (broken_ || !transport_->is_alive()) return;
    if (std::uncaught_exceptions() > exceptions_) {
      broken_ = Error(ErrorKind::kCommunication, {.what = "an error ended it", .where = where(), .why = {}, .fix = {}});
      tell_all();
      return;
    }
    Notice notice;
    notice.kind = Notice::Kind::kEnds;
    has_ended_[size_t(rank())] = true;
    ages_at_end_.assign(size_t(size()), 0.0);
    send_notices(notice);
    wait_for_all(has_ended_);
    notice.kind = Notice::Kind::kCloses;
    has_closed_[size_t(rank())] = true;
    ages_at_end_.assign(size_t(size()), 0.0);
    send_notices(notice);
    wait_for_all(has_closed_);
    transport_->close();
  }

  void wait_for_all(const std::vector<bool>& has_come) {
    constexpr double kLongestStep = 0.25, kLookAfter = 1;
    double waited = 0, last = real_clock().seconds();
    for (;;) {
      advance();
      std::vector<int> late;
      for (int r = 0; r < size(); ++r) {
        if (!has_come[size_t(r)]) late.push_back(r);
      }
      if (late.empty() && notices_open_ == 0) return;
      const double now = real_clock().seconds(), step = std::min(now - last, kLongestStep);
      last = now;
      waited += step;
      bool is_late = late.empty() && waited > options_.timeout_s;
      for (const int r : late) {
        ages_at_end_[size_t(r)] += step;
        if (!has_closed_[size_t(rank())]) ask_if_due(r, ages_at_end_[size_t(r)]);
        is_late = is_late || ages_at_end_[size_t(r)] > limit_for(r);
        if (waited > kLookAfter && transport_->state_of(r, identities_[size_t(r)]) == PeerState::kGone) is_late = true;
      }
      if (is_late) {
        break_down(
            Error(ErrorKind::kCommunication,
                  {.what = fmt::format("{} did not come to the end of the run in {:.1f} s", list_ranks(late), waited),
                   .where = where(),
                   .why = {},
                   .fix = {}}));
      }
      pause_after(waited);
    }
  }

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

class MessageWork final : public Pending::Work {
 public:
  MessageWork(std::shared_ptr<World> world, std::shared_ptr<Op> op) : world_(std::move(world)), op_(std::move(op)) {}
  bool is_done() override { return world_->is_done(*op_); }
  void wait() override { world_->wait(*op_); }
  void give_up() noexcept override {
    world_->give_up(ErrorKind::kCommunication,
                    fmt::format("an error ended it during {}, number {} of group {}", name_of(op_->call.operation),
                                op_->number, op_->group->name),
                    op_.get());
  }

 private:
  std::shared_ptr<World> world_;
  std::shared_ptr<Op> op_;
};

class MessageCommunicator final : public Communicator {
 public:
  MessageCommunicator(std::shared_ptr<World> world, std::shared_ptr<Group> group)
      : Communicator(group->me, group->size(), group->name), world_(std::move(world)), group_(std::move(group)) {}

  int world_rank(int rank) const override { return group_->ranks[size_t(rank)]; }
  const std::string& host(int rank) const override { return world_->hosts()[size_t(world_rank(rank))]; }

  std::unique_ptr<Communicator> group(std::span<const int> ranks, std::string name) override {
    std::vector<int> members;
    for (const int rank : ranks) {
      require(0 <= rank && rank < size(), "group {}: rank {}; wanted 0 to {}", name, rank, size() - 1);
      members.push_back(world_rank(rank));
    }
    std::vector<int> sorted = members;
    std::sort(sorted.begin(), sorted.end());
    require(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(), "group {}: a rank is there twice", name);
    require(std::binary_search(sorted.begin(), sorted.end(), world_->rank()),
            "group {}: rank {} makes it and is not in it", name, world_->rank());
    return std::make_unique<MessageCommunicator>(world_, world_->make_group(std::move(members), std::move(name)));
  }

  void set_phase(std::string_view phase) override { world_->set_phase(phase); }
  void progress() override { world_->progress(); }
  void abort(ErrorKind kind, std::string_view reason) noexcept override { world_->give_up(kind, reason); }
  Pending start(CollectiveCall call, Stream& stream) override {
    auto op = world_->start(group_, std::move(call), stream, &traffic_);
    return Pending(std::make_shared<MessageWork>(world_, std::move(op)));
  }

 private:
  std::shared_ptr<World> world_;
  std::shared_ptr<Group> group_;
};

}  // namespace

std::unique_ptr<Communicator> make_message_communicator(std::unique_ptr<Transport> transport,
                                                        const CommunicatorOptions& options) {
  auto world = std::make_shared<World>(std::move(transport), options);
  auto group = world->make_world_group();
  world->meet(group);
  group->collectives = 0;
  return std::make_unique<MessageCommunicator>(std::move(world), std::move(group));
}

}  // namespace octet
