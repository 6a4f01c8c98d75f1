#include "kernels/kernel_profile.h"

#include <algorithm>
#include <cstring>

namespace octet::kernels {
namespace {

KernelProfile* running = nullptr;

}  // namespace

KernelProfile::KernelProfile(Clock& clock) : clock_(clock) {
  require(running == nullptr, "KernelProfile: one is running already");
  running = this;
}

KernelProfile::~KernelProfile() { running = nullptr; }

KernelProfile* KernelProfile::current() { return running; }

void KernelProfile::add(const KernelCost& cost, double seconds) {
  auto row = std::find_if(rows_.begin(), rows_.end(),
                          [&cost](const Row& other) { return std::strcmp(other.cost.name, cost.name) == 0; });
  if (row == rows_.end()) row = rows_.insert(rows_.end(), Row{.cost = {.name = cost.name}});
  row->cost.bytes += cost.bytes;
  row->cost.float_flops += cost.float_flops;
  row->cost.pair_flops += cost.pair_flops;
  row->seconds += seconds;
  ++row->calls;
}

std::vector<KernelProfile::Row> KernelProfile::rows() const {
  std::vector<Row> sorted = rows_;
  std::stable_sort(sorted.begin(), sorted.end(), [](const Row& a, const Row& b) { return a.seconds > b.seconds; });
  return sorted;
}

}  // namespace octet::kernels
