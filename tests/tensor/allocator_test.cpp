#include "core/tensor/allocator.h"

#include "core/tensor/transfer.h"
#include "tests/support/devices.h"
#include "tests/support/memory.h"
#include "tests/support/numeric.h"

namespace octet::test {

TEST_CASE("each device counts its own memory, by category, with peaks", "[tensor][allocator]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  const auto weights = size_t(MemoryCategory::kWeights);
  const int64_t before = memory_use(device).current_bytes[weights];
  {
    const Tensor x(Shape{1000}, DType::kFloat32, MemoryCategory::kWeights, device);
    CHECK(memory_use(device).current_bytes[weights] == before + allocated_bytes(4000));
    if (!device.is_cpu()) CHECK(memory_use().current_bytes[weights] == 0);
  }
  CHECK(memory_use(device).current_bytes[weights] == before);
  CHECK(memory_use(device).peak_bytes[weights] >= before + allocated_bytes(4000));
  reset_peak_memory(device);
  CHECK(memory_use(device).peak_bytes[weights] == before);
}

TEST_CASE("out of memory names what was wanted and the largest holders", "[tensor][allocator]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  if (kIsSanitized && device.is_cpu()) {
    WARN("skipped: the sanitizer ends a process that wants a petabyte");
    return;
  }
  const Tensor large(Shape{3 << 20}, DType::kFloat32, MemoryCategory::kGradients, device);
  const Tensor small(Shape{1 << 10}, DType::kFloat32, MemoryCategory::kOptimizer, device);
  try {
    const Tensor refused(Shape{int64_t(1) << 50}, DType::kUInt8, MemoryCategory::kActivations, device);
    FAIL("a petabyte was handed out");
  } catch (const Error& error) {
    CHECK(error.code() == 9);
    CHECK(error.report().what == "out of memory: 1073741824.0 MiB more for activations");
    CHECK_THAT(error.report().where,
               Catch::Contains("gradients 12.0 MiB (1 of 12.0 MiB)") && Catch::Contains(fmt::format("{}", device)));
    const size_t gradients = error.report().where.find("gradients"), moments = error.report().where.find("optimizer");
    CHECK(gradients < moments);  // the largest first
  }
  CHECK(to_vector<float>(zeros({4}, DType::kFloat32, device)) == std::vector<float>(4, 0.0f));
}

}  // namespace octet::test
