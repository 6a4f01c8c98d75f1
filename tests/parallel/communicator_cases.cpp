#include "tests/parallel/communicator_cases.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "core/base/random.h"

namespace octet::test {
namespace {

Stream& stream() { return default_stream(); }

// Element i of rank r: 23 random bits at a random size between 2^-12 and 2^12, so that another order of a sum has other
// bits.
template <class T>
T value(int rank, int64_t i) {
  const uint64_t bits = philox4x32(/*key=*/7, uint64_t(i), uint64_t(rank))[0] * 0x9e3779b97f4a7c15u;
  const auto exponent = uint32_t(115 + (bits >> 40) % 25);
  return T(std::bit_cast<float>((uint32_t(bits >> 32) & 0x807fffffu) | exponent << 23));
}
template <>
double value<double>(int rank, int64_t i) {
  return double(value<float>(rank, i)) + 1e-9 * double(value<float>(rank + 100, i));
}

template <class T>
std::vector<T> values(int rank, int64_t n) {
  std::vector<T> x;
  for (int64_t i = 0; i < n; ++i) x.push_back(value<T>(rank, i));
  return x;
}

template <class T>
struct SumOf {
  using type = T;
};
template <>
struct SumOf<bfloat16> {
  using type = float;
};

// The sum over these ranks in this order, by the words of parallel/communicator.h.
template <class T>
T ordered(const std::vector<int>& ranks, int64_t i) {
  using Sum = typename SumOf<T>::type;
  Sum sum = Sum(value<T>(ranks[0], i));
  for (size_t r = 1; r < ranks.size(); ++r) sum = sum + Sum(value<T>(ranks[r], i));
  return T(sum);
}

template <class T>
bool same_bits(T a, T b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

std::vector<int> all_ranks(const Communicator& c) {
  std::vector<int> ranks(static_cast<size_t>(c.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

template <class T>
void check_sum(const char* what, const std::vector<int>& ranks, const T* got, int64_t first, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const T want = ordered<T>(ranks, first + i);
    require(same_bits(got[i], want), "{}: element {} is {}; wanted {}", what, first + i, double(got[i]), double(want));
  }
}

template <class T>
View view(std::vector<T>& x) {
  return View(x.data(), {int64_t(x.size())}, dtype_of<T>);
}

// Sizes in elements, about each limit of the implementation: nothing, one, odd, what fits in a header, what is sent
// whole, and what takes many blocks.
const int64_t kSizes[] = {0, 1, 2, 3, 116, 117, 232, 233, 464, 465, 2047, 2048, 2049, 4096, 4097, 30011, 100003};

template <class T>
void all_reduce_of(Communicator& c) {
  for (const int64_t n : kSizes) {
    std::vector<T> x = values<T>(c.rank(), n);
    c.reset_traffic();
    if constexpr (std::is_same_v<T, double>) {
      c.all_reduce(std::span<double>(x));
    } else {
      c.all_reduce(view(x), stream());
    }
    check_sum("all_reduce", all_ranks(c), x.data(), 0, n);
    const int64_t ranks = c.size(), each = int64_t(sizeof(T));
    const int64_t mine = n * (c.rank() + 1) / ranks - n * c.rank() / ranks;
    const int64_t bytes = n * each <= 8192 ? (ranks - 1) * n * each : (n - mine + (ranks - 1) * mine) * each;
    const Traffic::Line& line = c.traffic()[Operation::kAllReduce];
    require(line.calls == 1 && line.bytes == (ranks == 1 ? 0 : bytes) && c.traffic().bytes() == line.bytes,
            "all_reduce of {}: {} calls, {} bytes; wanted 1, {}", n, line.calls, line.bytes, bytes);
  }
}

void all_reduce(Communicator& c) {
  all_reduce_of<float>(c);
  all_reduce_of<bfloat16>(c);
  all_reduce_of<double>(c);
}

// The values are such that another order of a sum shows, and more than one rounding: without this the cases could not
// fail.
void order_shows(Communicator& c) {
  if (c.size() < 3) return;
  std::vector<int> backwards = all_ranks(c);
  std::reverse(backwards.begin(), backwards.end());
  int floats = 0, doubles = 0, roundings = 0;
  for (int64_t i = 0; i < 2000; ++i) {
    floats += !same_bits(ordered<float>(all_ranks(c), i), ordered<float>(backwards, i));
    doubles += !same_bits(ordered<double>(all_ranks(c), i), ordered<double>(backwards, i));
    bfloat16 rounded = value<bfloat16>(0, i);
    for (int r = 1; r < c.size(); ++r) rounded = bfloat16(float(rounded) + float(value<bfloat16>(r, i)));
    roundings += !same_bits(rounded, ordered<bfloat16>(all_ranks(c), i));
  }
  require(floats > 100 && doubles > 100 && roundings > 100, "order shows {} and {} times, rounding {} times", floats,
          doubles, roundings);
}

template <class T>
void reduce_scatter_of(Communicator& c) {
  const int n = c.size(), me = c.rank();
  for (const int64_t size : kSizes) {
    const std::vector<T> all = values<T>(me, size * n);
    std::vector<T> sum(size_t(size), T(-1.0f));
    const ConstView from(all.data(), {size * n}, dtype_of<T>);
    c.reset_traffic();
    c.reduce_scatter(from, view(sum), stream());
    check_sum("reduce_scatter", all_ranks(c), sum.data(), size * me, size);
    require(c.traffic()[Operation::kReduceScatter].bytes == size * (n - 1) * int64_t(sizeof(T)),
            "reduce_scatter sent {} bytes", c.traffic().bytes());

    // In rows, unequal, some of them empty, into its own piece.
    std::vector<T> rows = values<T>(me, size * 3);
    std::vector<int64_t> counts(static_cast<size_t>(n), 0);
    counts.front() = size / 3;
    counts.back() += size - size / 3;
    const int64_t offset = me == 0 ? 0 : size / 3, mine = counts[size_t(me)];
    c.reduce_scatter_v(View(rows.data(), {size, 3}, dtype_of<T>), {.counts = counts},
                       View(rows.data() + offset * 3, {mine, 3}, dtype_of<T>), stream());
    check_sum("reduce_scatter_v", all_ranks(c), rows.data() + offset * 3, offset * 3, mine * 3);
  }
}

void reduce_scatter(Communicator& c) {
  reduce_scatter_of<float>(c);
  reduce_scatter_of<bfloat16>(c);
}

uint8_t byte_of(int rank, int64_t i, int salt) {
  return uint8_t(philox4x32(uint64_t(rank), uint64_t(i), uint64_t(salt))[0]);
}

std::vector<uint8_t> bytes(int rank, int64_t n, int salt) {
  std::vector<uint8_t> x;
  for (int64_t i = 0; i < n; ++i) x.push_back(byte_of(rank, i, salt));
  return x;
}

void all_gather(Communicator& c) {
  const int n = c.size(), me = c.rank();
  for (const DType dtype : {DType::kFloat8E4M3, DType::kBFloat16, DType::kFloat32, DType::kInt64}) {
    const int64_t each = size_of(dtype);
    for (const int64_t size : {0, 1, 115, 116, 117, 232, 233, 464, 465, 928, 929, 50001}) {
      std::vector<uint8_t> all(size_t(size * n * each), 0xee);
      const std::vector<uint8_t> mine = bytes(me, size * each, 1);
      c.reset_traffic();
      c.all_gather(ConstView(mine.data(), {size}, dtype), View(all.data(), {size * n}, dtype), stream());
      for (int r = 0; r < n; ++r) {
        const std::vector<uint8_t> want = bytes(r, size * each, 1);
        require(std::equal(want.begin(), want.end(), all.begin() + r * size * each), "all_gather: the piece of rank {}",
                r);
      }
      require(c.traffic()[Operation::kAllGather].bytes == size * each * (n - 1), "all_gather sent {} bytes",
              c.traffic().bytes());

      // Unequal pieces in the opposite order with gaps between, from its own place.
      std::vector<int64_t> counts, offsets(static_cast<size_t>(n));
      for (int r = 0; r < n; ++r) counts.push_back(size * r / 2);
      int64_t end = 1;
      for (int r = n - 1; r >= 0; --r) offsets[size_t(r)] = end, end += counts[size_t(r)] + 1;
      std::vector<uint8_t> gaps(size_t(end * each), 0xee);
      const std::vector<uint8_t> own = bytes(me, counts[size_t(me)] * each, 2);
      std::copy(own.begin(), own.end(), gaps.begin() + offsets[size_t(me)] * each);
      c.all_gather_v(ConstView(gaps.data() + offsets[size_t(me)] * each, {counts[size_t(me)]}, dtype),
                     View(gaps.data(), {end}, dtype), {.counts = counts, .offsets = offsets}, stream());
      std::vector<uint8_t> want(size_t(end * each), 0xee);
      for (int r = 0; r < n; ++r) {
        const std::vector<uint8_t> piece = bytes(r, counts[size_t(r)] * each, 2);
        std::copy(piece.begin(), piece.end(), want.begin() + offsets[size_t(r)] * each);
      }
      require(gaps == want, "all_gather_v of {} {}", size, dtype);
    }
  }
}

// Rows that rank s sends to rank r: none, one, a few, or many.
int64_t rows_between(int s, int r, int64_t scale) {
  const int64_t kinds[] = {0, 1, 3 * scale, 2, 7 * scale};
  return kinds[size_t(s * 3 + r * 7) % 5];
}

void all_to_all(Communicator& c) {
  const int n = c.size(), me = c.rank();
  for (const int64_t scale : {0, 1, 40, 3000}) {
    for (const int64_t width : {0, 1, 33}) {
      // Sent from places in the opposite order, so that offsets matter; received at places with a gap of a row between.
      std::vector<int64_t> send_counts, receive_counts, send_offsets(static_cast<size_t>(n)), receive_offsets;
      int64_t sent = 0, received = 1, payload = 0;
      for (int r = 0; r < n; ++r) {
        send_counts.push_back(rows_between(me, r, scale));
        receive_counts.push_back(rows_between(r, me, scale));
        receive_offsets.push_back(received);
        received += receive_counts.back() + 1;
        if (r != me) payload += send_counts.back() * width * 2;
      }
      for (int r = n - 1; r >= 0; --r) send_offsets[size_t(r)] = sent, sent += send_counts[size_t(r)];
      const auto piece = [&](int s, int r) { return bytes(s, rows_between(s, r, scale) * width * 2, 10 + r); };
      std::vector<uint8_t> send(size_t(sent * width * 2)), receive(size_t(received * width * 2), 0xee), want = receive;
      for (int r = 0; r < n; ++r) {
        const std::vector<uint8_t> out = piece(me, r), in = piece(r, me);
        std::copy(out.begin(), out.end(), send.begin() + send_offsets[size_t(r)] * width * 2);
        std::copy(in.begin(), in.end(), want.begin() + receive_offsets[size_t(r)] * width * 2);
      }
      c.reset_traffic();
      c.all_to_all_v({.send = ConstView(send.data(), {sent, width}, DType::kBFloat16),
                      .send_pieces = {.counts = send_counts, .offsets = send_offsets},
                      .receive = View(receive.data(), {received, width}, DType::kBFloat16),
                      .receive_pieces = {.counts = receive_counts, .offsets = receive_offsets}},
                     stream());
      require(receive == want, "all_to_all_v of rows of {}, scale {}", width, scale);
      require(c.traffic()[Operation::kAllToAll].bytes == payload, "all_to_all_v sent {} bytes; wanted {}",
              c.traffic().bytes(), payload);
    }
  }
}

// Each piece in three parts, the middle one empty for every other rank; parts of all ranks lie between each other.
void all_to_all_in_parts(Communicator& c) {
  const int n = c.size(), me = c.rank();
  constexpr int64_t kParts = 3, kWidth = 33;
  const auto rows_of_part = [](int s, int r, int64_t scale, int64_t part) {
    const int64_t rows = rows_between(s, r, scale), middle = (s + r) % 2 == 0 ? 0 : rows / 4;
    return part == 0 ? rows / 2 : part == 1 ? middle : rows - rows / 2 - middle;
  };
  for (const int64_t scale : {0, 1, 40, 3000}) {  // together with the header, gathered, and each by itself
    std::vector<int64_t> send_counts, receive_counts, send_offsets(size_t(n * kParts)), receive_offsets;
    int64_t sent = 0, received = 0, payload = 0;
    for (int r = 0; r < n; ++r) {
      for (int64_t part = 0; part < kParts; ++part) {
        send_counts.push_back(rows_of_part(me, r, scale, part));
        receive_counts.push_back(rows_of_part(r, me, scale, part));
      }
      receive_offsets.push_back(received);
      received += rows_between(r, me, scale);
      if (r != me) payload += rows_between(me, r, scale) * kWidth * 2;
    }
    for (int64_t part = kParts - 1; part >= 0; --part) {
      for (int r = 0; r < n; ++r) {
        send_offsets[size_t(r * kParts + part)] = sent;
        sent += send_counts[size_t(r * kParts + part)];
      }
    }
    std::vector<uint8_t> send(size_t(sent * kWidth * 2)), receive(size_t(received * kWidth * 2), 0xee), want;
    for (int r = 0; r < n; ++r) {
      const std::vector<uint8_t> out = bytes(me, rows_between(me, r, scale) * kWidth * 2, 10 + r),
                                 in = bytes(r, rows_between(r, me, scale) * kWidth * 2, 10 + me);
      want.insert(want.end(), in.begin(), in.end());
      for (int64_t part = 0, at = 0; part < kParts; ++part) {
        const auto i = size_t(r * kParts + part);
        const int64_t size = send_counts[i] * kWidth * 2;
        std::copy_n(out.begin() + at, size, send.begin() + send_offsets[i] * kWidth * 2);
        at += size;
      }
    }
    c.reset_traffic();
    c.all_to_all_v({.send = ConstView(send.data(), {sent, kWidth}, DType::kBFloat16),
                    .send_pieces = {.counts = send_counts, .offsets = send_offsets},
                    .receive = View(receive.data(), {received, kWidth}, DType::kBFloat16),
                    .receive_pieces = {.counts = receive_counts, .offsets = receive_offsets},
                    .parts = kParts},
                   stream());
    require(receive == want, "all_to_all_v in parts, scale {}", scale);
    require(c.traffic()[Operation::kAllToAll].bytes == payload, "all_to_all_v in parts sent {} bytes; wanted {}",
            c.traffic().bytes(), payload);
  }
}

// A piece of more than one message of the largest size, and a last one that is odd.
void long_piece(Communicator& c) {
  if (c.size() != 2) return;
  const int64_t n = (int64_t(64) << 20) + 12345, other = 1 - c.rank();
  std::vector<uint64_t> send(size_t(n / 8 + 1)), receive(send.size() + 1, 0x4d4d4d4d4d4d4d4du);
  for (size_t i = 0; i < send.size(); ++i) send[i] = (i * 0x9e3779b97f4a7c15u) ^ uint64_t(c.rank());
  std::vector<int64_t> counts(2, 0);
  counts[size_t(other)] = n;
  c.all_to_all_v({.send = ConstView(send.data(), {n}, DType::kUInt8),
                  .send_pieces = {.counts = counts},
                  .receive = View(receive.data(), {n}, DType::kUInt8),
                  .receive_pieces = {.counts = counts}},
                 stream());
  const auto* got = reinterpret_cast<const uint8_t*>(receive.data());
  for (auto& word : send) word ^= 1;  // rank 0 and rank 1 differ by this
  require(std::memcmp(got, send.data(), size_t(n)) == 0, "a long piece came damaged");
  require(got[n] == 0x4d, "a long piece wrote behind its end");
}

void broadcast(Communicator& c) {
  for (int root = 0; root < c.size(); ++root) {
    for (const int64_t n : {0, 1, 927, 928, 929, 70001}) {
      std::vector<uint8_t> x = bytes(c.rank(), n, 20);
      c.reset_traffic();
      c.broadcast(View(x.data(), {n}, DType::kUInt8), root, stream());
      require(x == bytes(root, n, 20), "broadcast of {} from {}", n, root);
      require(c.traffic()[Operation::kBroadcast].bytes == (c.rank() == root ? n * (c.size() - 1) : 0),
              "broadcast sent {} bytes", c.traffic().bytes());
    }
  }
}

// Each rank to each, several in order, all under way at once.
void send_and_receive(Communicator& c) {
  const int n = c.size(), me = c.rank();
  const int64_t kLengths[] = {0, 1, 928, 929, 20000};
  std::vector<std::vector<uint8_t>> sent, received;
  std::vector<Pending> pending;
  for (int r = 0; r < n; ++r) {
    if (r == me) continue;
    for (const int64_t length : kLengths) {
      sent.push_back(bytes(me * 10 + r, length, 30));
      received.emplace_back(size_t(length), 0xee);
    }
  }
  c.reset_traffic();
  size_t at = 0;
  for (int r = 0; r < n; ++r) {
    if (r == me) continue;
    for (const int64_t length : kLengths) {
      pending.push_back(c.start_send(ConstView(sent[at].data(), {length}, DType::kUInt8), r, stream()));
      pending.push_back(c.start_receive(View(received[at].data(), {length}, DType::kUInt8), r, stream()));
      ++at;
    }
  }
  for (size_t i = 0; i < pending.size(); ++i) pending[me % 2 == 0 ? i : pending.size() - 1 - i].wait();
  at = 0;
  for (int r = 0; r < n; ++r) {
    if (r == me) continue;
    for (const int64_t length : kLengths) {
      require(received[at++] == bytes(r * 10 + me, length, 30), "{} bytes from rank {}", length, r);
    }
  }
  const int64_t each = std::accumulate(std::begin(kLengths), std::end(kLengths), int64_t(0));
  require(c.traffic()[Operation::kSend].bytes == each * (n - 1), "sends had {} bytes", c.traffic().bytes());
}

// Several operations at once, waited for in another order on each rank.
void under_way_together(Communicator& c) {
  const int n = c.size(), me = c.rank();
  for (int round = 0; round < 5; ++round) {
    std::vector<float> large = values<float>(me, 5000), small = values<float>(me, 5);
    std::vector<uint8_t> all(size_t(3 * n)), mine = bytes(me, 3, 40);
    std::vector<Pending> pending;
    pending.push_back(c.start_all_reduce(view(large), stream()));
    pending.push_back(c.start_all_gather(view(mine), view(all), stream()));
    pending.push_back(c.start_barrier());
    pending.push_back(c.start_all_reduce(view(small), stream()));
    for (int i = 0; i < 10; ++i) c.progress();
    while (!pending[size_t(me + round) % 4].is_done()) continue;
    for (size_t i = 0; i < pending.size(); ++i) pending[(i * 3 + size_t(me)) % 4].wait();
    check_sum("large", all_ranks(c), large.data(), 0, 5000);
    check_sum("small", all_ranks(c), small.data(), 0, 5);
    for (int r = 0; r < n; ++r) {
      const std::vector<uint8_t> want = bytes(r, 3, 40);
      require(std::equal(want.begin(), want.end(), all.begin() + 3 * r), "all_gather beside sums");
    }
  }
}

// Groups: neighbours, every second rank, all backwards; and a group of a group.
void groups(Communicator& c) {
  const int n = c.size(), me = c.rank();
  std::vector<int> backwards = all_ranks(c);
  std::reverse(backwards.begin(), backwards.end());
  const auto reversed = c.group(backwards, "reversed");
  require(reversed->rank() == n - 1 - me && reversed->size() == n && reversed->name() == "reversed", "reversed");
  require(reversed->world_rank(0) == c.world_rank(n - 1), "the first of the reversed is the last");
  require(reversed->host(0) == c.host(n - 1) && !c.host(0).empty(), "a host");

  std::vector<int> alternate, pair;
  for (int r = me % 2; r < n; r += 2) alternate.push_back(r);
  for (int r = me / 2 * 2; r < std::min(n, me / 2 * 2 + 2); ++r) pair.push_back(r);
  const auto second = c.group(alternate, "alternate"), neighbours = c.group(pair, "pair");
  const std::vector<int> self = {reversed->rank()};
  const auto alone = reversed->group(self, "alone");
  require(alone->size() == 1 && alone->world_rank(0) == c.world_rank(me), "a group of a group");

  std::vector<float> a = values<float>(me, 4000), b = a, d = a, e = a, f = a;
  std::vector<Pending> pending;
  pending.push_back(c.start_all_reduce(view(a), stream()));
  pending.push_back(reversed->start_all_reduce(view(b), stream()));
  pending.push_back(second->start_all_reduce(view(d), stream()));
  pending.push_back(neighbours->start_all_reduce(view(e), stream()));
  pending.push_back(alone->start_all_reduce(view(f), stream()));
  while (!pending.empty()) {
    pending.back().wait();
    pending.pop_back();
  }
  check_sum("all", all_ranks(c), a.data(), 0, 4000);
  check_sum("reversed", backwards, b.data(), 0, 4000);
  check_sum("alternate", alternate, d.data(), 0, 4000);
  check_sum("pair", pair, e.data(), 0, 4000);
  check_sum("alone", {me}, f.data(), 0, 4000);
}

void phases(Communicator& c) {
  for (int step = 1; step <= 3; ++step) {
    // Longer than what is sent of it.
    c.set_phase(fmt::format("step {}, forward, layer 3, the dispatch of the experts", step));
    c.barrier();
  }
  // Two ends of a message may be in different phases, as in a pipeline.
  c.set_phase(fmt::format("stage {}", c.rank()));
  std::vector<uint8_t> token = {1};
  if (c.rank() > 0) c.receive(view(token), c.rank() - 1, stream());
  if (c.rank() + 1 < c.size()) c.send(view(token), c.rank() + 1, stream());
  c.set_phase("");
}

void barriers(Communicator& c) {
  c.reset_traffic();
  for (int i = 0; i < 50; ++i) c.barrier();
  require(c.traffic()[Operation::kBarrier] == Traffic::Line{.calls = 50, .bytes = 0}, "barriers sent {} bytes",
          c.traffic().bytes());
}

}  // namespace

const std::vector<CommunicatorCase>& communicator_cases() {
  static const std::vector<CommunicatorCase> cases = {
      {"all_reduce", all_reduce},
      {"order_shows", order_shows},
      {"reduce_scatter", reduce_scatter},
      {"all_gather", all_gather},
      {"all_to_all", all_to_all},
      {"all_to_all_in_parts", all_to_all_in_parts},
      {"long_piece", long_piece},
      {"broadcast", broadcast},
      {"send_and_receive", send_and_receive},
      {"under_way_together", under_way_together},
      {"groups", groups},
      {"phases", phases},
      {"barriers", barriers},
  };
  return cases;
}

std::vector<uint64_t> reduced_bits(Communicator& c) {
  std::vector<uint64_t> bits;
  for (const int64_t n : kSizes) {
    std::vector<float> floats = values<float>(c.rank(), n);
    std::vector<bfloat16> brains = values<bfloat16>(c.rank(), n);
    std::vector<double> doubles = values<double>(c.rank(), n);
    c.all_reduce(view(floats), stream());
    c.all_reduce(view(brains), stream());
    c.all_reduce(std::span<double>(doubles));
    for (const float x : floats) bits.push_back(std::bit_cast<uint32_t>(x));
    for (const bfloat16 x : brains) bits.push_back(x.bits);
    for (const double x : doubles) bits.push_back(std::bit_cast<uint64_t>(x));
  }
  return bits;
}

}  // namespace octet::test
