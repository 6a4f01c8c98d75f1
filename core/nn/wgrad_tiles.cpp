#include "core/nn/wgrad_tiles.h"

#include <algorithm>

namespace octet {
namespace {

constexpr int64_t kFields = sizeof(kernels::QuantizeStats) / sizeof(int64_t);

std::vector<Parameter*> in_fp8(const std::vector<Parameter*>& parameters) {
  std::vector<Parameter*> weights;
  for (Parameter* parameter : parameters) {
    if (parameter->form() == WeightForm::kFp8Block) weights.push_back(parameter);
  }
  return weights;
}

}  // namespace

WgradTiles::WgradTiles(const std::vector<Parameter*>& parameters, double limit, Device device)
    : weights_(in_fp8(parameters)),
      limit_(limit),
      counts_(zeros({int64_t(weights_.size()), 2 * kFields}, DType::kInt64, MemoryCategory::kWorkspace, device)) {
  for (size_t i = 0; i < weights_.size(); ++i) use_tiles(i, true);
}

void WgradTiles::use_tiles(size_t i, bool yes) {
  auto* const stats = reinterpret_cast<kernels::QuantizeStats*>(counts_.view().row<int64_t>(int64_t(i)));
  weights_[i]->set_wgrad_tiles(yes ? std::optional(Parameter::TileCounts{.grad = stats, .input = stats + 1})
                                   : std::nullopt);
}

void WgradTiles::begin_step() { fill_zero(counts_); }

WgradTiles::Reading WgradTiles::read() const {
  Reading reading;
  reading.counts_ = Readback(counts_);
  return reading;
}

std::vector<int64_t> WgradTiles::Reading::wait() const {
  const auto all = counts_.wait<int64_t>();
  std::vector<int64_t> counts;
  for (size_t i = 0; i < all.size(); i += size_t(kFields)) counts.insert(counts.end(), {all[i], all[i + 1]});
  return counts;
}

void WgradTiles::Reading::add_to(kernels::QuantizeStats& grad, kernels::QuantizeStats& input) const {
  const auto all = counts_.wait<int64_t>();
  for (size_t i = 0; i < all.size(); i += size_t(kFields)) {
    kernels::QuantizeStats& to = i % size_t(2 * kFields) == 0 ? grad : input;
    to.count += all[i], to.flushed += all[i + 1], to.saturated += all[i + 2], to.non_finite += all[i + 3];
  }
}

std::vector<WgradTiles::Fallback> WgradTiles::decide(std::span<const int64_t> counts) {
  std::vector<Fallback> fallbacks;
  const auto share = [](int64_t part, int64_t all) { return all == 0 ? 0.0 : double(part) / double(all); };
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (!weights_[i]->wgrad_tiles()) continue;
    const auto of = counts.subspan(4 * i, 4);
    const double grad = share(of[1], of[0]), input = share(of[3], of[2]);
    if (std::max(grad, input) <= limit_) continue;
    use_tiles(i, false);
    fallbacks.push_back({.weight = weights_[i]->name(), .is_of_grad = grad >= input, .lost = std::max(grad, input)});
  }
  return fallbacks;
}

int64_t WgradTiles::num_columns() const {
  return std::count_if(weights_.begin(), weights_.end(), [](const Parameter* w) { return !w->wgrad_tiles(); });
}

std::vector<std::string> WgradTiles::columns() const {
  std::vector<std::string> names;
  for (const Parameter* weight : weights_) {
    if (!weight->wgrad_tiles()) names.push_back(weight->name());
  }
  return names;
}

void WgradTiles::set_columns(const std::vector<std::string>& names) {
  for (size_t i = 0; i < weights_.size(); ++i) {
    const bool is_named = std::find(names.begin(), names.end(), weights_[i]->name()) != names.end();
    use_tiles(i, !is_named);
  }
}

}  // namespace octet
