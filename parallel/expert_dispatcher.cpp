#include "parallel/expert_dispatcher.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kernels/permute.h"
#include "kernels/quantize.h"
#include "parallel/dispatch_on_tape.h"
#include "parallel/mesh.h"
#include "parallel/row_exchange.h"

namespace octet {
namespace {

Tensor workspace(Shape shape, DType dtype) { return empty(shape, dtype, MemoryCategory::kWorkspace); }

TokensOnWire on_wire(TokenRoute& route, const Tensor& values) { return TokensOnWire(route.gather(values)); }
TokensOnWire on_wire(TokenRoute& route, const Fp8Rows& rows) {
  std::unique_ptr<TokensInFlight> codes = route.gather(rows.codes);
  return {std::move(codes), route.gather(rows.scale)};
}

// What the forward pass leaves to the backward pass; not on the tape itself.
class Exchange {
 public:
  // What can be done before the other ranks have said how much comes.
  Exchange(const RouteGroups& groups, Wire wire, const LinearInput& input, const Tensor& indices, const Tensor& weights,
           int64_t num_experts)
      : ep_(*groups.ep),
        numerics_(input.numerics()),
        local_experts_(num_experts / ep_.size()),
        indices_(indices),
        row_of_(empty(indices.shape(), DType::kInt32)),
        rows_to_(size_t(ep_.size())),
        rows_from_(size_t(ep_.size())) {
    const int64_t T = indices.rows(), K = indices.cols(), P = ep_.size();
    const Tensor offsets = workspace({num_experts + 1}, DType::kInt64), source = workspace({T * K}, DType::kInt32);
    kernels::build_permutation({.indices = indices, .offsets = offsets, .row_of = row_of_, .source = source},
                               indices.stream());
    // Each token once for each rank that it goes to; and of each row, which of that rank's tokens it is.
    copy_of_row_ = workspace({T * K, 1}, DType::kInt32);
    auto* copy_of_row = copy_of_row_.data<int32_t>();
    const auto* of_expert = offsets.data<int64_t>();
    const int32_t* token_of_row = source.data<int32_t>();
    std::vector<std::vector<int32_t>> tokens;
    std::vector<int32_t> copy_of_token(static_cast<size_t>(T));
    for (int64_t p = 0; p < P; ++p) {
      const int64_t begin = of_expert[p * local_experts_], end = of_expert[(p + 1) * local_experts_];
      rows_to_[size_t(p)] = end - begin;
      std::fill(copy_of_token.begin(), copy_of_token.end(), 0);
      for (int64_t r = begin; r < end; ++r) copy_of_token[size_t(token_of_row[r])] = 1;
      auto& list = tokens.emplace_back(copy_of_token.size());
      if (goes_whole(std::accumulate(copy_of_token.begin(), copy_of_token.end(), int64_t(0)), T)) {
        std::iota(list.begin(), list.end(), 0);
        std::copy(token_of_row + begin, token_of_row + end, copy_of_row + begin);
        continue;
      }
      size_t copies = 0;
      for (size_t t = 0; t < list.size(); ++t) {
        // Without a branch: whether a token goes to a rank is a coin toss.
        list[copies] = int32_t(t);
        copies += size_t(std::exchange(copy_of_token[t], int32_t(copies)));
      }
      list.resize(copies);
      for (int64_t r = begin; r < end; ++r) copy_of_row[r] = copy_of_token[size_t(token_of_row[r])];
    }
    route_ = make_token_route(groups, tokens);

    const int64_t width = local_experts_ + TokenRoute::kCounts;
    counts_sent_ = workspace({P, width}, DType::kInt64);
    counts_received_ = workspace({P, width}, DType::kInt64);
    for (int64_t p = 0; p < P; ++p) {
      int64_t* counts = counts_sent_.view().row<int64_t>(p);
      for (int64_t e = 0; e < local_experts_; ++e) {
        counts[e] = of_expert[p * local_experts_ + e + 1] - of_expert[p * local_experts_ + e];
      }
      route_->fill_counts(int(p), counts + local_experts_);
    }
    const std::vector<int64_t> one_each(size_t(P), 1);
    counts_pending_ = ep_.start_all_to_all_v({.send = counts_sent_,
                                              .send_pieces = {.counts = one_each},
                                              .receive = counts_received_,
                                              .receive_pieces = {.counts = one_each}},
                                             indices.stream());
    copies_ = RowExchange(ep_, copy_of_row_, Tensor(), rows_to_);
    const Tensor of_row = workspace({T * K, 1}, DType::kFloat32);
    auto* weight_of_row = of_row.data<float>();
    const float* weight_of_pair = weights.data<float>();
    const int32_t* row_of = row_of_.data<int32_t>();
    for (int64_t pair = 0; pair < T * K; ++pair) weight_of_row[row_of[pair]] = weight_of_pair[pair];
    weights_ = RowExchange(ep_, of_row, Tensor(), rows_to_);
    if (!numerics_.is_fp8() || wire == Wire::kBf16) {
      tokens_ = on_wire(*route_, input.values());
    } else {
      tokens_ = on_wire(*route_, input.quantized());
    }
  }

  // Learns what comes, and lets the tokens go.
  void send() {
    counts_pending_.wait();
    const int64_t P = ep_.size();
    std::vector<int64_t> of_route;
    num_rows_ = 0;
    for (int64_t p = 0; p < P; ++p) {
      const int64_t* counts = counts_received_.view().row<int64_t>(p);
      for (int64_t e = 0; e < local_experts_; ++e) rows_from_[size_t(p)] += counts[e];
      of_route.insert(of_route.end(), counts + local_experts_, counts + local_experts_ + TokenRoute::kCounts);
      num_rows_ += rows_from_[size_t(p)];
    }
    route_->start(of_route);
    copies_.start(rows_from_);
    weights_.start(rows_from_);
    tokens_.start();
  }

  // Orders the rows of the experts here. Their weights, [R].
  Tensor wait_rows() {
    groups_ = order_rows(copies_.wait());
    const Tensor came = weights_.wait(), weights = empty({num_rows_}, DType::kFloat32);
    const int32_t* row_at = row_at_.data<int32_t>();
    const float* from = came.data<float>();
    auto* to = weights.data<float>();
    for (int64_t i = 0; i < num_rows_; ++i) to[row_at[i]] = from[i];
    return weights;
  }

  // place: of the rows of experts, on the tape.
  Dispatched arrive(const Tensor& place) {
    RowGroups groups = std::exchange(groups_, {});
    TokensOnWire tokens = std::exchange(tokens_, {});
    if (!numerics_.is_fp8()) {
      const LinearInput input(tokens.wait_values(numerics_.activation_dtype()), numerics_);
      return {.input = input.at(place), .groups = std::move(groups), .weights = {}};
    }
    return {
        .input = LinearInput(place, tokens.wait_quantized(), numerics_), .groups = std::move(groups), .weights = {}};
  }

  // Rows of experts, [num_rows, D] in the order of the groups, to the ranks of their tokens.
  void start_back(const Tensor& rows) {
    own_rows_ = rows;
    back_ = RowExchange(ep_, rows, runs_back_, counts_back_);
  }
  // y[t] = base[t] + sum_k row of pair (t, k), read where it came or, of this rank's experts, where they made it. base
  // may be undefined, as in kernels/permute.h.
  Tensor wait_back(const Tensor& base) {
    const Tensor came = back_.wait(), own = std::exchange(own_rows_, Tensor());
    Tensor y = empty({place_.rows(), own.cols()}, own.dtype());  // [T, D]
    kernels::combine_forward({.rows = came, .more_rows = own, .row_of = place_, .base = base, .y = y}, y.stream());
    return y;
  }

  // The gradient of the layer's output, [T, D], to the experts.
  void start_gradient(const Tensor& dy) {
    if (numerics_.expert_gradients == GradientWire::kFp8) {
      tokens_ = on_wire(*route_, quantize_rows(dy, nullptr));
    } else {
      tokens_ = on_wire(*route_, dy);
    }
    tokens_.start();
  }
  // Of each token as it came, for its rows to be read through their source.
  Tensor wait_gradient() { return std::exchange(tokens_, {}).wait_values(numerics_.activation_dtype()); }

  // dweights: [R], of the rows of the experts here.
  void start_weight_gradients(const Tensor& dweights) {
    weights_ = RowExchange(ep_, dweights.reshape({num_rows_, 1}), row_at_, rows_from_, rows_to_);
  }
  // [T, K]
  Tensor wait_weight_gradients() {
    const Tensor came = weights_.wait();  // [T K, 1]
    Tensor dweights = empty(row_of_.shape(), DType::kFloat32);
    const int32_t* row_of = row_of_.data<int32_t>();
    const float* from = came.data<float>();
    auto* to = dweights.data<float>();
    for (int64_t pair = 0; pair < dweights.num_elements(); ++pair) to[pair] = from[row_of[pair]];
    return dweights;
  }

 private:
  // Rows come by rank, expert, token, and are read by expert, rank, token. Back, they lie on the rank of their tokens
  // by expert and token, but for those of its own experts, which stay where they are and count from the last on.
  RowGroups order_rows(const Tensor& copy_of_row) {
    const int64_t P = ep_.size(), me = ep_.rank();
    const Tensor offsets = empty({local_experts_ + 1}, DType::kInt64);
    const Tensor source = empty({num_rows_}, DType::kInt32);
    row_at_ = empty({num_rows_}, DType::kInt32);
    std::vector<int64_t> next(size_t(P), 0);  // row of each rank, as they come
    for (int64_t p = 1; p < P; ++p) next[size_t(p)] = next[size_t(p - 1)] + rows_from_[size_t(p - 1)];
    const int32_t* copy = copy_of_row.data<int32_t>();
    int32_t *row_at = row_at_.data<int32_t>(), *token = source.data<int32_t>();
    runs_back_.assign(size_t(P * local_experts_), {});
    // Of each expert, from a row's place as it leaves to its place when it is back.
    std::vector<int32_t> way_back(size_t(P * local_experts_), 0);
    const int64_t own = rows_to_[size_t(me)], num_come_back = row_of_.num_elements() - own;
    std::fill(way_back.begin() + (me + 1) * local_experts_, way_back.end(), int32_t(-own));
    int64_t row = 0, leaves_at = std::accumulate(rows_to_.begin(), rows_to_.begin() + me, int64_t(0));
    for (int64_t e = 0; e < local_experts_; ++e) {
      offsets.data<int64_t>()[e] = row;
      for (int64_t p = 0; p < P; ++p) {
        const int64_t count = counts_received_.view().row<int64_t>(p)[e];
        if (p == me) {
          way_back[size_t(me * local_experts_ + e)] = int32_t(num_come_back + row - leaves_at);
          leaves_at += count;
        } else {
          runs_back_[size_t(p * local_experts_ + e)] = {.first = row, .count = count};
        }
        int64_t& begin = next[size_t(p)];
        std::iota(row_at + begin, row_at + begin + count, int32_t(row));
        std::transform(copy + begin, copy + begin + count, token + row,
                       [first = int32_t(route_->first_copy(int(p)))](int32_t of_rank) { return first + of_rank; });
        begin += count;
        row += count;
      }
    }
    offsets.data<int64_t>()[local_experts_] = row;
    for (int64_t p = 0; p < P; ++p) {
      const int64_t* counts = counts_sent_.view().row<int64_t>(p);
      for (int64_t e = 0; e < local_experts_; ++e) counts_back_.push_back(p == me ? 0 : counts[e]);
    }
    place_ = empty(row_of_.shape(), DType::kInt32);
    const int32_t *row_of = row_of_.data<int32_t>(), *expert = indices_.data<int32_t>();
    std::transform(row_of, row_of + row_of_.num_elements(), expert, place_.data<int32_t>(),
                   [&way_back](int32_t leaves, int32_t e) { return leaves + way_back[size_t(e)]; });
    indices_ = Tensor();
    return RowGroups::of_offsets(offsets, source, num_rows_);
  }

  Communicator& ep_;
  const Numerics numerics_;
  int64_t local_experts_, num_rows_ = 0;
  std::unique_ptr<TokenRoute> route_;
  Tensor indices_;      // [T, K], until the rows have come
  Tensor row_of_;       // [T, K] of this rank's rows
  Tensor copy_of_row_;  // of each, which token of those that go to its rank
  std::vector<int64_t> rows_to_, rows_from_;
  std::vector<RowExchange::Run> runs_back_;  // of the rows of experts here, [P, experts here]: those for each rank
  std::vector<int64_t> counts_back_;         // [P, experts of each]: rows that come back
  Tensor place_;                             // [T, K] of each row, among those that come back and then those made here
  Tensor own_rows_;
  Tensor counts_sent_, counts_received_;  // [P, experts here, then those of the route]
  Tensor row_at_;                         // of each row as they come, its place among those of the experts
  Pending counts_pending_;
  RowGroups groups_;  // until they are handed on
  RowExchange copies_, weights_, back_;
  TokensOnWire tokens_;
};

}  // namespace

ExpertDispatcher::ExpertDispatcher(const RouteGroups& groups, Wire wire) : groups_(groups), wire_(wire) {
  groups_.check();
}

ExpertRange experts_of_rank(const Communicator& ep, int64_t num_experts) {
  const int64_t P = ep.size();
  require(ErrorKind::kConfig, num_experts % P == 0,
          "expert_dispatcher: {} experts over {} ep ranks leave {} over; ep divides {}: {}", num_experts, P,
          num_experts % P, num_experts, list_choices(divisors_of(num_experts)));
  return {.first = num_experts / P * ep.rank(), .count = num_experts / P};
}

ExpertRange ExpertDispatcher::experts_at_hand(int64_t num_experts) const {
  return experts_of_rank(*groups_.ep, num_experts);
}

std::unique_ptr<Dispatch> ExpertDispatcher::start(const LinearInput& input, const Tensor& indices,
                                                  const Tensor& weights, int64_t num_experts) {
  return std::make_unique<DispatchOnTape<Exchange>>(
      std::make_shared<Exchange>(groups_, wire_, input, indices, weights, num_experts), input, weights);
}

}  // namespace octet
