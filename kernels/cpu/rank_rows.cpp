#include "kernels/rank_rows.h"

#include <algorithm>
#include <vector>

namespace octet::kernels {

void cpu::rows_to_ranks(const RowsToRanks& args, Stream&) {
  const int64_t T = args.indices.rows(), K = args.indices.cols(), P = args.heads.rows();
  const int64_t L = (args.offsets.num_elements() - 1) / P, R = args.pairs.cols(), C = args.tokens.cols();
  const int64_t* offsets = args.offsets.data<int64_t>();
  for (int64_t p = 0; p < P; ++p) {
    const int64_t first = offsets[p * L];
    int32_t *head = args.heads.row<int32_t>(p), *tokens = args.tokens.row<int32_t>(p);
    for (int64_t e = 0; e < L; ++e) {
      head[e] = int32_t(std::min(offsets[p * L + e + 1] - first, R) - std::min(offsets[p * L + e] - first, R));
    }
    std::fill_n(tokens, C, -1);
    std::fill_n(args.pairs.row<int32_t>(p), R, -1);
    int32_t copy = -1;
    for (int64_t t = 0; t < T; ++t) {
      bool is_new = true;
      for (int64_t k = 0; k < K; ++k) {
        if (args.indices.row<int32_t>(t)[k] / L != p) continue;
        copy += is_new;
        is_new = false;
        if (copy < C) tokens[copy] = int32_t(t);
        const int64_t at = args.row_of.row<int32_t>(t)[k] - first;
        args.slots.row<int32_t>(t)[k] = at < R ? int32_t(p * R + at) : 0;
        if (at >= R) continue;
        head[L + at] = copy < C ? copy : 0;
        args.pairs.row<int32_t>(p)[at] = int32_t(t * K + k);
      }
    }
  }
}

void cpu::rows_from_ranks(const RowsFromRanks& args, Stream&) {
  const int64_t P = args.heads.rows(), L = args.offsets.num_elements() - 1, R = args.row_of_slot.cols();
  int64_t* offsets = args.offsets.data<int64_t>();
  int32_t *source = args.source.data<int32_t>(), *slot_of_row = args.slot_of_row.data<int32_t>();
  int32_t* row_of_slot = args.row_of_slot.data<int32_t>();
  std::fill_n(source, P * R, 0);
  for (int32_t* list : {slot_of_row, row_of_slot}) std::fill_n(list, P * R, -1);
  const int64_t of_node = P / args.nodes;
  std::vector<int64_t> next(size_t(P), 0);  // row of each message
  int64_t row = 0;
  for (int64_t e = 0; e < L; ++e) {
    offsets[e] = row;
    for (int64_t p = 0; p < P; ++p) {
      const int32_t* head = args.heads.row<int32_t>(p);
      for (int64_t i = 0; i < head[e]; ++i, ++row) {
        const int64_t at = next[size_t(p)]++;
        source[row] = int32_t(((p % of_node) * args.nodes + p / of_node) * args.copies + head[L + at]);
        slot_of_row[row] = int32_t(p * R + at);
        row_of_slot[p * R + at] = int32_t(row);
      }
    }
  }
  offsets[L] = row;
}

void cpu::tokens_to_nodes(const TokensToNodes& args, Stream&) {
  const int64_t T = args.indices.rows(), K = args.indices.cols(), N = args.tokens.rows(), C = args.tokens.cols();
  const int64_t of_rank = args.num_experts / (N * args.ranks_per_node), of_node = of_rank * args.ranks_per_node;
  for (int64_t n = 0; n < N; ++n) {
    int32_t* tokens = args.tokens.row<int32_t>(n);
    int64_t *places = args.places.row<int64_t>(n), copies = 0;
    for (int64_t t = 0; t < T && copies < C; ++t) {
      int64_t needed = 0;
      for (int64_t k = 0; k < K; ++k) {
        const int64_t e = args.indices.row<int32_t>(t)[k] - n * of_node;
        if (e >= 0 && e < of_node) needed |= int64_t(1) << e / of_rank;
      }
      if (needed == 0) continue;
      tokens[copies] = int32_t(t);
      places[copies++] = needed;
    }
    std::fill(tokens + copies, tokens + C, -1);
    std::fill(places + copies, places + C, 0);
  }
}

void cpu::copies_to_places(const CopiesToPlaces& args, Stream&) {
  const int64_t N = args.places.rows(), C1 = args.places.cols(), S = args.copies.size(0), C = args.copies.size(2);
  auto* list = args.copies.data<int32_t>();
  for (int64_t s = 0; s < S; ++s) {
    for (int64_t n = 0; n < N; ++n, list += C) {
      const int64_t* places = args.places.row<int64_t>(n);
      int64_t copies = 0;
      for (int64_t i = 0; i < C1 && copies < C; ++i) {
        if ((places[i] >> s & 1) != 0) list[copies++] = int32_t(n * C1 + i);
      }
      std::fill(list + copies, list + C, -1);
    }
  }
}

}  // namespace octet::kernels
