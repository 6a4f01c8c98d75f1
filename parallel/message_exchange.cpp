// Of a World: an operation from its headers to its end.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "parallel/message_world.h"
#include "parallel/ordered_sum.h"

namespace octet::message {

void World::begin(Op& op, Traffic* traffic) {
  const int n = op.size(), me = op.me();
  CollectiveCall& call = op.call;
  if (op.is_sum() && call.operation == Operation::kAllReduce) op.slices = all_reduce_pieces(call, n);
  std::byte* together = nullptr;
  if (op.is_sum()) {
    if (n > 1) op.scratch = Scratch(op.outgoing(me).bytes * (n - 1));
  } else if (!op.is_pair()) {
    copy_own(op);
  }
  if (call.parts > 1) {
    int64_t bytes = 0;
    for (int r = 0; r < n; ++r) bytes += r == me || go_by_themselves(call.parts_to(r)) ? 0 : op.outgoing(r).bytes;
    op.scratch = Scratch(bytes);
    together = op.scratch.data();
  }

  Header header;
  header.operation = call.operation;
  header.root = call.peer;
  header.number = op.number;
  header.agreed = call.agreed;
  header.elements = call.elements;
  copy_text(header.dtype, call.dtype);
  copy_text(header.phase, op.phase);
  const Lane lane = op.is_pair() ? Lane::kPairHeader : Lane::kHeader;
  // Each rank begins with its right neighbour, so that not all send to one at a time.
  for (int step = 1; step < n; ++step) {
    const int from = (me + n - step) % n;
    if (call.operation == Operation::kSend || (op.is_pair() && from != call.peer)) continue;
    Op::Peer& peer = op.peers[size_t(from)];
    peer.is_awaited = true;
    ++op.open;
    transport_->receive(op.group->ranks[size_t(from)], tag_of(op.group->context, lane), &peer.in, sizeof(Entry),
                        {.owner = &op, .peer = from, .part = int32_t(Part::kHeaderIn), .bytes = 0});
  }
  for (int step = 1; step < n; ++step) {
    const int to = (me + step) % n;
    if (call.operation == Operation::kReceive || (op.is_pair() && to != call.peer)) continue;
    Op::Peer& peer = op.peers[size_t(to)];
    const Piece piece = op.outgoing(to);
    const std::span<const Piece> parts = op.is_sum() ? std::span(&piece, 1) : call.parts_to(to);
    Header& out = peer.out.header;
    out = header;
    out.piece_bytes = piece.bytes;
    out.parts = hash_of(parts);
    out.is_inline = piece.bytes <= kInlineBytes;
    if (traffic != nullptr) (*traffic)[call.operation].bytes += piece.bytes;
    const int64_t inline_bytes = out.is_inline ? piece.bytes : 0;
    if (out.is_inline) copy_parts(call.from, parts, peer.out.piece);
    post_send(op, to, lane, reinterpret_cast<const std::byte*>(&peer.out), int64_t(sizeof(Header)) + inline_bytes,
              Part::kHeaderOut);
    if (out.is_inline) continue;
    const Lane of_piece = op.is_pair() ? Lane::kPairPiece : Lane::kPiece;
    if (parts.size() == 1 || go_by_themselves(parts)) {
      for (const Piece& part : parts) post_send(op, to, of_piece, call.from + part.offset, part.bytes, Part::kPieceOut);
    } else {
      copy_parts(call.from, parts, together);
      post_send(op, to, of_piece, together, piece.bytes, Part::kPieceOut);
      together += piece.bytes;
    }
  }
  if (traffic != nullptr && has_second(op)) {
    (*traffic)[call.operation].bytes += op.slices[size_t(me)].bytes * (n - 1);
  }
  if (op.open == 0) next_exchange(op);
}

bool World::has_second(const Op& op) { return !op.slices.empty() && op.call.from_pieces[0].bytes > kWholeReduceBytes; }

void World::copy_own(Op& op) {
  if (op.call.operation == Operation::kBroadcast) return;
  constexpr int64_t kGrain = int64_t(1) << 20;
  std::byte* target = op.call.to + op.call.to_pieces[size_t(op.me())].offset;
  for (const Piece& part : op.call.parts_to(op.me())) {
    const std::byte* source = op.call.from + part.offset;
    if (part.bytes > 0 && source != target) {
      op.stream->parallel_chunks(part.bytes, kGrain, [&](int64_t begin, int64_t end) {
        std::memcpy(target + begin, source + begin, size_t(end - begin));
      });
    }
    target += part.bytes;
  }
}

void World::copy_parts(const std::byte* from, std::span<const Piece> parts, std::byte* to) {
  for (const Piece& part : parts) {
    if (part.bytes > 0) std::memcpy(to, from + part.offset, size_t(part.bytes));
    to += part.bytes;
  }
}

void World::post_send(Op& op, int to, Lane lane, const std::byte* from, int64_t bytes, Part part) {
  for (int64_t at = 0; at < bytes; at += kMaxMessageBytes) {
    const int64_t part_bytes = std::min(bytes - at, kMaxMessageBytes);
    ++op.open;
    op.peers[size_t(to)].to_send += part_bytes;
    transport_->send(op.group->ranks[size_t(to)],
                     tag_of(op.group->context, lane, part == Part::kHeaderOut ? 0 : op.number), from + at, part_bytes,
                     {.owner = &op, .peer = to, .part = int32_t(part), .bytes = part_bytes});
  }
}

void World::post_receive(Op& op, int from, Lane lane, std::byte* to, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += kMaxMessageBytes) {
    const int64_t part_bytes = std::min(bytes - at, kMaxMessageBytes);
    ++op.open;
    op.peers[size_t(from)].to_receive += part_bytes;
    transport_->receive(op.group->ranks[size_t(from)], tag_of(op.group->context, lane, op.number), to + at, part_bytes,
                        {.owner = &op, .peer = from, .part = int32_t(Part::kPieceIn), .bytes = part_bytes});
  }
}

void World::advance() {
  refuse_if_broken();
  done_.clear();
  try {
    transport_->poll(done_);
  } catch (const Error& error) {
    break_down(Error(error.kind(), {.what = error.report().what, .where = where(), .why = {}, .fix = {}}));
  }
  if (options_.link_delay_us > 0) hold_back();
  // Notices last: what has arrived in order is worth more than that its sender has ended.
  for (const Ticket& ticket : done_) {
    if (ticket.owner != nullptr) take(*static_cast<Op*>(ticket.owner), ticket);
  }
  for (const Ticket& ticket : done_) {
    if (ticket.owner == nullptr) take_notice_ticket(ticket);
  }
}

void World::hold_back() {
  const double now = real_clock().seconds(), due = now + double(options_.link_delay_us) * 1e-6;
  std::erase_if(done_, [&](const Ticket& ticket) {
    const auto part = Part(ticket.part);
    const bool is_second = part == Part::kPieceIn && static_cast<const Op*>(ticket.owner)->is_second;
    if (part != Part::kHeaderIn && part != Part::kNoticeIn && !is_second) return false;
    held_.push_back({.due = due, .ticket = ticket});
    return true;
  });
  for (; !held_.empty() && held_.front().due <= now; held_.pop_front()) done_.push_back(held_.front().ticket);
}

void World::take(Op& op, const Ticket& ticket) {
  Op::Peer& peer = op.peers[size_t(ticket.peer)];
  ++op.moved;
  switch (Part(ticket.part)) {
    case Part::kHeaderIn:
      take_header(op, ticket.peer);
      break;
    case Part::kPieceIn:
      peer.to_receive -= ticket.bytes;
      break;
    default:
      peer.to_send -= ticket.bytes;
  }
  if (--op.open == 0) next_exchange(op);
}

void World::take_header(Op& op, int from) {
  Op::Peer& peer = op.peers[size_t(from)];
  peer.is_awaited = false;
  const Header& in = peer.in.header;
  seen_[size_t(op.group->ranks[size_t(from)])] = {.header = in, .group = op.group, .at = real_clock().seconds()};
  check_header(op, from);
  if (in.piece_bytes == 0) return;
  if (in.is_inline) {
    std::memcpy(op.incoming(from), peer.in.piece, size_t(in.piece_bytes));
    return;
  }
  const Lane lane = op.is_pair() ? Lane::kPairPiece : Lane::kPiece;
  if (op.call.parts > 1 && go_by_themselves(op.call.parts_from(from))) {
    for (const Piece& part : op.call.parts_from(from)) {
      post_receive(op, from, lane, op.call.to + part.offset, part.bytes);
    }
  } else {
    post_receive(op, from, lane, op.incoming(from), in.piece_bytes);
  }
}

Header World::own_header(const Op& op) const {
  Header header;
  header.operation = op.call.operation;
  header.root = op.call.peer;
  header.number = op.number;
  header.elements = op.call.elements;
  copy_text(header.dtype, op.call.dtype);
  return header;
}

void World::check_header(Op& op, int from) {
  const Header& in = op.peers[size_t(from)].in.header;
  const int theirs = op.group->ranks[size_t(from)];
  if (in.magic != kMagic) {
    break_down(Error(ErrorKind::kCommunication,
                     {.what = fmt::format("rank {} sent rank {} a message that is none of ours", theirs, rank()),
                      .where = where(),
                      .why = "ranks of one run must run one build of Octet on machines of one byte order",
                      .fix = "start all ranks with the same program"}));
  }
  const Operation wanted = op.call.operation == Operation::kReceive ? Operation::kSend : op.call.operation;
  const char* difference = nullptr;
  if (in.operation != wanted || in.number != op.number) {
    difference = "they entered different operations, or one of them left one out";
  } else if (in.agreed != op.call.agreed) {
    difference = "the element types, sizes or pieces differ";
  } else if (!op.is_pair() && std::string_view(in.phase) != std::string_view(op.phase).substr(0, sizeof in.phase - 1)) {
    difference = "the same operation in different phases";
  }
  if (difference != nullptr) {
    break_down(Error(
        ErrorKind::kCommunication,
        {.what = fmt::format("rank {} is in {}{}; rank {} is in {}{}", theirs, shown_operation(in, op.group->name),
                             in_phase(in.phase), rank(), shown_operation(own_header(op), op.group->name),
                             in_phase(op.phase)),
         .where = where(),
         .why = difference,
         .fix = "this is a fault of the program or of differing configurations: compare what the two ranks run"}));
  }
  const int64_t expected = op.incoming_bytes(from);
  std::string difference_of_sizes;
  if (in.piece_bytes != expected || (in.is_inline != 0) != (expected <= kInlineBytes)) {
    difference_of_sizes = fmt::format("rank {} sends rank {} {} bytes in {}; it expects {}", theirs, rank(),
                                      in.piece_bytes, shown_operation(own_header(op), op.group->name), expected);
  } else if (op.call.parts > 1 && in.parts != hash_of(op.call.parts_from(from))) {
    difference_of_sizes = fmt::format("rank {} sends rank {} its {} bytes in {} in other parts than it expects", theirs,
                                      rank(), in.piece_bytes, shown_operation(own_header(op), op.group->name));
  }
  if (!difference_of_sizes.empty()) {
    break_down(Error(ErrorKind::kCommunication, {.what = std::move(difference_of_sizes),
                                                 .where = where(),
                                                 .why = "the counts of the two ranks differ",
                                                 .fix = "this is a fault of the program: exchange the counts first"}));
  }
}

void World::next_exchange(Op& op) {
  if (op.is_sum() && !op.is_second) {
    const Piece mine = op.outgoing(op.me());
    std::vector<const std::byte*> from;
    for (int r = 0; r < op.size(); ++r) {
      from.push_back(r == op.me() ? op.call.from + mine.offset : op.incoming(r));
    }
    const bool is_all = op.call.operation == Operation::kAllReduce;
    std::byte* to = op.call.to + (is_all ? mine.offset : 0);
    // The mover leaves the threads of the stream to those that compute.
    ordered_sum(op.call.element, from, mine.bytes / size_of(op.call.element), to, is_mover_ ? alone_ : *op.stream);
    op.scratch = Scratch();
    if (has_second(op)) {
      op.is_second = true;
      for (int step = 1; step < op.size(); ++step) {
        const int peer = (op.me() + op.size() - step) % op.size();
        const Piece theirs = op.slices[size_t(peer)];
        post_receive(op, peer, Lane::kSecondPiece, op.call.to + theirs.offset, theirs.bytes);
      }
      for (int step = 1; step < op.size(); ++step) {
        post_send(op, (op.me() + step) % op.size(), Lane::kSecondPiece, to, mine.bytes, Part::kPieceOut);
      }
      if (op.open > 0) return;
    }
  }
  op.is_done = true;
  // Whoever waits for it holds it too.
  std::erase_if(active_, [&](const std::shared_ptr<Op>& each) { return each.get() == &op; });
}

}  // namespace octet::message
