#include "tests/kernels/simd_probe.h"

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"
//
#include "kernels/cpu/exp_simd.inc"
#include "kernels/cpu/fp8_simd.inc"

// A function of its own: FlushSubnormals holds for no arithmetic that the compiler moves past it.
[[gnu::noinline]] static void store_flushed_exp(float* y, f32x16 s, f32x16 x) {
  f32x16 two[2] = {s, x};
  exp_to_88<2, /*kAbove87=*/false, /*kFlushed=*/true>(two);
  store(y, two[1]);
}

void simd_probe(const SimdProbe& args, Stream&) {
  for (int64_t i = 0; i < args.n; i += 16) {
    const f32x16 x = load(args.x + i), s = swap_pairs(x);
    const i32x16 a = bits(x), b = bits(s);
    uint8_t bytes[16];
    store_low_bytes(bytes, a);
    switch (args.function) {
      case SimdProbe::kExp:
        store(args.y + i, exp(x));
        break;
      case SimdProbe::kExpTo88: {
        f32x16 two[2] = {s, x};
        exp_to_88(two);
        store(args.y + i, two[1]);
        break;
      }
      case SimdProbe::kExpTo88Flushed: {
        const FlushSubnormals flush;
        store_flushed_exp(args.y + i, s, x);
        break;
      }
      case SimdProbe::kLog:
        store(args.y + i, log(x));
        break;
      case SimdProbe::kSigmoid:
        store(args.y + i, sigmoid(x));
        break;
      case SimdProbe::kSwapPairs:
        store(args.y + i, s);
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
      case SimdProbe::kMax:
        store(args.y + i, max(x, s));
        break;
      case SimdProbe::kMin:
        store(args.y + i, min(x, s));
        break;
      case SimdProbe::kReduceMax:
        store(args.y + i, splat(reduce_max(x)));
        break;
      case SimdProbe::kSelect:
        store(args.y + i, select(less(x, s), x, s));
        break;
      case SimdProbe::kCount:
        store(args.y + i, splat(float(count(less(x, s)) + 100 * count(is_nan(x)))));
        break;
      case SimdProbe::kToInteger:
        store(args.y + i, from_bits(to_i32(x)));
        break;
      case SimdProbe::kFromInteger:
        store(args.y + i, to_f32(a));
        break;
      case SimdProbe::kBFloat16: {
        bfloat16 half[16];
        store(half, x);
        store(args.y + i, load(half));
        break;
      }
      case SimdProbe::kIntegers: {
        const i32x16 low = min_i32(a, b) - shift_right_signed<3>(a), high = max_i32(a, b) + shift_left<5>(b);
        const i32x16 chosen = select(greater_i32(a, b), low | as_i32(equal_i32(a, b)), high & shift_right<2>(b));
        store(args.y + i, from_bits(chosen ^ as_i32(greater_i32(b, splat_i32(1 << 20)))));
        break;
      }
      case SimdProbe::kReduceInteger:
        store(args.y + i, from_bits(splat_i32(reduce_max_i32(a))));
        break;
      case SimdProbe::kBytes:
        store(args.y + i, from_bits(max_bytes(add_bytes(a, b), a)));
        break;
      case SimdProbe::kLowBytes:
        store(args.y + i, from_bits(load_u8(bytes)));
        break;
      case SimdProbe::kE4m3:
        store(args.y + i, load_e4m3(bytes));
        break;
      case SimdProbe::kEncodeE4m3:
        store(args.y + i, from_bits(encode_e4m3(x)));
        break;
      case SimdProbe::kE4m3Lines:
        if (i % 256 == 0) {
          uint8_t codes[16][16];
          const uint8_t* lines[16];
          f32x16 numbers[16];
          for (int r = 0; r < 16; ++r) {
            store_low_bytes(codes[r], bits(load(args.x + i + 16 * r)));
            lines[r] = codes[r];
          }
          load_e4m3_transposed(lines, numbers);
          for (int r = 0; r < 16; ++r) store(args.y + i + 16 * r, numbers[r]);
        }
        break;
    }
  }
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(simd_probe, SimdProbe)
