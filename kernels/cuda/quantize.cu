#include "kernels/requantize_tiles.h"

#include "kernels/cuda/quantize_tile.cuh"
#include "kernels/cuda/rows.cuh"

namespace octet::kernels::cuda {
namespace {

// Sixteen threads to a block of a row.
template <class Scalar>
__global__ void __launch_bounds__(kRowThreads)
    quantize_rows_kernel(const Scalar* x, int64_t x_stride, uint8_t* codes, int64_t codes_stride, float* scale,
                         int64_t scale_stride, QuantizeStats* stats, int64_t room, const int64_t* num_rows, int64_t C,
                         uint32_t pieces) {
  const int64_t R = rows_there(num_rows, room);
  const RowPlace at = row_place(pieces);
  const bool is_there = at.row < R;
  const int64_t row = is_there ? at.row : 0, n = is_there ? C - at.column : 0;
  Counts counts;
  quantize_row_block(load8(x + row * x_stride + at.column, n), n, codes + row * codes_stride + at.column,
                     scale + row * scale_stride + at.column / kBlock, counts);
  add_counts<kRowThreads>(counts, blockIdx.x == 0 ? R * C : 0, stats);
}

template <class Scalar>
__global__ void __launch_bounds__(kRowThreads)
    dequantize_rows_kernel(const uint8_t* codes, int64_t codes_stride, const float* scale, int64_t scale_stride,
                           Scalar* x, int64_t x_stride, int64_t R, int64_t C, uint32_t pieces) {
  const RowPlace at = row_place(pieces);
  if (at.row >= R) return;
  const int64_t n = C - at.column;
  const float factor = scale[at.row * scale_stride + at.column / kBlock];
  store8(x + at.row * x_stride + at.column,
         numbers_of(load_codes(codes + at.row * codes_stride + at.column, n), factor), n);
}

template <class Scalar>
__global__ void __launch_bounds__(kTileThreads)
    quantize_columns_kernel(const Scalar* x, int64_t x_stride, const int32_t* rows, const int64_t* offsets,
                            const int64_t* block_offsets, int groups, uint8_t* codes, int64_t codes_stride,
                            float* scale, int64_t scale_stride, QuantizeStats* stats, uint8_t* row_codes,
                            int64_t row_codes_stride, float* row_scale, int64_t row_scale_stride,
                            QuantizeStats* row_stats, int64_t C) {
  const RowBlock block = row_block(offsets, block_offsets, groups, blockIdx.x);
  if (!block.is_there) return;
  const int64_t c = int64_t(blockIdx.y) * kBlock, n = C - c < kBlock ? C - c : kBlock;
  const int column = tile_column();
  const auto tile = Tile<PieceOf<Scalar>>::number(0);
  Counts counts, row_counts;
  for (int pass = 0; pass < kTilePasses; ++pass) {
    const bool is_there = tile_row(pass) < block.rows;
    const int64_t row = is_there ? block.first + tile_row(pass) : 0, here = is_there ? n - column : 0;
    const int64_t from = rows == nullptr || !is_there ? row : rows[row];
    const Floats8 numbers = load8(x + from * x_stride + c + column, here);
    tile.set(pass, PieceOf<Scalar>::of(numbers));
    if (row_codes == nullptr) continue;
    quantize_row_block(numbers, here, row_codes + row * row_codes_stride + c + column,
                       row_scale + row * row_scale_stride + blockIdx.y, row_counts);
  }
  quantize_tile_columns(tile, n, codes + c * codes_stride + kBlock * int64_t(blockIdx.x), codes_stride,
                        scale + blockIdx.x * scale_stride + c, counts);
  add_counts<kTileThreads>(counts, block.rows * n, stats);
  add_counts<kTileThreads>(row_counts, block.rows * n, row_codes == nullptr ? nullptr : row_stats);
}

__global__ void __launch_bounds__(kTileThreads)
    requantize_columns_kernel(const uint8_t* codes, int64_t codes_stride, const float* scale, int64_t scale_stride,
                              const int32_t* rows, const int64_t* offsets, const int64_t* block_offsets, int groups,
                              uint8_t* out_codes, int64_t out_codes_stride, float* out_scale, int64_t out_scale_stride,
                              QuantizeStats* stats, int64_t C) {
  const RowBlock block = row_block(offsets, block_offsets, groups, blockIdx.x);
  if (!block.is_there) return;
  const int64_t c = int64_t(blockIdx.y) * kBlock, n = C - c < kBlock ? C - c : kBlock;
  const int column = tile_column();
  const auto tile = Tile<CodePiece>::number(0);
  Counts counts;
  for (int pass = 0; pass < kTilePasses; ++pass) {
    const bool is_there = tile_row(pass) < block.rows;
    const int64_t at = block.first + (is_there ? tile_row(pass) : 0), row = rows == nullptr ? at : rows[at];
    tile.set(pass, {load_codes(codes + row * codes_stride + c + column, is_there ? n - column : 0),
                    scale[row * scale_stride + blockIdx.y]});
  }
  quantize_tile_columns(tile, n, out_codes + c * out_codes_stride + kBlock * int64_t(blockIdx.x), out_codes_stride,
                        out_scale + blockIdx.x * out_scale_stride + c, counts);
  add_counts<kTileThreads>(counts, block.rows * n, stats);
}

__global__ void __launch_bounds__(kTileThreads)
    requantize_tiles_kernel(const uint8_t* codes, int64_t codes_stride, const float* scale, int64_t scale_stride,
                            const int32_t* rows, const int64_t* offsets, const int64_t* block_offsets, int groups,
                            uint8_t* out_codes, int64_t out_codes_stride, float* out_scale, int64_t out_scale_stride,
                            QuantizeStats* stats, int64_t C) {
  const RowBlock block = row_block(offsets, block_offsets, groups, blockIdx.x);
  if (!block.is_there) return;
  OCTET_SHARED(float, ones, kBlock);
  if (threadIdx.x < kBlock) ones[int(threadIdx.x)] = 1.0f;
  const int64_t c = int64_t(blockIdx.y) * kBlock, n = C - c < kBlock ? C - c : kBlock;
  const int column = tile_column();
  const auto tile = Tile<CodePiece>::number(0);
  uint32_t top = 0;
  for (int pass = 0; pass < kTilePasses; ++pass) {
    const bool is_there = tile_row(pass) < block.rows;
    const int64_t at = block.first + (is_there ? tile_row(pass) : 0), row = rows == nullptr ? at : rows[at];
    const CodePiece piece{load_codes(codes + row * codes_stride + c + column, is_there ? n - column : 0),
                          scale[row * scale_stride + blockIdx.y]};
    tile.set(pass, piece);
    const uint32_t of_row = ((piece.codes.x | piece.codes.y) & 0x7f7f7f7fu) != 0 ? bit_cast<uint32_t>(piece.scale) : 0;
    top = of_row > top ? of_row : top;
  }
  top = block_max<kTileThreads>(top, 0u);
  const uint32_t field = top == 0 ? 127 : top >> 23;
  if (threadIdx.x == 0) out_scale[blockIdx.x * out_scale_stride + blockIdx.y] = bit_cast<float>(field << 23);
  const float inv_scale = bit_cast<float>((254 - field) << 23);
  for (int pass = 0; pass < kTilePasses; ++pass) {
    const int place = tile.place(tile_row(pass), int(threadIdx.x) % kTileLanes);
    CodePiece piece = tile.pieces[place];
    // Of the least that is kept nothing is left, and what was not 0 is still told from what was. A row of zeros may
    // have a larger scale than the tile.
    piece.scale = fminf(fmaxf(piece.scale * inv_scale, 0x1p-32f), 1.0f);
    tile.pieces[place] = piece;
  }
  __syncthreads();
  Counts counts;
  store_transposed(tile, ones, n, out_codes + c * out_codes_stride + kBlock * int64_t(blockIdx.x), out_codes_stride,
                   counts);
  add_counts<kTileThreads>(counts, block.rows * n, stats);
}

template <class Scalar>
__global__ void __launch_bounds__(kTileThreads)
    quantize_blocks_kernel(const Scalar* x, int64_t x_stride, uint8_t* codes, int64_t codes_stride, float* scale,
                           int64_t scale_stride, QuantizeStats* stats, int64_t N, int64_t K) {
  const int64_t kb = blockIdx.x, nb = blockIdx.y, g = blockIdx.z, first = g * N + nb * kBlock;
  const int rows = int(N - nb * kBlock < kBlock ? N - nb * kBlock : kBlock);
  const int64_t k = kb * kBlock, n = K - k < kBlock ? K - k : kBlock;
  const int column = tile_column();
  const auto tile = Tile<PieceOf<Scalar>>::number(0);
  for (int pass = 0; pass < kTilePasses; ++pass) {
    const bool is_there = tile_row(pass) < rows;
    const int64_t row = is_there ? first + tile_row(pass) : first;
    tile.set(pass, PieceOf<Scalar>::of(load8(x + row * x_stride + k + column, is_there ? n - column : 0)));
  }
  quantize_tile(tile, rows, n, codes + first * codes_stride + k, codes_stride,
                scale + (g * gridDim.y + nb) * scale_stride + kb, stats);
}

// A whole row's blocks of sixteen threads, so that none is cut by the end of a row.
int64_t pieces_of(int64_t C) { return ceil_div<int64_t>(C, kBlock) * kTileLanes; }

}  // namespace

void quantize_rows(const QuantizeRows& args, Stream& stream) {
  const int64_t R = args.x.rows(), C = args.x.cols();
  if (C == 0) return;
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    launch("quantize_rows", row_grid(R, pieces_of(C)), kRowThreads, 0, stream, quantize_rows_kernel<Scalar>,
           args.x.data<Scalar>(), args.x.row_stride(), args.codes.data<uint8_t>(), args.codes.row_stride(),
           args.scale.data<float>(), args.scale.row_stride(), args.stats, R, args.num_rows.data<int64_t>(), C,
           uint32_t(pieces_of(C)));
  });
}

void dequantize_rows(const DequantizeRows& args, Stream& stream) {
  const int64_t R = args.codes.rows(), C = args.codes.cols(), pieces = ceil_div<int64_t>(C, kVector);
  if (C == 0) return;
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    launch("dequantize_rows", row_grid(R, pieces), kRowThreads, 0, stream, dequantize_rows_kernel<Scalar>,
           args.codes.data<uint8_t>(), args.codes.row_stride(), args.scale.data<float>(), args.scale.row_stride(),
           args.x.data<Scalar>(), args.x.row_stride(), R, C, uint32_t(pieces));
  });
}

void quantize_columns(const QuantizeColumns& args, Stream& stream) {
  const int64_t C = args.x.cols();
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    launch("quantize_columns", blocks(args.scale.rows(), ceil_div<int64_t>(C, kBlock)), kTileThreads,
           Tile<PieceOf<Scalar>>::kSharedBytes, stream, quantize_columns_kernel<Scalar>, args.x.data<Scalar>(),
           args.x.row_stride(), args.rows.data<int32_t>(), args.offsets.data<int64_t>(),
           args.block_offsets.data<int64_t>(), int(args.offsets.num_elements() - 1), args.codes.data<uint8_t>(),
           args.codes.row_stride(), args.scale.data<float>(), args.scale.row_stride(), args.stats,
           args.row_codes.data<uint8_t>(), args.row_codes.row_stride(), args.row_scale.data<float>(),
           args.row_scale.row_stride(), args.row_stats, C);
  });
}

void requantize_columns(const RequantizeColumns& args, Stream& stream) {
  const int64_t C = args.codes.cols();
  launch("requantize_columns", blocks(args.out_scale.rows(), ceil_div<int64_t>(C, kBlock)), kTileThreads,
         Tile<CodePiece>::kSharedBytes, stream, requantize_columns_kernel, args.codes.data<uint8_t>(),
         args.codes.row_stride(), args.scale.data<float>(), args.scale.row_stride(), args.rows.data<int32_t>(),
         args.offsets.data<int64_t>(), args.block_offsets.data<int64_t>(), int(args.offsets.num_elements() - 1),
         args.out_codes.data<uint8_t>(), args.out_codes.row_stride(), args.out_scale.data<float>(),
         args.out_scale.row_stride(), args.stats, C);
}

void requantize_tiles(const RequantizeTiles& args, Stream& stream) {
  const int64_t C = args.codes.cols();
  launch("requantize_tiles", blocks(args.out_scale.rows(), ceil_div<int64_t>(C, kBlock)), kTileThreads,
         Tile<CodePiece>::kSharedBytes, stream, requantize_tiles_kernel, args.codes.data<uint8_t>(),
         args.codes.row_stride(), args.scale.data<float>(), args.scale.row_stride(), args.rows.data<int32_t>(),
         args.offsets.data<int64_t>(), args.block_offsets.data<int64_t>(), int(args.offsets.num_elements() - 1),
         args.out_codes.data<uint8_t>(), args.out_codes.row_stride(), args.out_scale.data<float>(),
         args.out_scale.row_stride(), args.stats, C);
}

void quantize_blocks(const QuantizeBlocks& args, Stream& stream) {
  const Shape& shape = args.x.shape();
  const int64_t G = shape.rank() == 3 ? shape[0] : 1, N = shape[-2], K = shape[-1];
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    launch("quantize_blocks", blocks(ceil_div<int64_t>(K, kBlock), ceil_div<int64_t>(N, kBlock), G), kTileThreads,
           Tile<PieceOf<Scalar>>::kSharedBytes, stream, quantize_blocks_kernel<Scalar>, args.x.data<Scalar>(),
           args.x.row_stride(), args.codes.data<uint8_t>(), args.codes.row_stride(), args.scale.data<float>(),
           args.scale.row_stride(), args.stats, N, K);
  });
}

}  // namespace octet::kernels::cuda
