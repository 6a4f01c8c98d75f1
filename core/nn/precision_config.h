// The number formats of a run; docs/numerics.md has the reasons.
#pragma once

#include "core/base/enum_names.h"
#include "core/base/problems.h"
#include "core/ops/numerics.h"

namespace octet {

enum class MomentType { kBf16, kFp32 };
// kAuto: what the device is fast at.
enum class Fp8Arithmetic { kAuto, kIdeal, kHopper, kFp64 };

inline kernels::Emulation emulation_on(Device device, Fp8Arithmetic arithmetic) {
  switch (arithmetic) {
    case Fp8Arithmetic::kAuto:
      return device.is_cpu() ? kernels::Emulation::kIdeal : kernels::Emulation::kHopper;
    case Fp8Arithmetic::kIdeal:
      return kernels::Emulation::kIdeal;
    case Fp8Arithmetic::kHopper:
      return kernels::Emulation::kHopper;
    case Fp8Arithmetic::kFp64:
      break;
  }
  return kernels::Emulation::kFp64;
}

template <>
struct EnumNames<Recipe> {
  static constexpr std::pair<Recipe, std::string_view> values[] = {
      {Recipe::kFp32, "fp32"}, {Recipe::kBf16, "bf16"}, {Recipe::kFp8Block, "fp8_block"}};
};
template <>
struct EnumNames<kernels::Emulation> {
  static constexpr std::pair<kernels::Emulation, std::string_view> values[] = {{kernels::Emulation::kIdeal, "ideal"},
                                                                               {kernels::Emulation::kHopper, "hopper"},
                                                                               {kernels::Emulation::kFp64, "fp64"}};
};
template <>
struct EnumNames<Fp8Arithmetic> {
  static constexpr std::pair<Fp8Arithmetic, std::string_view> values[] = {{Fp8Arithmetic::kAuto, "auto"},
                                                                          {Fp8Arithmetic::kIdeal, "ideal"},
                                                                          {Fp8Arithmetic::kHopper, "hopper"},
                                                                          {Fp8Arithmetic::kFp64, "fp64"}};
};
template <>
struct EnumNames<MomentType> {
  static constexpr std::pair<MomentType, std::string_view> values[] = {{MomentType::kBf16, "bf16"},
                                                                       {MomentType::kFp32, "fp32"}};
};

template <>
struct EnumNames<GradientWire> {
  static constexpr std::pair<GradientWire, std::string_view> values[] = {{GradientWire::kActivation, "bf16"},
                                                                         {GradientWire::kFp8, "fp8"}};
};

// Under fp8_block, what is wanted of the products of one kind of layer.
enum class ProductFormat {
  kAuto,    // kFaster on GPUs, kFp8 on CPUs
  kFp8,     // E4M3 blocks
  kBf16,    // bfloat16, as under the recipe bf16
  kFaster,  // the one that is faster on this machine: who trains measures it first (tools/train/faster_products.h)
};
template <>
struct EnumNames<ProductFormat> {
  static constexpr std::pair<ProductFormat, std::string_view> values[] = {{ProductFormat::kAuto, "auto"},
                                                                          {ProductFormat::kFp8, "fp8"},
                                                                          {ProductFormat::kBf16, "bf16"},
                                                                          {ProductFormat::kFaster, "faster"}};
};

// The format of one layer's products, where it is decided.
enum class LayerFormat { kAsKind, kFp8, kBf16 };
template <>
struct EnumNames<LayerFormat> {
  static constexpr std::pair<LayerFormat, std::string_view> values[] = {
      {LayerFormat::kAsKind, "as_kind"}, {LayerFormat::kFp8, "fp8"}, {LayerFormat::kBf16, "bf16"}};
};

struct LayerFormats {
  LayerFormat qkv_proj = LayerFormat::kAsKind;
  LayerFormat o_proj = LayerFormat::kAsKind;
  LayerFormat dense = LayerFormat::kAsKind;
  LayerFormat shared_experts = LayerFormat::kAsKind;
  LayerFormat experts = LayerFormat::kAsKind;

  void fields(auto&& visit) {
    visit("qkv_proj", qkv_proj, "the projections to query, key and value");
    visit("o_proj", o_proj, "the output projection of attention");
    visit("dense", dense, "dense feed-forward layers");
    visit("shared_experts", shared_experts, "shared experts");
    visit("experts", experts, "routed experts");
  }
  bool operator==(const LayerFormats&) const = default;
};

struct ProductFormats {
  ProductFormat attention = ProductFormat::kAuto;
  ProductFormat dense = ProductFormat::kAuto;
  ProductFormat experts = ProductFormat::kAuto;
  LayerFormats layers = {};

  void fields(auto&& visit) {
    visit("attention", attention, "the projections of attention");
    visit("dense", dense, "dense feed-forward layers and shared experts");
    visit("experts", experts, "routed experts");
    visit("layers", layers,
          "what is decided for one layer, where its kind says auto or faster: by you, or by the measurement; as_kind: "
          "nothing");
  }
  void validate(Problems& problems) const;
  bool operator==(const ProductFormats&) const = default;
};

// A layer whose products have one format, and its kind.
struct ProductLayer {
  LayerFormat LayerFormats::*format;
  ProductFormat ProductFormats::*kind;
  const char* name;  // of the key
};
inline constexpr ProductLayer kQkvProj{&LayerFormats::qkv_proj, &ProductFormats::attention, "qkv_proj"};
inline constexpr ProductLayer kOProj{&LayerFormats::o_proj, &ProductFormats::attention, "o_proj"};
inline constexpr ProductLayer kDense{&LayerFormats::dense, &ProductFormats::dense, "dense"};
inline constexpr ProductLayer kSharedExperts{&LayerFormats::shared_experts, &ProductFormats::dense, "shared_experts"};
inline constexpr ProductLayer kExperts{&LayerFormats::experts, &ProductFormats::experts, "experts"};
inline constexpr ProductLayer kProductLayers[] = {kQkvProj, kOProj, kDense, kSharedExperts, kExperts};

inline void ProductFormats::validate(Problems& problems) const {
  for (const ProductLayer& layer : kProductLayers) {
    const LayerFormat decided = layers.*layer.format;
    const ProductFormat of_kind = this->*layer.kind;
    const bool is_open = of_kind == ProductFormat::kAuto || of_kind == ProductFormat::kFaster;
    if (decided == LayerFormat::kAsKind || is_open) continue;
    problems.require(
        (decided == LayerFormat::kBf16) == (of_kind == ProductFormat::kBf16), fmt::format("layers.{}", layer.name),
        "is {}, and its kind of layers {}; wanted as_kind, or auto there", name_of(decided), name_of(of_kind));
  }
}

// kFp8 or kBf16. What nobody has decided yet is FP8.
inline LayerFormat format_of(const ProductFormats& formats, const ProductLayer& layer) {
  const LayerFormat decided = formats.layers.*layer.format;
  if (decided != LayerFormat::kAsKind) return decided;
  return formats.*layer.kind == ProductFormat::kBf16 ? LayerFormat::kBf16 : LayerFormat::kFp8;
}
// The recipe of a layer's products in a model of that recipe.
inline Recipe recipe_of(Recipe of_model, const ProductFormats& formats, const ProductLayer& layer) {
  return of_model == Recipe::kFp8Block && format_of(formats, layer) == LayerFormat::kBf16 ? Recipe::kBf16 : of_model;
}

// The form of both operands of a weight gradient in FP8.
enum class WgradOperands {
  kColumns,  // a scale for 128 rows of a column: quantised along the rows, again where the codes of rows are all there
             // is
  kTiles,    // a scale for 128 rows by 128 columns: codes of rows with their exponents shifted (core/nn/wgrad_tiles.h)
};
template <>
struct EnumNames<WgradOperands> {
  static constexpr std::pair<WgradOperands, std::string_view> values[] = {{WgradOperands::kColumns, "columns"},
                                                                          {WgradOperands::kTiles, "tiles"}};
};

struct PrecisionConfig {
  Recipe recipe = Recipe::kFp8Block;
  Fp8Arithmetic emulation = Fp8Arithmetic::kAuto;
  GradientWire expert_gradients = GradientWire::kActivation;
  MomentType moments = MomentType::kBf16;  // as DeepSeek-V3; half the memory of float32 and no loss seen from it
  ProductFormats products = {};
  WgradOperands wgrad = WgradOperands::kColumns;
  double wgrad_underflow_limit = 0.01;

  bool has_wgrad_tiles() const { return recipe == Recipe::kFp8Block && wgrad == WgradOperands::kTiles; }

  void fields(auto&& visit) {
    visit("recipe", recipe, "formats of weights, activations and gradients");
    visit("emulation", emulation,
          "arithmetic inside an FP8 product: float32, the H100 tensor core's, or exact; auto: float32 on CPUs and the "
          "tensor core's on GPUs; only fp8_block reads it");
    visit(
        "expert_gradients", expert_gradients,
        "format in which the gradient of their output reaches the experts, between ranks too; fp8 halves the bytes and "
        "rounds once more; only fp8_block reads it");
    visit("moments", moments, "storage of Adam's two moments");
    visit("products", products,
          "under fp8_block, fp8 or bf16 by kind of layer; faster: for each layer what a measurement at the start finds "
          "faster, kept by the run's checkpoints; auto: faster on GPUs, fp8 on CPUs");
    visit(
        "wgrad", wgrad,
        "operands of weight gradients in FP8: columns, with a scale for each 128 rows of a column; tiles, with one for "
        "128 rows by 128 columns, made of the codes of rows by shifting exponents; only fp8_block reads it");
    visit("wgrad_underflow_limit", wgrad_underflow_limit,
          "with tiles, the share of an operand's codes that may become 0 in a step, 0 to 1: a weight that loses more "
          "takes columns from the next step on");
  }
  void validate(Problems& problems) const {
    problems.section("products", [&] { products.validate(problems); });
    problems.require(0 <= wgrad_underflow_limit && wgrad_underflow_limit <= 1, "wgrad_underflow_limit",
                     "is {}; wanted 0 to 1", wgrad_underflow_limit);
  }
};

}  // namespace octet
