#include "parallel/communicator.h"

#include <algorithm>
#include <exception>

#include "core/base/log.h"
#include "parallel/ordered_sum.h"

namespace octet {
namespace {

using Element = CollectiveCall::Element;
using Piece = CollectiveCall::Piece;

int64_t first_axis(ConstView view) { return view.shape().rank() == 0 ? 1 : view.size(0); }

int64_t bytes_of(ConstView view) { return view.num_elements() * size_of(view.dtype()); }

// Of one step along the first axis, which may itself have no steps.
int64_t slice_elements(ConstView view) {
  int64_t n = 1;
  for (int axis = 1; axis < view.shape().rank(); ++axis) n *= view.size(axis);
  return n;
}

void require_contiguous(const char* operation, const char* what, ConstView view) {
  require(view.is_contiguous(), "{}: the rows of `{}` are {} elements apart; wanted {}, contiguous rows", operation,
          what, view.row_stride(), view.cols());
}

Element summed(const char* operation, ConstView view) {
  require(view.dtype() == DType::kFloat32 || view.dtype() == DType::kBFloat16,
          "{}: a sum of {}; wanted float32 or bfloat16", operation, view.dtype());
  return view.dtype() == DType::kFloat32 ? Element::kFloat32 : Element::kBFloat16;
}

}  // namespace

void CollectiveCall::agree_on(uint64_t value) {
  // One step of FNV-1a on 64-bit words, turned so that high bits reach low ones.
  agreed = (agreed ^ value) * 0x100000001b3u;
  agreed ^= agreed >> 29;
}

std::vector<Piece> all_reduce_pieces(const CollectiveCall& call, int ranks) {
  const int64_t bytes = call.from_pieces[0].bytes, each = size_of(call.element);
  std::vector<Piece> pieces(size_t(ranks), {.offset = 0, .bytes = bytes});
  if (bytes <= kWholeReduceBytes) return pieces;
  for (int64_t r = 0; r < ranks; ++r) {
    const int64_t first = call.elements * r / ranks, end = call.elements * (r + 1) / ranks;
    pieces[size_t(r)] = {.offset = first * each, .bytes = (end - first) * each};
  }
  return pieces;
}

Pending::Pending(std::shared_ptr<Work> work) : work_(std::move(work)), exceptions_(std::uncaught_exceptions()) {}

Pending& Pending::operator=(Pending&& other) noexcept {
  finish();
  work_ = std::move(other.work_);
  exceptions_ = other.exceptions_;
  return *this;
}

Pending::~Pending() { finish(); }

void Pending::finish() noexcept {
  const std::shared_ptr<Work> work = std::move(work_);
  if (!work) return;
  if (std::uncaught_exceptions() > exceptions_) {
    work->give_up();
    return;
  }
  try {
    work->wait();
  } catch (const std::exception& error) {
    log_error("an operation that nothing waited for failed: {}", error.what());
  }
}

bool Pending::is_done() { return !work_ || work_->is_done(); }

void Pending::wait() {
  // Let go first: an operation whose wait threw is not waited for again.
  if (const std::shared_ptr<Work> work = std::move(work_)) work->wait();
}

CollectiveCall Communicator::make_call(Operation operation, ConstView from, View to) const {
  CollectiveCall call;
  call.operation = operation;
  const ConstView one = from.is_defined() || !to.is_defined() ? from : ConstView(to);
  call.device = one.device();
  call.dtype = name_of(one.dtype());
  call.from = from.data<std::byte>();
  call.to = to.data<std::byte>();
  call.from_pieces.resize(size_t(size_));
  call.to_pieces.resize(size_t(size_));
  call.agree_on(uint64_t(operation));
  call.agree_on(uint64_t(one.dtype()));
  return call;
}

std::vector<Piece> Communicator::cut(const char* operation, const char* what, ConstView view, const Pieces& pieces,
                                     bool may_overlap, int64_t parts) const {
  const auto wanted = size_t(size_ * parts);
  const char* each = parts == 1 ? "one per rank" : "one per part of each rank";
  const int64_t steps = first_axis(view), step_bytes = slice_elements(view) * size_of(view.dtype());
  require(pieces.counts.size() == wanted, "{}: {} counts for `{}`; wanted {}, {}", operation, pieces.counts.size(),
          what, wanted, each);
  require(pieces.offsets.empty() || pieces.offsets.size() == wanted, "{}: {} offsets for `{}`; wanted {}, {}, or none",
          operation, pieces.offsets.size(), what, wanted, each);
  std::vector<Piece> cuts;
  int64_t end = 0;
  for (size_t r = 0; r < pieces.counts.size(); ++r) {
    const int64_t count = pieces.counts[r], offset = pieces.offsets.empty() ? end : pieces.offsets[r];
    require(count >= 0 && offset >= 0 && offset <= steps && count <= steps - offset,
            "{}: piece {} of `{}` is {} from {}; wanted one inside its first axis, {}", operation, r, what, count,
            offset, steps);
    end = offset + count;
    cuts.push_back({.offset = offset * step_bytes, .bytes = count * step_bytes});
  }
  if (!may_overlap && !pieces.offsets.empty()) {
    std::vector<Piece> sorted = cuts;
    std::erase_if(sorted, [](const Piece& piece) { return piece.bytes == 0; });
    std::sort(sorted.begin(), sorted.end(), [](const Piece& a, const Piece& b) { return a.offset < b.offset; });
    for (size_t i = 1; i < sorted.size(); ++i) {
      require(sorted[i - 1].offset + sorted[i - 1].bytes <= sorted[i].offset,
              "{}: two pieces of `{}` overlap at {}; wanted each to have its own place", operation, what,
              sorted[i].offset / step_bytes);
    }
  }
  return cuts;
}

Pending Communicator::start_all_to_all_v(const AllToAll& args, Stream& stream) {
  constexpr const char* kName = "all_to_all_v";
  require_contiguous(kName, "send", args.send);
  require_contiguous(kName, "receive", args.receive);
  require(args.send.dtype() == args.receive.dtype() && slice_elements(args.send) == slice_elements(args.receive),
          "{}: `send` is {} {} and `receive` {} {}; wanted one element type and equal axes after the first", kName,
          args.send.dtype(), args.send.shape(), args.receive.dtype(), args.receive.shape());
  CollectiveCall call = make_call(Operation::kAllToAll, args.send, args.receive);
  if (args.parts == 1) {
    call.from_pieces = cut(kName, "send", args.send, args.send_pieces, /*may_overlap=*/true);
    call.to_pieces = cut(kName, "receive", args.receive, args.receive_pieces, /*may_overlap=*/false);
  } else {
    require(args.parts > 1, "{}: pieces in {} parts; wanted 1 or more", kName, args.parts);
    call.parts = args.parts;
    call.from_parts = cut(kName, "send", args.send, args.send_pieces, /*may_overlap=*/true, args.parts);
    const auto n = size_t(size_), parts = size_t(args.parts);
    const std::span<const int64_t> counts = args.receive_pieces.counts;
    require(counts.size() == n * parts, "{}: {} counts for `receive`; wanted {}, one per part of each rank", kName,
            counts.size(), n * parts);
    std::vector<int64_t> whole(n, 0);
    for (size_t i = 0; i < counts.size(); ++i) {
      require(counts[i] >= 0, "{}: part {} of `receive` is {} long; wanted 0 or more", kName, i, counts[i]);
      whole[i / parts] += counts[i];
    }
    call.to_pieces = cut(kName, "receive", args.receive, {.counts = whole, .offsets = args.receive_pieces.offsets},
                         /*may_overlap=*/false);
    const int64_t step_bytes = slice_elements(args.receive) * size_of(args.receive.dtype());
    for (size_t r = 0; r < n; ++r) {
      int64_t at = call.to_pieces[r].offset;
      for (size_t part = 0; part < parts; ++part) {
        const int64_t bytes = counts[r * parts + part] * step_bytes;
        call.to_parts.push_back({.offset = at, .bytes = bytes});
        at += bytes;
        call.from_pieces[r].bytes += call.from_parts[r * parts + part].bytes;
      }
    }
    call.agree_on(uint64_t(args.parts));
  }
  const int64_t own_from = call.from_pieces[size_t(rank_)].bytes, own_to = call.to_pieces[size_t(rank_)].bytes;
  require(own_from == own_to, "{}: rank {} sends itself {} bytes and receives {} from itself; wanted the same", kName,
          rank_, own_from, own_to);
  call.elements = slice_elements(args.send);
  call.agree_on(uint64_t(call.elements));
  return start(std::move(call), stream);
}

Pending Communicator::start_all_reduce(View values, Stream& stream) {
  require_contiguous("all_reduce", "values", values);
  CollectiveCall call = make_call(Operation::kAllReduce, values, values);
  call.element = summed("all_reduce", values);
  call.elements = values.num_elements();
  call.from_pieces.assign(1, {.offset = 0, .bytes = bytes_of(values)});
  call.to_pieces.clear();
  call.agree_on(uint64_t(call.elements));
  return start(std::move(call), stream);
}

Pending Communicator::start_all_reduce(std::span<double> values) {
  CollectiveCall call;
  call.operation = Operation::kAllReduce;
  call.element = Element::kFloat64;
  call.dtype = "float64";
  call.to = reinterpret_cast<std::byte*>(values.data());
  call.from = call.to;
  call.elements = int64_t(values.size());
  call.from_pieces.assign(1, {.offset = 0, .bytes = int64_t(values.size_bytes())});
  call.agree_on(uint64_t(call.operation));
  call.agree_on(uint64_t(call.element));
  call.agree_on(uint64_t(call.elements));
  return start(std::move(call), default_stream());
}

Pending Communicator::start_reduce_scatter(ConstView all, View sum, Stream& stream) {
  const int64_t steps = first_axis(all);
  require(steps % size_ == 0, "reduce_scatter: {} along the first axis over {} ranks leave {} over; wanted a multiple",
          steps, size_, steps % size_);
  const std::vector<int64_t> counts(size_t(size_), steps / size_);
  return start_reduce_scatter_v(all, {.counts = counts}, sum, stream);
}

Pending Communicator::start_reduce_scatter_v(ConstView all, const Pieces& pieces, View sum, Stream& stream) {
  constexpr const char* kName = "reduce_scatter";
  require_contiguous(kName, "all", all);
  require_contiguous(kName, "sum", sum);
  CollectiveCall call = make_call(Operation::kReduceScatter, all, sum);
  call.element = summed(kName, all);
  call.from_pieces = cut(kName, "all", all, pieces, /*may_overlap=*/true);
  call.to_pieces.clear();
  const int64_t own = call.from_pieces[size_t(rank_)].bytes;
  require(sum.dtype() == all.dtype() && bytes_of(sum) == own,
          "{}: `sum` is {} {}; wanted {} and the {} bytes of piece {}", kName, sum.dtype(), sum.shape(), all.dtype(),
          own, rank_);
  call.elements = all.num_elements();
  for (const Piece& piece : call.from_pieces) call.agree_on(uint64_t(piece.bytes));
  return start(std::move(call), stream);
}

Pending Communicator::start_all_gather(ConstView mine, View all, Stream& stream) {
  const std::vector<int64_t> counts(size_t(size_), first_axis(all) / size_);
  require(bytes_of(mine) * size_ == bytes_of(all), "all_gather: `mine` is {} and `all` {}; wanted {} times as much",
          mine.shape(), all.shape(), size_);
  require(first_axis(all) % size_ == 0,
          "all_gather: {} along the first axis over {} ranks leave {} over; wanted a multiple", first_axis(all), size_,
          first_axis(all) % size_);
  return start_all_gather_v(mine, all, {.counts = counts}, stream);
}

Pending Communicator::start_all_gather_v(ConstView mine, View all, const Pieces& pieces, Stream& stream) {
  constexpr const char* kName = "all_gather";
  require_contiguous(kName, "mine", mine);
  require_contiguous(kName, "all", all);
  CollectiveCall call = make_call(Operation::kAllGather, mine, all);
  call.to_pieces = cut(kName, "all", all, pieces, /*may_overlap=*/false);
  const int64_t own = call.to_pieces[size_t(rank_)].bytes;
  require(mine.dtype() == all.dtype() && bytes_of(mine) == own,
          "{}: `mine` is {} {}; wanted {} and the {} bytes of piece {}", kName, mine.dtype(), mine.shape(), all.dtype(),
          own, rank_);
  call.from_pieces.assign(size_t(size_), {.offset = 0, .bytes = own});
  call.elements = all.num_elements();
  for (const Piece& piece : call.to_pieces) call.agree_on(uint64_t(piece.bytes));
  return start(std::move(call), stream);
}

Pending Communicator::start_broadcast(View values, int root, Stream& stream) {
  require(0 <= root && root < size_, "broadcast: from rank {}; wanted 0 to {}", root, size_ - 1);
  require_contiguous("broadcast", "values", values);
  CollectiveCall call = make_call(Operation::kBroadcast, values, values);
  const Piece all{.offset = 0, .bytes = bytes_of(values)};
  if (rank_ == root) call.from_pieces.assign(size_t(size_), all);
  call.to_pieces[size_t(root)] = all;
  call.peer = root;
  call.elements = values.num_elements();
  call.agree_on(uint64_t(root));
  call.agree_on(uint64_t(call.elements));
  return start(std::move(call), stream);
}

Pending Communicator::start_send(ConstView values, int to, Stream& stream) {
  require(0 <= to && to < size_ && to != rank_, "send: to rank {} from rank {}; wanted another of 0 to {}", to, rank_,
          size_ - 1);
  require_contiguous("send", "values", values);
  CollectiveCall call = make_call(Operation::kSend, values, {});
  call.from_pieces[size_t(to)] = {.offset = 0, .bytes = bytes_of(values)};
  call.peer = to;
  call.elements = values.num_elements();
  call.agreed = uint64_t(values.dtype());
  return start(std::move(call), stream);
}

Pending Communicator::start_receive(View values, int from, Stream& stream) {
  require(0 <= from && from < size_ && from != rank_, "receive: from rank {} on rank {}; wanted another of 0 to {}",
          from, rank_, size_ - 1);
  require_contiguous("receive", "values", values);
  CollectiveCall call = make_call(Operation::kReceive, {}, values);
  call.to_pieces[size_t(from)] = {.offset = 0, .bytes = bytes_of(values)};
  call.peer = from;
  call.elements = values.num_elements();
  call.agreed = uint64_t(values.dtype());
  call.dtype = name_of(values.dtype());
  return start(std::move(call), stream);
}

Pending Communicator::start_barrier() {
  CollectiveCall call = make_call(Operation::kBarrier, {}, {});
  call.dtype = {};
  return start(std::move(call), default_stream());
}

}  // namespace octet
