// What the emulated GPU finds (kernels/device_runtime.h), each in a process of its own, which it ends.
#include <sys/wait.h>
#include <unistd.h>

#include <array>

#include "core/tensor/transfer.h"
#include "kernels/wait_look.h"
#include "tests/support/devices.h"
#include "tests/support/numeric.h"

namespace octet::test {
namespace {

// Runs body in a child; what it wrote before it ended, and whether a signal ended it.
struct End {
  std::string words;
  bool by_signal = false;
};
template <class Body>
End end_of(Body&& body) {
  std::array<int, 2> pipe{};
  REQUIRE(::pipe(pipe.data()) == 0);
  const pid_t pid = ::fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    ::dup2(pipe[1], STDERR_FILENO);
    ::dup2(pipe[1], STDOUT_FILENO);
    ::close(pipe[0]);
    body();
    ::_exit(0);
  }
  ::close(pipe[1]);
  End end;
  std::array<char, 512> part{};
  for (ssize_t n = 0; (n = ::read(pipe[0], part.data(), part.size())) > 0;) end.words.append(part.data(), size_t(n));
  ::close(pipe[0]);
  int status = 0;
  REQUIRE(::waitpid(pid, &status, 0) == pid);
  end.by_signal = WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) != 0);
  return end;
}

}  // namespace

TEST_CASE("a host that touches device memory ends with the allocation's name", "[tensor][emulated_gpu]") {
  gpu::open(kGpu);
  const Tensor x(Shape{100}, DType::kFloat32, MemoryCategory::kGradients, kGpu);
  const View view = x;
  const End read = end_of([&] { [[maybe_unused]] const float taken = static_cast<volatile float*>(view.raw())[3]; });
  CHECK(read.by_signal);
  CHECK_THAT(read.words,
             Catch::Contains("host code touched") && Catch::Contains("byte 12 of") && Catch::Contains("of gradients"));
  const End written = end_of([&] { view.data<float>()[0] = 1; });
  CHECK(written.by_signal);
  const End inside = end_of([&] {
    const gpu::LaunchWindow window("a kernel");
    view.data<float>()[0] = 1;
  });
  CHECK_FALSE(inside.by_signal);
}

TEST_CASE("a kernel that writes behind an allocation is found when it is freed", "[tensor][emulated_gpu]") {
  gpu::open(kGpu);
  const End end = end_of([] {
    const Tensor x(Shape{64}, DType::kFloat32, MemoryCategory::kWorkspace, kGpu);
    const gpu::LaunchWindow window("careless");
    x.view().data<float>()[64] = 1;
  });
  CHECK(end.by_signal);
}

TEST_CASE("memory that nothing was written to reads as NaN", "[tensor][emulated_gpu]") {
  gpu::open(kGpu);
  for (const float value : to_vector<float>(empty({9}, DType::kFloat32, kGpu))) CHECK(std::isnan(value));
}

TEST_CASE("copies want pinned memory, and arrive when the host waits", "[tensor][emulated_gpu]") {
  gpu::open(kGpu);
  Stream& stream = default_stream(kGpu);
  const Tensor x = zeros({4}, DType::kFloat32, kGpu);
  std::array<float, 4> plain{};
  CHECK_THROWS_WITH(gpu::copy(plain.data(), x.view().raw(), 16, stream), Catch::Contains("not pinned"));
  CHECK_THROWS_WITH(gpu::copy(x.view().raw(), plain.data(), 16, stream), Catch::Contains("not pinned"));
  std::byte* pinned = gpu::allocate_pinned(16);
  gpu::copy(pinned, x.view().raw(), 16, stream);
  CHECK(uint8_t(pinned[0]) == 0xff);
  gpu::synchronize(stream);
  CHECK(uint8_t(pinned[0]) == 0);
  gpu::release_pinned(pinned);
}

TEST_CASE("a host that waits looks at what it was told to, and an error ends the wait", "[tensor][emulated_gpu]") {
  gpu::open(kGpu);
  Stream& stream = default_stream(kGpu);
  gpu::Event event;
  event.record(stream);
  int looks = 0;
  {
    const gpu::WaitLook look([&] { ++looks; });
    gpu::synchronize(stream);
    event.wait();
    CHECK(looks == 2);
    const gpu::WaitLook other([] { fail(ErrorKind::kHang, {.what = "in vain", .where = {}, .why = {}, .fix = {}}); });
    CHECK_THROWS_WITH(event.wait(), Catch::Contains("in vain"));
    CHECK(looks == 3);
  }
  gpu::synchronize(stream);
  CHECK(looks == 3);
}

TEST_CASE("memory that outlives a capture is refused at its end", "[tensor][emulated_gpu][capture]") {
  gpu::open(kGpu);
  Tensor kept;
  {
    gpu::Capture capture(default_stream(kGpu));
    kept = zeros({4}, DType::kFloat32, MemoryCategory::kWorkspace, kGpu);
    CHECK_THROWS_WITH(capture.finish(), Catch::Contains("1 blocks of memory outlive") && Catch::Contains("workspace"));
  }
  fill_zero(kept);
  CHECK(to_vector<float>(kept) == std::vector<float>(4, 0.0f));
}

TEST_CASE("a graph's memory reads as NaN again in each launch", "[tensor][emulated_gpu][capture]") {
  gpu::open(kGpu);
  Stream& stream = default_stream(kGpu);
  const Tensor x = zeros({4}, DType::kFloat32, kGpu), y = zeros({4}, DType::kFloat32, kGpu);
  gpu::Graph graph;
  {
    gpu::Capture capture(stream);
    const auto copied = [&](const Tensor& from) {
      const Tensor between = empty({4}, DType::kFloat32, kGpu);
      if (from.is_defined()) copy(from, between);
      copy(between, from.is_defined() ? x : y);
    };
    copied(x);
    copied({});  // the block that was released, and nothing written to it
    graph = capture.finish();
  }
  for (int launch = 0; launch < 2; ++launch) {
    graph.launch(stream);
    CHECK(to_vector<float>(x) == std::vector<float>(4, 0.0f));
    for (const float value : to_vector<float>(y)) CHECK(std::isnan(value));
  }
}

}  // namespace octet::test
