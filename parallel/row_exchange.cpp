#include "parallel/row_exchange.h"

#include <cstring>
#include <numeric>
#include <utility>

#include "kernels/permute.h"

namespace octet {
namespace {

int64_t sum_of(const std::vector<int64_t>& counts, size_t end) {
  return std::accumulate(counts.begin(), counts.begin() + std::ptrdiff_t(end), int64_t(0));
}

}  // namespace

RowExchange::RowExchange(Communicator& ranks, const Tensor& x, const Tensor& index, std::vector<int64_t> counts_to)
    : ranks_(&ranks), x_(x), index_(index), counts_to_(std::move(counts_to)) {
  const auto me = size_t(ranks.rank()), n = size_t(ranks.size());
  const int64_t own = counts_to_[me], before = sum_of(counts_to_, me), all = sum_of(counts_to_, n);
  sent_ = empty({all - own, x.cols()}, x.dtype(), MemoryCategory::kWorkspace);
  copy(0, before, sent_.slice_rows(0, before));
  copy(before + own, all - own - before, sent_.slice_rows(before, all - own - before));
}

void RowExchange::start(const std::vector<int64_t>& counts_from) {
  const auto me = size_t(ranks_->rank()), n = size_t(ranks_->size());
  const int64_t own = counts_to_[me], before = sum_of(counts_to_, me);
  std::vector<int64_t> from = counts_from, offsets(n);
  counts_to_[me] = from[me] = 0;
  for (size_t r = 0; r < n; ++r) offsets[r] = sum_of(counts_from, r);
  received_ = empty({sum_of(counts_from, n), sent_.cols()}, sent_.dtype());
  pending_ = ranks_->start_all_to_all_v({.send = sent_,
                                         .send_pieces = {.counts = counts_to_},
                                         .receive = received_,
                                         .receive_pieces = {.counts = from, .offsets = offsets}},
                                        sent_.stream());
  copy(before, own, received_.slice_rows(offsets[me], own));
  x_ = index_ = Tensor();
}

// Rows first .. first + count - 1 of those that the index lists.
void RowExchange::copy(int64_t first, int64_t count, const Tensor& to) const {
  if (count == 0) return;
  if (index_.is_defined()) {
    kernels::gather_rows({.x = x_, .source = index_.slice_rows(first, count), .y = to}, x_.stream());
  } else {
    std::memcpy(to.view().raw(), x_.slice_rows(first, count).view().raw(), size_t(to.num_bytes()));
  }
}

RowExchange::RowExchange(Communicator& ranks, const Tensor& x, const std::vector<Run>& runs_to,
                         const std::vector<int64_t>& counts_from)
    : sent_(x), received_(empty({sum_of(counts_from, counts_from.size()), x.cols()}, x.dtype())) {
  std::vector<int64_t> counts, offsets;
  for (const Run& run : runs_to) counts.push_back(run.count), offsets.push_back(run.first);
  pending_ = ranks.start_all_to_all_v({.send = sent_,
                                       .send_pieces = {.counts = counts, .offsets = offsets},
                                       .receive = received_,
                                       .receive_pieces = {.counts = counts_from},
                                       .parts = int64_t(runs_to.size()) / ranks.size()},
                                      x.stream());
}

Tensor RowExchange::wait() {
  pending_.wait();
  sent_ = Tensor();
  return std::exchange(received_, Tensor());
}

}  // namespace octet
