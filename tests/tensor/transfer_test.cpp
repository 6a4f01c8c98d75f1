#include "core/tensor/transfer.h"

#include <numeric>

#include "tests/support/devices.h"
#include "tests/support/numeric.h"

namespace octet::test {
namespace {

std::vector<float> counting(int64_t n, float first = 0.0f) {
  std::vector<float> values(static_cast<size_t>(n));
  std::iota(values.begin(), values.end(), first);
  return values;
}

}  // namespace

TEST_CASE("numbers come back from a device as they went", "[tensor]") {
  const Device device = GENERATE(from_range(devices_here()));
  const int64_t rows = GENERATE(0, 1, 7);
  CAPTURE(device, rows);
  const std::vector<float> values = counting(rows * 5);
  const Tensor x = from_vector(values, {rows, 5}, device);
  CHECK(x.device() == device);
  CHECK(to_vector<float>(x) == values);
  CHECK(to_vector<float>(empty_like(x).reshape({rows * 5})).size() == values.size());
  CHECK(to_vector<int32_t>(zeros({rows, 3}, DType::kInt32, device)) == std::vector<int32_t>(size_t(rows * 3), 0));
}

TEST_CASE("slices are copied row by row, between any two devices", "[tensor]") {
  const Device from = GENERATE(from_range(devices_here())), to = GENERATE(from_range(devices_here()));
  CAPTURE(from, to);
  const Tensor x = from_vector(counting(24), {4, 6}, from), y = from_vector(counting(24, 100.0f), {4, 6}, to);
  copy(x.slice_columns(1, 2).slice_rows(1, 2), y.slice_columns(3, 2).slice_rows(2, 2));
  std::vector<float> wanted = counting(24, 100.0f);
  wanted[2 * 6 + 3] = 7, wanted[2 * 6 + 4] = 8, wanted[3 * 6 + 3] = 13, wanted[3 * 6 + 4] = 14;
  CHECK(to_vector<float>(y) == wanted);
  CHECK(to_vector<float>(y.slice_columns(3, 2)) == std::vector<float>{103, 104, 109, 110, 7, 8, 13, 14});
}

TEST_CASE("what a copy reads may change when the call returns", "[tensor]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  const Tensor source = from_vector(counting(1000), {1000}), there = empty({1000}, DType::kFloat32, device);
  copy(source, there);
  fill_zero(source);
  CHECK(to_vector<float>(there) == counting(1000));
}

TEST_CASE("a readback brings the numbers of the moment it was asked for", "[tensor]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  Tensor x = from_vector(counting(50), {50}, device);
  const Readback early(x);
  const int64_t waits = gpu::host_waits();
  if (device.is_cpu()) {
    x = Tensor();  // the readback holds the numbers
  } else {
    fill_zero(x);  // after the copy, in the order of the stream
    CHECK(gpu::host_waits() == waits);
  }
  const auto came = early.wait<float>();
  CHECK(std::vector<float>(came.begin(), came.end()) == counting(50));
  CHECK(gpu::host_waits() == waits + (device.is_cpu() ? 0 : 1));
  CHECK_THROWS_WITH(early.wait<int32_t>(), Catch::Contains("float32"));
}

TEST_CASE("a tensor of a GPU gives the host no address", "[tensor]") {
  if (!has_gpu()) return;
  const Tensor x = zeros({2}, DType::kFloat32, kGpu);
  CHECK_THROWS_WITH(x.data<float>(), Catch::Contains("cuda:0"));
}

TEST_CASE("a device that is not there is refused in words", "[tensor]") {
  const Device none{.type = DeviceType::kCuda, .index = 63};
  try {
    gpu::open(none);
    FAIL("opened");
  } catch (const Error& error) {
    CHECK(error.code() == 2);
    CHECK_FALSE(error.report().fix.empty());
  }
  CHECK_THROWS_AS(empty({1}, DType::kFloat32, none), Error);
}

}  // namespace octet::test
