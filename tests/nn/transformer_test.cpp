#include "core/nn/transformer.h"

#include <set>

#include "core/nn/init.h"
#include "core/tensor/device_fault.h"
#include "kernels/kernel_profile.h"
#include "tests/support/devices.h"
#include "tests/support/reference_model.h"

namespace octet::test {
namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.layers = 2;
  config.hidden = 16;
  config.heads = 4;
  config.kv_heads = 2;
  config.ffn_hidden = 24;
  config.dense_layers = 1;
  config.vocab_size = 11;
  config.init_std = 0.3f;  // scores far from ties, and every term large enough to be missed
  config.norm_eps = 1e-3f;
  config.moe.num_experts = 6;
  config.moe.top_k = 2;
  config.moe.shared_experts = 1;
  config.moe.expert_hidden = 8;
  config.moe.bias_update_rate = 0;
  return config;
}

struct Batch {
  std::vector<int32_t> ids, targets;
  int64_t sequences = 2;
  Tensor ids_on(Device device) const { return from_vector(ids, {int64_t(ids.size())}, device); }
  Tensor targets_on(Device device) const { return from_vector(targets, {int64_t(targets.size())}, device); }
};
Batch random_batch(int64_t sequences, int64_t length, int64_t vocab, uint64_t seed = 5) {
  const RandomStream stream(seed, "batch");
  Batch batch{.ids = {}, .targets = {}, .sequences = sequences};
  for (int64_t i = 0; i < sequences * length; ++i) {
    batch.ids.push_back(int32_t(stream.below(uint64_t(vocab), uint64_t(i))));
    batch.targets.push_back(int32_t(stream.below(uint64_t(vocab), uint64_t(i), 1)));
  }
  return batch;
}

double train(Transformer& model, const Batch& batch) {
  const auto tokens = float(batch.ids.size());
  const Device device = model.context().device;
  const auto loss =
      model.train_micro_batch(batch.ids_on(device), batch.targets_on(device), batch.sequences, 1.0f / tokens, 1.0f);
  double total = loss.sum / double(loss.tokens);
  for (Router* router : model.routers()) total += double(router->losses().balance) + double(router->losses().z);
  return total;
}

std::vector<std::vector<float>> all_gradients(Transformer& model) {
  std::vector<std::vector<float>> all;
  for (Parameter* parameter : model.parameters()) all.push_back(to_vector<float>(parameter->grad()));
  return all;
}

std::unique_ptr<Dispatcher> local() { return std::make_unique<LocalDispatcher>(); }

struct Variant {
  const char* name;
  void (*change)(ModelConfig&);
};
const Variant kVariants[] = {
    {"sigmoid, normalised", [](ModelConfig&) {}},
    {"softmax, raw, interleaved rope, tied head",
     [](ModelConfig& c) {
       c.moe.score = kernels::ScoreFunction::kSoftmax;
       c.moe.normalize_weights = false;
       c.rope_layout = kernels::RopeLayout::kInterleaved;
       c.tied_head = true;
     }},
    {"groups, scaling, sequence balance loss",
     [](ModelConfig& c) {
       c.moe.num_groups = 3;
       c.moe.kept_groups = 2;
       c.moe.routed_scaling = 2.5f;
       c.moe.aux_loss = AuxLoss::kSequence;
       c.moe.aux_loss_alpha = 0.05f;
     }},
    {"softmax, micro-batch balance loss, z-loss, no shared expert",
     [](ModelConfig& c) {
       c.moe.score = kernels::ScoreFunction::kSoftmax;
       c.moe.aux_loss = AuxLoss::kMicroBatch;
       c.moe.aux_loss_alpha = 0.05f;
       c.moe.z_loss_beta = 0.02f;
       c.moe.shared_experts = 0;
     }},
    {"global-batch balance loss, multi-head attention",
     [](ModelConfig& c) {
       c.moe.aux_loss = AuxLoss::kGlobalBatch;
       c.moe.aux_loss_alpha = 0.05f;
       c.kv_heads = 0;
     }},
    {"dense", [](ModelConfig& c) { c.moe.num_experts = 0; }},
    // About half of the numbers are limited.
    {"a limit of SwiGLU", [](ModelConfig& c) { c.swiglu_limit = 0.0513f, c.init_std = 0.03f; }},
};

}  // namespace

TEST_CASE("the transformer's loss and gradients follow the float64 model", "[nn]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  const Variant& variant = GENERATE(from_range(std::begin(kVariants), std::end(kVariants)));
  CAPTURE(variant.name);
  ModelConfig config = small_config();
  variant.change(config);
  Transformer model(config, {.recipe = Recipe::kFp32}, {}, 16, local(), device);
  model.init_weights(7);
  const Batch batch = random_batch(2, 5, config.vocab_size);

  NamedWeights weights = named_weights(model);
  ReferenceModel reference(config);
  const double wanted = reference.loss(weights, batch.ids, batch.targets, 2);
  CHECK(train(model, batch) == Approx(wanted).epsilon(1e-5));
  model.context().batch = 2;
  CHECK_THAT(doubles(to_vector<float>(model.logits(batch.ids_on(device), 2))), NearAll(reference.logits(), 1e-4));

  // Central differences of a few elements of every tensor.
  constexpr double kStep = 1e-5;
  for (auto& [name, values] : weights) {
    const Doubles got = named_gradient(model, name);
    double largest = 1e-4;
    for (const double g : got) largest = std::max(largest, std::abs(g));
    for (size_t pick = 0; pick < 4; ++pick) {
      const size_t i = size_t(RandomStream(9, name).below(values.size(), pick));
      const double kept = values[i];
      values[i] = kept + kStep;
      const double above = reference.loss(weights, batch.ids, batch.targets, 2);
      values[i] = kept - kStep;
      const double below = reference.loss(weights, batch.ids, batch.targets, 2);
      values[i] = kept;
      INFO(name << " [" << i << "]");
      CHECK(std::abs(got[i] - (above - below) / (2 * kStep)) <= 2e-4 * largest);
    }
  }
}

TEST_CASE("bfloat16 and FP8 stay near the float32 model", "[nn]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  ModelConfig config = small_config();
  // Experts too, but each token goes to all of them: where a rounding flips a choice, gradients may differ as they
  // like.
  config.moe.top_k = config.moe.num_experts;
  config.hidden = 64;
  config.moe.expert_hidden = 48;
  config.init_std = 0.1f;
  const Batch batch = random_batch(2, 24, config.vocab_size);
  Transformer exact(config, {.recipe = Recipe::kFp32}, {}, 32, local(), device);
  exact.init_weights(7);
  const double loss = train(exact, batch);
  const auto wanted = all_gradients(exact);
  for (const Recipe recipe : {Recipe::kBf16, Recipe::kFp8Block}) {
    for (const Fp8Arithmetic emulation : {Fp8Arithmetic::kIdeal, Fp8Arithmetic::kHopper, Fp8Arithmetic::kFp64}) {
      if (recipe == Recipe::kBf16 && emulation != Fp8Arithmetic::kIdeal) continue;
      CAPTURE(name_of(recipe), name_of(emulation));
      Transformer model(config, {.recipe = recipe, .emulation = emulation}, {}, 32, local(), device);
      model.init_weights(7);
      // Rounding to 8 bits of mantissa moves a loss by about 2^-9 relative, to 4 bits by about 2^-5, before averaging.
      CHECK(train(model, batch) == Approx(loss).epsilon(recipe == Recipe::kBf16 ? 0.005 : 0.03));
      const auto got = all_gradients(model);
      double dot = 0, norm = 0, norm_wanted = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        for (size_t j = 0; j < got[i].size(); ++j) {
          dot += double(got[i][j]) * wanted[i][j];
          norm += double(got[i][j]) * got[i][j];
          norm_wanted += double(wanted[i][j]) * wanted[i][j];
        }
      }
      CHECK(dot / std::sqrt(norm * norm_wanted) > (recipe == Recipe::kBf16 ? 0.999 : 0.98));
    }
  }
}

TEST_CASE("the FP8 recipe with all products in bfloat16 is the bfloat16 recipe, bit for bit", "[nn]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  constexpr auto kBf16 = ProductFormat::kBf16;
  ModelConfig config = small_config();
  const Batch batch = random_batch(2, 9, config.vocab_size);
  const auto run = [&](const PrecisionConfig& precision, const RecomputeParts& parts = {}) {
    Transformer model(config, precision, parts, 16, local(), device);
    model.init_weights(7);
    const double loss = train(model, batch);
    return std::pair(loss, all_gradients(model));
  };
  const auto in_bf16 = run({.recipe = Recipe::kBf16});
  CHECK(run({.products = {.attention = kBf16, .dense = kBf16, .experts = kBf16}}) == in_bf16);
  const auto in_fp8 = run({});
  std::vector<ProductFormats> all_mixed = {{.attention = kBf16}, {.dense = kBf16}, {.experts = kBf16}};
  for (const ProductLayer& layer : kProductLayers) {
    all_mixed.emplace_back().layers.*layer.format = LayerFormat::kBf16;
    all_mixed.push_back({.attention = kBf16, .dense = kBf16, .experts = kBf16});
    all_mixed.back().layers.*layer.format = LayerFormat::kFp8;
  }
  std::set<double> losses;
  for (const ProductFormats& some : all_mixed) {
    const auto mixed = run({.products = some});
    CHECK(mixed != in_fp8);
    CHECK(mixed != in_bf16);
    CHECK(run({.products = some}, {.norm = true, .swiglu = true, .attention = true}) == mixed);
    losses.insert(mixed.first);
  }
  // Each is another model, but for experts, which are a kind of their own.
  CHECK(losses.size() == all_mixed.size() - 1);
}

TEST_CASE("SwiGLU in the first product of any layer in FP8 changes no bit", "[nn]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  ModelConfig config = small_config();
  config.layers = 3;        // one of each feed-forward layer but the second of experts
  config.ffn_hidden = 128;  // what one kernel takes
  config.moe.expert_hidden = 128;
  config.swiglu_limit = 0.4f;
  const Batch batch = random_batch(2, 9, config.vocab_size);
  struct Run {
    double loss;
    std::vector<std::vector<float>> gradients;
    int64_t in_one = 0;  // products that make the codes
  };
  const auto run = [&](const SwigluInGemm& in_gemm, const PrecisionConfig& precision = {},
                       const RecomputeParts& parts = {}) {
    Transformer model(config, precision, parts, 16, local(), device);
    model.init_weights(7);
    model.context().swiglu_in_gemm = in_gemm;
    const kernels::KernelProfile profile(real_clock());
    Run result{.loss = train(model, batch), .gradients = all_gradients(model)};
    for (const auto& row : profile.rows()) {
      if (std::string_view(row.cost.name) == "fp8_swiglu_gemm") result.in_one = row.calls;
    }
    return result;
  };
  const auto check_same = [](const Run& got, const Run& wanted) {
    CHECK(got.loss == wanted.loss);
    CHECK(got.gradients == wanted.gradients);
  };
  const Run apart = run({});
  CHECK(apart.in_one == 0);
  for (const auto& [in_gemm, count] : {std::pair(SwigluInGemm{.dense = true}, 1),
                                       {{.shared_experts = true}, 2},
                                       {{.experts = true}, 2},
                                       {{.dense = true, .shared_experts = true, .experts = true}, 5}}) {
    const Run got = run(in_gemm);
    CHECK(got.in_one == count);
    check_same(got, apart);
  }
  const SwigluInGemm all{.dense = true, .shared_experts = true, .experts = true};
  check_same(run(all, {}, {.norm = true, .block = true}), apart);
  const PrecisionConfig in_bf16{.products = {.layers = {.experts = LayerFormat::kBf16}}};
  const Run mixed = run(all, in_bf16);
  CHECK(mixed.in_one == 3);
  check_same(mixed, run({}, in_bf16));

  // The environment may say it for all.
  struct Use {
    explicit Use(Wanted wanted) : before(swiglu_in_gemm()) { set_swiglu_in_gemm(wanted); }
    ~Use() { set_swiglu_in_gemm(before); }
    Wanted before;
  };
  {
    const Use on(Wanted::kOn);
    const Run got = run({});
    CHECK(got.in_one == 5);
    check_same(got, apart);
  }
  {
    const Use off(Wanted::kOff);
    CHECK(run(all).in_one == 0);
  }
}

TEST_CASE("SwiGLU in the first product lowers the peak of a layer's forward pass", "[nn]") {
  if (!has_gpu()) return;  // a CPU has no kernel for it
  const int64_t T = 256, D = 64, F = 256;
  const auto peak = [&](bool in_gemm) {
    ModelContext context{.numerics = {.recipe = Recipe::kFp8Block, .emulation = kernels::Emulation::kHopper},
                         .recompute = {},
                         .device = kGpu,
                         .swiglu_in_gemm = {.dense = in_gemm}};
    FeedForward layer("mlp.", D, F, kDense, context);
    layer.visit_parameters([](Parameter& parameter) {
      init_normal(parameter, 7, 0.1f);
      parameter.refresh();
    });
    const Tensor x = from_vector(uniform<bfloat16>(T * D, 1), {T, D}, kGpu);
    const Recording on(true);
    const LinearInput input(make_source(x, [](const Tensor&) {}), context.numerics);
    reset_peak_memory(kGpu);
    const Tensor y = layer.forward(input);
    return memory_use(kGpu).peak_total_bytes;
  };
  // What else there is at the time that h was: the results of the second product, which are smaller.
  CHECK(peak(false) - peak(true) >= T * 2 * F * 2 - T * D * 2);
}

TEST_CASE("recomputing any part changes no bit", "[nn]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  const Recipe recipe = GENERATE(Recipe::kFp32, Recipe::kBf16, Recipe::kFp8Block);
  ModelConfig config = small_config();
  config.moe.aux_loss = AuxLoss::kSequence;
  config.moe.z_loss_beta = 0.01f;
  const Batch batch = random_batch(2, 9, config.vocab_size);
  const auto run = [&](const RecomputeParts& parts) {
    Transformer model(config, {.recipe = recipe}, parts, 16, local(), device);
    model.init_weights(7);
    const double loss = train(model, batch);
    std::vector<std::vector<int64_t>> loads;
    for (Router* router : model.routers()) loads.push_back(router->load());
    return std::tuple(loss, all_gradients(model), loads);
  };
  const auto wanted = run({});
  for (const RecomputeParts parts : {RecomputeParts{.norm = true}, RecomputeParts{.swiglu = true},
                                     RecomputeParts{.attention = true}, RecomputeParts{.block = true},
                                     RecomputeParts{.norm = true, .swiglu = true, .attention = true, .block = true}}) {
    CAPTURE(name_of(recipe), parts.norm, parts.swiglu, parts.attention, parts.block);
    CHECK(run(parts) == wanted);
  }
}

TEST_CASE("recomputing parts lowers the activation peak", "[nn]") {
  const Device device{};  // every device counts its memory alike; an emulated GPU takes minutes
  ModelConfig config = small_config();
  config.layers = 6;
  config.hidden = 64;
  const Batch batch = random_batch(4, 32, config.vocab_size);
  const auto peak = [&](Recipe recipe, const RecomputeParts& parts) {
    Transformer model(config, {.recipe = recipe}, parts, 32, local(), device);
    model.init_weights(7);
    train(model, batch);
    reset_peak_memory(device);
    train(model, batch);
    return memory_use(device).peak_bytes[size_t(MemoryCategory::kActivations)];
  };
  for (const Recipe recipe : {Recipe::kFp32, Recipe::kBf16, Recipe::kFp8Block}) {
    CAPTURE(name_of(recipe));
    const int64_t all = peak(recipe, {});
    CHECK(peak(recipe, {.norm = true}) < all);
    CHECK(peak(recipe, {.attention = true}) < all);
    CHECK(peak(recipe, {.block = true}) < all * 6 / 10);
    if (recipe != Recipe::kFp8Block) CHECK(peak(recipe, {.swiglu = true}) < all);
  }
}

TEST_CASE("micro-batches side by side give the gradients of one after the other, bit for bit", "[nn]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  const Recipe recipe = GENERATE(Recipe::kFp32, Recipe::kBf16, Recipe::kFp8Block);
  const RecomputeParts recompute = GENERATE(RecomputeParts{}, RecomputeParts{.block = true});
  CAPTURE(name_of(recipe), recompute.block);
  ModelConfig config = small_config();
  config.moe.aux_loss = AuxLoss::kMicroBatch;
  const std::vector<Batch> batches = {random_batch(2, 6, config.vocab_size, 1),
                                      random_batch(2, 6, config.vocab_size, 2),
                                      random_batch(2, 6, config.vocab_size, 3)};
  Transformer a(config, {.recipe = recipe}, recompute, 16, local(), device),
      b(config, {.recipe = recipe}, recompute, 16, local(), device);
  a.init_weights(3);
  b.init_weights(3);
  std::vector<double> losses;
  std::vector<Transformer::MicroBatch> micro_batches;
  for (const Batch& batch : batches) {
    micro_batches.push_back({batch.ids_on(device), batch.targets_on(device)});
    losses.push_back(a.train_micro_batch(batch.ids_on(device), batch.targets_on(device), 2, 0.1f, 0.5f).sum);
  }
  std::vector<size_t> done;
  b.context().on_unit_done = [&done](size_t unit) { done.push_back(unit); };
  const auto together = b.train_micro_batches(micro_batches, 2, 0.1f, 0.5f);
  for (size_t i = 0; i < losses.size(); ++i) CHECK(together[i].read().sum() == losses[i]);
  CHECK(all_gradients(a) == all_gradients(b));
  std::vector<size_t> backwards;
  for (size_t unit = b.units().size(); unit-- > 0;) backwards.push_back(unit);
  CHECK(done == backwards);
}

TEST_CASE("an MoE layer of one expert is the dense layer", "[nn]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  const Recipe recipe = GENERATE(Recipe::kFp32, Recipe::kBf16, Recipe::kFp8Block);
  CAPTURE(name_of(recipe));
  ModelConfig dense = small_config(), moe = small_config();
  dense.dense_layers = dense.layers = 1;
  dense.moe.num_experts = 0;
  moe.layers = 1;
  moe.dense_layers = 0;
  moe.moe.num_experts = moe.moe.top_k = 1;
  moe.moe.shared_experts = 0;
  moe.moe.expert_hidden = dense.ffn_hidden;
  const Batch batch = random_batch(2, 6, dense.vocab_size);
  Transformer a(dense, {.recipe = recipe}, {}, 16, local(), device),
      b(moe, {.recipe = recipe}, {}, 16, local(), device);
  a.init_weights(3);
  b.init_weights(3);
  // The same numbers in both: copied by their names on disk.
  const std::string mlp = "model.layers.0.mlp.";
  for (Parameter* to : b.parameters()) {
    for (Parameter* from : a.parameters()) {
      std::string name = to->name();
      if (const auto at = name.find("experts."); at != std::string::npos) name.erase(at, 8);
      if (from->name() == name) copy(from->master(), to->master());
    }
  }
  b.refresh_weights();
  const double loss_a = train(a, batch), loss_b = train(b, batch);
  // w = s / (s + 1e-20) is 1, so each number of the forward pass is the same; the weight's gradient adds nothing.
  CHECK(loss_a == loss_b);
  for (Parameter* from : a.parameters()) {
    for (Parameter* to : b.parameters()) {
      std::string name = to->name();
      if (const auto at = name.find("experts."); at != std::string::npos) name.erase(at, 8);
      if (from->name() != name) continue;
      INFO(name);
      CHECK(to_vector<float>(from->grad()) == to_vector<float>(to->grad()));
    }
  }
}

TEST_CASE("generation with a cache gives the logits of the whole pass, bit for bit", "[nn]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  const Recipe recipe = GENERATE(Recipe::kFp32, Recipe::kBf16, Recipe::kFp8Block);
  CAPTURE(name_of(recipe));
  const ModelConfig config = small_config();
  Transformer model(config, {.recipe = recipe}, {}, 200, local(), device);
  model.init_weights(7);
  const int64_t S = 150;
  const Batch batch = random_batch(1, S, config.vocab_size);
  const auto wanted = to_vector<float>(model.logits(batch.ids_on(device), 1));
  auto caches = model.make_caches(S);
  const auto V = size_t(config.vocab_size);
  int64_t done = 0;
  for (const int64_t count : {int64_t(40), int64_t(1), int64_t(1), int64_t(88), int64_t(1), int64_t(19)}) {
    const auto got = to_vector<float>(model.decode(batch.ids_on(device).slice_rows(done, count), caches));
    done += count;
    const auto row = wanted.begin() + std::ptrdiff_t(size_t(done - 1) * V);
    CHECK(got == std::vector<float>(row, row + std::ptrdiff_t(V)));
  }
  CHECK(done == S);
}

TEST_CASE("the routing bias moves by the sign of the load's distance from the mean", "[nn][router]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  ModelConfig config = small_config();
  config.moe.num_experts = 4;
  config.moe.bias_update_rate = 0.5f;
  const bool centered = GENERATE(false, true);
  config.moe.bias_centered = centered;
  Transformer model(config, {.recipe = Recipe::kFp32}, {}, 16, local(), device);
  Router& router = *model.routers()[0];
  router.set_load({10, 2, 4, 0});  // mean 4
  router.end_step(nullptr);
  const auto wanted =
      centered ? std::vector<float>{-0.625f, 0.375f, -0.125f, 0.375f} : std::vector<float>{-0.5f, 0.5f, 0.0f, 0.5f};
  CHECK(to_vector<float>(router.bias()) == wanted);
  CHECK(to_vector<float>(router.last_load_share()) == std::vector<float>{0.625f, 0.125f, 0.25f, 0.0f});
  router.begin_step();
  CHECK(router.load() == std::vector<int64_t>(4, 0));
}

TEST_CASE("replayed choices are followed", "[nn][router]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  const ModelConfig config = small_config();
  Transformer model(config, {.recipe = Recipe::kFp32}, {}, 16, local(), device);
  model.init_weights(7);
  Router& router = *model.routers()[0];
  const auto values = uniform(3 * config.hidden, 4);
  const LinearInput input(from_vector(values, {3, config.hidden}, device), model.context().numerics);
  const Tensor replayed = from_vector<int32_t>({5, 0, 1, 2, 3, 3 + 1}, {3, 2}, device);
  CHECK(to_vector<int32_t>(router.forward(input, replayed).indices) == std::vector<int32_t>{5, 0, 1, 2, 3, 4});
}

TEST_CASE("FP8 arithmetic that is not chosen is what the device is fast at", "[nn]") {
  const Device gpu{DeviceType::kCuda, 0};
  CHECK(emulation_on(Device(), Fp8Arithmetic::kAuto) == kernels::Emulation::kIdeal);
  CHECK(emulation_on(gpu, Fp8Arithmetic::kAuto) == kernels::Emulation::kHopper);
  for (const Device device : {Device(), gpu}) {
    CHECK(emulation_on(device, Fp8Arithmetic::kIdeal) == kernels::Emulation::kIdeal);
    CHECK(emulation_on(device, Fp8Arithmetic::kHopper) == kernels::Emulation::kHopper);
    CHECK(emulation_on(device, Fp8Arithmetic::kFp64) == kernels::Emulation::kFp64);
  }
}

TEST_CASE("numbers that point outside of memory are found and named on a GPU", "[nn][gpu]") {
  if (!has_gpu()) return;
  const ModelConfig config = small_config();
  Transformer model(config, {.recipe = Recipe::kBf16}, {}, 16, local(), kGpu);
  model.init_weights(7);
  const Batch good = random_batch(2, 6, config.vocab_size);
  const auto message_of = [&](auto&& body) -> std::string {
    try {
      body();
      DeviceFault(kGpu).rethrow();
    } catch (const Error& error) {
      CHECK(error.code() == 2);
      return error.what();
    }
    return "no error";
  };
  const auto evaluate = [&](const Batch& batch) {
    return model.evaluate(batch.ids_on(kGpu), batch.targets_on(kGpu), batch.sequences);
  };
  for (const int32_t bad : {int32_t(config.vocab_size), -1, 1 << 30}) {
    CAPTURE(bad);
    Batch batch = good;
    batch.ids[7] = bad;
    CHECK_THAT(message_of([&] { evaluate(batch); }),
               Catch::Contains(fmt::format("a token has the number {}; wanted 0 to {}", bad, config.vocab_size - 1)));
    batch = good;
    batch.targets[7] = bad;
    if (bad >= 0) CHECK_THAT(message_of([&] { evaluate(batch); }), Catch::Contains("a token has the number"));
  }
  const auto values = uniform(3 * config.hidden, 4);
  const LinearInput input(from_vector(values, {3, config.hidden}, kGpu), model.context().numerics);
  for (const int32_t bad : {int32_t(config.moe.num_experts), -1}) {
    const Tensor indices = from_vector<int32_t>({5, 0, 1, bad, 3, 4}, {3, 2}, kGpu);
    const Tensor weights = from_vector(std::vector<float>(6, 0.5f), {3, 2}, kGpu);
    CHECK_THAT(message_of([&] { LocalDispatcher().start(input, indices, weights, config.moe.num_experts); }),
               Catch::Contains(fmt::format("sent to expert {}; wanted 0 to 5", bad)));
  }
  CHECK_THAT(message_of([&] {
               RowGroups::of_offsets(from_vector<int64_t>({0, 4, 9}, {3}, kGpu), Tensor(), 8);
             }),
             Catch::Contains("the rows of an expert number 5; wanted 0 to 4"));
  CHECK(message_of([&] { evaluate(good); }) == "no error");  // what was told is forgotten
}

}  // namespace octet::test
