// Which weights' gradients are products of tiles (kernels/requantize_tiles.h). A tile has one scale for 128 tokens, so
// the codes of tokens that are far smaller than the largest of them become 0. They are counted for each weight and
// operand, over a step and all ranks; a weight of which more than a limit are lost takes columns, each with a scale of
// its own, from the next step on, and for good: what a step computes follows from the weights, the tokens and this
// list.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/tensor/transfer.h"

namespace octet {

class WgradTiles {
 public:
  // Of the parameters, which outlive this, those in FP8: from now on all of them take tiles. limit: of the share that
  // is lost.
  WgradTiles(const std::vector<Parameter*>& parameters, double limit, Device device);
  WgradTiles(const WgradTiles&) = delete;  // weights point into the counts
  WgradTiles& operator=(const WgradTiles&) = delete;

  // Before the first micro-batch of a step: counts are 0.
  void begin_step();
  // Counts of each weight since then: kernels::QuantizeStats of the output's gradient, then of the input.
  const Tensor& counts() const { return counts_; }  // [weights, 8] int64
  // Codes, and how many of them are lost, of each weight and operand: on their way to the host.
  class Reading {
   public:
    std::vector<int64_t> wait() const;  // [weights, 2, 2]; waits for a GPU
    // Of all weights together.
    void add_to(kernels::QuantizeStats& grad, kernels::QuantizeStats& input) const;

   private:
    friend class WgradTiles;
    Readback counts_;
  };
  Reading read() const;

  // A weight that takes columns from now on, and why.
  struct Fallback {
    std::string weight;
    bool is_of_grad = false;  // the operand that lost more
    double lost = 0;          // the share of its codes
  };
  // After a step: counts as wait() gives them, summed over ranks.
  std::vector<Fallback> decide(std::span<const int64_t> counts);

  const std::vector<Parameter*>& weights() const { return weights_; }
  double limit() const { return limit_; }
  // Those that take columns, in the order of the weights; never fewer than before, but for set_columns.
  std::vector<std::string> columns() const;
  int64_t num_columns() const;
  // As a checkpoint names them; names of others are left out.
  void set_columns(const std::vector<std::string>& names);

 private:
  void use_tiles(size_t i, bool yes);

  std::vector<Parameter*> weights_;
  double limit_;
  Tensor counts_;
};

}  // namespace octet
