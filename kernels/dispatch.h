// Sends a kernel call to the device of its stream.
#pragma once

#include "core/base/error.h"
#include "core/base/stream.h"

namespace octet::kernels {

template <auto cpu, class Args>
void dispatch(const Args& args, Stream& stream) {
  require(stream.device().is_cpu(), "this build of octet has kernels for the CPU only; the stream is on {}",
          stream.device());
  cpu(args, stream);
}

}  // namespace octet::kernels
