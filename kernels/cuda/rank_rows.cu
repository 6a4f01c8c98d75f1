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

// Lists of some of a group's items each, in their order: items.has(g, j, i) says whether item i of group g is in list j
// of that group's, put(g, j, at, i) puts it there, and leave(g, j, at) marks room that is left.

// Tokens by rank, or by node: L experts of each.
struct TokensByExperts {
  const int32_t* indices;
  int64_t T;
  int K, L;
  __device__ bool has(int, int j, int64_t t) const { return visits(indices, t, T, K, L, j); }
};
struct NodeTokens : TokensByExperts {
  int32_t* tokens;
  int64_t *places, C;
  int experts_of_rank;
  __device__ void put(int, int node, int64_t at, int64_t t) const {
    int64_t needed = 0;
    for (int k = 0; k < K; ++k) {
      const int32_t e = indices[t * K + k] - node * L;
      if (e >= 0 && e < L) needed |= int64_t(1) << e / experts_of_rank;
    }
    tokens[node * C + at] = int32_t(t);
    places[node * C + at] = needed;
  }
  __device__ void leave(int, int node, int64_t at) const { tokens[node * C + at] = -1, places[node * C + at] = 0; }
};
struct PlaceCopies {
  const int64_t* places;
  int32_t* copies;
  int64_t C1, C;
  int N;
  __device__ bool has(int node, int place, int64_t i) const {
    return i < C1 && (places[node * C1 + i] >> place & 1) != 0;
  }
  __device__ void put(int node, int place, int64_t at, int64_t i) const {
    copies[(int64_t(place) * N + node) * C + at] = int32_t(node * C1 + i);
  }
  __device__ void leave(int node, int place, int64_t at) const { copies[(int64_t(place) * N + node) * C + at] = -1; }
};

// counts [groups, lists, chunks]: the items of a block for each list, a warp to a list.
template <class Items>
__global__ void __launch_bounds__(kTokens) count_items_kernel(Items items, int32_t* counts, int lists, int num_chunks) {
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp, group = int(blockIdx.y);
  for (int j = warp; j < lists; j += kTokens / kWarp) {
    int32_t count = 0;
    for (int i = lane; i < kTokens; i += kWarp) {
      count += items.has(group, j, int64_t(blockIdx.x) * kTokens + i) ? 1 : 0;
    }
    count = warp_sum(count);
    if (lane == 0) counts[(int64_t(group) * lists + j) * num_chunks + blockIdx.x] = count;
  }
}

// places [groups, lists, chunks] and first [groups lists + 1] are those of the counts.
template <class Items>
__global__ void __launch_bounds__(kTokens) list_items_kernel(Items items, const int32_t* places, const int64_t* first,
                                                             int64_t room, int lists, int num_chunks) {
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp, group = int(blockIdx.y);
  for (int j = warp; j < lists; j += kTokens / kWarp) {
    const int64_t list = int64_t(group) * lists + j;
    int32_t before = places[list * num_chunks + blockIdx.x];
    for (int i = lane; i < kTokens; i += kWarp) {
      const int64_t item = int64_t(blockIdx.x) * kTokens + i;
      const bool is_in = items.has(group, j, item);
      int32_t total;
      const int32_t at = before + sum_before(is_in ? 1 : 0, total);
      before = before + total;
      if (is_in && at < room) items.put(group, j, at, item);
    }
    const int64_t step = int64_t(num_chunks) * kWarp;
    for (int64_t at = first[list + 1] - first[list] + int64_t(blockIdx.x) * kWarp + lane; at < room; at += step) {
      items.leave(group, j, at);
    }
  }
}

// Items of each group in blocks; one block at least, to write that there is nothing.
int chunks_of(int64_t num_items) { return num_items == 0 ? 1 : int(ceil_div<int64_t>(num_items, kTokens)); }

template <class Items>
void list_items(const char* name, const Items& items, int64_t groups, int64_t lists, int64_t num_items, int64_t room,
                Stream& stream) {
  const int num_chunks = chunks_of(num_items);
  Workspace<int32_t> counts(name, groups * lists * num_chunks, stream);
  Workspace<int64_t> first(name, groups * lists + 1, stream);
  launch(name, blocks(num_chunks, groups), kTokens, 0, stream, count_items_kernel<Items>, items, counts.data(),
         int(lists), num_chunks);
  launch_places(name, {counts.data(), num_chunks, 1}, counts.data(), first.data(), groups * lists, num_chunks, stream);
  launch(name, blocks(num_chunks, groups), kTokens, 0, stream, list_items_kernel<Items>, items,
         static_cast<const int32_t*>(counts.data()), static_cast<const int64_t*>(first.data()), room, int(lists),
         num_chunks);
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
                           int32_t* slot_of_row, int32_t* row_of_slot, int64_t C, int64_t R, int L, int P, int N,
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
  const int64_t first_copy = ((p % (P / N)) * N + p / (P / N)) * C;
  source[row] = is_in_range(copy, C, gpu::Fault::kRow, record) ? int32_t(first_copy + copy) : 0;
  slot_of_row[row] = int32_t(slot);
  row_of_slot[slot] = int32_t(row);
}

}  // namespace

void rows_to_ranks(const RowsToRanks& args, Stream& stream) {
  const int64_t T = args.indices.rows(), K = args.indices.cols(), P = args.heads.rows();
  const int64_t L = (args.offsets.num_elements() - 1) / P;
  const int num_chunks = chunks_of(T);
  Workspace<int32_t> copies("rows_to_ranks", P * num_chunks, stream);
  Workspace<int64_t> first_copy("rows_to_ranks", P + 1, stream);
  launch("rows_to_ranks, copies", blocks(num_chunks), kTokens, 0, stream, count_items_kernel<TokensByExperts>,
         TokensByExperts{args.indices.data<int32_t>(), T, int(K), int(L)}, copies.data(), int(P), num_chunks);
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
         R, int(L), int(P), int(args.nodes), gpu::fault_record(stream.device()));
}

void tokens_to_nodes(const TokensToNodes& args, Stream& stream) {
  const int64_t T = args.indices.rows(), N = args.tokens.rows(), C = args.tokens.cols();
  const int64_t of_node = args.num_experts / N;
  const NodeTokens items{{args.indices.data<int32_t>(), T, int(args.indices.cols()), int(of_node)},
                         args.tokens.data<int32_t>(),
                         args.places.data<int64_t>(),
                         C,
                         int(of_node / args.ranks_per_node)};
  list_items("tokens_to_nodes", items, 1, N, T, C, stream);
}

void copies_to_places(const CopiesToPlaces& args, Stream& stream) {
  const int64_t N = args.places.rows(), C1 = args.places.cols(), S = args.copies.size(0), C = args.copies.size(2);
  const PlaceCopies items{args.places.data<int64_t>(), args.copies.data<int32_t>(), C1, C, int(N)};
  list_items("copies_to_places", items, N, S, C1, C, stream);
}

}  // namespace octet::kernels::cuda
