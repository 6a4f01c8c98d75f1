#include "tools/launch/launch_plan.h"

#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "core/base/environment.h"
#include "core/base/error.h"

namespace octet {
namespace {

constexpr std::string_view kHostCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_";
constexpr int64_t kMostRanks = int64_t(1) << 20;

[[noreturn]] void refuse_hosts(std::string_view text, std::string_view part, const std::string& reason) {
  fail(ErrorKind::kArgument, {.what = fmt::format("--hosts has \"{}\", {}", part, reason),
                              .where = fmt::format("--hosts {}", text),
                              .why = {},
                              .fix = "write hosts and how many ranks each has room for: --hosts node1:4,node2:4"});
}

// The bytes of an address, for comparison.
std::string address_bytes(const sockaddr* address) {
  if (address == nullptr) return {};
  if (address->sa_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(address);
    return {reinterpret_cast<const char*>(&v4->sin_addr), sizeof v4->sin_addr};
  }
  if (address->sa_family == AF_INET6) {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(address);
    return {reinterpret_cast<const char*>(&v6->sin6_addr), sizeof v6->sin6_addr};
  }
  return {};
}

std::vector<std::string> split_words(const std::string& text) {
  std::vector<std::string> words;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    if (end > at) words.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return words;
}

}  // namespace

std::vector<LaunchHost> parse_hosts(std::string_view text) {
  std::vector<LaunchHost> hosts;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    const std::string_view part = text.substr(at, end - at);
    at = end + 1;
    const size_t colon = std::min(part.find(':'), part.size());
    LaunchHost host{.name = std::string(part.substr(0, colon))};
    if (host.name.empty()) refuse_hosts(text, part, "which names no host");
    if (host.name.find_first_not_of(kHostCharacters) != std::string::npos || host.name[0] == '-') {
      refuse_hosts(text, part, "which is no name of a host and no IPv4 address");
    }
    if (colon < part.size()) {
      const std::string_view number = part.substr(colon + 1);
      const auto [rest, problem] = std::from_chars(number.data(), number.data() + number.size(), host.ranks);
      if (problem != std::errc() || rest != number.data() + number.size() || host.ranks < 1 ||
          host.ranks > kMostRanks) {
        refuse_hosts(text, part, "where the number of ranks is not 1 or more");
      }
    }
    for (const LaunchHost& other : hosts) {
      if (other.name == host.name) refuse_hosts(text, part, "which is there twice");
    }
    hosts.push_back(std::move(host));
  }
  return hosts;
}

void check_plan(const LaunchPlan& plan) {
  if (plan.ranks < 1 || plan.ranks > kMostRanks) {
    fail(ErrorKind::kArgument, {.what = fmt::format("{} ranks were asked for; wanted 1 to {}", plan.ranks, kMostRanks),
                                .where = "-n",
                                .why = {},
                                .fix = "leave -n out: the configuration says how many there are, parallel.dp"});
  }
  if (!plan.hosts.empty()) {
    int64_t room = 0;
    std::string list;
    for (const LaunchHost& host : plan.hosts) {
      room += host.ranks;
      list += fmt::format("{}{}:{}", list.empty() ? "" : ",", host.name, host.ranks);
    }
    if (room < plan.ranks) {
      fail(ErrorKind::kArgument,
           {.what = fmt::format("{} ranks do not fit on hosts with room for {}", plan.ranks, room),
            .where = "--hosts " + list,
            .why = {},
            .fix = "add hosts, give one more ranks (node1:8), or lower parallel.dp"});
    }
  } else if (!plan.agent.empty()) {
    fail(ErrorKind::kArgument, {.what = "--agent starts ranks on other hosts, and there are none",
                                .where = "--agent " + plan.agent,
                                .why = {},
                                .fix = "name them: --hosts node1:4,node2:4"});
  }
  if (plan.agent.find(':') != std::string::npos) {
    fail(ErrorKind::kArgument, {.what = "an agent cannot have a colon in it",
                                .where = "--agent " + plan.agent,
                                .why = "Open MPI reads it as two agents to choose from",
                                .fix = "put the command in a script, or its options in ~/.ssh/config"});
  }
  if (plan.interface.find_first_not_of(std::string(kHostCharacters) + ",/") != std::string::npos) {
    fail(ErrorKind::kArgument, {.what = fmt::format("\"{}\" is no list of network interfaces", plan.interface),
                                .where = "--interface",
                                .why = {},
                                .fix = "ip -brief address lists them: --interface eth1, or --interface 10.0.0.0/8"});
  }
}

std::vector<std::string> agent_words(const LaunchPlan& plan) {
  // A question for a password would go to a terminal that mpirun does not own, and stop it.
  return split_words(plan.agent.empty() ? "ssh -o BatchMode=yes -o ConnectTimeout=10" : plan.agent);
}

std::vector<std::string> mpirun_command(const LaunchPlan& plan, const std::string& mpirun) {
  std::vector<std::string> words = {mpirun};
  const auto add = [&words](std::initializer_list<std::string> more) {
    words.insert(words.end(), more.begin(), more.end());
  };
  const auto add_parameter = [&add](const std::string& name, const std::string& value) { add({"--mca", name, value}); };
  if (::geteuid() == 0) add({"--allow-run-as-root"});
  add({"-n", std::to_string(plan.ranks), "--bind-to", "none"});
  // A rank that fails ends the others; first they have two seconds to say what they saw of it.
  add_parameter("odls_base_sigkill_timeout", "2");
  add_parameter("state_base_verbose", "1");  // for mpirun_output.h, which must know when all ranks have been started
  add({"-x", "OCTET_LAUNCHED=1"});           // rank 0 says with which code the ranks have ended
  if (plan.hosts.empty()) {
    add({"--oversubscribe"});
  } else {
    std::string list, agent;
    for (const LaunchHost& host : plan.hosts) {
      list += fmt::format("{}{}:{}", list.empty() ? "" : ",", host.name, host.ranks);
    }
    for (const std::string& word : agent_words(plan)) agent += (agent.empty() ? "" : " ") + word;
    add({"--host", list});
    add_parameter("plm_rsh_agent", agent);
    const auto pass_on = [&](const std::string& name) {
      if (std::getenv(name.c_str()) != nullptr) add({"-x", name});
    };
    for (const EnvironmentVariable& variable : environment_variables()) {
      if (variable.name != "OCTET_LAUNCHED") pass_on(variable.name);
    }
    pass_on("NO_COLOR");
  }
  if (!plan.interface.empty()) {
    add_parameter("btl_tcp_if_include", plan.interface);
    add_parameter("oob_tcp_if_include", plan.interface);
  }
  words.push_back(plan.program);
  words.insert(words.end(), plan.args.begin(), plan.args.end());
  return words;
}

bool is_this_machine(const std::string& host) {
  char own[256] = {};
  ::gethostname(own, sizeof own - 1);
  if (host == own) return true;
  const addrinfo hints{.ai_flags = 0,
                       .ai_family = AF_UNSPEC,
                       .ai_socktype = SOCK_STREAM,
                       .ai_protocol = 0,
                       .ai_addrlen = 0,
                       .ai_addr = nullptr,
                       .ai_canonname = nullptr,
                       .ai_next = nullptr};
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0) return false;
  ifaddrs* interfaces = nullptr;
  bool is_here = false;
  if (::getifaddrs(&interfaces) == 0) {
    for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
      const std::string bytes = address_bytes(address->ai_addr);
      for (const ifaddrs* each = interfaces; each != nullptr; each = each->ifa_next) {
        is_here = is_here || (!bytes.empty() && bytes == address_bytes(each->ifa_addr));
      }
    }
    ::freeifaddrs(interfaces);
  }
  ::freeaddrinfo(found);
  return is_here;
}

}  // namespace octet
