#include "kernels/rope.h"

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"

void rope(const Rope& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    const int64_t D = args.head_dim, half = D / 2, H = args.x.cols() / D;
    const int32_t* positions = args.positions.data<int32_t>();
    const bool halves = args.layout == RopeLayout::kHalf;
    const float direction = args.inverse ? -1.0f : 1.0f;
    stream.parallel_chunks(args.x.rows(), 16, [&](int64_t first, int64_t last) {
      // What each lane is multiplied with, laid out once for all heads of a token: in the half layout cos and sin of
      // pair i at i; in the interleaved one cos at 2i and 2i + 1, and -sin and sin there.
      std::vector<float> kept(static_cast<size_t>(2 * D));
      float *cosines = kept.data(), *sines = kept.data() + D;
      for (int64_t t = first; t < last; ++t) {
        const float* table = args.cos_sin.row<float>(positions[t]);
        for (int64_t i = 0; i < half; ++i) {
          const float c = table[2 * i], s = direction * table[2 * i + 1];
          if (halves) {
            cosines[i] = c, sines[i] = s;
          } else {
            cosines[2 * i] = cosines[2 * i + 1] = c;
            sines[2 * i] = -s, sines[2 * i + 1] = s;
          }
        }
        for (int64_t h = 0; h < H; ++h) {
          Scalar* x = args.x.row<Scalar>(t) + h * D;
          if (halves) {
            for_lanes(half, [=](int64_t i, auto lanes) {
              const f32x16 a = lanes.load(x + i), b = lanes.load(x + half + i);
              const f32x16 c = lanes.load(cosines + i), s = lanes.load(sines + i);
              lanes.store(x + i, fma(a, c, -(b * s)));
              lanes.store(x + half + i, fma(b, c, a * s));
            });
          } else {
            for_lanes(D, [=](int64_t i, auto lanes) {
              const f32x16 v = lanes.load(x + i);
              lanes.store(x + i, fma(v, lanes.load(cosines + i), swap_pairs(v) * lanes.load(sines + i)));
            });
          }
        }
      }
    });
  });
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(rope, Rope)

#if OCTET_ISA_LEVEL == 0
void octet::kernels::fill_rope_table(View cos_sin, int64_t head_dim, double theta) {
  require(head_dim >= 2 && head_dim % 2 == 0 && cos_sin.cols() == head_dim && cos_sin.dtype() == DType::kFloat32,
          "fill_rope_table: table {} {} for a head_dim of {}; wanted float32 [positions, head_dim], head_dim even",
          cos_sin.dtype(), cos_sin.shape(), head_dim);
  for (int64_t position = 0; position < cos_sin.rows(); ++position) {
    float* row = cos_sin.row<float>(position);
    for (int64_t i = 0; i < head_dim / 2; ++i) {
      const double angle = double(position) * std::pow(theta, -2.0 * double(i) / double(head_dim));
      row[2 * i] = float(std::cos(angle));
      row[2 * i + 1] = float(std::sin(angle));
    }
  }
}
#endif
