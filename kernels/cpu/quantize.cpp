#include "kernels/requantize_tiles.h"

#include <atomic>

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"
//
#include "kernels/cpu/fp8_simd.inc"
//
#include "kernels/cpu/bf16_simd.inc"
#include "kernels/cpu/quantize_tile.inc"

namespace {

// body(b, block, c, n) for each 128 rows of a group, its b-th block, and each n <= 128 columns from c on.
template <class Body>
void for_tiles_of_groups(const ConstView& offsets, const ConstView& block_offsets, int64_t C, Stream& stream,
                         Body&& body) {
  const int64_t pieces = (C + kBlock - 1) / kBlock;
  stream.parallel_for(num_blocks(block_offsets) * pieces, [&](int64_t task) {
    const int64_t b = task / pieces, c = task % pieces * kBlock;
    body(b, row_block(offsets, block_offsets, b), c, std::min(kBlock, C - c));
  });
}

// Codes of n codes / 2^shift.
template <bool kCount>
OCTET_INLINE void shift_codes(const uint8_t* codes, int64_t n, int shift, uint8_t* to, Counts& counts) {
  const bool has_nan = has_nan_e4m3(codes, n);
  if (shift == 0 && !has_nan) {
    std::memcpy(to, codes, size_t(n));
    return;
  }
  constexpr int kMostShift = 32;  // leaves nothing of 448
  shift = std::min(shift, kMostShift);
  const ShiftedE4m3 shifted(splat_u16(127 + shift));
  const f32x16 factor = splat(scale_of_field(127 - shift));
  u16x32 flushed = splat_u16(0);
  for (int64_t d = 0; d < n; d += 32) {
    const int64_t here = std::min<int64_t>(32, n - d);
    uint8_t last[32] = {};
    if (here < 32) std::memcpy(last, codes + d, size_t(here));
    const uint8_t* const from = here < 32 ? last : codes + d;
    uint8_t result[32];
    if (has_nan) {
      for (int64_t half = 0; half < 32; half += 16) {
        store_low_bytes(result + half, quantize(load_e4m3(from + half) * factor, splat(1.0f), counts));
      }
    } else {
      uint16_t values[32];
      store_high_halves_any_order(values, bits(load_e4m3_finite_any_order(from)));
      store_high_halves_any_order(values + 16, bits(load_e4m3_finite_any_order(from + 16)));
      const u16x32 x = load_u16(values);
      store_codes(result, shifted.encode<kCount>(x, flushed), x);
    }
    std::memcpy(to + d, result, size_t(here));
  }
  if constexpr (kCount) counts.flushed += sum_of(flushed);
}
OCTET_INLINE bool has_values_e4m3(const uint8_t* codes, int64_t n) {
  uint64_t found = 0;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, codes + i, 8);
    found |= eight;
  }
  for (; i < n; ++i) found |= codes[i];
  return (found & 0x7f7f7f7f7f7f7f7full) != 0;
}

}  // namespace

void quantize_rows(const QuantizeRows& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    visit_flag(args.stats != nullptr, [&](auto counting) {
      const int64_t R = rows_there(args.num_rows, args.x.rows()), C = args.x.cols();
      if (C == 0) return;
      stream.parallel_chunks(R, std::max<int64_t>(1, 16384 / C), [&](int64_t begin, int64_t end) {
        Counts counts;
        RowBlocks<counting> blocks(counts);
        for (int64_t r = begin; r < end; ++r) {
          quantize_row<counting>(args.x.row<Scalar>(r), C, args.codes.row<uint8_t>(r), args.scale.row<float>(r),
                                 blocks);
        }
        blocks.flush();
        counts.add_to(args.stats, (end - begin) * C);
      });
    });
  });
}

void dequantize_rows(const DequantizeRows& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    const int64_t R = args.codes.rows(), C = args.codes.cols();
    if (C == 0) return;
    stream.parallel_for(R, std::max<int64_t>(1, 16384 / C), [&](int64_t r) {
      const uint8_t* codes = args.codes.row<uint8_t>(r);
      const float* scale = args.scale.row<float>(r);
      Scalar* x = args.x.row<Scalar>(r);
      for (int64_t c = 0; c < C; c += 16) {
        const int64_t n = std::min<int64_t>(16, C - c);
        uint8_t last[16] = {};
        if (n < 16) std::memcpy(last, codes + c, size_t(n));
        const f32x16 y = load_e4m3(n < 16 ? last : codes + c) * splat(scale[c / kBlock]);
        if (n < 16) {
          store_first(x + c, y, n);
        } else {
          store(x + c, y);
        }
      }
    });
  });
}

void quantize_columns(const QuantizeColumns& args, Stream& stream) {
  const int32_t* rows = args.rows.is_defined() ? args.rows.data<int32_t>() : nullptr;
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    visit_flag(args.stats != nullptr || args.row_stats != nullptr, [&](auto counting) {
      for_tiles_of_groups(args.offsets, args.block_offsets, args.x.cols(), stream,
                          [&](int64_t b, RowBlock block, int64_t c, int64_t n) {
                            Counts counts;
                            const auto row = [&](int64_t r) {
                              return args.x.row<Scalar>(rows != nullptr ? rows[block.first + r] : block.first + r) + c;
                            };
                            quantize_columns_block<counting>(
                                block.rows, n, row, args.codes.row<uint8_t>(kBlock * b) + c, args.codes.row_stride(),
                                args.scale.row<float>(b) + c, counts);
                            counts.add_to(args.stats, block.rows * n);
                            if (!args.row_codes.is_defined()) return;
                            Counts row_counts;
                            RowBlocks<counting> blocks(row_counts);
                            for (int64_t r = 0; r < block.rows; ++r) {
                              quantize_row<counting>(row(r), n, args.row_codes.row<uint8_t>(block.first + r) + c,
                                                     args.row_scale.row<float>(block.first + r) + c / kBlock, blocks);
                            }
                            blocks.flush();
                            row_counts.add_to(args.row_stats, block.rows * n);
                          });
    });
  });
}

void requantize_columns(const RequantizeColumns& args, Stream& stream) {
  const int32_t* rows = args.rows.is_defined() ? args.rows.data<int32_t>() : nullptr;
  visit_flag(args.stats != nullptr, [&](auto counting) {
    for_tiles_of_groups(
        args.offsets, args.block_offsets, args.codes.cols(), stream,
        [&](int64_t b, RowBlock block, int64_t c, int64_t n) {
          Counts counts;
          uint8_t* codes = args.out_codes.row<uint8_t>(kBlock * b) + c;
          float* scale = args.out_scale.row<float>(b) + c;
          const auto from = [&](int64_t r) { return rows != nullptr ? rows[block.first + r] : block.first + r; };
          // A value of 4 significant bits is a bfloat16 unless it is tiny, huge or NaN.
          bool exact = true;
          for (int64_t r = 0; r < block.rows; ++r) {
            const float factor = args.scale.row<float>(from(r))[c / kBlock];
            exact &=
                0x1p-100f <= factor && factor <= 0x1p100f && !has_nan_e4m3(args.codes.row<uint8_t>(from(r)) + c, n);
          }
          const auto values = [&]<class Scalar>(Scalar* tile) {
            for (int64_t r = 0; r < block.rows; ++r) {
              const uint8_t* x = args.codes.row<uint8_t>(from(r)) + c;
              const float factor = args.scale.row<float>(from(r))[c / kBlock];
              constexpr int64_t kWidth = std::is_same_v<Scalar, bfloat16> ? 32 : 16;
              for (int64_t d = 0; d < n; d += kWidth) {
                uint8_t last[kWidth] = {};
                if (n - d < kWidth) std::memcpy(last, x + d, size_t(n - d));
                const uint8_t* here = n - d < kWidth ? last : x + d;
                if constexpr (std::is_same_v<Scalar, bfloat16>) {
                  store_u16(tile + r * kBlock + d, exact_bf16(here, factor));
                } else {
                  store(tile + r * kBlock + d, load_e4m3(here) * splat(factor));
                }
              }
            }
            // Strips that stay in the nearest cache between their two looks.
            quantize_columns_block<counting, 2>(
                block.rows, n, [&](int64_t r) -> const Scalar* { return tile + r * kBlock; }, codes,
                args.out_codes.row_stride(), scale, counts);
          };
          if (exact) {
            alignas(64) bfloat16 tile[kBlock * kBlock];
            values(tile);
          } else {
            const std::unique_ptr<float[]> tile(new float[kBlock * kBlock]);
            values(tile.get());
          }
          counts.add_to(args.stats, block.rows * n);
        });
  });
}

void requantize_tiles(const RequantizeTiles& args, Stream& stream) {
  const int32_t* rows = args.rows.is_defined() ? args.rows.data<int32_t>() : nullptr;
  visit_flag(args.stats != nullptr, [&](auto counting) {
    for_tiles_of_groups(args.offsets, args.block_offsets, args.codes.cols(), stream,
                        [&](int64_t b, RowBlock block, int64_t c, int64_t n) {
                          const auto from = [&](int64_t r) {
                            return rows != nullptr ? rows[block.first + r] : block.first + r;
                          };
                          const auto codes = [&](int64_t r) { return args.codes.row<uint8_t>(from(r)) + c; };
                          const auto exponent = [&](int64_t r) {
                            return std::bit_cast<int32_t>(args.scale.row<float>(from(r))[c / kBlock]) >> 23;
                          };
                          int top = 0;
                          for (int64_t r = 0; r < block.rows; ++r) {
                            if (exponent(r) > top && has_values_e4m3(codes(r), n)) top = exponent(r);
                          }
                          if (top == 0) top = 127;
                          args.out_scale.row<float>(b)[c / kBlock] = scale_of_field(top);
                          Counts counts;
                          for (int64_t r = 0; r < kBlock; ++r) {
                            uint8_t* const to = args.out_codes.row<uint8_t>(kBlock * b + r) + c;
                            if (r < block.rows) {
                              shift_codes<counting>(codes(r), n, std::max(top - exponent(r), 0), to, counts);
                            } else {
                              std::memset(to, 0, size_t(n));
                            }
                          }
                          counts.add_to(args.stats, block.rows * n);
                        });
  });
}

void quantize_blocks(const QuantizeBlocks& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    visit_flag(args.stats != nullptr, [&](auto counting) {
      const Shape& shape = args.x.shape();
      const int64_t G = shape.rank() == 3 ? shape[0] : 1, N = shape[-2], K = shape[-1];
      const int64_t n_blocks = (N + kBlock - 1) / kBlock, k_blocks = (K + kBlock - 1) / kBlock;
      stream.parallel_for(G * n_blocks * k_blocks, [&](int64_t task) {
        const int64_t kb = task % k_blocks, nb = task / k_blocks % n_blocks, g = task / k_blocks / n_blocks;
        const int64_t first = g * N + nb * kBlock, k0 = kb * kBlock;
        const int64_t rows = std::min(kBlock, N - nb * kBlock), columns = std::min(kBlock, K - k0);
        Counts counts;
        args.scale.row<float>(g * n_blocks + nb)[kb] = quantize_block<counting>(
            rows, columns, [&](int64_t r) { return args.x.row<Scalar>(first + r) + k0; },
            args.codes.row<uint8_t>(first) + k0, args.codes.row_stride(), counts);
        counts.add_to(args.stats, rows * columns);
      });
    });
  });
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(quantize_rows, QuantizeRows)
OCTET_CPU_KERNEL(dequantize_rows, DequantizeRows)
OCTET_CPU_KERNEL(quantize_columns, QuantizeColumns)
OCTET_CPU_KERNEL(requantize_columns, RequantizeColumns)
OCTET_CPU_KERNEL(requantize_tiles, RequantizeTiles)
OCTET_CPU_KERNEL(quantize_blocks, QuantizeBlocks)
