#include "core/nn/attention_layer.h"

namespace octet {

WeightForm linear_form(Recipe recipe) {
  return recipe == Recipe::kFp8Block ? WeightForm::kFp8Block : high_precision_form(recipe);
}
WeightForm high_precision_form(Recipe recipe) {
  return recipe == Recipe::kFp32 ? WeightForm::kFloat32 : WeightForm::kBFloat16;
}

AttentionLayer::AttentionLayer(const std::string& prefix, const ModelConfig& config, const ModelContext& context,
                               const Rotary& rotary)
    : context_(context),
      rotary_(rotary),
      shape_{.num_heads = config.heads, .num_kv_heads = config.num_kv_heads(), .head_dim = config.head_width()},
      qkv_(prefix + "qkv_proj.weight", {shape_.qkv_width(), config.hidden}, linear_form(context.recipe_of(kQkvProj)),
           /*decays=*/true, context.device,
           {{prefix + "q_proj.weight", 0, shape_.q_width()},
            {prefix + "k_proj.weight", shape_.q_width(), shape_.kv_width()},
            {prefix + "v_proj.weight", shape_.q_width() + shape_.kv_width(), shape_.kv_width()}}),
      o_(prefix + "o_proj.weight", {config.hidden, shape_.q_width()}, linear_form(context.recipe_of(kOProj)),
         /*decays=*/true, context.device) {}

Tensor AttentionLayer::forward(const LinearInput& input) {
  const DType dtype = context_.numerics.activation_dtype();
  const Tensor qkv = linear(input, qkv_, dtype);                     // [T, (H + 2 Hkv) * head_dim]
  const Tensor o = attention(qkv, context_.batch, shape_, rotary_);  // [T, H * head_dim]
  return linear(LinearInput(o, context_.numerics), o_, dtype);       // [T, D]
}

Tensor AttentionLayer::decode(const LinearInput& input, KvCache& cache) {
  const DType dtype = context_.numerics.activation_dtype();
  const Tensor qkv = linear(input, qkv_, dtype);
  return linear(LinearInput(attention_decode(qkv, cache, shape_, rotary_), context_.numerics), o_, dtype);
}

KvCache AttentionLayer::make_cache(int64_t capacity) const {
  const Shape shape{capacity, shape_.kv_width()};
  return {.k = empty(shape, context_.numerics.activation_dtype(), context_.device),
          .v = empty(shape, context_.numerics.activation_dtype(), context_.device)};
}

}  // namespace octet
