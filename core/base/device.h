// Where a tensor lives.
#pragma once

#include <fmt/format.h>

#include <string>

namespace octet {

enum class DeviceType : uint8_t { kCpu, kCuda };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int index = 0;
  bool operator==(const Device&) const = default;
  bool is_cpu() const { return type == DeviceType::kCpu; }
};

inline constexpr int kMostGpus = 64;  // of one machine

// "cpu", "cuda:1"
inline std::string to_string(Device device) { return device.is_cpu() ? "cpu" : fmt::format("cuda:{}", device.index); }

}  // namespace octet

template <>
struct fmt::formatter<octet::Device> : fmt::formatter<std::string> {
  auto format(octet::Device device, fmt::format_context& context) const {
    return fmt::formatter<std::string>::format(octet::to_string(device), context);
  }
};
