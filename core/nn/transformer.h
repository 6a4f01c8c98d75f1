// A decoder-only transformer: token embedding; blocks of x += attention(norm(x)), x += ffn(norm(x)); norm; head. The
// feed-forward layer of the first blocks is dense, that of the others a mixture of experts.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/nn/attention_layer.h"
#include "core/nn/feed_forward.h"
#include "core/nn/moe_layer.h"
#include "core/nn/precision_config.h"
#include "core/nn/wgrad_tiles.h"
#include "core/ops/head_loss.h"

namespace octet {

class Block {
 public:
  Block(int64_t layer, const ModelConfig& config, const ModelContext& context, const Rotary& rotary,
        Dispatcher& dispatcher);

  // From [T, D] to [T, D], in steps, so that those of several micro-batches can alternate.
  struct Flow {
    Tensor x, middle;                   // what came in; and what the feed-forward layer is added to
    std::optional<LinearInput> normed;  // of a dense layer
    std::optional<MoeLayer::Flow> moe;
  };
  void begin(Flow& flow);    // attention, and the router
  void send(Flow& flow);     // tokens leave
  void share(Flow& flow);    // the shared experts
  void compute(Flow& flow);  // the rest of the feed-forward layer
  Tensor finish(Flow& flow);
  Tensor decode(const Tensor& x, KvCache& cache);
  KvCache make_cache(int64_t capacity) const { return attention_.make_cache(capacity); }
  MoeLayer* moe() { return moe_ ? &*moe_ : nullptr; }

  void visit_parameters(auto&& visit) {
    visit(attention_norm_);
    attention_.visit_parameters(visit);
    visit(ffn_norm_);
    if (moe_) moe_->visit_parameters(visit);
    if (dense_) dense_->visit_parameters(visit);
  }

 private:
  LinearInput attention_input(const Tensor& x);
  LinearInput ffn_input(const Tensor& x);
  Tensor attend(const Tensor& x);
  Tensor feed_forward(const Tensor& x);
  Tensor forward(const Tensor& x);

  const ModelContext& context_;
  float eps_;
  Parameter attention_norm_, ffn_norm_;  // [D]
  AttentionLayer attention_;
  std::optional<MoeLayer> moe_;
  std::optional<FeedForward> dense_;
};

class Transformer {
 public:
  // config.vocab_size must be set. max_positions: longest sequence the rotary table serves.
  Transformer(const ModelConfig& config, const PrecisionConfig& precision, const RecomputeParts& recompute,
              int64_t max_positions, std::unique_ptr<Dispatcher> dispatcher = std::make_unique<LocalDispatcher>(),
              Device device = {});
  Transformer(const Transformer&) = delete;  // layers point at the context and the rotary table
  Transformer& operator=(const Transformer&) = delete;

  void init_weights(uint64_t seed);
  // After the masters were filled; the optimizer keeps the weights up to date itself.
  void refresh_weights();

  struct Loss {
    double sum = 0;  // of cross-entropy over the tokens, nats
    int64_t tokens = 0;
  };
  // ids and targets are on the model's device. One micro-batch, forward and backward: adds the gradient of
  //   loss_scale * sum over tokens of cross-entropy + micro_batch_share * (balance losses)
  // to each parameter's grad(). ids, targets: [batch * S] int32.
  Loss train_micro_batch(const Tensor& ids, const Tensor& targets, int64_t batch, float loss_scale,
                         float micro_batch_share);
  // Several, layer by layer in turn, so that the tokens of one move between ranks while another computes. Gradients are
  // the same as those of one after the other, bit for bit (but for a tied head, whose two uses add up in another
  // order), and the activations of all are held at once. On a
  // GPU this returns before it is computed.
  struct MicroBatch {
    Tensor ids, targets;
  };
  std::vector<HeadLoss> train_micro_batches(std::span<const MicroBatch> micro_batches, int64_t batch, float loss_scale,
                                            float micro_batch_share);
  Loss evaluate(const Tensor& ids, const Tensor& targets, int64_t batch);

  // Generation: the logits of the last of `ids`, [1, V] float32, after the tokens that `caches` holds.
  std::vector<KvCache> make_caches(int64_t capacity) const;
  Tensor decode(const Tensor& ids, std::vector<KvCache>& caches);
  // Logits of every position, [batch * S, V].
  Tensor logits(const Tensor& ids, int64_t batch);

  // All parameters, in the order of the forward pass; a tied head counts once.
  std::vector<Parameter*> parameters();
  // The same in units whose gradients become complete one after the other, the last unit first
  // (ModelContext::on_unit_done): the embedding, each block, and the final norm with the head.
  std::vector<std::vector<Parameter*>> units();
  std::vector<Router*> routers();  // of the mixture-of-experts layers, in order
  // Null where no gradient is a product of tiles.
  WgradTiles* wgrad_tiles() { return wgrad_tiles_ ? &*wgrad_tiles_ : nullptr; }
  ModelContext& context() { return context_; }
  const ModelConfig& config() const { return config_; }
  int64_t max_positions() const { return rotary_.cos_sin.size(0); }

 private:
  // Of each: [T, D], normed: what the head reads.
  std::vector<Tensor> hidden(std::span<const Tensor> ids);
  Tensor hidden(const Tensor& ids) { return hidden(std::span(&ids, 1))[0]; }
  Tensor unit_begins(size_t unit, const Tensor& x) const;
  Parameter& head() { return head_ ? *head_ : embedding_; }

  ModelConfig config_;
  ModelContext context_;
  Rotary rotary_;
  std::unique_ptr<Dispatcher> dispatcher_;
  Parameter embedding_;  // [V, D]
  std::vector<std::unique_ptr<Block>> blocks_;
  Parameter final_norm_;
  std::optional<Parameter> head_;  // [V, D]; none where tied
  std::optional<WgradTiles> wgrad_tiles_;
};

}  // namespace octet
