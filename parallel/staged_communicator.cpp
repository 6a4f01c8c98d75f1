#include "parallel/staged_communicator.h"

#include <utility>

#include "core/tensor/pinned_pool.h"

namespace octet {
namespace {

using Element = CollectiveCall::Element;
using Piece = CollectiveCall::Piece;

int64_t end_of(const std::vector<Piece>& pieces) {
  int64_t end = 0;
  for (const Piece& piece : pieces) end = std::max(end, piece.offset + piece.bytes);
  return end;
}

class StagedWork final : public Pending::Work {
 public:
  explicit StagedWork(Stream& stream) : stream_(stream) {}
  ~StagedWork() override {
    pending_ = {};  // it uses the memory
    PinnedPool::instance().give_back(std::move(from_));
    PinnedPool::instance().give_back(std::move(to_));
  }

  // The call as the host communicator is to make it.
  CollectiveCall stage(CollectiveCall call, int rank) {
    const bool is_sum = call.element != Element::kBytes, is_all = call.operation == Operation::kAllReduce;
    device_to_ = call.to;
    if (is_all) {
      come_ = call.from_pieces;
      come_.resize(1);  // one piece, all of the values
    } else if (is_sum) {
      come_ = {{.offset = 0, .bytes = call.from_pieces[size_t(rank)].bytes}};
    } else {
      come_ = call.to_pieces;
    }
    const std::vector<Piece>& pieces = call.from_parts.empty() ? call.from_pieces : call.from_parts;
    from_ = PinnedPool::instance().take(end_of(pieces));
    bool is_sent = false;
    for (const Piece& piece : pieces) {
      if (piece.bytes == 0) continue;
      gpu::copy(from_.data + piece.offset, call.from + piece.offset, piece.bytes, stream_);
      is_sent = true;
      if (is_all || call.operation == Operation::kBroadcast) break;  // the same piece for everybody
    }
    if (is_sent) {
      from_.free_at.record(stream_);
      from_.free_at.wait();
    }
    call.from = from_.data;
    if (is_all) {
      call.to = from_.data;
    } else {
      to_ = PinnedPool::instance().take(end_of(come_));
      call.to = to_.data;
    }
    host_to_ = call.to;
    call.device = {};
    return call;
  }
  void start(Pending pending) { pending_ = std::move(pending); }

  bool is_done() override { return pending_.is_done(); }
  void wait() override {
    pending_.wait();
    for (const Piece& piece : come_)
      gpu::copy(device_to_ + piece.offset, host_to_ + piece.offset, piece.bytes, stream_);
    if (!come_.empty()) (host_to_ == from_.data ? from_ : to_).free_at.record(stream_);
    come_.clear();
  }
  void give_up() noexcept override { pending_ = {}; }

 private:
  Stream& stream_;
  PinnedPool::Block from_, to_;
  std::byte *device_to_ = nullptr, *host_to_ = nullptr;
  std::vector<Piece> come_;  // what is to be on the GPU in the end
  Pending pending_;
};

class StagedCommunicator final : public Communicator {
 public:
  StagedCommunicator(std::unique_ptr<Communicator> owned, Communicator& host, Device device)
      : Communicator(host.rank(), host.size(), host.name()), owned_(std::move(owned)), host_(host), device_(device) {}

  int world_rank(int rank) const override { return host_.world_rank(rank); }
  const std::string& host(int rank) const override { return host_.host(rank); }
  std::unique_ptr<Communicator> group(std::span<const int> ranks, std::string name) override {
    return make_staged_communicator(host_.group(ranks, std::move(name)), device_);
  }
  void set_phase(std::string_view phase) override { host_.set_phase(phase); }
  void progress() override { host_.progress(); }
  void abort(ErrorKind kind, std::string_view reason) noexcept override { host_.abort(kind, reason); }

  Pending start(CollectiveCall call, Stream& stream) override {
    const Operation operation = call.operation;
    const int64_t sent_before = host_.traffic()[operation].bytes;
    Pending pending;
    if (call.device.is_cpu()) {
      pending = host_.start(std::move(call), stream);
    } else {
      require(call.device == device_, "{}: on {}; this communicator moves the memory of {} and of the host",
              name_of(operation), call.device, device_);
      // A caller that gives no stream of the GPU means the one that its tensors are computed on.
      auto work = std::make_shared<StagedWork>(stream.device() == device_ ? stream : default_stream(device_));
      CollectiveCall staged = work->stage(std::move(call), rank());
      work->start(host_.start(std::move(staged), default_stream()));
      pending = Pending(std::move(work));
    }
    ++traffic_[operation].calls;
    traffic_[operation].bytes += host_.traffic()[operation].bytes - sent_before;
    return pending;
  }

 private:
  std::unique_ptr<Communicator> owned_;  // null where the caller keeps it
  Communicator& host_;
  Device device_;
};

}  // namespace

std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Communicator> host, Device device) {
  const int gpus = gpu::runtime().count;
  require(ErrorKind::kDevice, !device.is_cpu() && 0 <= device.index && device.index < gpus,
          "staged_communicator: GPU {} on a machine with {}; wanted one for this rank", device.index, gpus);
  gpu::open(device);
  Communicator& inner = *host;
  return std::make_unique<StagedCommunicator>(std::move(host), inner, device);
}

std::unique_ptr<Communicator> make_staged_communicator(Communicator& host, Device device) {
  gpu::open(device);
  return std::make_unique<StagedCommunicator>(nullptr, host, device);
}

}  // namespace octet
