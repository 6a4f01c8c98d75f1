#include "parallel/nccl_communicator.h"

#include <fmt/format.h>

#include <chrono>
#include <exception>
#include <thread>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/wait_look.h"
#include "parallel/gpu_operations.h"
#include "parallel/nccl_library.h"
#include "parallel/nccl_sum.h"
#include "parallel/ordered_sum.h"

namespace octet {
namespace {

using Element = CollectiveCall::Element;
using Piece = CollectiveCall::Piece;

using octet::check;  // of CUDA, beside that of NCCL
void check(ncclResult_t status, const char* call, ncclComm_t comm) {
  if (status == ncclSuccess || status == ncclInProgress) return;
  require(ErrorKind::kCommunication, false, "{}: {}: {}", call, nccl().get_error_string(status),
          nccl().get_last_error(comm));
}

void nap() { std::this_thread::sleep_for(std::chrono::microseconds(20)); }

// Where the operations of a communicator and of its groups run, one after the other: NCCL wants those of several
// communicators in one order on all GPUs, and the order in which hosts start them is one.
class CommunicationStream {
 public:
  explicit CommunicationStream(int device) {
    check(cudaSetDevice(device), "cudaSetDevice");
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  }
  ~CommunicationStream() { cudaStreamDestroy(stream_); }
  CommunicationStream(const CommunicationStream&) = delete;
  CommunicationStream& operator=(const CommunicationStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// A place in a stream.
class Place {
 public:
  Place() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags"); }
  ~Place() { cudaEventDestroy(event_); }
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  void hold(cudaStream_t stream) const { check(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent"); }
  bool is_reached() const {
    const cudaError_t state = cudaEventQuery(event_);
    if (state != cudaErrorNotReady) check(state, "cudaEventQuery");
    return state == cudaSuccess;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// The NCCL communicator and what goes with it, for as long as the communicator or one of its operations lives.
class Channel {
 public:
  Channel(std::shared_ptr<Communicator> host, int device, std::shared_ptr<CommunicationStream> stream, double timeout_s)
      : host_(std::move(host)),
        device_(device),
        timeout_s_(timeout_s),
        stream_(std::move(stream)),
        under_way_(timeout_s),
        wait_look_([this] { look_while_waiting(); }) {
    try {
      check(cudaSetDevice(device_), "cudaSetDevice");
      ncclUniqueId id{};
      if (host_->rank() == 0) check(nccl().get_unique_id(&id), "ncclGetUniqueId", nullptr);
      host_->broadcast(View(&id, {int64_t(sizeof id)}, DType::kUInt8), /*root=*/0, default_stream());
      ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
      config.blocking = 0;  // so that no call of NCCL waits without a deadline
      check(nccl().init_rank(&comm_, host_->size(), id, host_->rank(), &config), "ncclCommInitRankConfig", comm_);
      until_ready("ncclCommInitRankConfig");
    } catch (const Error& error) {
      give_up(error.kind(), error.what());
      release();
      throw;
    }
  }
  ~Channel() {
    // Where an error ends the run, other ranks may not come to finalize it.
    if (comm_ != nullptr && std::uncaught_exceptions() == exceptions_) {
      try {
        check(nccl().finalize(comm_), "ncclCommFinalize", comm_);
        until_ready("ncclCommFinalize");
        nccl().destroy(comm_);
        comm_ = nullptr;
      } catch (const std::exception& error) {
        log_error("rank {}: {}", host_->rank(), error.what());
      }
    }
    release();
  }
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  Communicator& host() { return *host_; }
  int device() const { return device_; }
  double timeout_s() const { return timeout_s_; }
  cudaStream_t stream() const { return stream_->get(); }
  const std::shared_ptr<CommunicationStream>& shared_stream() const { return stream_; }

  // Sends out_pieces[r] of `from` to rank r, and puts what comes from it at in_pieces[r] of `to`; or, for each part p,
  // those at r * parts + p.
  void exchange(const std::byte* from, const std::vector<Piece>& out_pieces, std::byte* to,
                const std::vector<Piece>& in_pieces, int64_t parts = 1) {
    require_whole();
    check(nccl().group_start(), "ncclGroupStart", comm_);
    const int n = host_->size(), me = host_->rank();
    for (int step = 1; step < n; ++step) {
      const int right = (me + step) % n, left = (me + n - step) % n;
      for (int64_t part = 0; part < parts; ++part) {
        const Piece out = out_pieces[size_t(right * parts + part)], in = in_pieces[size_t(left * parts + part)];
        if (out.bytes > 0) {
          check(nccl().send(from + out.offset, size_t(out.bytes), ncclUint8, right, comm_, stream()), "ncclSend",
                comm_);
        }
        if (in.bytes > 0) {
          check(nccl().receive(to + in.offset, size_t(in.bytes), ncclUint8, left, comm_, stream()), "ncclRecv", comm_);
        }
      }
    }
    check(nccl().group_end(), "ncclGroupEnd", comm_);
    until_ready("ncclGroupEnd");
  }

  // Throws where the GPU or a connection has failed.
  void look() {
    require_whole();
    ncclResult_t state = ncclSuccess;
    check(nccl().get_async_error(comm_, &state), "ncclCommGetAsyncError", comm_);
    check(state, "NCCL", comm_);
  }

  // The GPU was given all of an operation, which lies between two places of the stream.
  void is_given(Operation operation, const std::shared_ptr<Place>& begin, const std::shared_ptr<Place>& end) {
    under_way_.add(
        fmt::format("{} of group {}, which all ranks have entered", name_of(operation), host_->name()),
        [begin] { return begin->is_reached(); }, [end] { return end->is_reached(); });
  }

  // The other ranks are told, and kernels that wait for them on this GPU end.
  void give_up(ErrorKind kind, std::string_view reason) noexcept {
    host_->abort(kind, reason);
    if (comm_ != nullptr) nccl().abort(comm_);
    comm_ = nullptr;
  }

 private:
  // Whoever waits for this GPU, for whatever: the host gets on meanwhile, and a wait for another rank has an end.
  void look_while_waiting() {
    if (comm_ == nullptr) return;
    try {
      host_->progress();
      look();
      under_way_.look(real_clock().seconds());
    } catch (const Error& error) {
      give_up(error.kind(), error.what());
      throw;
    }
  }
  void require_whole() const {
    require(ErrorKind::kCommunication, comm_ != nullptr, "group {}: this rank gave up before", host_->name());
  }
  void until_ready(const char* call) {
    const double began = real_clock().seconds();
    for (ncclResult_t state = ncclInProgress; state == ncclInProgress;) {
      check(nccl().get_async_error(comm_, &state), call, comm_);
      check(state, call, comm_);
      require(ErrorKind::kHang, real_clock().seconds() - began < timeout_s_,
              "rank {} has waited {} s for {} in group {} of {} ranks", host_->rank(), timeout_s_, call, host_->name(),
              host_->size());
      if (state == ncclInProgress) nap();
    }
  }
  void release() {
    if (comm_ != nullptr) nccl().abort(comm_);
    comm_ = nullptr;
  }

  std::shared_ptr<Communicator> host_;
  int device_;
  double timeout_s_;
  std::shared_ptr<CommunicationStream> stream_;
  ncclComm_t comm_ = nullptr;
  const int exceptions_ = std::uncaught_exceptions();
  GpuOperations under_way_;
  gpu::WaitLook wait_look_;  // last: it uses the others
};

class NcclWork final : public Pending::Work {
 public:
  // The operation begins when `stream` has done what it was given before; one of the CPU stands for the device's legacy
  // default stream.
  NcclWork(std::shared_ptr<Channel> channel, const CollectiveCall& call, std::vector<Piece> out, std::vector<Piece> in,
           const Stream& stream)
      : channel_(std::move(channel)),
        operation_(call.operation),
        out_(std::move(out)),
        in_(std::move(in)),
        stream_(stream.cuda()),
        is_ordered_(!stream.device().is_cpu()) {
    begin_->record(stream_);
    begin_->hold(channel_->stream());
    begin_->record(channel_->stream());
    const size_t n = out_.size();
    sent_sizes_.resize(n), came_sizes_.resize(n);
    CollectiveCall same = call;
    same.device = {};
    same.element = Element::kBytes;
    same.from = reinterpret_cast<const std::byte*>(sent_sizes_.data());
    same.to = reinterpret_cast<std::byte*>(came_sizes_.data());
    same.from_pieces.assign(n, {});
    same.to_pieces.assign(n, {});
    for (size_t r = 0; r < n; ++r) {
      sent_sizes_[r] = out_[r].bytes;
      const Piece number{.offset = int64_t(r * sizeof(int64_t)), .bytes = sizeof(int64_t)};
      const bool is_end = int(r) == call.peer;
      if (call.operation != Operation::kReceive && (call.operation != Operation::kSend || is_end)) {
        same.from_pieces[r] = number;
      }
      if (call.operation != Operation::kSend && (call.operation != Operation::kReceive || is_end)) {
        same.to_pieces[r] = number;
      }
    }
    entered_ = channel_->host().start(std::move(same), default_stream());
  }
  ~NcclWork() override {
    for (std::byte* scratch : scratch_) cudaFreeAsync(scratch, channel_->stream());
  }

  std::byte* allocate(int64_t bytes) {
    void* memory = nullptr;
    if (bytes > 0) check(cudaMallocAsync(&memory, size_t(bytes), channel_->stream()), "cudaMallocAsync");
    return bytes > 0 ? scratch_.emplace_back(static_cast<std::byte*>(memory)) : nullptr;
  }
  void all_is_given() {
    end_->record(channel_->stream());
    channel_->is_given(operation_, begin_, end_);
  }

  bool is_done() override {
    return guarded([&] {
      if (!entered_.is_done()) return false;
      entered_.wait();
      compare_sizes();
      channel_->look();
      return end_->is_reached();
    });
  }
  void wait() override {
    guarded([&] {
      entered_.wait();
      compare_sizes();
      channel_->look();
      if (is_ordered_) {
        end_->hold(stream_);
        return true;
      }
      const double began = real_clock().seconds();
      while (!end_->is_reached()) {
        channel_->look();
        const double waited = real_clock().seconds() - began;
        require(ErrorKind::kHang, waited < channel_->timeout_s(),
                "rank {} has waited {:.1f} s for its GPU in {} of group {}, which all ranks have entered",
                channel_->host().rank(), waited, name_of(operation_), channel_->host().name());
        nap();
      }
      return true;
    });
  }
  void give_up() noexcept override {
    channel_->give_up(ErrorKind::kCommunication, "an error ended it during an operation of its GPU");
  }

 private:
  template <class Body>
  bool guarded(Body&& body) {
    try {
      return body();
    } catch (const Error& error) {
      channel_->give_up(error.kind(), error.what());
      throw;
    }
  }
  void compare_sizes() const {
    const Communicator& host = channel_->host();
    for (size_t r = 0; r < in_.size(); ++r) {
      const bool is_told = int(r) != host.rank() && operation_ != Operation::kSend &&
                           (operation_ != Operation::kReceive || in_[r].bytes > 0 || came_sizes_[r] > 0);
      require(ErrorKind::kCommunication, !is_told || came_sizes_[r] == in_[r].bytes,
              "rank {} sends rank {} {} bytes in {} of group {}; it expects {}", host.world_rank(int(r)),
              host.world_rank(host.rank()), came_sizes_[r], name_of(operation_), host.name(), in_[r].bytes);
    }
  }

  std::shared_ptr<Channel> channel_;
  Operation operation_;
  std::vector<Piece> out_, in_;
  cudaStream_t stream_;
  bool is_ordered_;
  std::vector<int64_t> sent_sizes_, came_sizes_;
  std::vector<std::byte*> scratch_;
  const std::shared_ptr<Place> begin_ = std::make_shared<Place>(), end_ = std::make_shared<Place>();
  Pending entered_;  // last: it may still write to the sizes
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::shared_ptr<Communicator> host, int device, std::shared_ptr<CommunicationStream> stream,
                   const CommunicatorOptions& options)
      : Communicator(host->rank(), host->size(), host->name()),
        options_(options),
        channel_(std::make_shared<Channel>(std::move(host), device, std::move(stream), options.timeout_s)) {
    // A first message between all pairs.
    CollectiveCall first;
    first.operation = Operation::kGroup;
    first.device = {DeviceType::kCuda, device};
    void* memory = nullptr;
    check(cudaMalloc(&memory, size_t(size()) * 2), "cudaMalloc");
    first.from = static_cast<const std::byte*>(memory);
    first.to = static_cast<std::byte*>(memory) + size();
    for (int r = 0; r < size(); ++r) {
      first.from_pieces.push_back({.offset = r, .bytes = 1});
      first.to_pieces.push_back({.offset = r, .bytes = 1});
    }
    try {
      start(std::move(first), default_stream()).wait();
    } catch (...) {
      cudaFree(memory);
      throw;
    }
    check(cudaFree(memory), "cudaFree");
    reset_traffic();
  }

  int world_rank(int rank) const override { return channel_->host().world_rank(rank); }
  const std::string& host(int rank) const override { return channel_->host().host(rank); }
  std::unique_ptr<Communicator> group(std::span<const int> ranks, std::string name) override {
    return std::make_unique<NcclCommunicator>(channel_->host().group(ranks, std::move(name)), channel_->device(),
                                              channel_->shared_stream(), options_);
  }
  void set_phase(std::string_view phase) override { channel_->host().set_phase(phase); }
  void progress() override { channel_->host().progress(); }
  void abort(ErrorKind kind, std::string_view reason) noexcept override { channel_->give_up(kind, reason); }

  Pending start(CollectiveCall call, Stream& stream) override {
    if (call.element == Element::kFloat64 || call.operation == Operation::kBarrier) {
      ++traffic_[call.operation].calls;
      if (call.element == Element::kFloat64) count(call.operation, all_reduce_pieces(call, size()), call);
      return channel_->host().start(std::move(call), stream);
    }
    if (call.device.is_cpu()) {
      Communicator& host = channel_->host();
      const Operation operation = call.operation;
      const int64_t sent_before = host.traffic()[operation].bytes;
      Pending pending = host.start(std::move(call), stream);
      ++traffic_[operation].calls;
      traffic_[operation].bytes += host.traffic()[operation].bytes - sent_before;
      return pending;
    }
    require(call.device == Device{DeviceType::kCuda, channel_->device()},
            "{}: on {}; this communicator moves the memory of cuda:{} and of the host", name_of(call.operation),
            call.device, channel_->device());
    check(cudaSetDevice(channel_->device()), "cudaSetDevice");
    ++traffic_[call.operation].calls;
    const bool is_sum = call.element != Element::kBytes, is_all = call.operation == Operation::kAllReduce;
    const std::vector<Piece> out = is_sum && is_all ? all_reduce_pieces(call, size()) : call.from_pieces;
    count(call.operation, out, call);
    const Piece mine = out[size_t(rank())];
    std::vector<Piece> in = call.to_pieces;
    if (is_sum) {
      in.clear();
      for (int r = 0; r < size(); ++r) {
        const int64_t slot = r < rank() ? r : r - 1;
        in.push_back(r == rank() ? Piece{} : Piece{.offset = slot * mine.bytes, .bytes = mine.bytes});
      }
    }
    auto work = std::make_shared<NcclWork>(channel_, call, out, in, stream);
    try {
      if (is_sum) {
        std::byte* others = work->allocate(mine.bytes * (size() - 1));
        channel_->exchange(call.from, out, others, in);
        std::byte* to = call.to + (is_all ? mine.offset : 0);
        check(nccl_sum({.others = others,
                        .own = call.from + mine.offset,
                        .own_rank = rank(),
                        .ranks = size(),
                        .elements = mine.bytes / size_of(call.element),
                        .to = to,
                        .is_bfloat16 = call.element == Element::kBFloat16},
                       channel_->stream()),
              "nccl_sum");
        if (is_all && call.from_pieces[0].bytes > kWholeReduceBytes) {
          const std::vector<Piece> again(size_t(size()), mine);
          channel_->exchange(call.to, again, call.to, out);
        }
      } else {
        copy_own(call);
        if (call.parts == 1) {
          channel_->exchange(call.from, call.from_pieces, call.to, call.to_pieces);
        } else {
          channel_->exchange(call.from, call.from_parts, call.to, call.to_parts, call.parts);
        }
      }
      work->all_is_given();
    } catch (const Error& error) {
      channel_->give_up(error.kind(), error.what());
      throw;
    }
    return Pending(std::move(work));
  }

 private:
  void count(Operation operation, const std::vector<Piece>& out, const CollectiveCall& call) {
    Traffic::Line& line = traffic_[operation];
    for (int r = 0; r < size(); ++r) {
      if (r != rank()) line.bytes += out[size_t(r)].bytes;
    }
    if (operation == Operation::kAllReduce && call.from_pieces[0].bytes > kWholeReduceBytes) {
      line.bytes += out[size_t(rank())].bytes * (size() - 1);
    }
  }
  void copy_own(const CollectiveCall& call) {
    const bool is_pair = call.operation == Operation::kSend || call.operation == Operation::kReceive;
    if (is_pair || call.operation == Operation::kBroadcast) return;
    std::byte* to = call.to + call.to_pieces[size_t(rank())].offset;
    for (const Piece& from : call.parts_to(rank())) {
      if (from.bytes > 0 && call.from + from.offset != to) {
        check(cudaMemcpyAsync(to, call.from + from.offset, size_t(from.bytes), cudaMemcpyDeviceToDevice,
                              channel_->stream()),
              "cudaMemcpyAsync");
      }
      to += from.bytes;
    }
  }

  CommunicatorOptions options_;
  std::shared_ptr<Channel> channel_;
};

}  // namespace

std::string nccl_trouble() {
  try {
    nccl();
    return {};
  } catch (const Error& error) {
    return error.report().what;
  }
}

std::unique_ptr<Communicator> make_nccl_communicator(std::shared_ptr<Communicator> host, int device_index,
                                                     const CommunicatorOptions& options) {
  const int gpus = count_gpus();
  require(ErrorKind::kDevice, 0 <= device_index && device_index < gpus,
          "nccl_communicator: GPU {} on a machine with {}; wanted one for this rank", device_index, gpus);
  return std::make_unique<NcclCommunicator>(std::move(host), device_index,
                                            std::make_shared<CommunicationStream>(device_index), options);
}

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& host, int device_index,
                                                     const CommunicatorOptions& options) {
  return make_nccl_communicator(std::shared_ptr<Communicator>(std::shared_ptr<void>(), &host), device_index, options);
}

int count_gpus() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

}  // namespace octet
