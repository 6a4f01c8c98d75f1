// Sends a kernel call to the device of its stream. The arguments of every kernel are a struct of views and numbers with
// a member cost(), which a profile asks (kernel_profile.h); on a GPU its pointers are the device's too, and cost() does
// not follow them.
#pragma once

#include "core/base/error.h"
#include "core/base/stream.h"
#include "kernels/kernel_profile.h"

namespace octet::kernels {

// Whether kernels/cuda/ is in this build, for GPUs or emulated.
#if defined(OCTET_CUDA) || defined(OCTET_EMULATE_CUDA)
inline constexpr bool kHasCudaKernels = true;
#else
inline constexpr bool kHasCudaKernels = false;
#endif

// How many rows there are of those that there is room for; for the CPU's kernels. num_rows: [1] int64 or not defined.
inline int64_t rows_there(const ConstView& num_rows, int64_t room) {
  return num_rows.is_defined() ? *num_rows.data<int64_t>() : room;
}

// cuda is null for a kernel that only the CPU has.
template <auto cpu, auto cuda = nullptr, class Args>
void dispatch(const Args& args, Stream& stream) {
  if (!stream.device().is_cpu()) {
    constexpr bool kIsForCpuOnly = std::is_same_v<decltype(cuda), std::nullptr_t>;
    if constexpr (kHasCudaKernels && !kIsForCpuOnly) {
      KernelProfile* profile = KernelProfile::current();
      if (profile == nullptr) return cuda(args, stream);
      gpu::Stopwatch stopwatch;
      stopwatch.start(stream);
      cuda(args, stream);
      stopwatch.stop(stream);
      return profile->add(args.cost(), std::move(stopwatch));
    } else {
      require(kHasCudaKernels, "this build of octet has kernels for the CPU only; the stream is on {}",
              stream.device());
      fail(ErrorKind::kArgument,
           {.what = fmt::format("{} runs on the CPU only; the stream is on {}", args.cost().name, stream.device()),
            .where = "",
            .why = "",
            .fix = ""});
    }
  }
  KernelProfile* profile = KernelProfile::current();
  if (profile == nullptr) return cpu(args, stream);
  const int64_t begin_ns = profile->clock().monotonic_ns();
  cpu(args, stream);
  profile->add(args.cost(), double(profile->clock().monotonic_ns() - begin_ns) * 1e-9);
}

}  // namespace octet::kernels
