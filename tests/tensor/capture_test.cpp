// Work of a GPU that is written down and launched (gpu::Capture), on a real one or an emulated one.
#include "core/tensor/transfer.h"
#include "tests/support/devices.h"
#include "tests/support/numeric.h"

namespace octet::test {
namespace {

Tensor on_gpu(const std::vector<float>& values) { return from_vector(values, {int64_t(values.size())}, kGpu); }

}  // namespace

TEST_CASE("a capture runs nothing, and each launch of its graph all of it", "[tensor][capture]") {
  if (!has_gpu()) return;
  Stream& stream = default_stream(kGpu);
  const Tensor x = on_gpu({1, 2, 3}), y = on_gpu({0, 0, 0}), z = on_gpu({7, 7, 7});
  gpu::Graph graph;
  CHECK_FALSE(graph.is_defined());
  {
    const gpu::Capture capture(stream);
    copy(x, y);
  }
  CHECK(to_vector<float>(y) == std::vector<float>{0, 0, 0});  // forgotten
  {
    gpu::Capture capture(stream);
    {
      const Tensor between = empty_like(x);
      copy(x, between);
      copy(between, y);
    }
    {
      const Tensor between = empty_like(x);  // which may have the memory of the other
      fill_zero(between);
      copy(between, z);
    }
    graph = capture.finish();
  }
  REQUIRE(graph.is_defined());
  CHECK(to_vector<float>(y) == std::vector<float>{0, 0, 0});
  CHECK(to_vector<float>(z) == std::vector<float>{7, 7, 7});
  graph.launch(stream);
  CHECK(to_vector<float>(y) == std::vector<float>{1, 2, 3});
  CHECK(to_vector<float>(z) == std::vector<float>{0, 0, 0});
  const Tensor taken_meanwhile = on_gpu(std::vector<float>(1000, 5.0f));
  copy(from_vector<float>({4, 5, 6}, {3}), x);
  copy(x, z);
  const int64_t waits = gpu::host_waits();
  graph.launch(stream);
  CHECK(gpu::host_waits() == waits);
  CHECK(to_vector<float>(y) == std::vector<float>{4, 5, 6});
  CHECK(to_vector<float>(z) == std::vector<float>{0, 0, 0});
  CHECK(to_vector<float>(taken_meanwhile) == std::vector<float>(1000, 5.0f));
}

TEST_CASE("what a graph could not repeat is refused while it is captured", "[tensor][capture]") {
  if (!has_gpu()) return;
  Stream& stream = default_stream(kGpu);
  const Tensor x = on_gpu({1, 2, 3});
  const auto refused = Catch::Contains("while a step is captured");
  gpu::Event event;
  event.record(stream);
  {
    const Tensor host = from_vector<float>({1, 2, 3}, {3});
    gpu::Capture capture(stream);
    CHECK_THROWS_WITH(gpu::synchronize(stream), refused);
    CHECK_THROWS_WITH(event.wait(), refused);
    CHECK_THROWS_WITH(event.is_done(), refused);
    CHECK_THROWS_WITH(event.record(stream), refused);
    CHECK_THROWS_WITH(event.hold(stream), refused);
    CHECK_THROWS_WITH(gpu::allocate_pinned(16), refused);
    CHECK_THROWS_WITH(gpu::Stopwatch().start(stream), refused);
    CHECK_THROWS_WITH(copy(host, x), refused);
    CHECK_THROWS_WITH(to_vector<float>(x), refused);
    CHECK_THROWS_WITH(Readback(x), refused);
  }
  {
    Tensor before = on_gpu({1, 2, 3});
    gpu::Capture capture(stream);
    before = Tensor();
    CHECK_THROWS_WITH(capture.finish(), Catch::Contains("1 blocks of memory from before the capture"));
  }
  CHECK(to_vector<float>(x) == std::vector<float>{1, 2, 3});  // the stream is as it was
}

}  // namespace octet::test
