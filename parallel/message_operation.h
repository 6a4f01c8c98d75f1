// What the ranks of a message communicator send each other, and an operation under way.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/tensor/allocator.h"
#include "parallel/communicator.h"

namespace octet::message {

using Element = CollectiveCall::Element;
using Piece = CollectiveCall::Piece;

// A message of up to 1 KiB goes with its header: a second one would cost as much again.
inline constexpr int64_t kInlineBytes = 928;
inline constexpr uint32_t kMagic = 0x4f435431;  // "OCT1"; another byte order or version differs

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
inline constexpr int kMaxContext = 255;
inline int tag_of(int context, Lane lane, int64_t number = 0) {
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

inline std::string in_phase(std::string_view phase) {
  return phase.empty() ? std::string() : fmt::format(", in {}", phase);
}

std::string shown_operation(const Header& header, std::string_view group);
std::string list_ranks(const std::vector<int>& ranks);
// Whether the parts of a piece are messages of their own; both ends come to the same answer.
bool go_by_themselves(std::span<const Piece> parts);
uint32_t hash_of(std::span<const Piece> parts);

}  // namespace octet::message
