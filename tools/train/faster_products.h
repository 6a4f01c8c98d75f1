// Whether FP8 or bfloat16 is faster for the products of each kind of layer, found out by running them: on this machine,
// at the sizes of a run, forward and backward with all that quantising takes. So a run in FP8 is never slower than the
// same run in bfloat16 but by what a measurement misses.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/base/file_system.h"
#include "parallel/communicator.h"
#include "tools/train/config.h"

namespace octet {

// Products that are timed together: a linear layer, or the two of a gated feed-forward layer.
struct TimedLayer {
  std::string name;  // "qkv_proj"
  ProductFormat ProductFormats::*kind;
  int64_t count = 0;  // of them in the model
  int64_t groups = 1, rows = 0;
  int64_t in = 0, out = 0;
  int64_t inner = 0;  // of a feed-forward layer; 0: a linear one

  std::string shape() const;  // "4096 rows, 2048 to 768", "64 groups, 8192 rows, 2048 to 1024 and back"
};
// Those of one micro-batch on one rank, the rows of experts spread evenly.
std::vector<TimedLayer> timed_layers(const Config& config);

// Seconds of a forward and a backward pass, the median of some, in the arithmetic and with the operands of weight
// gradients of `precision`. progress is called between them.
double time_layer(const TimedLayer& layer, Recipe recipe, const PrecisionConfig& precision, Device device,
                  const std::function<void()>& progress);

struct LayerTimes {
  TimedLayer layer;
  double fp8_s = 0, bf16_s = 0;
  bool is_remembered = false;
};

// Which kinds must be measured to know what config.precision.products asks for.
bool is_measured(ProductFormat format, Device device);

struct DecidedProducts {
  ProductFormats formats;         // no kAuto and no kFaster
  std::vector<LayerTimes> times;  // of what was measured, now or before
};
using TimeLayer = std::function<double(const TimedLayer& layer, Recipe recipe)>;
// earlier: what the run that goes on has decided; it is not measured again. Times are remembered in the file, by
// machine, octet's version and size; "": nowhere. A file that cannot be read or written is warned of.
DecidedProducts decide_products(const Config& config, const std::optional<ProductFormats>& earlier, Device device,
                                FileSystem& files, const std::string& file, const TimeLayer& time);

// octet/products.json in $XDG_CACHE_HOME, or in ~/.cache; "" where neither is known.
std::string product_times_file();

}  // namespace octet
