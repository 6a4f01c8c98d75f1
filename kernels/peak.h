// What the processor's arithmetic can do at most: fused multiply-adds on registers alone, nothing loaded or stored;
// and what its memory can: a copy.
#pragma once

#include "core/base/clock.h"
#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

enum class Arithmetic {
  kFloat32,       // fused multiply-add
  kBFloat16Pairs  // vdpbf16ps where the instruction set has it, else as kFloat32, by which such sums are then formed
};

struct PeakLoop {
  Arithmetic arithmetic;
  int64_t pieces;  // of work, shared among the threads
  int64_t rounds;  // of a piece: one multiply-add of as many registers as hide its latency
  View sink;       // [pieces] float32: results, so that the work cannot be left out
  double* flops;   // set to the number of floating-point operations, two for a multiply-add

  KernelCost cost() const { return {.name = "peak_loop"}; }
};
namespace cpu {
void peak_loop(const PeakLoop& args, Stream& stream);
}  // namespace cpu
inline void peak_loop(const PeakLoop& args, Stream& stream) { dispatch<cpu::peak_loop>(args, stream); }

// Floating-point operations a second on all threads of the stream, the best of twelve tries of 2 to 5 ms; fewer where
// they take longer than 60 ms together, as in a build for debugging.
double measure_peak_flops(Arithmetic arithmetic, Stream& stream, Clock& clock);

// Bytes read and written a second by a copy of memory too large for the caches, all threads of the stream, the best of
// six tries; takes about 150 ms.
double measure_copy_bandwidth(Stream& stream, Clock& clock);

}  // namespace octet::kernels
