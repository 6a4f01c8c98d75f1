#include "kernels/router_load.h"

#include <numeric>

namespace octet::kernels {

void cpu::count_choices(const CountChoices& args, Stream&) {
  const int32_t* indices = args.indices.data<int32_t>();
  int64_t* counts = args.counts.data<int64_t>();
  for (int64_t i = 0; i < args.indices.num_elements(); ++i) ++counts[indices[i]];
}

void cpu::update_router_bias(const UpdateRouterBias& args, Stream&) {
  const int64_t E = args.counts.num_elements();
  const int64_t* counts = args.counts.data<int64_t>();
  const int64_t total = std::accumulate(counts, counts + E, int64_t(0));
  if (total == 0 || (args.factors != nullptr && args.factors->is_left_out != 0)) return;
  for (int64_t e = 0; e < E; ++e) args.share.data<float>()[e] = float(double(counts[e]) / double(total));
  if (args.rate == 0.0f) return;
  const auto sign = [&](int64_t e) {
    const int64_t above = total - counts[e] * E;  // E * (mean - count), in whole numbers
    return above > 0 ? 1 : above < 0 ? -1 : 0;
  };
  int sum = 0;
  for (int64_t e = 0; e < E; ++e) sum += sign(e);
  const float center = args.centered ? float(sum) / float(E) : 0.0f;
  for (int64_t e = 0; e < E; ++e) args.bias.data<float>()[e] += args.rate * (float(sign(e)) - center);
}

}  // namespace octet::kernels
