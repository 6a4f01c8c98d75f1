// What MessageCommunicator needs of a network: bytes from rank to rank. All calls return at once, and one thread calls
// at a time. Errors of the network are Error(kCommunication).
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/process_identity.h"

namespace octet {

// Comes back unchanged when a message is done.
struct Ticket {
  void* owner = nullptr;
  int32_t peer = 0;
  int32_t part = 0;
  int64_t bytes = 0;
};

// What a test makes a rank do at one of its collectives.
enum class Fault { kNone, kMiscount };

class Transport {
 public:
  virtual ~Transport() = default;  // leaves messages under way to themselves
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual ProcessIdentity identity() const = 0;

  // Messages with one tag between two ranks arrive in order. Memory is in use until the ticket comes back. A receive
  // has room for the message. tag: 0 to 2^31 - 1; bytes: 1 to kMaxMessageBytes.
  virtual void send(int to, int tag, const void* from, int64_t bytes, const Ticket& ticket) = 0;
  virtual void receive(int from, int tag, void* to, int64_t bytes, const Ticket& ticket) = 0;
  // Moves messages and appends the tickets of those that are done.
  virtual void poll(std::vector<Ticket>& done) = 0;

  virtual PeerState state_of(int peer, const ProcessIdentity& process) = 0;
  // All ranks have called it or will; nothing is under way.
  virtual void close() = 0;

  // Called before this rank's collective number `collective`, counted from 1, by the thread that enters it, while
  // others may call the rest.
  virtual Fault before_collective(int64_t) { return Fault::kNone; }
  // False where a test has killed this rank: nothing leaves it any more.
  virtual bool is_alive() const { return true; }
};

// Each message that arrives starts a deadline anew, so one takes a fraction of a second on any network.
inline constexpr int64_t kMaxMessageBytes = int64_t(64) << 20;

}  // namespace octet
