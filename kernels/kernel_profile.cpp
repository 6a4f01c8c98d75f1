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

void KernelProfile::add(const KernelCost& cost, double seconds) { add_to(rows_, cost, seconds); }

void KernelProfile::add(const KernelCost& cost, gpu::Stopwatch stopwatch) {
  running_.push_back({.cost = cost, .stopwatch = std::move(stopwatch)});
}

void KernelProfile::clear() {
  rows_.clear();
  running_.clear();
}

void KernelProfile::add_to(std::vector<Row>& rows, const KernelCost& cost, double seconds) {
  auto row = std::find_if(rows.begin(), rows.end(),
                          [&cost](const Row& other) { return std::strcmp(other.cost.name, cost.name) == 0; });
  if (row == rows.end()) row = rows.insert(rows.end(), Row{.cost = {.name = cost.name}});
  row->cost.bytes += cost.bytes;
  row->cost.float_flops += cost.float_flops;
  row->cost.pair_flops += cost.pair_flops;
  row->seconds += seconds;
  ++row->calls;
}

std::vector<KernelProfile::Row> KernelProfile::rows() const {
  std::vector<Row> sorted = rows_;
  for (const Running& one : running_) add_to(sorted, one.cost, one.stopwatch.seconds());
  std::stable_sort(sorted.begin(), sorted.end(), [](const Row& a, const Row& b) { return a.seconds > b.seconds; });
  return sorted;
}

}  // namespace octet::kernels
