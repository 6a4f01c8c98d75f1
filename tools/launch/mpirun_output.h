// What mpirun of Open MPI 4 writes to its stderr: the ranks' text, which goes on to the user, and its own, which says
// how the launch went in words for people who know Open MPI.
//
// Its own is of three forms: blocks between rulers of 74 dashes; lines that begin with "[host:process]", among them
// those of state_base_verbose; and a few single lines. All of it is kept back. What a block says is either understood
// here, or left for an error of the launcher to quote.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace octet {

class MpirunOutput {
 public:
  // Text in any pieces; returns what goes to the user now. The end of it may be kept until more comes.
  std::string feed(std::string_view text);
  // What is kept, when nothing came for a while: a rank's line that has no end yet, a block that was none.
  std::string flush();

  bool is_running() const { return is_running_; }            // every rank has been started
  bool has_error_block() const { return has_error_block_; }  // a rank has written "octet: error: ..."

  struct Killed {
    int64_t rank = 0;
    std::string host;
    int signal = 0;
    std::string signal_name;  // "Killed"
  };
  const std::optional<Killed>& killed() const { return killed_; }  // the first rank that a signal ended

  std::optional<int> error_code() const { return error_code_; }  // in the last line of that block
  std::optional<int> ended_code() const { return ended_code_; }  // with which all ranks have come to the end together
  const std::optional<int64_t>& failed_rank() const { return failed_rank_; }  // the first that did not end with 0

  const std::string& lost_host() const { return lost_host_; }  // with which mpirun has lost its connection
  // mpirun's other blocks, without rulers.
  const std::vector<std::string>& complaints() const { return complaints_; }

 private:
  void take_line(std::string_view line, std::string& out);
  void take_block(const std::string& block);

  std::string line_;                  // begun
  std::optional<std::string> block_;  // begun, after its ruler
  bool is_line_passed_ = false;       // the begun line's first part went to the user
  bool is_running_ = false, has_error_block_ = false;
  std::optional<Killed> killed_;
  std::optional<int64_t> failed_rank_;
  std::optional<int> error_code_, ended_code_;
  std::string lost_host_;
  std::vector<std::string> complaints_;
};

}  // namespace octet
