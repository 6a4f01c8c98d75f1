// Sends a kernel call to the device of its stream. The arguments of every kernel are a struct of views and numbers with
// a member cost(), which a profile asks (kernel_profile.h).
#pragma once

#include "core/base/error.h"
#include "core/base/stream.h"
#include "kernels/kernel_profile.h"

namespace octet::kernels {

template <auto cpu, class Args>
void dispatch(const Args& args, Stream& stream) {
  require(stream.device().is_cpu(), "this build of octet has kernels for the CPU only; the stream is on {}",
          stream.device());
  KernelProfile* profile = KernelProfile::current();
  if (profile == nullptr) return cpu(args, stream);
  const int64_t begin_ns = profile->clock().monotonic_ns();
  cpu(args, stream);
  profile->add(args.cost(), double(profile->clock().monotonic_ns() - begin_ns) * 1e-9);
}

}  // namespace octet::kernels
