#include "kernels/rank_rows.h"

#include "kernels/cuda/scan.cuh"

namespace octet::kernels::cuda {
namespace {

constexpr int kTokens = 256;       // of a block, one to a thread of each warp in turn
constexpr int kSlotThreads = 256;  // one to a row of a message

// Lane by lane, whether a token of this block has an expert on a rank.
__device__ __forceinline__ bool visits(const int32_t* indices, int64_t t, int64_t T, int K, int L, int p) {
  bool is_there = false;
  if (t >= T) return false;
  for (int k = 0; k < K; ++k) {
    const int32_t e = indices[t * K + k];
    if (e >= p * L && e < (p + 1) * L) is_there = true;
  }
  return is_there;
}

// copies [P, chunks]: tokens of each block that go to each rank, a warp to a rank.
__global__ void __launch_bounds__(kTokens)
    count_copies_kernel(const int32_t* indices, int32_t* copies, int64_t T, int K, int L, int P, int num_chunks) {
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  for (int p = warp; p < P; p += kTokens / kWarp) {
    int32_t count = 0;
    for (int i = lane; i < kTokens; i += kWarp) {
      count += visits(indices, int64_t(blockIdx.x) * kTokens + i, T, K, L, p) ? 1 : 0;
    }
    count = warp_sum(count);
    if (lane == 0) copies[int64_t(p) * num_chunks + blockIdx.x] = count;
  }
}

struct Lists {
  int32_t *heads, *tokens, *pairs, *slots;
  int64_t C, R;
};

// Each token to its copies, each row to its place. places [P, chunks] and first_copy [P + 1] are those of the copies.
__global__ void __launch_bounds__(kTokens)
    rows_to_ranks_kernel(const int32_t* indices, const int32_t* row_of, const int64_t* offsets, const int32_t* places,
                         const int64_t* first_copy, Lists to, int64_t T, int K, int L, int P, int num_chunks,
                         int64_t rank, gpu::FaultRecord* record) {
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const int64_t head_size = L + to.R;
  for (int p = warp; p < P; p += kTokens / kWarp) {
    const int64_t first_row = offsets[int64_t(p) * L];
    int32_t before = places[int64_t(p) * num_chunks + blockIdx.x];
    for (int i = lane; i < kTokens; i += kWarp) {
      const int64_t t = int64_t(blockIdx.x) * kTokens + i;
      const bool is_sent = visits(indices, t, T, K, L, p);
      int32_t total;
      const int32_t copy = before + sum_before(is_sent ? 1 : 0, total);
      before = before + total;
      if (!is_sent) continue;
      if (copy < to.C) to.tokens[p * to.C + copy] = int32_t(t);
      for (int k = 0; k < K; ++k) {
        const int32_t e = indices[t * K + k];
        if (e < p * L || e >= (p + 1) * L) continue;
        const int64_t at = row_of[t * K + k] - first_row;
        if (at < to.R) {
          to.heads[p * head_size + L + at] = copy < to.C ? copy : 0;
          to.pairs[p * to.R + at] = int32_t(t * K + k);
        }
        to.slots[t * K + k] = at < to.R ? int32_t(p * to.R + at) : 0;
      }
    }
  }
  // What is left of the lists, and the counts.
  const int64_t thread = int64_t(blockIdx.x) * kTokens + threadIdx.x, threads = int64_t(num_chunks) * kTokens;
  for (int64_t i = thread; i < P * to.C; i += threads) {
    const int64_t p = i / to.C;
    if (i % to.C >= first_copy[p + 1] - first_copy[p]) to.tokens[i] = -1;
  }
  for (int64_t i = thread; i < P * to.R; i += threads) {
    const int64_t p = i / to.R;
    if (i % to.R >= offsets[(p + 1) * L] - offsets[p * L]) to.pairs[i] = -1;
  }
  for (int64_t e = thread; e < int64_t(P) * L; e += threads) {
    const int64_t p = e / L, first = offsets[p * L], begin = offsets[e] - first, end = offsets[e + 1] - first;
    to.heads[p * head_size + e % L] = int32_t((end < to.R ? end : to.R) - (begin < to.R ? begin : to.R));
  }
  // An expert that there is not has no row, and its pair a place inside for those who read it before the host looks.
  for (int64_t pair = thread; pair < T * K; pair += threads) {
    if (indices[pair] < 0 || indices[pair] >= P * L) to.slots[pair] = 0;
  }
  for (int64_t p = thread; p < P; p += threads) {
    const int64_t rows = offsets[(p + 1) * L] - offsets[p * L];
    if (rows > to.R && atomic_replace(&record->fault, 0, int64_t(gpu::Fault::kRoom))) {
      record->value = rows, record->limit = to.R + 1;
      record->from = rank, record->to = p;
    }
  }
}

// places [L, P] of the rows of each message among those of an expert. One thread to a row.
__global__ void __launch_bounds__(kSlotThreads)
    rows_from_ranks_kernel(const int32_t* heads, const int64_t* offsets, const int32_t* places, int32_t* source,
                           int32_t* slot_of_row, int32_t* row_of_slot, int64_t C, int64_t R, int L, int P,
                           gpu::FaultRecord* record) {
  const auto ends = dynamic_shared<int32_t>(0, L);  // of the rows of each expert in the message
  const int64_t p = blockIdx.y, j = int64_t(blockIdx.x) * kSlotThreads + threadIdx.x, slot = p * R + j;
  const int32_t* head = heads + p * (L + R);
  const int lane = int(threadIdx.x) % kWarp;
  if (threadIdx.x < kWarp) {
    int32_t before = 0;
    for (int e = 0; e < L; e += kWarp) {
      const int32_t count = e + lane < L ? head[e + lane] : 0;
      int32_t total;
      const int32_t begin = before + sum_before(count, total);
      if (e + lane < L) ends[e + lane] = begin + count;
      before = before + total;
    }
  }
  __syncthreads();
  if (j >= R) return;
  if (slot >= offsets[L]) source[slot] = 0, slot_of_row[slot] = -1;  // slot stands for the row of this number
  row_of_slot[slot] = -1;
  if (j >= ends[L - 1]) return;
  int e = 0, last = L - 1;  // the first expert whose rows end behind j
  while (e < last) {
    const int middle = (e + last) / 2;
    if (j < ends[middle]) {
      last = middle;
    } else {
      e = middle + 1;
    }
  }
  const int64_t begin = e == 0 ? 0 : int64_t(ends[e - 1]);
  const int64_t row = offsets[e] + places[int64_t(e) * P + p] + j - begin;
  if (!is_in_range(row, P * R, gpu::Fault::kGroups, record)) return;
  const int32_t copy = head[L + j];
  source[row] = is_in_range(copy, C, gpu::Fault::kRow, record) ? int32_t(p * C + copy) : 0;
  slot_of_row[row] = int32_t(slot);
  row_of_slot[slot] = int32_t(row);
}

}  // namespace

void rows_to_ranks(const RowsToRanks& args, Stream& stream) {
  const int64_t T = args.indices.rows(), K = args.indices.cols(), P = args.heads.rows();
  const int64_t L = (args.offsets.num_elements() - 1) / P;
  const int num_chunks = T == 0 ? 1 : int(ceil_div<int64_t>(T, kTokens));  // one to write that there is nothing
  Workspace<int32_t> copies("rows_to_ranks", P * num_chunks, stream);
  Workspace<int64_t> first_copy("rows_to_ranks", P + 1, stream);
  launch("rows_to_ranks, copies", blocks(num_chunks), kTokens, 0, stream, count_copies_kernel,
         args.indices.data<int32_t>(), copies.data(), T, int(K), int(L), int(P), num_chunks);
  launch_places("rows_to_ranks, places", {copies.data(), num_chunks, 1}, copies.data(), first_copy.data(), P,
                num_chunks, stream);
  const Lists to{args.heads.data<int32_t>(), args.tokens.data<int32_t>(), args.pairs.data<int32_t>(),
                 args.slots.data<int32_t>(), args.tokens.cols(),          args.pairs.cols()};
  launch("rows_to_ranks", blocks(num_chunks), kTokens, 0, stream, rows_to_ranks_kernel, args.indices.data<int32_t>(),
         args.row_of.data<int32_t>(), args.offsets.data<int64_t>(), copies.data(), first_copy.data(), to, T, int(K),
         int(L), int(P), num_chunks, args.rank, gpu::fault_record(stream.device()));
}

void rows_from_ranks(const RowsFromRanks& args, Stream& stream) {
  const int64_t P = args.heads.rows(), L = args.offsets.num_elements() - 1, R = args.row_of_slot.cols();
  Workspace<int32_t> places("rows_from_ranks", L * P, stream);
  launch_places("rows_from_ranks, places", {args.heads.data<int32_t>(), 1, L + R}, places.data(),
                args.offsets.data<int64_t>(), L, P, stream);
  launch("rows_from_ranks", blocks(ceil_div<int64_t>(R, kSlotThreads), P), kSlotThreads, size_t(L) * sizeof(int32_t),
         stream, rows_from_ranks_kernel, args.heads.data<int32_t>(), args.offsets.data<int64_t>(), places.data(),
         args.source.data<int32_t>(), args.slot_of_row.data<int32_t>(), args.row_of_slot.data<int32_t>(), args.copies,
         R, int(L), int(P), gpu::fault_record(stream.device()));
}

}  // namespace octet::kernels::cuda
