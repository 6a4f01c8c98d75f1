#include "core/nn/feed_forward.h"

#include "core/nn/attention_layer.h"

namespace octet {

FeedForward::FeedForward(const std::string& prefix, int64_t hidden, int64_t inner, const ProductLayer& layer,
                         const ModelContext& context)
    : context_(context),
      layer_(layer),
      w13_(prefix + "gate_up_proj.weight", {2 * inner, hidden}, linear_form(context.recipe_of(layer)),
           /*decays=*/true, context.device,
           {{prefix + "gate_proj.weight", 0, inner}, {prefix + "up_proj.weight", inner, inner}}),
      w2_(prefix + "down_proj.weight", {hidden, inner}, linear_form(context.recipe_of(layer)),
          /*decays=*/true, context.device) {}

Tensor FeedForward::forward(const LinearInput& input) {
  const RowGroups all = RowGroups::dense(input.x().rows(), context_.device);
  return swiglu_ffn(input, all, /*weights=*/{}, w13_, w2_, context_.swiglu(layer_));
}

}  // namespace octet
