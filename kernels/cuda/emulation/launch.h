// How the work of a kernel reaches the emulated GPU.
#pragma once

#include <functional>

#include "core/base/stream.h"

namespace octet::emulation {

// Runs body with the memory open; where the stream is captured, writes it down. kernel: a word that lives for ever.
void launch(const char* kernel, Stream& stream, std::function<void()> body);

}  // namespace octet::emulation
