#include "tests/kernels/simd_probe.h"

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"

void simd_probe(const SimdProbe& args, Stream&) {
  for (int64_t i = 0; i < args.n; i += 16) {
    const f32x16 x = load(args.x + i);
    switch (args.function) {
      case SimdProbe::kExp:
        store(args.y + i, exp(x));
        break;
      case SimdProbe::kLog:
        store(args.y + i, log(x));
        break;
      case SimdProbe::kSigmoid:
        store(args.y + i, sigmoid(x));
        break;
      case SimdProbe::kSwapPairs:
        store(args.y + i, swap_pairs(x));
        break;
      case SimdProbe::kTranspose:
        if (i % 256 == 0) {
          f32x16 rows[16];
          for (int r = 0; r < 16; ++r) rows[r] = load(args.x + i + 16 * r);
          transpose(rows);
          for (int r = 0; r < 16; ++r) store(args.y + i + 16 * r, rows[r]);
        }
        break;
      case SimdProbe::kSumFloat64:
        store(args.y + i, splat(float(reduce_add(widen(x) * widen(x) + splat_f64(1.0)))));
        break;
    }
  }
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(simd_probe, SimdProbe)
