#include "parallel/agreement.h"

#include <algorithm>
#include <cstring>

namespace octet {
namespace {

std::vector<int64_t> gather_numbers(Communicator& world, int64_t mine) {
  std::vector<int64_t> all(size_t(world.size()));
  world.all_gather(ConstView(&mine, {1}, DType::kInt64), View(all.data(), {world.size()}, DType::kInt64),
                   default_stream());
  return all;
}

View bytes_of(std::string& text) { return View(text.data(), {int64_t(text.size())}, DType::kUInt8); }

}  // namespace

std::string pack(const std::vector<std::string>& texts) {
  std::string packed;
  for (const std::string& text : texts) {
    const uint64_t bytes = text.size();
    packed.append(reinterpret_cast<const char*>(&bytes), sizeof bytes);
    packed += text;
  }
  return packed;
}

std::vector<std::string> unpack(std::string_view packed) {
  std::vector<std::string> texts;
  while (!packed.empty()) {
    uint64_t bytes = 0;
    const bool has_length = packed.size() >= sizeof bytes;
    if (has_length) std::memcpy(&bytes, packed.data(), sizeof bytes);
    require(ErrorKind::kCommunication, has_length && bytes <= packed.size() - sizeof bytes,
            "unpack: {} bytes are left of a text of {}; wanted all of it", packed.size(), bytes);
    texts.emplace_back(packed.substr(sizeof bytes, bytes));
    packed.remove_prefix(sizeof bytes + bytes);
  }
  return texts;
}

void broadcast_text(Communicator& world, std::string& text, int root) {
  auto bytes = int64_t(text.size());
  world.broadcast(View(&bytes, {1}, DType::kInt64), root, default_stream());
  text.resize(size_t(bytes));
  world.broadcast(bytes_of(text), root, default_stream());
}

std::vector<std::string> gather_texts(Communicator& world, const std::string& mine) {
  const std::vector<int64_t> bytes = gather_numbers(world, int64_t(mine.size()));
  int64_t sum = 0;
  for (const int64_t each : bytes) sum += each;
  std::string all(size_t(sum), '\0');
  world.all_gather_v(ConstView(mine.data(), {int64_t(mine.size())}, DType::kUInt8), bytes_of(all), {.counts = bytes},
                     default_stream());
  std::vector<std::string> texts;
  size_t at = 0;
  for (const int64_t each : bytes) {
    texts.push_back(all.substr(at, size_t(each)));
    at += size_t(each);
  }
  return texts;
}

void fail_together(Communicator& world, const Error& error) {
  // Whoever leaves the barrier knows that all have come to it, and with that to this error; what ends it does not
  // matter.
  error_in([&] { world.barrier(); });
  throw Error(error);
}

void vote(Communicator& world, const std::optional<Error>& mine) {
  if (world.size() == 1) {
    if (mine) throw Error(*mine);
    return;
  }
  constexpr int64_t kFine = -1;
  const std::vector<int64_t> kinds = gather_numbers(world, mine ? int64_t(mine->kind()) : kFine);
  const auto first = std::find_if(kinds.begin(), kinds.end(), [](int64_t kind) { return kind != kFine; });
  if (first == kinds.end()) return;
  const int rank = int(first - kinds.begin());
  std::string text;
  if (rank == world.rank()) {
    const Report& report = mine->report();
    text = pack({report.what, report.where, report.why, report.fix});
  }
  broadcast_text(world, text, rank);
  const std::vector<std::string> parts = unpack(text);
  const auto others = kinds.end() - first - std::count(first, kinds.end(), kFine) - 1;
  fail_together(world, Error(ErrorKind(*first),
                             {.what = fmt::format("rank {} (host {}){}: {}", world.world_rank(rank), world.host(rank),
                                                  others == 0 ? "" : fmt::format(" and {} more", others), parts[0]),
                              .where = parts[1],
                              .why = parts[2],
                              .fix = parts[3]}));
}

}  // namespace octet
