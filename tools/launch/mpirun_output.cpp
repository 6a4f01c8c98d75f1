#include "tools/launch/mpirun_output.h"

#include <fmt/core.h>

#include <charconv>

#include "tools/train/rank_output.h"

namespace octet {
namespace {

const std::string kRuler(74, '-');

// The number after `before`.
std::optional<int64_t> number_after(std::string_view text, std::string_view before) {
  const size_t at = text.find(before);
  if (at == std::string_view::npos) return {};
  int64_t value = 0;
  const char* first = text.data() + at + before.size();
  const auto [rest, problem] = std::from_chars(first, text.data() + text.size(), value);
  if (problem != std::errc() || rest == first) return {};
  return value;
}

// What stands between two texts, or between one and the end of the line.
std::string text_between(std::string_view text, std::string_view before, std::string_view after) {
  const size_t at = text.find(before);
  if (at == std::string_view::npos) return {};
  const size_t first = at + before.size();
  const size_t end = std::min(text.find(after, first), text.find('\n', first));
  return std::string(text.substr(first, end == std::string_view::npos ? end : end - first));
}

// "[node1:01234] ", with which Open MPI begins a line of its own.
bool has_process_prefix(std::string_view line) {
  if (line.empty() || line[0] != '[') return false;
  const size_t end = line.find("] "), colon = line.find(':');
  if (end == std::string_view::npos || colon >= end || colon + 1 == end) return false;
  return line.substr(colon + 1, end - colon - 1).find_first_not_of("0123456789") == std::string_view::npos;
}

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

}  // namespace

std::string MpirunOutput::feed(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos) {
      line_ += text;
      break;
    }
    line_ += text.substr(0, end);
    text.remove_prefix(end + 1);
    const std::string line = std::move(line_);
    line_.clear();
    if (is_line_passed_) {
      is_line_passed_ = false;
      out += line + "\n";
    } else {
      take_line(line, out);
    }
  }
  return out;
}

std::string MpirunOutput::flush() {
  std::string out;
  if (block_) {
    out += kRuler + "\n" + *block_;
    block_.reset();
  }
  if (!line_.empty()) {
    out += line_;
    line_.clear();
    is_line_passed_ = true;
  }
  return out;
}

void MpirunOutput::take_line(std::string_view line, std::string& out) {
  if (line == kRuler) {
    if (block_) {
      take_block(*block_);
      block_.reset();
    } else {
      block_.emplace();
    }
    return;
  }
  if (has_process_prefix(line)) {
    is_running_ = is_running_ || (contains(line, "ACTIVATE JOB") && contains(line, "STATE RUNNING"));
    // "ACTIVATE PROC [[24931,1],3] STATE ...": the job, then the rank.
    const bool is_failure = contains(line, "STATE EXITED WITH NON-ZERO STATUS") ||
                            contains(line, "STATE CALLED ABORT") || contains(line, "STATE ABORTED BY SIGNAL");
    if (is_failure && !failed_rank_) {
      failed_rank_ = number_after(text_between(line, "ACTIVATE PROC [[", " STATE"), "],");
    }
    // A rank's own trouble with the network, "[node1:01234] tcp_peer_send_blocking: ...", is for its log and no state.
    return;
  }
  if ((line.starts_with("mpi") && contains(line, ": Forwarding signal ")) ||
      line.ends_with(" total processes failed to start") || line.ends_with(" total process failed to start")) {
    return;
  }
  if (block_) {
    *block_ += line;
    *block_ += '\n';
    constexpr size_t kLongestBlock = 8192;
    if (block_->size() > kLongestBlock) out += flush();
    return;
  }
  if (line.starts_with(kEndedWithCode)) {
    ended_code_ = number_after(line, kEndedWithCode);
    return;
  }
  has_error_block_ = has_error_block_ || line.starts_with("octet: error: ");
  if (has_error_block_ && !error_code_ && line.starts_with("  code:")) error_code_ = number_after(line, "  code:  ");
  out += line;
  out += '\n';
}

void MpirunOutput::take_block(const std::string& block) {
  if (contains(block, " noticed that process rank ")) {
    const auto rank = number_after(block, "process rank "), signal = number_after(block, "exited on signal ");
    if (rank && signal && !killed_) {
      killed_ = {.rank = *rank,
                 .host = text_between(block, " on node ", " exited"),
                 .signal = int(*signal),
                 .signal_name = text_between(block, fmt::format("signal {} (", *signal), ")")};
    }
  } else if (contains(block, "ORTE has lost communication with a remote daemon")) {
    lost_host_ = text_between(block.substr(std::min(block.find("Remote daemon"), block.size())), "on node ", "\n");
  } else if (!block.starts_with("Primary job") && !block.starts_with("MPI_ABORT was invoked") &&
             !contains(block, " detected that one or more processes exited with non-zero status")) {
    complaints_.push_back(block);
  }
}

}  // namespace octet
