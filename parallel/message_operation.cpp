#include "parallel/message_operation.h"

#include <fmt/format.h>

namespace octet::message {

std::string shown_operation(const Header& header, std::string_view group) {
  std::string text(name_of(header.operation));
  const bool shows_size = header.operation != Operation::kBarrier && header.operation != Operation::kGroup;
  if (header.operation == Operation::kAllToAll) {
    text += fmt::format(" of rows of {} {}", header.elements, header.dtype);
  } else if (shows_size) {
    text += fmt::format(" of {} {}", header.elements, header.dtype);
  }
  if (header.operation == Operation::kBroadcast) text += fmt::format(" from rank {}", header.root);
  return text + fmt::format(", number {} of group {}", header.number, group);
}

std::string list_ranks(const std::vector<int>& ranks) {
  constexpr size_t kMostShown = 16;
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  if (ranks.size() > kMostShown) return text + fmt::format("{}, {} and {} more", ranks[0], ranks[1], ranks.size() - 2);
  for (size_t i = 0; i < ranks.size(); ++i) {
    text += fmt::format("{}{}", i == 0 ? "" : i + 1 == ranks.size() ? " and " : ", ", ranks[i]);
  }
  return text;
}

bool go_by_themselves(std::span<const Piece> parts) {
  int64_t bytes = 0, count = 0;
  for (const Piece& part : parts) bytes += part.bytes, count += part.bytes > 0;
  return parts.size() > 1 && bytes >= kPartBytes * count;
}

uint32_t hash_of(std::span<const Piece> parts) {
  if (parts.size() <= 1) return 0;
  CollectiveCall hash;
  for (const Piece& part : parts) hash.agree_on(uint64_t(part.bytes));
  return uint32_t(hash.agreed >> 32 ^ hash.agreed) | 1;
}

}  // namespace octet::message
