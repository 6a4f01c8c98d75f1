// Rows of experts that lie on P ranks, where the counts stay on the device: rank p has experts p L .. (p + 1) L - 1,
// L = E / P. What one rank sends another has room for C copies of tokens, each token once, and for R rows of experts,
// and this size whatever tokens choose. Room that is left is marked by -1.
//
// The head of a message says what is in it: the rows of each of the L experts, and of each row, sorted by expert and
// then by token, which of the copies it reads.
//
// In two stages ranks are N nodes of S: rank p is at place p % S of node p / S. A token first goes once to each node
// that has an expert of its choice, to the rank at this one's place, with room for C1 such copies; that one hands it on
// to the places that need it, with room for C copies from each node.
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

struct RowsToRanks {
  ConstView indices;  // [T, K] int32 in [0, E)
  ConstView offsets;  // [E + 1] int64 and row_of, as BuildPermutation leaves them (kernels/permute.h)
  ConstView row_of;   // [T, K] int32
  View heads;         // [P, L + R] int32, of the message to each rank
  View tokens;        // [P, C] int32: token of each copy
  View pairs;         // [P, R] int32: t K + k of each row
  View slots;         // [T, K] int32: where the row of pair (t, k) is, p R + its place among those for rank p
  int64_t rank = 0;   // this one, for a record: a GPU records rows for which there is no room, and leaves them out

  KernelCost cost() const {
    return {.name = "rows_to_ranks", .bytes = bytes_of(indices, row_of, heads, tokens, pairs, slots)};
  }
};
struct RowsFromRanks {
  ConstView heads;    // [P, L + R] int32, of the message from each rank
  View offsets;       // [L + 1] int64: rows of each expert, in the order of their ranks, then of the message
  View source;        // [P R] int32: of each, its copy, where they lie by place, node and then as they came from there:
                      // ((p % S) N + p / S) C + its copy; 0 in room that is left, which a product's tile may read
  View slot_of_row;   // [P R] int32: of each, where it came, p R + its place in the message
  View row_of_slot;   // [P, R] int32: the other way round
  int64_t copies;     // C
  int64_t nodes = 1;  // N

  KernelCost cost() const {
    return {.name = "rows_from_ranks", .bytes = bytes_of(heads, source, slot_of_row, row_of_slot)};
  }
};
struct TokensToNodes {
  ConstView indices;  // [T, K] int32 in [0, E)
  View tokens;        // [N, C1] int32: those that go to each node, each once, rising
  View places;        // [N, C1] int64: bit s of each, whether place s needs it; 0 in room that is left
  int64_t num_experts, ranks_per_node;  // E, and S, of at most 64

  KernelCost cost() const { return {.name = "tokens_to_nodes", .bytes = bytes_of(indices, tokens, places)}; }
};
struct CopiesToPlaces {
  ConstView places;  // [N, C1] int64, as they came from each node
  View copies;       // [S, N, C] int32: of those from a node that go to a place, n C1 + the copy

  KernelCost cost() const { return {.name = "copies_to_places", .bytes = bytes_of(places, copies)}; }
};
namespace cpu {
void rows_to_ranks(const RowsToRanks& args, Stream& stream);
void rows_from_ranks(const RowsFromRanks& args, Stream& stream);
void tokens_to_nodes(const TokensToNodes& args, Stream& stream);
void copies_to_places(const CopiesToPlaces& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void rows_to_ranks(const RowsToRanks& args, Stream& stream);
void rows_from_ranks(const RowsFromRanks& args, Stream& stream);
void tokens_to_nodes(const TokensToNodes& args, Stream& stream);
void copies_to_places(const CopiesToPlaces& args, Stream& stream);
}  // namespace cuda
inline void rows_to_ranks(const RowsToRanks& args, Stream& stream) {
  dispatch<cpu::rows_to_ranks, cuda::rows_to_ranks>(args, stream);
}
inline void rows_from_ranks(const RowsFromRanks& args, Stream& stream) {
  dispatch<cpu::rows_from_ranks, cuda::rows_from_ranks>(args, stream);
}
inline void tokens_to_nodes(const TokensToNodes& args, Stream& stream) {
  dispatch<cpu::tokens_to_nodes, cuda::tokens_to_nodes>(args, stream);
}
inline void copies_to_places(const CopiesToPlaces& args, Stream& stream) {
  dispatch<cpu::copies_to_places, cuda::copies_to_places>(args, stream);
}

}  // namespace octet::kernels
