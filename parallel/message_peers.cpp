// Of a World: ranks that do not answer, notices, giving up and ending.
#include <fmt/format.h>

#include <algorithm>
#include <exception>

#include "core/base/log.h"
#include "parallel/message_world.h"

namespace octet::message {

std::vector<int> World::missing(const Op& op) const {
  std::vector<int> peers;
  for (int r = 0; r < op.size(); ++r) {
    const Op::Peer& peer = op.peers[size_t(r)];
    if (peer.is_awaited || peer.to_receive > 0 || peer.to_send > 0) peers.push_back(r);
  }
  return peers;
}

bool World::is_lost(int world_rank) {
  return has_ended_[size_t(world_rank)] ||
         transport_->state_of(world_rank, identities_[size_t(world_rank)]) == PeerState::kGone;
}

void World::fail_if_lost(Op& op) {
  const auto find_lost = [&] {
    for (const int peer : missing(op)) {
      if (is_lost(op.group->ranks[size_t(peer)])) return peer;
    }
    return -1;
  };
  if (find_lost() < 0) return;
  // What it sent before it went may still be on its way.
  const double until = real_clock().seconds() + 0.1 + double(options_.link_delay_us) * 1e-6;
  while (!op.is_done && real_clock().seconds() < until) {
    unlocked([] { pause_after(1e-3); });
    advance();
  }
  if (op.is_done) return;
  const int peer = find_lost();
  if (peer < 0) return;
  const int lost = op.group->ranks[size_t(peer)];
  break_down(
      Error(ErrorKind::kCommunication,
            {.what = fmt::format("{} {}, while rank {} waits for it in {}", shown_process(lost),
                                 has_ended_[size_t(lost)] ? "has ended its run" : "is gone", rank(),
                                 shown_operation(own_header(op), op.group->name)),
             .where = where(),
             .why = shown_last(op, peer),
             .fix = "see the log of that rank for why it ended; the same command continues from the last checkpoint"}));
}

std::string World::shown_last(const Op& op, int peer) {
  const int world_rank = op.group->ranks[size_t(peer)];
  const Op::Peer& state = op.peers[size_t(peer)];
  std::string text = shown_process(world_rank);
  if (state.is_awaited) {
    text += " has not entered it";
  } else if (state.to_receive > 0) {
    text += fmt::format(" still owes {} bytes", state.to_receive);
  } else {
    text += fmt::format(" has not taken {} bytes", state.to_send);
  }
  switch (transport_->state_of(world_rank, identities_[size_t(world_rank)])) {
    case PeerState::kStopped:
      text += ", is stopped";
      break;
    case PeerState::kRunning:
      text += ", is running";
      break;
    default:
      break;
  }
  const Seen& seen = seen_[size_t(world_rank)];
  const double now = real_clock().seconds();
  if (seen.at == 0) {
    text += ", and was never heard of";
  } else {
    text += fmt::format(", and was last heard of {:.1f} s ago in {}{}", now - seen.at,
                        shown_operation(seen.header, seen.group->name), in_phase(seen.header.phase));
  }
  const Answer& answer = answers_[size_t(world_rank)];
  const double time_to_answer = options_.timeout_s / 16;
  if (answer.unanswered_at > 0 && now - answer.unanswered_at > time_to_answer) {
    text += fmt::format("; asked {:.1f} s ago, it did not answer", now - answer.unanswered_at);
  } else if (answer.at > 0) {
    text += fmt::format("; {:.1f} s ago it {}", now - answer.at, answer.text);
  }
  return text;
}

Notice World::answer() const {
  Notice notice;
  notice.kind = Notice::Kind::kAnswers;
  notice.age_s = real_clock().seconds() - last_call_;
  std::string text = fmt::format("had made no call for {:.1f} s{}", notice.age_s, in_phase(phase_));
  if (last_entered_.group != nullptr) {
    text += fmt::format(", after {}", shown_operation(last_entered_.header, last_entered_.group->name));
  }
  for (const std::shared_ptr<Op>& op : active_) {
    if (op->ages.empty()) continue;
    notice.is_waiting = 1;
    double worst = 0;
    std::vector<int> ranks;
    for (const int peer : missing(*op)) {
      worst = std::max(worst, op->ages[size_t(peer)]);
      ranks.push_back(op->group->ranks[size_t(peer)]);
    }
    notice.age_s = std::min(notice.age_s, worst);
    text = fmt::format("waited for {} in {}{}", list_ranks(ranks), shown_operation(own_header(*op), op->group->name),
                       in_phase(op->phase));
  }
  if (!ages_at_end_.empty()) {
    notice.is_waiting = 1;
    double worst = 0;
    for (int r = 0; r < size(); ++r) {
      if (!has_ended_[size_t(r)]) worst = std::max(worst, ages_at_end_[size_t(r)]);
    }
    notice.age_s = std::min(notice.age_s, worst);
    text = "has ended its run";
  }
  copy_text(notice.text, text);
  return notice;
}

void World::take_answer(int from, const Notice& notice) {
  Answer& answer = answers_[size_t(from)];
  answer.at = real_clock().seconds();
  answer.unanswered_at = 0;
  answer.is_waiting = notice.is_waiting != 0;
  answer.text = notice.text;
  for (const std::shared_ptr<Op>& op : active_) {
    for (size_t peer = 0; peer < op->ages.size(); ++peer) {
      if (op->group->ranks[peer] == from) op->ages[peer] = std::min(op->ages[peer], notice.age_s);
    }
  }
  if (!ages_at_end_.empty()) ages_at_end_[size_t(from)] = std::min(ages_at_end_[size_t(from)], notice.age_s);
}

void World::ask_if_due(int world_rank, double age) {
  const double every = options_.timeout_s / 8, now = real_clock().seconds();
  Answer& answer = answers_[size_t(world_rank)];
  if (age < every || now - answer.asked_at < every) return;
  answer.asked_at = now;
  if (answer.unanswered_at == 0) answer.unanswered_at = now;
  send_notice(world_rank, {});
}

bool World::is_waiting(int world_rank) const {
  const Answer& answer = answers_[size_t(world_rank)];
  const double silent = answer.unanswered_at > 0 ? real_clock().seconds() - answer.unanswered_at : 0;
  return answer.is_waiting && silent < options_.timeout_s / 4;
}

double World::limit_for(int world_rank) const {
  constexpr double kGrace = 0.4;
  return options_.timeout_s + (is_waiting(world_rank) ? kGrace : 0);
}

void World::ask_and_judge(Op& op, double waited) {
  const double oldest = *std::max_element(op.ages.begin(), op.ages.end());
  if (oldest < options_.timeout_s / 8) return;
  for (const int peer : missing(op)) {
    const int world_rank = op.group->ranks[size_t(peer)];
    const double age = op.ages[size_t(peer)];
    if (age >= limit_for(world_rank)) fail_late(op, waited);
    ask_if_due(world_rank, age);
  }
}

void World::fail_late(const Op& op, double waited) {
  // Those that do not get on; those that wait for one only where all do, in a circle.
  std::vector<int> peers, waiting;
  for (const int peer : missing(op)) {
    if (op.ages[size_t(peer)] < 0.9 * options_.timeout_s) continue;
    (is_waiting(op.group->ranks[size_t(peer)]) ? waiting : peers).push_back(peer);
  }
  if (peers.empty()) peers = waiting;
  std::vector<int> world_ranks;
  std::string why;
  for (const int peer : peers) world_ranks.push_back(op.group->ranks[size_t(peer)]);
  constexpr size_t kMostShown = 4;
  for (size_t i = 0; i < std::min(peers.size(), kMostShown); ++i) {
    why += (i == 0 ? "" : "; ") + shown_last(op, peers[i]);
  }
  break_down(
      Error(ErrorKind::kHang,
            {.what = fmt::format("rank {} has waited {:.1f} s for {} in {}", rank(), waited, list_ranks(world_ranks),
                                 shown_operation(own_header(op), op.group->name)),
             .where = where(),
             .why = why,
             .fix = fmt::format("see what {} does; the limit is {} s, and the same command continues from the last "
                                "checkpoint",
                                list_ranks(world_ranks), options_.timeout_s)}));
}

// ---- Notices, giving up and ending

void World::receive_notice(int from) {
  transport_->receive(from, tag_of(0, Lane::kNotice), &notices_[size_t(from)], sizeof(Notice),
                      {.owner = nullptr, .peer = from, .part = int32_t(Part::kNoticeIn), .bytes = 0});
}

void World::send_notice(int to, const Notice& notice) {
  auto slot = std::find(sent_.begin(), sent_.end(), nullptr);
  if (slot == sent_.end()) slot = sent_.insert(slot, nullptr);
  *slot = std::make_unique<Notice>(notice);
  ++notices_open_;
  transport_->send(to, tag_of(0, Lane::kNotice), slot->get(), sizeof(Notice),
                   {.owner = nullptr, .peer = to, .part = int32_t(Part::kNoticeOut), .bytes = slot - sent_.begin()});
}

void World::send_notices(const Notice& notice) {
  for (int step = 1; step < size(); ++step) send_notice((rank() + step) % size(), notice);
}

void World::take_notice_ticket(const Ticket& ticket) {
  if (Part(ticket.part) == Part::kNoticeIn) return take_notice(ticket.peer);
  sent_[size_t(ticket.bytes)] = nullptr;
  --notices_open_;
}

void World::take_notice(int from) {
  const Notice notice = notices_[size_t(from)];
  switch (notice.kind) {
    case Notice::Kind::kAsks:
      if (!has_closed_[size_t(rank())]) send_notice(from, answer());
      break;
    case Notice::Kind::kAnswers:
      take_answer(from, notice);
      break;
    case Notice::Kind::kEnds:
      has_ended_[size_t(from)] = true;
      break;
    case Notice::Kind::kCloses:
      has_closed_[size_t(from)] = true;
      return;  // nothing comes after it
    case Notice::Kind::kGivesUp: {
      const std::string_view text = notice.text;
      const size_t end = std::min(text.find('\n'), text.size());
      broken_ =
          Error(ErrorKind(notice.error_kind), {.what = fmt::format("rank {} gave up: {}", from, text.substr(0, end)),
                                               .where = where(),
                                               .why = std::string(text.substr(std::min(end + 1, text.size()))),
                                               .fix = "see the log of that rank"});
      throw Error(*broken_);
    }
  }
  receive_notice(from);
}

void World::tell_all() {
  if (!transport_->is_alive()) return;
  Notice notice;
  notice.kind = Notice::Kind::kGivesUp;
  notice.error_kind = uint8_t(broken_->kind());
  const Report& report = broken_->report();
  std::string text = report.what;
  if (!report.why.empty()) text += "\n" + report.why;
  copy_text(notice.text, text);
  try {
    send_notices(notice);
    const double until = real_clock().seconds() + 0.2;
    while (notices_open_ > 0 && real_clock().seconds() < until) {
      done_.clear();
      transport_->poll(done_);
      for (const Ticket& ticket : done_) notices_open_ -= Part(ticket.part) == Part::kNoticeOut;
      std::this_thread::yield();
    }
  } catch (const Error& error) {
    log_debug("rank {} could not tell the others: {}", rank(), error.what());
  }
}

void World::end() {
  const std::lock_guard lock(mutex_);
  if (broken_ || !transport_->is_alive()) return;
  if (std::uncaught_exceptions() > exceptions_) {
    broken_ = Error(ErrorKind::kCommunication, {.what = "an error ended it", .where = where(), .why = {}, .fix = {}});
    tell_all();
    return;
  }
  Notice notice;
  notice.kind = Notice::Kind::kEnds;
  has_ended_[size_t(rank())] = true;
  ages_at_end_.assign(size_t(size()), 0.0);
  send_notices(notice);
  wait_for_all(has_ended_);
  notice.kind = Notice::Kind::kCloses;
  has_closed_[size_t(rank())] = true;
  ages_at_end_.assign(size_t(size()), 0.0);
  send_notices(notice);
  wait_for_all(has_closed_);
  transport_->close();
}

void World::wait_for_all(const std::vector<bool>& has_come) {
  constexpr double kLongestStep = 0.25, kLookAfter = 1;
  double waited = 0, last = real_clock().seconds();
  for (;;) {
    advance();
    std::vector<int> late;
    for (int r = 0; r < size(); ++r) {
      if (!has_come[size_t(r)]) late.push_back(r);
    }
    if (late.empty() && notices_open_ == 0) return;
    const double now = real_clock().seconds(), step = std::min(now - last, kLongestStep);
    last = now;
    waited += step;
    bool is_late = late.empty() && waited > options_.timeout_s;
    for (const int r : late) {
      ages_at_end_[size_t(r)] += step;
      if (!has_closed_[size_t(rank())]) ask_if_due(r, ages_at_end_[size_t(r)]);
      is_late = is_late || ages_at_end_[size_t(r)] > limit_for(r);
      if (waited > kLookAfter && transport_->state_of(r, identities_[size_t(r)]) == PeerState::kGone) is_late = true;
    }
    if (is_late) {
      break_down(
          Error(ErrorKind::kCommunication,
                {.what = fmt::format("{} did not come to the end of the run in {:.1f} s", list_ranks(late), waited),
                 .where = where(),
                 .why = {},
                 .fix = {}}));
    }
    pause_after(waited);
  }
}

}  // namespace octet::message
