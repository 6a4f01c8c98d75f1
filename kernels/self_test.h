// A check at start-up that this processor computes what the reference does: the casts of every bfloat16 number and of
// every FP8 code, and small matrix products in each arithmetic, against scalar code. Takes a few milliseconds.
#pragma once

#include <functional>
#include <string>

#include "core/base/isa.h"

namespace octet::kernels {

// Tests the instruction set in use; a wrong one is named in a warning, and the next lower one is used and tested
// instead. The lowest stays in use even where it fails, with a warning.
void run_self_test();

// What is wrong with the instruction set in use, or "".
std::string self_test_fault();

// The highest of the supported instruction sets, from `from` down, that fault(isa) says nothing of, or the lowest;
// warned(isa, fault) is called for each that it does.
Isa sound_isa(Isa from, const std::function<std::string(Isa)>& fault,
              const std::function<void(Isa, const std::string&)>& warned);

}  // namespace octet::kernels
