#include "parallel/token_route.h"

#include <algorithm>

#include "core/tensor/transfer.h"
#include "parallel/row_exchange.h"

namespace octet {
namespace {

Tensor index_of(const std::vector<int32_t>& rows) {
  const AllocateAs category(MemoryCategory::kWorkspace);
  return from_vector(rows, {int64_t(rows.size())});
}

class DirectRoute final : public TokenRoute {
 public:
  DirectRoute(Communicator& ep, const std::vector<std::vector<int32_t>>& tokens) : ep_(ep) {
    for (const auto& of_rank : tokens) {
      const int64_t count = int64_t(of_rank.size()), first = count == 0 ? 0 : of_rank.front();
      counts_to_.push_back(count);
      runs_.push_back({.first = first, .count = count});
      are_runs_ = are_runs_ && (count == 0 || of_rank.back() - first + 1 == count);
    }
    if (are_runs_) return;
    std::vector<int32_t> all;
    for (const auto& of_rank : tokens) all.insert(all.end(), of_rank.begin(), of_rank.end());
    tokens_ = index_of(all);
  }

  void fill_counts(int to, int64_t* counts) const override {
    counts[0] = counts_to_[size_t(to)];
    counts[1] = 0;
  }

  void start(std::span<const int64_t> counts) override {
    for (int r = 0; r < ep_.size(); ++r) {
      counts_from_.push_back(counts[size_t(r * kCounts)]);
      first_copy_.push_back(num_copies_);
      num_copies_ += counts_from_.back();
    }
  }

  std::unique_ptr<TokensInFlight> gather(const Tensor& x) override {
    class InFlight final : public TokensInFlight {
     public:
      InFlight(DirectRoute& route, const Tensor& x) : route_(route) {
        if (route.are_runs_) {
          x_ = x;
        } else {
          rows_ = RowExchange(route.ep_, x, route.tokens_, route.counts_to_);
        }
      }
      void start() override {
        if (route_.are_runs_) {
          rows_ = RowExchange(route_.ep_, std::exchange(x_, Tensor()), route_.runs_, route_.counts_from_);
        } else {
          rows_.start(route_.counts_from_);
        }
      }
      Tensor wait() override { return rows_.wait(); }

     private:
      DirectRoute& route_;
      Tensor x_;
      RowExchange rows_;
    };
    return std::make_unique<InFlight>(*this, x);
  }

 private:
  Communicator& ep_;
  std::vector<int64_t> counts_to_, counts_from_;
  // Tokens that follow each other, for each rank, leave from where they lie.
  std::vector<RowExchange::Run> runs_;
  bool are_runs_ = true;
  Tensor tokens_;  // where they do not: those for each rank, one after the other
};

class NodeRoute final : public TokenRoute {
 public:
  NodeRoute(const RouteGroups& groups, const std::vector<std::vector<int32_t>>& tokens)
      : rail_(*groups.rail), node_(*groups.node) {
    std::vector<int32_t> all;
    std::vector<int64_t> masks;
    for (int node = 0; node < rail_.size(); ++node) {
      // Of this node's ranks, in the order of the tokens: each token once, with a bit for each rank that needs it.
      std::vector<std::pair<int32_t, int64_t>> needed;
      for (int place = 0; place < node_.size(); ++place) {
        const auto& of_rank = tokens[size_t(rank_at(node, place))];
        for (const int32_t token : of_rank) needed.emplace_back(token, int64_t(1) << place);
        counts_of_rank_.push_back(int64_t(of_rank.size()));
      }
      std::sort(needed.begin(), needed.end());
      const size_t begin = all.size();
      for (const auto& [token, bit] : needed) {
        if (all.size() == begin || all.back() != token) all.push_back(token), masks.push_back(0);
        masks.back() |= bit;
      }
      to_node_.push_back(int64_t(all.size() - begin));
    }
    tokens_ = index_of(all);
    const AllocateAs category(MemoryCategory::kWorkspace);
    masks_ = from_vector(masks, {int64_t(masks.size()), 1});
  }

  void fill_counts(int to, int64_t* counts) const override {
    counts[0] = counts_of_rank_[size_t(to)];
    counts[1] = to % node_.size() == node_.rank() ? to_node_[size_t(to / node_.size())] : 0;
  }

  void start(std::span<const int64_t> counts) override {
    // Copies come from the ranks of this node, and through each of them from the ranks of its rail.
    first_copy_.resize(size_t(rail_.size() * node_.size()));
    for (int place = 0; place < node_.size(); ++place) {
      from_place_.push_back(0);
      for (int node = 0; node < rail_.size(); ++node) {
        const auto from = size_t(rank_at(node, place));
        first_copy_[from] = num_copies_;
        num_copies_ += counts[from * kCounts];
        from_place_.back() += counts[from * kCounts];
      }
    }
    for (int node = 0; node < rail_.size(); ++node) {
      from_node_.push_back(counts[size_t(rank_at(node, node_.rank())) * kCounts + 1]);
    }
    masks_on_way_ = RowExchange(rail_, masks_, Tensor(), to_node_, from_node_);
  }

  std::unique_ptr<TokensInFlight> gather(const Tensor& x) override {
    class InFlight final : public TokensInFlight {
     public:
      InFlight(NodeRoute& route, RowExchange rows) : route_(route), rows_(std::move(rows)) {}
      void start() override { rows_.start(route_.from_node_); }
      Tensor wait() override {
        const Tensor came = rows_.wait();
        route_.learn_masks();
        return RowExchange(route_.node_, came, route_.hand_on_, route_.to_place_, route_.from_place_).wait();
      }

     private:
      NodeRoute& route_;
      RowExchange rows_;
    };
    return std::make_unique<InFlight>(*this, RowExchange(rail_, x, tokens_, to_node_));
  }

 private:
  int rank_at(int node, int place) const { return node * node_.size() + place; }

  // Which of the copies that come over the rail go to which rank of this node.
  void learn_masks() {
    if (hand_on_.is_defined()) return;
    const Tensor came = masks_on_way_.wait();
    const int64_t* masks = came.data<int64_t>();
    std::vector<int32_t> rows;
    for (int place = 0; place < node_.size(); ++place) {
      const size_t begin = rows.size();
      for (int64_t copy = 0; copy < came.rows(); ++copy) {
        if ((masks[copy] >> place & 1) != 0) rows.push_back(int32_t(copy));
      }
      to_place_.push_back(int64_t(rows.size() - begin));
    }
    hand_on_ = index_of(rows);
  }

  Communicator &rail_, &node_;
  std::vector<int64_t> counts_of_rank_, to_node_, from_node_, to_place_, from_place_;
  Tensor tokens_, masks_, hand_on_;
  RowExchange masks_on_way_;
};

}  // namespace

void RouteGroups::check() const {
  require(ep != nullptr && (rail == nullptr) == (node == nullptr),
          "token_route: wanted an ep group, and a rail and a node group or neither");
  // A bit for each, in a word that goes with a token.
  if (is_two_stage()) require(node->size() <= 64, "token_route: {} ranks on a node; wanted at most 64", node->size());
}

std::unique_ptr<TokenRoute> make_token_route(const RouteGroups& groups,
                                             const std::vector<std::vector<int32_t>>& tokens) {
  if (groups.is_two_stage()) return std::make_unique<NodeRoute>(groups, tokens);
  return std::make_unique<DirectRoute>(*groups.ep, tokens);
}

}  // namespace octet
