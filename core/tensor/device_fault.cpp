#include "core/tensor/device_fault.h"

#include "kernels/device_runtime.h"

namespace octet {
namespace {

constexpr int64_t kNumbers = sizeof(gpu::FaultRecord) / sizeof(int64_t);

const char* name_of(gpu::Fault fault) {
  switch (fault) {
    case gpu::Fault::kNone:
      break;
    case gpu::Fault::kToken:
      return "a token has the number";
    case gpu::Fault::kExpert:
      return "a token was sent to expert";
    case gpu::Fault::kRow:
      return "a row was to be read at";
    case gpu::Fault::kGroups:
      return "the rows of an expert number";
    case gpu::Fault::kRoom:
      return "rows for one rank number";
  }
  return "an unknown fault of";
}

}  // namespace

DeviceFault::DeviceFault(Device device) : device_(device) {
  if (device.is_cpu()) return;
  record_ = Readback(ConstView(gpu::fault_record(device), {kNumbers}, DType::kInt64), default_stream(device));
}

void DeviceFault::rethrow() const {
  if (device_.is_cpu()) return;
  const auto record = record_.wait<int64_t>();
  if (record[0] == int64_t(gpu::Fault::kNone)) return;
  gpu::fill(gpu::fault_record(device_), 0, sizeof(gpu::FaultRecord), default_stream(device_));
  if (record[0] == int64_t(gpu::Fault::kRoom)) {
    fail(ErrorKind::kConfig,
         {.what =
              fmt::format("rank {} has {} rows for the experts of rank {}; parallel.dispatch_bound leaves room for {}",
                          record[3], record[1], record[4], record[2] - 1),
          .where = fmt::format("dispatch of a layer on {}, in the numbers of its ep group", device_),
          .why = "rows without room are left out, and the numbers of this pass are wrong; nothing was updated",
          .fix = fmt::format("set parallel.dispatch_bound {:.2f} times as high or more, or 0 for room for all",
                             double(record[1]) / double(record[2] - 1))});
  }
  fail(ErrorKind::kDevice,
       {.what = fmt::format("{} {}; wanted 0 to {}", name_of(gpu::Fault(record[0])), record[1], record[2] - 1),
        .where = fmt::format("a kernel on {}", device_),
        .why = "memory has no place for it; the kernel left it out, and the numbers of this pass are wrong",
        .fix = "tokens are checked where a dataset is read, so this is a fault of octet or of the GPU: octet doctor"});
}

}  // namespace octet
