// Whether FP8 or bfloat16 is faster for the products of each layer, found out by running them: on this machine, at the
// sizes of a run, forward and backward with all that quantising takes. So a run in FP8 is never slower than the same
// run in bfloat16 but by what a measurement misses.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/base/file_system.h"
#include "core/nn/context.h"
#include "parallel/communicator.h"
#include "tools/train/config.h"

namespace octet {

// Products that are timed together: a linear layer, or the two of a gated feed-forward layer.
struct TimedLayer {
  ProductLayer products;
  int64_t count = 0;  // of them in the model
  int64_t groups = 1, rows = 0;
  int64_t in = 0, out = 0;
  int64_t inner = 0;  // of a feed-forward layer; 0: a linear one

  std::string shape() const;  // "4096 rows, 2048 to 768", "64 groups, 8192 rows, 2048 to 1024 and back"
};
// Those of one micro-batch on one rank, the rows of experts spread evenly.
std::vector<TimedLayer> timed_layers(const Config& config);

enum class TimedForm { kBf16, kFp8, kFp8InGemm };  // the last: core/nn/context.h, SwigluInGemm
// Seconds of a forward and a backward pass, the median of some, in the arithmetic and with the operands of weight
// gradients of `precision`. progress is called between them.
double time_layer(const TimedLayer& layer, TimedForm form, const PrecisionConfig& precision, Device device,
                  const std::function<void()>& progress);

struct LayerTimes {
  TimedLayer layer;
  double fp8_s = 0, bf16_s = 0;
  double in_gemm_s = 0;  // 0: not measured
  bool is_remembered = false;

  bool is_faster_in_gemm() const { return in_gemm_s > 0 && in_gemm_s < fp8_s; }
  double best_fp8_s() const { return is_faster_in_gemm() ? in_gemm_s : fp8_s; }
  LayerFormat faster() const { return best_fp8_s() <= bf16_s ? LayerFormat::kFp8 : LayerFormat::kBf16; }
};

// Whether it is open which of its two forms a feed-forward layer in FP8 has: on GPUs, where OCTET_SWIGLU_IN_GEMM does
// not say it. Both have the same bits, so a run that goes on may decide otherwise.
bool is_swiglu_form_open(Device device);
// Whether the layer has both.
bool has_swiglu_forms(const TimedLayer& layer);

// The table of times: a line of headings, one for each layer with the format that is used, and the time of all layers
// of the model in FP8, in bfloat16 and as they are used. FP8 in its faster form.
std::vector<std::string> table_of(const std::vector<LayerTimes>& times, const ProductFormats& used);

// Whether the layers of a kind must be measured to know what is wanted of it.
bool is_measured(ProductFormat wanted, Device device);

struct DecidedProducts {
  ProductFormats formats;         // what was wanted; and where that is no format, it stands in the layers
  SwigluInGemm swiglu_in_gemm;    // of layers whose form is open and measured
  std::vector<LayerTimes> times;  // of what was measured, now or before
};
using TimeLayer = std::function<double(const TimedLayer& layer, TimedForm form)>;
// A layer is measured by itself, and takes the faster format; FP8 where both are as fast. earlier: what the run that
// goes on has decided; it is not measured again, but for the form of FP8. Times are remembered in the file, by machine,
// octet's version and size; "": nowhere. A file that cannot be read or written is warned of.
DecidedProducts decide_products(const Config& config, const std::optional<ProductFormats>& earlier, Device device,
                                bool swiglu_form_is_open, FileSystem& files, const std::string& file,
                                const TimeLayer& time);

// octet/products.json in $XDG_CACHE_HOME, or in ~/.cache; "" where neither is known.
std::string product_times_file();

}  // namespace octet
