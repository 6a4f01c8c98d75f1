#include "parallel/expert_dispatcher.h"

#include <numeric>

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
        row_of_(empty(indices.shape(), DType::kInt32)),
        rows_to_(size_t(ep_.size())),
        rows_from_(size_t(ep_.size())) {
    const int64_t T = indices.rows(), K = indices.cols(), P = ep_.size();
    const Tensor offsets = workspace({num_experts + 1}, DType::kInt64), source = workspace({T * K}, DType::kInt32);
    kernels::build_permutation({.indices = indices, .offsets = offsets, .row_of = row_of_, .source = source},
                               indices.stream());
    // Each token once for each rank that it goes to; and of each row, which of that rank's tokens it is.
    const std::unique_ptr<int32_t[]> list(new int32_t[size_t(P * T)]);
    std::vector<int32_t> num_tokens(size_t(P), 0), newest(size_t(P), -1);
    copy_of_row_ = workspace({T * K, 1}, DType::kInt32);
    std::vector<int32_t> rank_of(static_cast<size_t>(num_experts));
    for (int64_t e = 0; e < num_experts; ++e) rank_of[size_t(e)] = int32_t(e / local_experts_);
    const int32_t *experts = indices.data<int32_t>(), *row_of = row_of_.data<int32_t>();
    auto* copy_of_row = copy_of_row_.data<int32_t>();
    for (int64_t t = 0, pair = 0; t < T; ++t) {
      for (int64_t k = 0; k < K; ++k, ++pair) {
        // Without a branch: whether a token has been to a rank before is a coin toss.
        const auto p = size_t(rank_of[size_t(experts[pair])]);
        num_tokens[p] += newest[p] != int32_t(t);
        newest[p] = int32_t(t);
        const int32_t copy = num_tokens[p] - 1;
        list[p * size_t(T) + size_t(copy)] = int32_t(t);
        copy_of_row[row_of[pair]] = copy;
      }
    }
    std::vector<std::vector<int32_t>> tokens;
    const auto* of_expert = offsets.data<int64_t>();
    for (size_t p = 0; p < size_t(P); ++p) {
      int32_t* const first = list.get() + p * size_t(T);
      if (goes_whole(num_tokens[p], T)) {
        std::iota(first, first + T, 0);
        num_tokens[p] = int32_t(T);
        const int64_t begin = of_expert[int64_t(p) * local_experts_];
        std::copy(source.data<int32_t>() + begin, source.data<int32_t>() + of_expert[int64_t(p + 1) * local_experts_],
                  copy_of_row + begin);
      }
      tokens.emplace_back(first, first + num_tokens[p]);
    }
    route_ = make_token_route(groups, tokens);

    const int64_t width = local_experts_ + TokenRoute::kCounts;
    counts_sent_ = workspace({P, width}, DType::kInt64);
    counts_received_ = workspace({P, width}, DType::kInt64);
    for (int64_t p = 0; p < P; ++p) {
      int64_t* counts = counts_sent_.view().row<int64_t>(p);
      for (int64_t e = 0; e < local_experts_; ++e) {
        counts[e] = of_expert[p * local_experts_ + e + 1] - of_expert[p * local_experts_ + e];
        rows_to_[size_t(p)] += counts[e];
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
    // Where each of this rank's rows will be.
    const int64_t own = rows_to_[size_t(me)], num_come_back = row_of_.num_elements() - own;
    std::vector<int32_t> places(size_t(row_of_.num_elements()));
    const auto own_begin = places.begin() + std::accumulate(rows_to_.begin(), rows_to_.begin() + me, int64_t(0));
    std::iota(places.begin(), own_begin, 0);
    std::iota(own_begin + own, places.end(), int32_t(own_begin - places.begin()));
    auto next_own = own_begin;
    int64_t row = 0;
    for (int64_t e = 0; e < local_experts_; ++e) {
      offsets.data<int64_t>()[e] = row;
      for (int64_t p = 0; p < P; ++p) {
        const int64_t count = counts_received_.view().row<int64_t>(p)[e];
        if (p == me) {
          std::iota(next_own, next_own + count, int32_t(num_come_back + row));
          next_own += count;
        } else {
          runs_back_[size_t(p * local_experts_ + e)] = {.first = row, .count = count};
        }
        const int64_t begin = next[size_t(p)], first_copy = route_->first_copy(int(p));
        for (int64_t at = begin; at < begin + count; ++at, ++row) {
          row_at[at] = int32_t(row);
          token[row] = int32_t(first_copy + copy[at]);
        }
        next[size_t(p)] = begin + count;
      }
    }
    offsets.data<int64_t>()[local_experts_] = row;
    for (int64_t p = 0; p < P; ++p) {
      const int64_t* counts = counts_sent_.view().row<int64_t>(p);
      for (int64_t e = 0; e < local_experts_; ++e) counts_back_.push_back(p == me ? 0 : counts[e]);
    }
    place_ = empty(row_of_.shape(), DType::kInt32);
    const int32_t* row_of = row_of_.data<int32_t>();
    auto* place = place_.data<int32_t>();
    for (int64_t pair = 0; pair < row_of_.num_elements(); ++pair) place[pair] = places[size_t(row_of[pair])];
    return RowGroups::of_offsets(offsets, source, num_rows_);
  }

  Communicator& ep_;
  const Numerics numerics_;
  int64_t local_experts_, num_rows_ = 0;
  std::unique_ptr<TokenRoute> route_;
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
  require(groups.ep != nullptr && (groups.rail == nullptr) == (groups.node == nullptr),
          "expert_dispatcher: wanted an ep group, and a rail and a node group or neither");
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
