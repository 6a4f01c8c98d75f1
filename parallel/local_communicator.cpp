#include "parallel/local_communicator.h"

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "core/base/clock.h"
#include "core/base/random.h"
#include "parallel/message_communicator.h"

namespace octet {
namespace {

// What the ranks of one run share.
class Network {
 public:
  Network(int ranks, const LocalOptions& options)
      : options_(options), delays_(options.seed, "local_communicator"), boxes_(size_t(ranks)) {}

  const LocalOptions& options() const { return options_; }
  int size() const { return int(boxes_.size()); }

  void send(int from, int to, int tag, const void* bytes, int64_t size) {
    Box& box = boxes_[size_t(to)];
    const std::lock_guard lock(box.mutex);
    Lane& lane = box.lanes[{from, tag}];
    const uint64_t index = box.sent_by[from]++;
    int64_t due = real_clock().monotonic_ns();
    if (options_.max_delay_us > 0) {
      const uint64_t pair = uint64_t(from) * boxes_.size() + uint64_t(to);
      due += int64_t(delays_.below(uint64_t(options_.max_delay_us) + 1, index, pair)) * 1000;
    }
    if (!lane.empty()) due = std::max(due, lane.back().due_ns);  // one tag stays in order
    const auto* first = static_cast<const std::byte*>(bytes);
    lane.push_back({.bytes = {first, first + size}, .due_ns = due});
  }

  // Copies the oldest message that is due; false where there is none.
  bool take(int rank, int from, int tag, void* to, int64_t size) {
    Box& box = boxes_[size_t(rank)];
    const std::lock_guard lock(box.mutex);
    const auto lane = box.lanes.find({from, tag});
    if (lane == box.lanes.end() || lane->second.front().due_ns > real_clock().monotonic_ns()) return false;
    const Message& message = lane->second.front();
    require(ErrorKind::kCommunication, int64_t(message.bytes.size()) <= size,
            "local_communicator: rank {} sent {} bytes where rank {} has room for {}", from, message.bytes.size(), rank,
            size);
    std::memcpy(to, message.bytes.data(), message.bytes.size());
    lane->second.pop_front();
    if (lane->second.empty()) box.lanes.erase(lane);
    return true;
  }

  void die(int rank) { boxes_[size_t(rank)].is_dead = true; }
  bool is_dead(int rank) const { return boxes_[size_t(rank)].is_dead; }

  // Returns when no rank runs any more but those that stall.
  void stall() {
    std::unique_lock lock(mutex_);
    ++idle_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return idle_ == size(); });
  }
  void end() {
    const std::lock_guard lock(mutex_);
    ++idle_;
    changed_.notify_all();
  }

 private:
  struct Message {
    std::vector<std::byte> bytes;
    int64_t due_ns = 0;
  };
  using Lane = std::deque<Message>;
  struct Box {
    std::mutex mutex;
    std::map<std::pair<int, int>, Lane> lanes;  // by sender and tag; none is empty
    std::map<int, uint64_t> sent_by;
    std::atomic<bool> is_dead{false};
  };

  LocalOptions options_;
  RandomStream delays_;
  std::vector<Box> boxes_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int idle_ = 0;  // ranks that have ended or stall
};

class LocalTransport final : public Transport {
 public:
  LocalTransport(Network& network, int rank) : network_(network), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return network_.size(); }
  ProcessIdentity identity() const override { return this_process(); }

  void send(int to, int tag, const void* from, int64_t bytes, const Ticket& ticket) override {
    if (!is_alive()) return;
    network_.send(rank_, to, tag, from, bytes);
    sent_.push_back(ticket);
  }
  void receive(int from, int tag, void* to, int64_t bytes, const Ticket& ticket) override {
    receives_.push_back({.from = from, .tag = tag, .to = to, .bytes = bytes, .ticket = ticket});
  }
  void poll(std::vector<Ticket>& done) override {
    done.insert(done.end(), sent_.begin(), sent_.end());
    sent_.clear();
    std::set<std::pair<int, int>> waiting;  // what arrives meanwhile is for the first receive that waits for it
    std::erase_if(receives_, [&](const Receive& receive) {
      const std::pair lane(receive.from, receive.tag);
      if (waiting.contains(lane)) return false;
      if (!network_.take(rank_, receive.from, receive.tag, receive.to, receive.bytes)) {
        waiting.insert(lane);
        return false;
      }
      done.push_back(receive.ticket);
      return true;
    });
  }
  // All ranks are in this process, so that their own states are known here and nowhere else.
  PeerState state_of(int peer, const ProcessIdentity&) override {
    return network_.is_dead(peer) ? PeerState::kGone : PeerState::kRunning;
  }
  void close() override {}
  bool is_alive() const override { return !network_.is_dead(rank_); }

  Fault before_collective(int64_t collective) override {
    for (const LocalFault& fault : network_.options().faults) {
      if (fault.rank != rank_ || fault.at_collective != collective) continue;
      if (fault.kind == LocalFault::Kind::kMiscount) return Fault::kMiscount;
      if (fault.kind == LocalFault::Kind::kStall) network_.stall();
      network_.die(rank_);
      throw LocalRankStopped{};
    }
    return Fault::kNone;
  }

 private:
  struct Receive {
    int from, tag;
    void* to;
    int64_t bytes;
    Ticket ticket;
  };
  Network& network_;
  int rank_;
  std::vector<Ticket> sent_;
  std::vector<Receive> receives_;
};

void run_rank(Network& network, int rank, const std::function<void(Communicator&)>& body) {
  const auto communicator =
      make_message_communicator(std::make_unique<LocalTransport>(network, rank), network.options().communicator);
  try {
    body(*communicator);
  } catch (const LocalRankStopped&) {
    throw;
  } catch (const std::exception& error) {
    communicator->abort(ErrorKind::kCommunication, error.what());
    throw;
  }
}

}  // namespace

std::vector<std::exception_ptr> run_local_ranks(int ranks, const LocalOptions& options,
                                                const std::function<void(Communicator&)>& body) {
  require(ranks >= 1, "run_local_ranks: {} ranks; wanted 1 or more", ranks);
  Network network(ranks, options);
  std::vector<std::exception_ptr> errors(static_cast<size_t>(ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        run_rank(network, rank, body);
      } catch (...) {
        errors[size_t(rank)] = std::current_exception();
      }
      network.end();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

void rethrow_first(const std::vector<std::exception_ptr>& errors) {
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace octet
