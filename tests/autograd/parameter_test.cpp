#include "core/autograd/parameter.h"

#include "core/tensor/transfer.h"
#include "tests/support/devices.h"
#include "tests/support/numeric.h"

namespace octet::test {

TEST_CASE("a weight keeps its transposed codes as long as it is asked to, and follows the master again afterwards",
          "[autograd][parameter]") {
  const Device device = GENERATE(from_range(devices_here()));
  const int64_t G = GENERATE(1, 3), N = 48, K = 37;
  CAPTURE(device, G);
  Parameter weight("w", {G, N, K}, WeightForm::kFp8Block, /*decays=*/true, device);
  const auto fill = [&](uint64_t seed) {
    copy(from_vector(uniform<float>(G * N * K, seed), {G, N, K}, device), weight.master());
    weight.refresh();
  };
  const auto transposed = [&] {
    const auto codes = to_vector<uint8_t>(weight.fp8().codes);
    std::vector<uint8_t> wanted;
    for (int64_t g = 0; g < G; ++g) {
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t n = 0; n < N; ++n) wanted.push_back(codes[size_t((g * N + n) * K + k)]);
      }
    }
    return wanted;
  };
  const auto held = [device] { return memory_use(device).current_bytes[size_t(MemoryCategory::kWeights)]; };
  fill(1);
  CHECK_FALSE(weight.transposed_codes().is_defined());
  const int64_t held_before = held();
  std::vector<uint8_t> first;
  for (const uint64_t seed : {1, 2}) {
    fill(seed);
    weight.keep_transposed(true);
    CHECK(held() == held_before);  // until somebody asks
    const Tensor codes = weight.transposed_codes();
    CHECK(codes.shape() == Shape{G, K, N});
    CHECK(to_vector<uint8_t>(codes) == transposed());
    CHECK(weight.transposed_codes().view().raw() == codes.view().raw());
    CHECK(held() == held_before + allocated_bytes(G * K * N));
    CHECK(to_vector<uint8_t>(codes) != first);
    first = to_vector<uint8_t>(codes);
    weight.keep_transposed(false);
    CHECK_FALSE(weight.transposed_codes().is_defined());
  }
  CHECK(held() == held_before);
}

TEST_CASE("dgrad reads weights transposed on GPUs, with the tensor core's sums, along whole 16 bytes",
          "[autograd][parameter]") {
  using kernels::Emulation;
  const auto is_read_transposed = [](WeightForm form, int64_t N, DeviceType device, Emulation emulation) {
    return Parameter("w", {N, 24}, form, /*decays=*/true).is_read_transposed(device, emulation);
  };
  constexpr auto kFp8 = WeightForm::kFp8Block;
  CHECK(is_read_transposed(kFp8, 32, DeviceType::kCuda, Emulation::kHopper));
  CHECK_FALSE(is_read_transposed(kFp8, 40, DeviceType::kCuda, Emulation::kHopper));
  CHECK_FALSE(is_read_transposed(kFp8, 32, DeviceType::kCpu, Emulation::kHopper));
  CHECK_FALSE(is_read_transposed(kFp8, 32, DeviceType::kCuda, Emulation::kIdeal));
  CHECK_FALSE(is_read_transposed(WeightForm::kBFloat16, 32, DeviceType::kCuda, Emulation::kHopper));
  CHECK_FALSE(is_read_transposed(WeightForm::kFloat32, 32, DeviceType::kCuda, Emulation::kHopper));
}

}  // namespace octet::test
