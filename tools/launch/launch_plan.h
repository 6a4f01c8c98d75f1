// What octet launch was asked for, checked, and the command of Open MPI 4 that does it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace octet {

struct LaunchHost {
  std::string name;
  int64_t ranks = 1;
  bool operator==(const LaunchHost&) const = default;
};

// "node1:4,node2:4": how many ranks a host has room for; 1 where it does not say. Throws kArgument, with the text that
// is wrong.
std::vector<LaunchHost> parse_hosts(std::string_view text);

struct LaunchPlan {
  std::string program;            // what every rank runs; on every host at this path
  std::vector<std::string> args;  // of the program
  int64_t ranks = 1;
  std::vector<LaunchHost> hosts = {};  // none: this machine
  std::string agent = {};              // starts a command on a host, in place of ssh: AGENT HOST COMMAND
  std::string interface = {};          // the network interfaces to use, "eth1" or "10.0.0.0/8"; those of all hosts
  std::string run_dir = {};            // the ranks' logs are under it; for messages
  std::string version = {};            // how `program --version` must begin on every host; "" is not compared
  std::string mpirun = "mpirun";
  double start_limit_s = 45;  // until all ranks have been started
};

// Throws kArgument for a plan that cannot be meant: no ranks, more ranks than the hosts have room for, an agent or an
// interface that Open MPI would read as something else.
void check_plan(const LaunchPlan& plan);

// The whole command line. `mpirun` is the path of it.
std::vector<std::string> mpirun_command(const LaunchPlan& plan, const std::string& mpirun);

// What the agent is, as words: the plan's, or ssh that never asks for a password.
std::vector<std::string> agent_words(const LaunchPlan& plan);

// Whether Open MPI would start processes on this host without the agent: it is an address or a name of this machine.
bool is_this_machine(const std::string& host);

}  // namespace octet
