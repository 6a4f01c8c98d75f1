#include "parallel/device_dispatcher.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/ops/combine.h"
#include "kernels/permute.h"
#include "kernels/quantize.h"
#include "kernels/rank_rows.h"
#include "parallel/dispatch_on_tape.h"

namespace octet {
namespace {

Tensor workspace(Shape shape, DType dtype, Device device) {
  return empty(shape, dtype, MemoryCategory::kWorkspace, device);
}

// As many rows of a matrix to each rank, and from each.
class EqualExchange {
 public:
  EqualExchange() = default;
  explicit EqualExchange(Communicator& ep, const Tensor& sent)
      : sent_(sent), received_(empty(sent.shape(), sent.dtype(), sent.device())) {
    const std::vector<int64_t> counts(size_t(ep.size()), sent.size(0) / ep.size());
    pending_ = ep.start_all_to_all_v(
        {.send = sent_, .send_pieces = {.counts = counts}, .receive = received_, .receive_pieces = {.counts = counts}},
        sent_.stream());
  }
  Tensor wait() {
    pending_.wait();
    sent_ = Tensor();
    return std::exchange(received_, Tensor());
  }

 private:
  Tensor sent_, received_;
  Pending pending_;
};

// Row list[i] of x, [S, C], at i; where the list has -1, anything.
Tensor rows_at(const Tensor& x, const Tensor& list) {
  const Tensor rows = workspace({list.num_elements(), x.cols()}, x.dtype(), x.device());
  kernels::gather_rows({.x = x, .source = list, .y = rows, .skips = true}, x.stream());
  return rows;
}

// Of tokens that go to nodes first, the way from there to the ranks that need them.
class WayInNode {
 public:
  // places: of each copy that leaves here, [N, C1]; room for `copies` from each node to each place.
  WayInNode(const RouteGroups& groups, const Tensor& places, int64_t copies)
      : node_(*groups.node), copies_(copies), places_(*groups.rail, places) {}
  // came: [N C1, C]. All ranks of the node call it in the same order. [S N copies, C]
  Tensor hand_on(const Tensor& came) {
    if (!list_.is_defined()) {
      const Tensor places = places_.wait();
      list_ = empty({node_.size(), places.rows(), copies_}, DType::kInt32, places.device());
      kernels::copies_to_places({.places = places, .copies = list_}, places.stream());
    }
    return EqualExchange(node_, rows_at(came, list_)).wait();
  }

 private:
  Communicator& node_;
  int64_t copies_;
  EqualExchange places_;
  Tensor list_;
};

// Rows of a matrix, gathered by a list that has as many for each rank of a group; and handed on, if there is a way.
class ListedTokens final : public TokensInFlight {
 public:
  ListedTokens(Communicator& ranks, const Tensor& x, const Tensor& list, WayInNode* way)
      : ranks_(ranks), rows_(rows_at(x, list)), way_(way) {}
  void start() override { exchange_ = EqualExchange(ranks_, std::exchange(rows_, Tensor())); }
  Tensor wait() override {
    const Tensor came = exchange_.wait();
    return way_ == nullptr ? came : way_->hand_on(came);
  }

 private:
  Communicator& ranks_;
  Tensor rows_;  // until start
  WayInNode* way_;
  EqualExchange exchange_;
};

// What the forward pass leaves to the backward pass; not on the tape itself.
class Exchange {
 public:
  Exchange(const RouteGroups& groups, Wire wire, double bound, const LinearInput& input, const Tensor& indices,
           const Tensor& weights, int64_t num_experts)
      : route_(groups),
        ep_(*groups.ep),
        wire_(wire),
        numerics_(input.numerics()),
        bound_(bound),
        num_experts_(num_experts),
        local_experts_(num_experts / ep_.size()),
        input_(input),
        indices_(indices),
        weights_of_pairs_(weights.detach()),
        offsets_(workspace({num_experts + 1}, DType::kInt64, indices.device())),
        row_of_(workspace(indices.shape(), DType::kInt32, indices.device())),
        tokens_of_rank_(size_t(ep_.size()), 0.0) {
    const Tensor source = workspace({indices.num_elements()}, DType::kInt32, indices.device());
    kernels::build_permutation({.indices = indices, .offsets = offsets_, .row_of = row_of_, .source = source},
                               indices.stream());
    if (is_wire_fp8()) input_->quantized();
    tokens_of_rank_[size_t(ep_.rank())] = double(indices.rows());
    tokens_pending_ = ep_.start_all_reduce(tokens_of_rank_);
  }

  void send() {
    tokens_pending_.wait();
    const Device device = indices_.device();
    const int64_t P = ep_.size(), T = indices_.rows(), K = indices_.cols();
    const auto most_tokens = int64_t(*std::max_element(tokens_of_rank_.begin(), tokens_of_rank_.end()));
    room_ = dispatch_room(most_tokens, K, num_experts_, P, ranks_per_node(), bound_);
    const Tensor heads = workspace({P, local_experts_ + room_.rows}, DType::kInt32, device);
    token_of_copy_ = empty({P, room_.copies}, DType::kInt32, device);
    const Tensor pair_of_slot = workspace({P, room_.rows}, DType::kInt32, device);
    slots_ = empty({T, K}, DType::kInt32, device);
    kernels::rows_to_ranks({.indices = indices_,
                            .offsets = offsets_,
                            .row_of = row_of_,
                            .heads = heads,
                            .tokens = token_of_copy_,
                            .pairs = pair_of_slot,
                            .slots = slots_,
                            .rank = ep_.rank()},
                           heads.stream());
    heads_ = EqualExchange(ep_, heads);
    const Tensor pairs = std::exchange(weights_of_pairs_, Tensor());
    weights_ = EqualExchange(ep_, rows_at(pairs.reshape({T * K, 1}), pair_of_slot));
    if (route_.is_two_stage()) take_way_by_nodes();
    if (is_wire_fp8()) {
      start_tokens(input_->quantized());
    } else {
      start_tokens(input_->values());
    }
    input_.reset();
    indices_ = offsets_ = row_of_ = Tensor();
  }

  // Orders the rows of the experts here. Their weights, [R].
  Tensor wait_rows() {
    const Tensor heads = heads_.wait();
    const Device device = heads.device();
    const Tensor offsets = empty({local_experts_ + 1}, DType::kInt64, device);
    const Tensor source = empty({num_rows()}, DType::kInt32, device);
    const Tensor slot_of_row = workspace({num_rows()}, DType::kInt32, device);
    row_of_slot_ = empty({ep_.size(), room_.rows}, DType::kInt32, device);
    kernels::rows_from_ranks({.heads = heads,
                              .offsets = offsets,
                              .source = source,
                              .slot_of_row = slot_of_row,
                              .row_of_slot = row_of_slot_,
                              .copies = room_.copies,
                              .nodes = num_nodes()},
                             heads.stream());
    groups_ = RowGroups::of_offsets(offsets, source, num_rows());
    const Tensor came = weights_.wait(), weights = empty({num_rows(), 1}, DType::kFloat32, device);
    kernels::gather_rows({.x = came, .source = slot_of_row, .y = weights, .skips = true}, weights.stream());
    return weights.reshape({num_rows()});
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

  // Rows of experts, [num_rows, D], to the ranks of their tokens.
  void start_back(const Tensor& rows) { back_ = EqualExchange(ep_, rows_at(rows, row_of_slot_)); }
  // y[t] = base[t] + sum_k row of pair (t, k). base may be undefined.
  Tensor wait_back(const Tensor& base) {
    const Tensor came = back_.wait();
    Tensor y = empty({slots_.rows(), came.cols()}, came.dtype(), came.device());  // [T, D]
    kernels::combine_forward({.rows = came, .row_of = slots_, .base = base, .y = y}, y.stream());
    return y;
  }

  // The gradient of the layer's output, [T, D], to the experts.
  void start_gradient(const Tensor& dy) {
    if (numerics_.expert_gradients == GradientWire::kFp8) {
      start_tokens(quantize_rows(dy, nullptr));
    } else {
      start_tokens(dy);
    }
  }
  // Of each token as it came, for its rows to be read through their source.
  Tensor wait_gradient() { return std::exchange(tokens_, {}).wait_values(numerics_.activation_dtype()); }

  // dweights: [R], of the rows of the experts here.
  void start_weight_gradients(const Tensor& dweights) {
    weights_ = EqualExchange(ep_, rows_at(dweights.reshape({num_rows(), 1}), row_of_slot_));
  }
  // [T, K]
  Tensor wait_weight_gradients() {
    return rows_at(weights_.wait(), slots_.reshape({slots_.num_elements()})).reshape(slots_.shape());
  }

 private:
  int64_t num_rows() const { return ep_.size() * room_.rows; }  // that there is room for
  int64_t num_nodes() const { return route_.is_two_stage() ? route_.rail->size() : 1; }
  int64_t ranks_per_node() const { return ep_.size() / num_nodes(); }

  void take_way_by_nodes() {
    const Device device = indices_.device();
    token_of_copy_ = empty({num_nodes(), room_.node_copies}, DType::kInt32, device);
    const Tensor places = workspace({num_nodes(), room_.node_copies}, DType::kInt64, device);
    kernels::tokens_to_nodes({.indices = indices_,
                              .tokens = token_of_copy_,
                              .places = places,
                              .num_experts = num_experts_,
                              .ranks_per_node = ranks_per_node()},
                             places.stream());
    way_in_node_.emplace(route_, places, room_.copies);
  }
  std::unique_ptr<TokensInFlight> listed(const Tensor& x) {
    if (!way_in_node_) return std::make_unique<ListedTokens>(ep_, x, token_of_copy_, nullptr);
    return std::make_unique<ListedTokens>(*route_.rail, x, token_of_copy_, &*way_in_node_);
  }
  void start_tokens(const Tensor& values) {
    tokens_ = TokensOnWire(listed(values));
    tokens_.start();
  }
  void start_tokens(const Fp8Rows& rows) {
    tokens_ = TokensOnWire(listed(rows.codes), listed(rows.scale));
    tokens_.start();
  }
  bool is_wire_fp8() const { return numerics_.is_fp8() && wire_ == Wire::kFp8; }

  const RouteGroups route_;
  Communicator& ep_;
  const Wire wire_;
  const Numerics numerics_;
  const double bound_;
  const int64_t num_experts_, local_experts_;
  std::optional<LinearInput> input_;                      // until send
  Tensor indices_, weights_of_pairs_, offsets_, row_of_;  // the same
  std::vector<double> tokens_of_rank_;
  Pending tokens_pending_;
  DispatchRoom room_;
  Tensor token_of_copy_, slots_, row_of_slot_;  // as kernels/rank_rows.h has them; copies to nodes, if that is the way
  std::optional<WayInNode> way_in_node_;
  RowGroups groups_;  // until they are handed on
  EqualExchange heads_, back_, weights_;
  TokensOnWire tokens_;
};

}  // namespace

DispatchRoom dispatch_room(int64_t tokens, int64_t top_k, int64_t num_experts, int64_t ranks, int64_t ranks_per_node,
                           double bound) {
  int64_t rows = tokens * std::min(top_k, num_experts / ranks);
  if (bound > 0) rows = std::min(rows, int64_t(std::ceil(bound * double(tokens * top_k) / double(ranks))));
  return {.copies = std::min(tokens, rows), .rows = rows, .node_copies = std::min(tokens, rows * ranks_per_node)};
}

DeviceDispatcher::DeviceDispatcher(const RouteGroups& groups, Wire wire, double bound)
    : groups_(groups), wire_(wire), bound_(bound) {
  groups_.check();
}

ExpertRange DeviceDispatcher::experts_at_hand(int64_t num_experts) const {
  return experts_of_rank(*groups_.ep, num_experts);
}

std::unique_ptr<Dispatch> DeviceDispatcher::start(const LinearInput& input, const Tensor& indices,
                                                  const Tensor& weights, int64_t num_experts) {
  return std::make_unique<DispatchOnTape<Exchange>>(
      std::make_shared<Exchange>(groups_, wire_, bound_, input, indices, weights, num_experts), input, weights);
}

}  // namespace octet
