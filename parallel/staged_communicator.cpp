#include "parallel/staged_communicator.h"

#include <mutex>

#include "kernels/cuda/cuda_check.h"
#include "parallel/nccl_communicator.h"

namespace octet {
namespace {

using Element = CollectiveCall::Element;
using Piece = CollectiveCall::Piece;

int64_t end_of(const std::vector<Piece>& pieces) {
  int64_t end = 0;
  for (const Piece& piece : pieces) end = std::max(end, piece.offset + piece.bytes);
  return end;
}

// Pinned memory costs milliseconds to make, so what an operation has let go is kept for the next.
class PinnedPool {
 public:
  struct Block {
    std::byte* data = nullptr;
    int64_t bytes = 0;
  };

  ~PinnedPool() {
    for (const Block& block : free_) cudaFreeHost(block.data);
  }
  Block take(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < free_.size(); ++i) {
      if (free_[i].bytes < bytes) continue;
      const Block block = free_[i];
      free_.erase(free_.begin() + std::ptrdiff_t(i));
      return block;
    }
    if (!free_.empty()) {  // one that is too small makes room for one that is not
      cudaFreeHost(free_.back().data);
      free_.pop_back();
    }
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, size_t(std::max<int64_t>(bytes, 1)), cudaHostAllocDefault), "cudaHostAlloc");
    return {static_cast<std::byte*>(memory), bytes};
  }
  void give_back(const Block& block) {
    if (block.data == nullptr) return;
    const std::lock_guard lock(mutex_);
    free_.push_back(block);
  }

 private:
  std::mutex mutex_;
  std::vector<Block> free_;
};

class StagedWork final : public Pending::Work {
 public:
  StagedWork(std::shared_ptr<PinnedPool> pool, int device) : pool_(std::move(pool)), device_(device) {}
  ~StagedWork() override {
    pool_->give_back(from_);
    pool_->give_back(to_);
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
    from_ = pool_->take(end_of(pieces));
    for (const Piece& piece : pieces) {
      if (piece.bytes == 0) continue;
      check(cudaMemcpyAsync(from_.data + piece.offset, call.from + piece.offset, size_t(piece.bytes),
                            cudaMemcpyDeviceToHost, nullptr),
            "cudaMemcpyAsync");
      if (is_all || call.operation == Operation::kBroadcast) break;  // the same piece for everybody
    }
    check(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
    call.from = from_.data;
    if (is_all) {
      call.to = from_.data;
    } else {
      to_ = pool_->take(end_of(come_));
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
    check(cudaSetDevice(device_), "cudaSetDevice");
    for (const Piece& piece : come_) {
      if (piece.bytes == 0) continue;
      check(cudaMemcpyAsync(device_to_ + piece.offset, host_to_ + piece.offset, size_t(piece.bytes),
                            cudaMemcpyHostToDevice, nullptr),
            "cudaMemcpyAsync");
    }
    check(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
    come_.clear();
  }
  void give_up() noexcept override { pending_ = {}; }

 private:
  std::shared_ptr<PinnedPool> pool_;
  int device_;
  PinnedPool::Block from_, to_;
  std::byte *device_to_ = nullptr, *host_to_ = nullptr;
  std::vector<Piece> come_;  // what is to be on the GPU in the end
  Pending pending_;          // last: it uses the memory above
};

class StagedCommunicator final : public Communicator {
 public:
  StagedCommunicator(std::unique_ptr<Communicator> host, int device, std::shared_ptr<PinnedPool> pool)
      : Communicator(host->rank(), host->size(), host->name()),
        host_(std::move(host)),
        device_(device),
        pool_(std::move(pool)) {}

  int world_rank(int rank) const override { return host_->world_rank(rank); }
  const std::string& host(int rank) const override { return host_->host(rank); }
  std::unique_ptr<Communicator> group(std::span<const int> ranks, std::string name) override {
    return std::make_unique<StagedCommunicator>(host_->group(ranks, std::move(name)), device_, pool_);
  }
  void set_phase(std::string_view phase) override { host_->set_phase(phase); }
  void progress() override { host_->progress(); }
  void abort(ErrorKind kind, std::string_view reason) noexcept override { host_->abort(kind, reason); }

  Pending start(CollectiveCall call, Stream& stream) override {
    const Operation operation = call.operation;
    const int64_t sent_before = host_->traffic()[operation].bytes;
    Pending pending;
    if (call.device.is_cpu()) {
      pending = host_->start(std::move(call), stream);
    } else {
      require(call.device == Device{DeviceType::kCuda, device_},
              "{}: on {}; this communicator moves the memory of cuda:{} and of the host", name_of(operation),
              call.device, device_);
      check(cudaSetDevice(device_), "cudaSetDevice");
      auto work = std::make_shared<StagedWork>(pool_, device_);
      CollectiveCall staged = work->stage(std::move(call), rank());
      work->start(host_->start(std::move(staged), default_stream()));
      pending = Pending(std::move(work));
    }
    ++traffic_[operation].calls;
    traffic_[operation].bytes += host_->traffic()[operation].bytes - sent_before;
    return pending;
  }

 private:
  std::unique_ptr<Communicator> host_;
  int device_;
  std::shared_ptr<PinnedPool> pool_;
};

}  // namespace

std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Communicator> host, int device_index) {
  const int gpus = count_gpus();
  require(ErrorKind::kDevice, 0 <= device_index && device_index < gpus,
          "staged_communicator: GPU {} on a machine with {}; wanted one for this rank", device_index, gpus);
  return std::make_unique<StagedCommunicator>(std::move(host), device_index, std::make_shared<PinnedPool>());
}

}  // namespace octet
