#include "core/nn/dispatcher.h"

#include "core/ops/combine.h"
#include "kernels/permute.h"

namespace octet {
namespace {

class LocalDispatch final : public Dispatch {
 public:
  LocalDispatch(const LinearInput& input, const Tensor& indices, const Tensor& weights, int64_t num_experts)
      : input_(input),
        offsets_(empty({num_experts + 1}, DType::kInt64, indices.device())),
        row_of_(empty(indices.shape(), DType::kInt32, indices.device())),
        source_(empty({indices.num_elements()}, DType::kInt32, indices.device())) {
    const Tensor pairs = empty(source_.shape(), DType::kInt32, MemoryCategory::kWorkspace, indices.device());
    kernels::build_permutation(
        {.indices = indices, .offsets = offsets_, .row_of = row_of_, .source = source_, .pairs = pairs},
        indices.stream());
    weights_ = weights_of_rows(weights, pairs, row_of_);
    place_ = record(
        "dispatch", Tensor::without_data({source_.size(0), input.x().cols()}, input.x().dtype(), input.x().device()),
        {input.x()},
        [row_of = row_of_](const Tensor& drows) -> Gradients { return {sum_rows_of_tokens(drows, row_of)}; });
  }

  void send() override {}

  Dispatched arrive() override {
    return {.input = input_.at(place_),
            .groups = RowGroups::of_offsets(offsets_, source_, source_.size(0)),
            .weights = weights_};
  }

  void send_back(const Tensor& rows) override { rows_ = rows; }

  Tensor combine(const Tensor& base) override {
    return octet::combine(rows_, row_of_, base, input_.numerics().expert_gradients);
  }

 private:
  LinearInput input_;
  Tensor offsets_, row_of_, source_, weights_, place_, rows_;
};

}  // namespace

std::unique_ptr<Dispatch> LocalDispatcher::start(const LinearInput& input, const Tensor& indices, const Tensor& weights,
                                                 int64_t num_experts) {
  return std::make_unique<LocalDispatch>(input, indices, weights, num_experts);
}

}  // namespace octet
