// Messages between the ranks of a run. Every rank of a communicator calls the same operations in the same order; send
// and receive are called by two.
//
// Order. A sum is (((x0 + x1) + x2) + ...) over ranks 0 .. size - 1, each element by itself: float32 in float32,
// float64 in float64, bfloat16 in float32 and rounded once at the end. So a result depends on no timing, and is the
// same on every rank and in every implementation, bit for bit.
//
// Pieces are counted along the first axis of a view: elements of [N], rows of [T, D], slices of [E, F, D]. Views are
// contiguous. Sizes of 0 are normal everywhere, for one rank or for all.
//
// Non-blocking forms, start_*, return a Pending. Until its wait returns, what is sent is not written to, and what is
// received is not touched. Several may be under way; all ranks start those of one communicator in the same order, and
// may wait in any order. Messages move inside wait, is_done and progress of any communicator of the run, and on a
// thread of each rank while nobody waits, so that they travel while this one computes.
//
// Checks, in every build: each collective tells every other rank its operation, number, element type, the sizes that
// must agree and the phase, in a message of 96 bytes that also carries a piece of up to 928 bytes, so that small
// operations need no other. Ranks that are not in the same operation throw Error(kCommunication) with both names, at
// once, and write nothing that the other sent. A collective, even a broadcast, therefore returns only after every rank
// has entered it.
//
// Deadlines. A wait throws Error(kHang), exit code 8, once a rank it waits for has not got on for timeout_s; one for a
// rank that is known to be gone throws Error(kCommunication), exit code 7, within a second. A rank gets on when it
// calls a communicator: enters an operation, comes out of a wait, finds one done, or calls progress. So a rank that
// works for long calls progress now and then, at least once in 3/4 of timeout_s, and is waited for; one that is
// stopped, loops or blocks is named. A rank that waits is as far as the ranks it waits for, and if any message of the
// operation arrives, all begin anew. Ranks ask each other about this only where one has waited for timeout_s / 8, and
// once in that time. The error says rank, host, process, operation, number, group, phase, how long, and for whom this
// rank waited and what they did last. Time in which this process did not run (it was stopped) does not count. The first
// error is the last word: it is sent to all other ranks, which throw an error of its kind that quotes it, and every
// later call of any communicator of the run throws the same again.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/enum_names.h"
#include "core/base/error.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace octet {

enum class Operation : uint8_t {
  kAllToAll,
  kAllReduce,
  kReduceScatter,
  kAllGather,
  kBroadcast,
  kSend,
  kReceive,
  kBarrier,
  kGroup,  // the agreement that makes a group
};
inline constexpr int kOperations = 9;
template <>
struct EnumNames<Operation> {
  static constexpr std::pair<Operation, std::string_view> values[] = {{Operation::kAllToAll, "all_to_all"},
                                                                      {Operation::kAllReduce, "all_reduce"},
                                                                      {Operation::kReduceScatter, "reduce_scatter"},
                                                                      {Operation::kAllGather, "all_gather"},
                                                                      {Operation::kBroadcast, "broadcast"},
                                                                      {Operation::kSend, "send"},
                                                                      {Operation::kReceive, "receive"},
                                                                      {Operation::kBarrier, "barrier"},
                                                                      {Operation::kGroup, "group"}};
};

// What this rank has sent to other ranks through one communicator. Bytes are those of the pieces; a rank's piece for
// itself and the 96 bytes of each message do not count. With n ranks, a call sends
//   all_to_all_v     its pieces for the others
//   reduce_scatter   its pieces for the others
//   all_gather       n - 1 times its piece
//   all_reduce       up to kWholeReduceBytes: n - 1 times the values; else its slices for the others, then n - 1 times
//                    its own slice, where slice r of N elements is [N r / n, N (r + 1) / n), rounded down
//   broadcast        n - 1 times the values from the root, nothing from others
struct Traffic {
  struct Line {
    int64_t calls = 0;
    int64_t bytes = 0;
    bool operator==(const Line&) const = default;
  };
  std::array<Line, kOperations> lines{};
  Line& operator[](Operation operation) { return lines[size_t(operation)]; }
  const Line& operator[](Operation operation) const { return lines[size_t(operation)]; }
  int64_t bytes() const {
    int64_t sum = 0;
    for (const Line& line : lines) sum += line.bytes;
    return sum;
  }
};
// An all_reduce of at most this many bytes sends its values whole: one exchange instead of two.
inline constexpr int64_t kWholeReduceBytes = 8192;
// Where the parts of a piece (AllToAll) have fewer bytes than this on average, they are put together before they leave:
// a copy costs less than a message.
inline constexpr int64_t kPartBytes = int64_t(32) << 10;

// One piece per rank, along the first axis. Without offsets the pieces lie one after the other, from 0.
struct Pieces {
  std::span<const int64_t> counts;
  std::span<const int64_t> offsets = {};
};

struct AllToAll {
  ConstView send;
  Pieces send_pieces;     // piece r goes to rank r
  View receive;           // its element type and its slices as `send`
  Pieces receive_pieces;  // piece r comes from rank r; they do not overlap
  // A piece may be sent in parts from several places. Then both sides have a count for each part, `parts` of them for
  // rank 0, then for rank 1, and `send` an offset for each. It arrives as one piece, part after part.
  int64_t parts = 1;
};

struct CommunicatorOptions {
  double timeout_s = 30;      // the longest wait for a rank that does not get on, seconds
  int64_t link_delay_us = 0;  // to measure overlap on one machine: each message is held back where it arrives
};

// An operation under way. Move-only. Destroyed before it is waited for, it waits, and an error is logged; destroyed by
// an exception before it is done, it makes this rank give up as if by abort.
class Pending {
 public:
  // What an implementation provides.
  class Work {
   public:
    virtual ~Work() = default;
    virtual bool is_done() = 0;
    virtual void wait() = 0;
    virtual void give_up() noexcept = 0;
  };

  Pending() = default;  // of something done
  explicit Pending(std::shared_ptr<Work> work);
  Pending(Pending&& other) noexcept = default;
  Pending& operator=(Pending&& other) noexcept;
  ~Pending();

  // Moves messages, and looks. Throws as wait does.
  bool is_done();
  void wait();

 private:
  void finish() noexcept;
  std::shared_ptr<Work> work_;
  int exceptions_ = 0;  // in flight when this was made
};

// What an implementation is asked to do, checked and reduced to bytes.
struct CollectiveCall {
  enum class Element : uint8_t { kBytes, kFloat32, kBFloat16, kFloat64 };  // what a sum adds; kBytes where none is
  struct Piece {
    int64_t offset = 0, bytes = 0;
  };

  Operation operation = Operation::kBarrier;
  Element element = Element::kBytes;
  Device device;
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  // Of `from`, for each rank; and of `to`, from each rank where bytes move. A sum writes the sum of everybody's pieces
  // for this rank to the start of `to`; an all_reduce has one piece, all of its values, and `from` is `to`.
  std::vector<Piece> from_pieces, to_pieces;
  // Of an all_to_all whose pieces are sent in parts: those of rank r are r * parts and on. `from_pieces` has their
  // sums.
  int64_t parts = 1;
  std::vector<Piece> from_parts, to_parts;
  int peer = -1;           // the root of a broadcast, the other end of a send or receive
  int64_t elements = 0;    // for messages: that all ranks see, or of this send
  std::string_view dtype;  // for messages
  uint64_t agreed = 0;     // a hash of all that must be the same on every rank

  void agree_on(uint64_t value);  // adds to `agreed`
  // Where the piece for a rank lies in `from`, and where what comes from it goes in `to`: in its parts, or whole.
  std::span<const Piece> parts_to(int rank) const { return parts_of(from_pieces, from_parts, rank); }
  std::span<const Piece> parts_from(int rank) const { return parts_of(to_pieces, to_parts, rank); }

 private:
  std::span<const Piece> parts_of(const std::vector<Piece>& pieces, const std::vector<Piece>& in_parts,
                                  int rank) const {
    if (in_parts.empty()) return {&pieces[size_t(rank)], 1};
    return {&in_parts[size_t(rank * parts)], size_t(parts)};
  }
};

// What each of these ranks sums in an all_reduce: all of the values, or a slice of them (Traffic).
std::vector<CollectiveCall::Piece> all_reduce_pieces(const CollectiveCall& call, int ranks);

class Communicator {
 public:
  Communicator(int rank, int size, std::string name) : rank_(rank), size_(size), name_(std::move(name)) {}
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  const std::string& name() const { return name_; }  // "world", "ep"
  virtual int world_rank(int rank) const = 0;
  virtual const std::string& host(int rank) const = 0;

  // Piece r of `send` goes to rank r, and the piece for r on rank s is as long as the one from s on rank r.
  void all_to_all_v(const AllToAll& args, Stream& stream) { start_all_to_all_v(args, stream).wait(); }
  // values, float32 or bfloat16, becomes the sum over ranks on every rank.
  void all_reduce(View values, Stream& stream) { start_all_reduce(values, stream).wait(); }
  // The same for float64 scalars in host memory: a gradient norm, a loss, counts.
  void all_reduce(std::span<double> values) { start_all_reduce(values).wait(); }
  // sum becomes the sum over ranks of piece rank() of `all`, float32 or bfloat16. It may be that piece.
  void reduce_scatter(ConstView all, View sum, Stream& stream) { start_reduce_scatter(all, sum, stream).wait(); }
  void reduce_scatter_v(ConstView all, const Pieces& pieces, View sum, Stream& stream) {
    start_reduce_scatter_v(all, pieces, sum, stream).wait();
  }
  // Piece r of `all` becomes the `mine` of rank r, of any element type. mine may be its piece of `all`.
  void all_gather(ConstView mine, View all, Stream& stream) { start_all_gather(mine, all, stream).wait(); }
  void all_gather_v(ConstView mine, View all, const Pieces& pieces, Stream& stream) {
    start_all_gather_v(mine, all, pieces, stream).wait();
  }
  // values becomes what it is on the root.
  void broadcast(View values, int root, Stream& stream) { start_broadcast(values, root, stream).wait(); }
  // values of this rank to a receive by `to` of the same size. Sends from one rank to another arrive in order.
  void send(ConstView values, int to, Stream& stream) { start_send(values, to, stream).wait(); }
  void receive(View values, int from, Stream& stream) { start_receive(values, from, stream).wait(); }
  void barrier() { start_barrier().wait(); }

  Pending start_all_to_all_v(const AllToAll& args, Stream& stream);
  Pending start_all_reduce(View values, Stream& stream);
  Pending start_all_reduce(std::span<double> values);
  Pending start_reduce_scatter(ConstView all, View sum, Stream& stream);
  Pending start_reduce_scatter_v(ConstView all, const Pieces& pieces, View sum, Stream& stream);
  Pending start_all_gather(ConstView mine, View all, Stream& stream);
  Pending start_all_gather_v(ConstView mine, View all, const Pieces& pieces, Stream& stream);
  Pending start_broadcast(View values, int root, Stream& stream);
  Pending start_send(ConstView values, int to, Stream& stream);
  Pending start_receive(View values, int from, Stream& stream);
  Pending start_barrier();

  // A communicator of some ranks of this one, in that order, made by all of them and nobody else; this rank is one.
  // Every rank makes its groups in the same order, at the start of a run: there is room for some 250.
  virtual std::unique_ptr<Communicator> group(std::span<const int> ranks, std::string name) = 0;

  // What all start_* come down to; for communicators that are made of others.
  virtual Pending start(CollectiveCall call, Stream& stream) = 0;

  // What this rank is doing, "step 12, forward, layer 3"; for every communicator of the run. It is part of error
  // messages, and ranks compare the first 31 characters, so these must be the same on all that enter a collective. A
  // send and its receive may be in different phases.
  virtual void set_phase(std::string_view phase) = 0;
  // This rank gets on: to be called now and then in work that may take as long as the deadline.
  virtual void progress() = 0;
  // This rank cannot go on: tells every other rank of the run, which throw Error(kind) with the reason. The caller
  // throws its own error.
  virtual void abort(ErrorKind kind, std::string_view reason) noexcept = 0;

  const Traffic& traffic() const { return traffic_; }
  void reset_traffic() { traffic_ = {}; }

 protected:
  Traffic traffic_;

 private:
  CollectiveCall make_call(Operation operation, ConstView from, View to) const;
  std::vector<CollectiveCall::Piece> cut(const char* operation, const char* what, ConstView view, const Pieces& pieces,
                                         bool may_overlap, int64_t parts = 1) const;
  int rank_, size_;
  std::string name_;
};

}  // namespace octet
