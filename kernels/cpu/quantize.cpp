#include "kernels/quantize.h"

#include <atomic>

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"
//
#include "kernels/cpu/fp8_simd.inc"

namespace {

constexpr int64_t kBlock = 128;
constexpr int32_t kInfinityBits = 0x7f800000;

// What one task saw; whole numbers, so the order in which tasks add theirs makes no difference.
struct Counts {
  i32x16 flushed;
  int64_t saturated = 0, non_finite = 0;

  Counts() : flushed(splat_i32(0)) {}
  void add_to(QuantizeStats* stats, int64_t count) const {
    if (stats == nullptr) return;
    const auto add = [](int64_t& to, int64_t n) { std::atomic_ref(to).fetch_add(n, std::memory_order_relaxed); };
    add(stats->count, count);
    add(stats->flushed, sum_i32(flushed));
    add(stats->saturated, saturated);
    add(stats->non_finite, non_finite);
  }
};

// Codes of x / scale. kWithin as encode_e4m3's. Zeros stay out of every count.
template <bool kWithin>
OCTET_INLINE i32x16 quantize(f32x16 x, f32x16 inv_scale, Counts& counts) {
  const f32x16 y = x * inv_scale;
  const i32x16 was_zero = as_i32(equal_i32(abs_bits(x), splat_i32(0)));
  const i32x16 is_zero = as_i32(greater_i32(splat_i32(0x3a800001), abs_bits(y)));  // 2^-10 or below
  counts.flushed = counts.flushed + (was_zero - is_zero);
  if constexpr (!kWithin) {
    const int non_finite = count(greater_i32(abs_bits(x), splat_i32(kInfinityBits - 1)));
    counts.non_finite += non_finite;
    counts.saturated += count(greater_i32(abs_bits(y), splat_i32(0x43e80000))) - non_finite;  // beyond 464
  }
  return encode_e4m3<kWithin>(y);
}

// Bits of the largest magnitude in each lane, NaN and infinities above all others.
template <class Scalar>
OCTET_INLINE i32x16 amax_bits(const Scalar* x, int64_t n) {
  i32x16 top = splat_i32(0), other = splat_i32(0);
  int64_t d = 0;
  for (; d + 32 <= n; d += 32) {
    top = max_i32(top, abs_bits(load(x + d)));
    other = max_i32(other, abs_bits(load(x + d + 16)));
  }
  for (; d + 16 <= n; d += 16) top = max_i32(top, abs_bits(load(x + d)));
  if (d < n) top = max_i32(top, abs_bits(load_first(x + d, n - d)));
  return max_i32(top, other);
}
OCTET_INLINE i32x16 finite_or_zero(i32x16 magnitude) {
  return select(greater_i32(splat_i32(kInfinityBits), magnitude), magnitude, splat_i32(0));
}
// The same over the finite ones.
template <class Scalar>
i32x16 finite_amax_bits(const Scalar* x, int64_t n) {
  i32x16 top = splat_i32(0);
  for_lanes(n, [&](int64_t d, auto lanes) { top = max_i32(top, finite_or_zero(abs_bits(lanes.load(x + d)))); });
  return top;
}

// The scale of one block of amax, and whether its elements may take the short way: all finite, and (always, with these
// scales) nothing beyond 464.
struct BlockScale {
  Scale scale;
  bool within;
};
OCTET_INLINE BlockScale block_scale(int32_t top, bool all_finite) {
  const Scale scale = power_of_two_scale(top);
  return {scale, all_finite && std::bit_cast<float>(top) * scale.inv_scale <= 464.0f};
}

template <bool kWithin, class Scalar>
OCTET_INLINE void quantize_row(const Scalar* x, int64_t n, float inv, uint8_t* codes, Counts& total) {
  const f32x16 inv_scale = splat(inv);
  Counts counts = total;  // in registers for the length of the row
  int64_t d = 0;
  for (; d + 16 <= n; d += 16) store_low_bytes(codes + d, quantize<kWithin>(load(x + d), inv_scale, counts));
  if (d < n) {
    uint8_t last[16];
    store_low_bytes(last, quantize<kWithin>(load_first(x + d, n - d), inv_scale, counts));
    std::memcpy(codes + d, last, size_t(n - d));
  }
  total = counts;
}

// Rows 128 b and on of group g.
struct RowBlock {
  int64_t first, rows;
};
RowBlock row_block(const int64_t* offsets, const int64_t* block_offsets, int64_t groups, int64_t b) {
  const int64_t g = std::upper_bound(block_offsets, block_offsets + groups + 1, b) - block_offsets - 1;
  const int64_t first = offsets[g] + kBlock * (b - block_offsets[g]);
  return {first, std::min(kBlock, offsets[g + 1] - first)};
}

// One block of up to 128 rows and n <= 16 columns: load(r) gives row r of it. Codes go transposed to codes[c * stride].
template <bool kWithin, class Load>
OCTET_INLINE void quantize_column_codes(int64_t rows, int64_t n, f32x16 inv_scale, uint8_t* codes, int64_t stride,
                                        Counts& total, Load&& load_row) {
  // Collected and then written a column at a time: rows of the result may lie a multiple of the cache's size apart.
  alignas(64) uint8_t turned[16 * kBlock];
  alignas(16) uint8_t square[256];
  Counts counts = total;
  for (int64_t r0 = 0; r0 < kBlock; r0 += 16) {
    const int64_t here = std::clamp<int64_t>(rows - r0, 0, 16);
    for (int64_t i = 0; i < here; ++i) {
      store_low_bytes(square + 16 * i, quantize<kWithin>(load_row(r0 + i), inv_scale, counts));
    }
    if (here < 16) std::memset(square + 16 * here, 0, size_t(16 * (16 - here)));  // the padding of the last block
    transpose_bytes(square, turned + r0, kBlock);
  }
  for (int64_t c = 0; c < n; ++c) std::memcpy(codes + c * stride, turned + c * kBlock, kBlock);
  total = counts;
}
template <class Load>
OCTET_INLINE void quantize_column_block(int64_t rows, int64_t n, uint8_t* codes, int64_t stride, float* scale,
                                        int64_t scale_stride, Counts& counts, Load&& load_row) {
  i32x16 top = splat_i32(0);
  for (int64_t r = 0; r < rows; ++r) top = max_i32(top, abs_bits(load_row(r)));
  const bool all_finite = reduce_max_i32(top) < kInfinityBits;
  if (!all_finite) {
    top = splat_i32(0);
    for (int64_t r = 0; r < rows; ++r) top = max_i32(top, finite_or_zero(abs_bits(load_row(r))));
  }
  const Scales scales = power_of_two_scales(top);
  float lanes[16];
  store(lanes, scales.scale);
  for (int64_t c = 0; c < n; ++c) scale[c * scale_stride] = lanes[c];
  if (all_finite && reduce_max(from_bits(top) * scales.inv_scale) <= 464.0f) {
    quantize_column_codes<true>(rows, n, scales.inv_scale, codes, stride, counts, load_row);
  } else {
    quantize_column_codes<false>(rows, n, scales.inv_scale, codes, stride, counts, load_row);
  }
}

// One task quantises 128 rows by 64 columns, a cache line of codes wide.
constexpr int64_t kColumns = 64;

template <class Body>
void for_column_blocks(const ConstView& offsets, const ConstView& block_offsets, int64_t C, Stream& stream,
                       QuantizeStats* stats, Body&& body) {
  const int64_t G = offsets.num_elements() - 1;
  const int64_t* row_starts = offsets.data<int64_t>();
  const int64_t* block_starts = block_offsets.data<int64_t>();
  const int64_t pieces = (C + kColumns - 1) / kColumns;
  stream.parallel_for(block_starts[G] * pieces, [&](int64_t task) {
    const int64_t b = task / pieces, c_begin = task % pieces * kColumns, c_end = std::min(C, c_begin + kColumns);
    const RowBlock block = row_block(row_starts, block_starts, G, b);
    Counts counts;
    for (int64_t c = c_begin; c < c_end; c += 16) body(b, block, c, std::min<int64_t>(16, c_end - c), counts);
    counts.add_to(stats, block.rows * (c_end - c_begin));
  });
}

}  // namespace

void quantize_rows(const QuantizeRows& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    const int64_t R = args.x.rows(), C = args.x.cols();
    if (C == 0) return;
    const int64_t rows_per_task = std::max<int64_t>(1, 16384 / C);
    stream.parallel_chunks(R, rows_per_task, [&](int64_t begin, int64_t end) {
      Counts counts;
      for (int64_t r = begin; r < end; ++r) {
        const Scalar* x = args.x.row<Scalar>(r);
        uint8_t* codes = args.codes.row<uint8_t>(r);
        float* scale = args.scale.row<float>(r);
        for (int64_t c = 0; c < C; c += kBlock) {
          const int64_t n = std::min(kBlock, C - c);
          int32_t top = reduce_max_i32(amax_bits(x + c, n));
          const bool all_finite = top < kInfinityBits;
          if (!all_finite) top = reduce_max_i32(finite_amax_bits(x + c, n));
          const BlockScale block = block_scale(top, all_finite);
          scale[c / kBlock] = block.scale.scale;
          if (block.within) {
            quantize_row<true>(x + c, n, block.scale.inv_scale, codes + c, counts);
          } else {
            quantize_row<false>(x + c, n, block.scale.inv_scale, codes + c, counts);
          }
        }
      }
      counts.add_to(args.stats, (end - begin) * C);
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
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    const int64_t P = args.codes.cols();
    for_column_blocks(args.offsets, args.block_offsets, args.x.cols(), stream, args.stats,
                      [&](int64_t b, RowBlock block, int64_t c, int64_t n, Counts& counts) {
                        const auto load_row = [&](int64_t r) {
                          const Scalar* x = args.x.row<Scalar>(block.first + r) + c;
                          return n == 16 ? load(x) : load_first(x, n);
                        };
                        quantize_column_block(block.rows, n, args.codes.row<uint8_t>(c) + kBlock * b, P,
                                              args.scale.row<float>(c) + b, args.scale.row_stride(), counts, load_row);
                      });
  });
}

void requantize_columns(const RequantizeColumns& args, Stream& stream) {
  const int64_t P = args.out_codes.cols();
  const int32_t* rows = args.rows.is_defined() ? args.rows.data<int32_t>() : nullptr;
  for_column_blocks(args.offsets, args.block_offsets, args.codes.cols(), stream, args.stats,
                    [&](int64_t b, RowBlock block, int64_t c, int64_t n, Counts& counts) {
                      alignas(64) float tile[kBlock * 16];  // the values, wanted twice
                      for (int64_t r = 0; r < block.rows; ++r) {
                        const int64_t from = rows != nullptr ? rows[block.first + r] : block.first + r;
                        const uint8_t* codes = args.codes.row<uint8_t>(from) + c;
                        uint8_t last[16] = {};
                        if (n < 16) std::memcpy(last, codes, size_t(n)), codes = last;
                        const f32x16 x = has_nan_e4m3(codes, 16) ? load_e4m3(codes) : load_e4m3_finite(codes);
                        store(tile + 16 * r, x * splat(args.scale.row<float>(from)[c / kBlock]));
                      }
                      quantize_column_block(block.rows, n, args.out_codes.row<uint8_t>(c) + kBlock * b, P,
                                            args.out_scale.row<float>(c) + b, args.out_scale.row_stride(), counts,
                                            [&](int64_t r) { return load(tile + 16 * r); });
                    });
}

void quantize_blocks(const QuantizeBlocks& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    const Shape& shape = args.x.shape();
    const int64_t G = shape.rank() == 3 ? shape[0] : 1, N = shape[-2], K = shape[-1];
    const int64_t n_blocks = (N + kBlock - 1) / kBlock, k_blocks = (K + kBlock - 1) / kBlock;
    stream.parallel_for(G * n_blocks * k_blocks, [&](int64_t task) {
      const int64_t kb = task % k_blocks, nb = task / k_blocks % n_blocks, g = task / k_blocks / n_blocks;
      const int64_t n0 = nb * kBlock, k0 = kb * kBlock;
      const int64_t rows = std::min(kBlock, N - n0), columns = std::min(kBlock, K - k0);
      const auto x_row = [&](int64_t r) { return args.x.row<Scalar>(g * N + n0 + r) + k0; };
      i32x16 tops = splat_i32(0);
      for (int64_t r = 0; r < rows; ++r) tops = max_i32(tops, amax_bits(x_row(r), columns));
      int32_t top = reduce_max_i32(tops);
      const bool all_finite = top < kInfinityBits;
      if (!all_finite) {
        tops = splat_i32(0);
        for (int64_t r = 0; r < rows; ++r) tops = max_i32(tops, finite_amax_bits(x_row(r), columns));
        top = reduce_max_i32(tops);
      }
      const BlockScale block = block_scale(top, all_finite);
      args.scale.row<float>(g * n_blocks + nb)[kb] = block.scale.scale;
      Counts counts;
      for (int64_t r = 0; r < rows; ++r) {
        uint8_t* codes = args.codes.row<uint8_t>(g * N + n0 + r) + k0;
        if (block.within) {
          quantize_row<true>(x_row(r), columns, block.scale.inv_scale, codes, counts);
        } else {
          quantize_row<false>(x_row(r), columns, block.scale.inv_scale, codes, counts);
        }
      }
      counts.add_to(args.stats, rows * columns);
      if (!args.codes_t.is_defined()) return;
      args.scale_t.row<float>(g * k_blocks + kb)[nb] = block.scale.scale;
      alignas(64) uint8_t turned[16 * kBlock];
      alignas(16) uint8_t square[256];
      for (int64_t c = 0; c < columns; c += 16) {
        const int64_t width = std::min<int64_t>(16, columns - c);
        for (int64_t r = 0; r < rows; r += 16) {
          for (int64_t i = 0; i < std::min<int64_t>(16, rows - r); ++i) {
            const uint8_t* codes = args.codes.row<uint8_t>(g * N + n0 + r + i) + k0 + c;
            // A length that is known becomes one load and one store.
            width == 16 ? std::memcpy(square + 16 * i, codes, 16) : std::memcpy(square + 16 * i, codes, size_t(width));
          }
          transpose_bytes(square, turned + r, kBlock);
        }
        for (int64_t j = 0; j < width; ++j) {
          uint8_t* codes_t = args.codes_t.row<uint8_t>(g * K + k0 + c + j) + n0;
          rows == kBlock ? std::memcpy(codes_t, turned + j * kBlock, kBlock)
                         : std::memcpy(codes_t, turned + j * kBlock, size_t(rows));
        }
      }
    });
  });
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(quantize_rows, QuantizeRows)
OCTET_CPU_KERNEL(dequantize_rows, DequantizeRows)
OCTET_CPU_KERNEL(quantize_columns, QuantizeColumns)
OCTET_CPU_KERNEL(requantize_columns, RequantizeColumns)
OCTET_CPU_KERNEL(quantize_blocks, QuantizeBlocks)
