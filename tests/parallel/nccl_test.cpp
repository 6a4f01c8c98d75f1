// The communicator of GPUs. Without a GPU: that it says so. With one: several ranks share it, which NCCL 2.28 refuses
// only within one host, so that each rank has a host identity of its own and they talk over loopback sockets.
#include "parallel/nccl_communicator.h"

#include <cuda_runtime_api.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <functional>
#include <thread>

#include "kernels/device_runtime.h"
#include "parallel/local_communicator.h"
#include "parallel/self_communicator.h"
#include "parallel/staged_communicator.h"
#include "tests/parallel/communicator_cases.h"
#include "tests/parallel/mpirun.h"
#include "tools/train/verify.h"

namespace octet::test {
namespace {

using Element = CollectiveCall::Element;
using Piece = CollectiveCall::Piece;

void check_cuda(cudaError_t status) {
  require(ErrorKind::kDevice, status == cudaSuccess, "CUDA: {}", cudaGetErrorString(status));
}

int64_t end_of(const std::vector<Piece>& pieces) {
  int64_t end = 0;
  for (const Piece& piece : pieces) end = std::max(end, piece.offset + piece.bytes);
  return end;
}

// Does on a GPU what it is asked to do in host memory, so that the cases of every communicator are those of this one.
class OnGpu final : public Communicator {
 public:
  OnGpu(std::unique_ptr<Communicator> gpu, int device)
      : Communicator(gpu->rank(), gpu->size(), gpu->name()), gpu_(std::move(gpu)), device_(device) {}

  int world_rank(int rank) const override { return gpu_->world_rank(rank); }
  const std::string& host(int rank) const override { return gpu_->host(rank); }
  std::unique_ptr<Communicator> group(std::span<const int> ranks, std::string name) override {
    return std::make_unique<OnGpu>(gpu_->group(ranks, std::move(name)), device_);
  }
  void set_phase(std::string_view phase) override { gpu_->set_phase(phase); }
  void progress() override { gpu_->progress(); }
  void abort(ErrorKind kind, std::string_view reason) noexcept override { gpu_->abort(kind, reason); }

  Pending start(CollectiveCall call, Stream& stream) override {
    if (call.element == Element::kFloat64 || call.operation == Operation::kBarrier) return start_there(call, stream);
    const bool is_sum = call.element != Element::kBytes, is_all = call.operation == Operation::kAllReduce;
    const int64_t from_bytes = end_of(call.from_pieces);
    const int64_t to_bytes = is_all   ? from_bytes
                             : is_sum ? call.from_pieces[size_t(rank())].bytes
                                      : end_of(call.to_pieces);
    auto copy = std::make_shared<Copy>();
    copy->host_to = call.to;
    copy->to_bytes = to_bytes;
    copy->from = on_gpu(call.from, from_bytes);
    copy->to = on_gpu(call.to, to_bytes);
    // Where one lies inside the other it does so on the GPU too.
    const bool to_in_from = call.from <= call.to && call.to + to_bytes <= call.from + from_bytes;
    const bool from_in_to = call.to <= call.from && call.from + from_bytes <= call.to + to_bytes;
    const std::byte* host_from = call.from;
    call.from = from_in_to && !to_in_from ? copy->to + (host_from - call.to) : copy->from;
    if (to_in_from) {
      copy->result = copy->from + (copy->host_to - host_from);
    } else {
      copy->result = copy->to;
    }
    call.to = copy->result;
    call.device = {DeviceType::kCuda, device_};
    copy->pending = start_there(std::move(call), stream);
    return Pending(std::move(copy));
  }

 private:
  struct Copy final : Pending::Work {
    ~Copy() override { cudaFree(from), cudaFree(to); }
    bool is_done() override { return pending.is_done(); }
    void wait() override {
      pending.wait();
      if (to_bytes > 0) check_cuda(cudaMemcpy(host_to, result, size_t(to_bytes), cudaMemcpyDeviceToHost));
    }
    void give_up() noexcept override {}
    std::byte *from = nullptr, *to = nullptr, *result = nullptr, *host_to = nullptr;
    int64_t to_bytes = 0;
    Pending pending;
  };
  static std::byte* on_gpu(const std::byte* host, int64_t bytes) {
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, size_t(std::max<int64_t>(bytes, 1))));
    if (bytes > 0) check_cuda(cudaMemcpy(memory, host, size_t(bytes), cudaMemcpyHostToDevice));
    return static_cast<std::byte*>(memory);
  }
  Pending start_there(CollectiveCall call, Stream& stream) {
    const Traffic before = gpu_->traffic();
    Pending pending = gpu_->start(std::move(call), stream);
    for (size_t i = 0; i < traffic_.lines.size(); ++i) {
      traffic_.lines[i].calls += gpu_->traffic().lines[i].calls - before.lines[i].calls;
      traffic_.lines[i].bytes += gpu_->traffic().lines[i].bytes - before.lines[i].bytes;
    }
    return pending;
  }

  std::unique_ptr<Communicator> gpu_;
  int device_;
};

}  // namespace

TEST_CASE("a GPU that is not there is refused", "[nccl]") {
  const int gpus = count_gpus();
  const Error error = error_of([&] { make_nccl_communicator(make_self_communicator(), gpus, {}); });
  CHECK(error.code() == 2);
  CHECK_THAT(error.report().what, Catch::Contains(fmt::format("GPU {} on a machine with {}", gpus, gpus)));
}

TEST_CASE("messages by way of the host want a GPU too", "[nccl]") {
  const int gpus = count_gpus();
  const Error error = error_of([&] { make_staged_communicator(make_self_communicator(), {DeviceType::kCuda, gpus}); });
  CHECK(error.code() == 2);
  CHECK_THAT(error.report().what, Catch::Contains(fmt::format("GPU {} on a machine with {}", gpus, gpus)));
}

// All cases on the GPUs of this machine, which ranks share where there are fewer.
static void run_cases(const std::function<std::unique_ptr<Communicator>(std::unique_ptr<Communicator>, int)>& make) {
  auto world = make_mpi_communicator({.timeout_s = 60});
  const int rank = world->rank(), device = rank % count_gpus();
  std::vector<std::vector<uint64_t>> local(size_t(world->size()));
  run_local_ranks(world->size(), {}, [&](Communicator& c) { local[size_t(c.rank())] = reduced_bits(c); });
  OnGpu gpu(make(std::move(world), device), device);
  for (const CommunicatorCase& each : communicator_cases()) {
    try {
      each.run(gpu);
    } catch (const Error& error) {
      std::fprintf(stderr, "%s: %s", each.name.c_str(), error.block().c_str());
      mpi_abort(error.code());
    }
  }
  REQUIRE(reduced_bits(gpu) == local[size_t(rank)]);
  if (rank == 0) std::printf("%d ranks agree\n", gpu.size());
}

TEST_CASE("rank: all cases on a GPU", "[.rank]") {
  run_cases([](std::unique_ptr<Communicator> world, int device) {
    ::setenv("NCCL_HOSTID", fmt::format("rank-{}", world->rank()).c_str(), 1);
    ::setenv("NCCL_SOCKET_IFNAME", "lo", 1);
    return make_nccl_communicator(std::move(world), device, {.timeout_s = 60});
  });
}

TEST_CASE("rank: all cases on a GPU by way of the host", "[.rank]") {
  run_cases([](std::unique_ptr<Communicator> world, int device) {
    return make_staged_communicator(std::move(world), {DeviceType::kCuda, device});
  });
}

TEST_CASE("ranks on GPUs do what every communicator does, with the bits of threads", "[nccl]") {
  if (count_gpus() == 0) {
    WARN("skipped: there is no GPU");
    return;
  }
  if (is_skipped()) return;
  const std::string name = GENERATE("rank: all cases on a GPU", "rank: all cases on a GPU by way of the host");
  for (int ranks = 1; ranks <= 3; ++ranks) {
    const MpiRun run = run_mpi(ranks, name);
    INFO(name << ": " << run.text);
    CHECK(run.code == 0);
    CHECK_THAT(run.text, Catch::Contains(std::to_string(ranks) + " ranks agree"));
  }
}

// Rank 1's GPU comes to the sum long after the deadline.
TEST_CASE("rank: a GPU that does not come", "[.rank]") {
  auto world = make_mpi_communicator({.timeout_s = 60});
  const int rank = world->rank(), device = rank % count_gpus();
  ::setenv("NCCL_HOSTID", fmt::format("rank-{}", rank).c_str(), 1);
  ::setenv("NCCL_SOCKET_IFNAME", "lo", 1);
  const Device gpu{DeviceType::kCuda, device};
  gpu::open(gpu);
  Stream& stream = default_stream(gpu);
  const auto ranks = make_nccl_communicator(std::move(world), device, {.timeout_s = 3});
  const Tensor x = zeros({64}, DType::kFloat32, gpu);
  if (rank == 1) {
    const auto sleep = [](void*) { std::this_thread::sleep_for(std::chrono::seconds(20)); };
    REQUIRE(cudaLaunchHostFunc(stream.cuda(), sleep, nullptr) == cudaSuccess);
  }
  try {
    ranks->all_reduce(x, stream);
    gpu::synchronize(stream);
  } catch (const Error& error) {
    end_with(error);
  }
}

TEST_CASE("a GPU that does not come to an operation is found by the others", "[nccl]") {
  if (count_gpus() == 0) {
    WARN("skipped: there is no GPU");
    return;
  }
  if (is_skipped()) return;
  const MpiRun run = run_mpi(2, "rank: a GPU that does not come");
  INFO(run.text);
  CHECK(run.code == 8);
  CHECK(run.seconds < 18);
  CHECK_THAT(run.text, Catch::Contains("GPU has been in all_reduce of group world"));
}

// A run that spreads its experts, over NCCL.
TEST_CASE("rank: training over NCCL", "[.rank]") {
  auto world = make_mpi_communicator({.timeout_s = 60});
  const int rank = world->rank();
  ::setenv("NCCL_HOSTID", fmt::format("rank-{}", rank).c_str(), 1);
  ::setenv("NCCL_SOCKET_IFNAME", "lo", 1);
  Config config;
  config.model.layers = 2;
  config.model.hidden = 64;
  config.model.heads = 2;
  config.model.ffn_hidden = 48;
  config.model.vocab_size = 100;
  config.model.moe.num_experts = 4;
  config.model.moe.expert_hidden = 32;
  config.precision.recipe = Recipe::kFp8Block;
  config.data.seq_len = 16;
  config.train.batch_size = 4;
  config.train.micro_batch = 1;
  config.device = DeviceType::kCuda;
  config.parallel.dp = world->size();
  config.parallel.ep = 2;
  config.parallel.timeout_s = 60;
  config.parallel.gpu_transport = GpuTransport::kNccl;
  const LayoutResult result = verify_layout(config, 5, *world);
  INFO(result.first_difference);
  REQUIRE(result.is_equal());
  if (rank == 0) std::printf("%d ranks trained\n", world->size());
}

TEST_CASE("experts on several GPUs, over NCCL, are one rank, bit for bit", "[nccl]") {
  if (count_gpus() == 0) {
    WARN("skipped: there is no GPU");
    return;
  }
  if (is_skipped()) return;
  for (const int ranks : {2, 4}) {
    const MpiRun run = run_mpi(ranks, "rank: training over NCCL");
    INFO(run.text);
    CHECK(run.code == 0);
    CHECK_THAT(run.text, Catch::Contains(std::to_string(ranks) + " ranks trained"));
  }
}

}  // namespace octet::test
