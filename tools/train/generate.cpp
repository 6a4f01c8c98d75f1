#include "tools/train/generate.h"

namespace octet {

void generate(Transformer& model, const Tokenizer& tokenizer, const GenerateRequest& request,
              const std::function<void(std::string_view bytes)>& piece) {
  request.sampling.validate();
  std::vector<int32_t> prompt = tokenizer.encode(request.prompt);
  if (prompt.empty()) {
    require(tokenizer.eos_id() >= 0,
            "generate: the prompt is empty and the tokenizer has no end-of-text token to start "
            "from; give a prompt");
    prompt = {tokenizer.eos_id()};
  }
  const int64_t capacity = int64_t(prompt.size()) + request.tokens;
  require(capacity <= model.max_positions(), "generate: a prompt of {} tokens and {} more; the model was set up for {}",
          prompt.size(), request.tokens, model.max_positions());
  const RandomStream stream(request.seed, "sample");
  std::vector<KvCache> caches = model.make_caches(capacity);
  std::vector<int32_t> next = prompt;
  for (int64_t n = 0; n < request.tokens; ++n) {
    const Tensor logits =
        on_host(model.decode(from_vector(next, {int64_t(next.size())}, model.context().device), caches));  // [1, V]
    const int32_t token = sample_token({logits.data<float>(), size_t(logits.cols())}, request.sampling, stream,
                                       uint64_t(caches[0].length));
    if (token == tokenizer.eos_id()) return;
    piece(tokenizer.decode_token(token));
    next = {token};
  }
}

}  // namespace octet
