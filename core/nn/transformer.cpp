#include "core/nn/transformer.h"

#include "core/nn/init.h"
#include "core/ops/add.h"
#include "core/ops/embedding.h"
#include "core/ops/rms_norm.h"
#include "core/tensor/device_fault.h"

namespace octet {

Block::Block(int64_t layer, const ModelConfig& config, const ModelContext& context, const Rotary& rotary,
             Dispatcher& dispatcher)
    : context_(context),
      eps_(config.norm_eps),
      attention_norm_(fmt::format("model.layers.{}.input_layernorm.weight", layer), {config.hidden},
                      WeightForm::kFloat32, /*decays=*/false, context.device),
      ffn_norm_(fmt::format("model.layers.{}.post_attention_layernorm.weight", layer), {config.hidden},
                WeightForm::kFloat32, /*decays=*/false, context.device),
      attention_(fmt::format("model.layers.{}.self_attn.", layer), config, context, rotary) {
  const std::string mlp = fmt::format("model.layers.{}.mlp.", layer);
  if (config.is_moe_layer(layer)) {
    moe_.emplace(mlp, config, context, dispatcher);
  } else {
    dense_.emplace(mlp, config.hidden, config.ffn_hidden, kDense, context);
  }
}

LinearInput Block::attention_input(const Tensor& x) {
  const NormUse use{.in_high_precision = false, .recompute = context_.recompute.norm};
  const Recipe recipe = context_.recipe_of(kQkvProj);
  return rms_norm_input(x, attention_norm_, eps_, context_.numerics.in(recipe), use);
}
LinearInput Block::ffn_input(const Tensor& x) {
  // In FP8 where one of those that read it is.
  const Recipe of_shared = context_.recipe_of(kSharedExperts);
  const bool is_for_shared = moe_ && moe_->has_shared_experts() && of_shared == Recipe::kFp8Block;
  const Recipe recipe = is_for_shared ? of_shared : context_.recipe_of(moe_ ? kExperts : kDense);
  const NormUse use{.in_high_precision = moe_.has_value(), .recompute = context_.recompute.norm};  // for the router
  return rms_norm_input(x, ffn_norm_, eps_, context_.numerics.in(recipe), use);
}

Tensor Block::attend(const Tensor& x) { return attention_.forward(attention_input(x)); }

Tensor Block::feed_forward(const Tensor& x) {
  const LinearInput input = ffn_input(x);
  return moe_ ? moe_->forward(input) : dense_->forward(input);
}

void Block::begin(Flow& flow) {
  if (context_.recompute.block) return;  // one closure, in compute()
  const Tensor attended = context_.recompute.attention
                              ? recompute(flow.x, [this](const Tensor& inner) { return attend(inner); })
                              : attend(flow.x);
  flow.middle = add(flow.x, attended);
  LinearInput input = ffn_input(flow.middle);
  if (moe_) {
    moe_->begin(flow.moe.emplace(MoeLayer::Flow{.input = std::move(input)}));
  } else {
    flow.normed = std::move(input);
  }
}

void Block::send(Flow& flow) {
  if (flow.moe) moe_->send(*flow.moe);
}

void Block::share(Flow& flow) {
  if (flow.moe) moe_->share(*flow.moe);
}

void Block::compute(Flow& flow) {
  if (context_.recompute.block) {
    flow.x = recompute(flow.x, [this](const Tensor& x) { return forward(x); });
  } else if (moe_) {
    moe_->compute(*flow.moe);
  } else {
    flow.x = add(flow.middle, dense_->forward(*flow.normed));
  }
}

Tensor Block::finish(Flow& flow) {
  if (context_.recompute.block || !moe_) return flow.x;
  return add(flow.middle, moe_->finish(*flow.moe));
}

Tensor Block::forward(const Tensor& x) {
  const Tensor middle = add(x, attend(x));
  return add(middle, feed_forward(middle));
}

Tensor Block::decode(const Tensor& x, KvCache& cache) {
  const Tensor middle = add(x, attention_.decode(attention_input(x), cache));
  return add(middle, feed_forward(middle));
}

Transformer::Transformer(const ModelConfig& config, const PrecisionConfig& precision,
                         const RecomputeParts& recompute_parts, int64_t max_positions,
                         std::unique_ptr<Dispatcher> dispatcher, Device device)
    : config_(config),
      context_{.numerics = {.recipe = precision.recipe,
                            .emulation = emulation_on(device, precision.emulation),
                            .expert_gradients = precision.recipe == Recipe::kFp8Block ? precision.expert_gradients
                                                                                      : GradientWire::kActivation},
               .recompute = recompute_parts,
               .device = device,
               .swiglu_limit = config.swiglu_limit,
               .products = precision.products},
      rotary_{.cos_sin = empty({max_positions, config.head_width()}, DType::kFloat32, MemoryCategory::kWeights, device),
              .layout = config.rope_layout},
      dispatcher_(std::move(dispatcher)),
      embedding_("model.embed_tokens.weight", {config.vocab_size, config.hidden}, high_precision_form(precision.recipe),
                 /*decays=*/true, device),
      final_norm_("model.norm.weight", {config.hidden}, WeightForm::kFloat32, /*decays=*/false, device) {
  require(config.vocab_size >= 1, "Transformer: vocab_size is {}; wanted 1 or more", config.vocab_size);
  const Tensor table = empty(rotary_.cos_sin.shape(), DType::kFloat32, MemoryCategory::kWorkspace);
  kernels::fill_rope_table(table, config.head_width(), double(config.rope_theta));
  copy(table, rotary_.cos_sin);
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    blocks_.push_back(std::make_unique<Block>(layer, config_, context_, rotary_, *dispatcher_));
  }
  if (!config_.tied_head) {
    head_.emplace("lm_head.weight", Shape{config.vocab_size, config.hidden}, high_precision_form(precision.recipe),
                  /*decays=*/true, device);
  }
  if (precision.has_wgrad_tiles()) wgrad_tiles_.emplace(parameters(), precision.wgrad_underflow_limit, device);
}

std::vector<std::vector<Parameter*>> Transformer::units() {
  std::vector<std::vector<Parameter*>> units = {{&embedding_}};
  for (auto& block : blocks_) {
    units.emplace_back();
    block->visit_parameters([&units](Parameter& parameter) { units.back().push_back(&parameter); });
  }
  units.push_back({&final_norm_});
  if (head_) units.back().push_back(&*head_);
  return units;
}

std::vector<Parameter*> Transformer::parameters() {
  std::vector<Parameter*> all;
  for (const auto& unit : units()) all.insert(all.end(), unit.begin(), unit.end());
  return all;
}

std::vector<Router*> Transformer::routers() {
  std::vector<Router*> all;
  for (auto& block : blocks_) {
    if (MoeLayer* moe = block->moe()) all.push_back(&moe->router());
  }
  return all;
}

void Transformer::init_weights(uint64_t seed) {
  for (Parameter* parameter : parameters()) {
    if (parameter->shape().rank() == 1) {
      init_ones(*parameter);
    } else {
      init_normal(*parameter, seed, config_.init_std);
    }
  }
  refresh_weights();
}

void Transformer::refresh_weights() {
  for (Parameter* parameter : parameters()) parameter->refresh();
}

Tensor Transformer::unit_begins(size_t unit, const Tensor& x) const {
  if (!context_.on_unit_done || !is_recording()) return x;
  return record("unit", x, {x}, [unit, this](const Tensor& dy) -> Gradients {
    context_.on_unit_done(unit);
    return {dy};
  });
}

std::vector<Tensor> Transformer::hidden(std::span<const Tensor> ids) {
  const size_t n = ids.size();
  std::vector<Block::Flow> flows(n);
  for (size_t i = 0; i < n; ++i) flows[i].x = embedding(ids[i], embedding_);  // [T, D]
  for (size_t b = 0; b < blocks_.size(); ++b) {
    Block& block = *blocks_[b];
    for (size_t i = 0; i < n; ++i) {
      Tensor x = b == 0 ? flows[i].x : blocks_[b - 1]->finish(flows[i]);
      if (i == 0) x = unit_begins(b + 1, x);  // the first that is recorded is the last that runs back
      flows[i] = {.x = x, .middle = {}, .normed = {}, .moe = {}};
      block.begin(flows[i]);
      if (i == 0) continue;
      // The ranks have learned meanwhile how many tokens of the one before come.
      block.send(flows[i - 1]);
      block.share(flows[i - 1]);
    }
    // What hides the way of the last one's tokens: the experts of the others, or else its own shared ones.
    if (n > 1) block.share(flows[n - 1]);
    block.send(flows[n - 1]);
    if (n == 1) block.share(flows[0]);
    for (size_t i = 0; i < n; ++i) block.compute(flows[i]);
  }
  std::vector<Tensor> normed(n);
  for (size_t i = 0; i < n; ++i) {
    Tensor x = blocks_.back()->finish(flows[i]);
    if (i == 0) x = unit_begins(blocks_.size() + 1, x);
    normed[i] = rms_norm(x, final_norm_, config_.norm_eps);
  }
  return normed;
}

std::vector<HeadLoss> Transformer::train_micro_batches(std::span<const MicroBatch> micro_batches, int64_t batch,
                                                       float loss_scale, float micro_batch_share) {
  context_.batch = batch;
  context_.training = true;
  context_.micro_batch_share = micro_batch_share;
  const Recording on(true);
  // The last is recorded first, so that the first runs back first: gradients add up in the order of the micro-batches.
  const size_t n = micro_batches.size();
  std::vector<Tensor> ids(n);
  for (size_t i = 0; i < n; ++i) ids[n - 1 - i] = micro_batches[i].ids;
  std::vector<Tensor> xs = hidden(ids);
  std::vector<HeadLoss> losses;
  std::vector<std::pair<Tensor, Tensor>> roots;
  for (size_t i = 0; i < n; ++i) {
    HeadLoss& loss = losses.emplace_back(head_loss(xs[n - 1 - i], head(), micro_batches[i].targets, loss_scale));
    roots.emplace_back(loss.anchor, loss.anchor.detach());
    loss.anchor = Tensor();
  }
  xs.clear();
  autograd::run_backward(std::move(roots));
  if (context_.on_unit_done) context_.on_unit_done(0);
  return losses;
}

Transformer::Loss Transformer::train_micro_batch(const Tensor& ids, const Tensor& targets, int64_t batch,
                                                 float loss_scale, float micro_batch_share) {
  const MicroBatch one{ids, targets};
  const HeadLoss loss = train_micro_batches({&one, 1}, batch, loss_scale, micro_batch_share)[0];
  const HeadLoss::Reading reading = loss.read();
  return {reading.sum(), reading.tokens()};
}

Transformer::Loss Transformer::evaluate(const Tensor& ids, const Tensor& targets, int64_t batch) {
  context_.batch = batch;
  context_.training = false;
  const Recording off(false);
  const HeadLoss::Reading reading = head_loss(hidden(ids), head(), targets, 1.0f).read();
  DeviceFault(context_.device).rethrow();
  return {reading.sum(), reading.tokens()};
}

Tensor Transformer::logits(const Tensor& ids, int64_t batch) {
  context_.batch = batch;
  context_.training = false;
  const Recording off(false);
  return head_logits(hidden(ids), head());
}

std::vector<KvCache> Transformer::make_caches(int64_t capacity) const {
  std::vector<KvCache> caches;
  for (const auto& block : blocks_) caches.push_back(block->make_cache(capacity));
  return caches;
}

Tensor Transformer::decode(const Tensor& ids, std::vector<KvCache>& caches) {
  context_.batch = 1;
  context_.training = false;
  const Recording off(false);
  Tensor x = embedding(ids, embedding_);
  for (size_t i = 0; i < blocks_.size(); ++i) x = blocks_[i]->decode(x, caches[i]);
  const Tensor last = x.slice_rows(x.rows() - 1, 1);
  return head_logits(rms_norm(last, final_norm_, config_.norm_eps), head());
}

}  // namespace octet
