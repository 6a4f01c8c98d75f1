#include "tools/launch/launch_plan.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "tests/support/temporary_directory.h"
#include "tools/launch/process.h"
#include "tools/launch/shell.h"

namespace octet::test {
namespace {

bool has_pair(const std::vector<std::string>& words, const std::string& first, const std::string& second) {
  const std::vector<std::string> pair = {first, second};
  return std::search(words.begin(), words.end(), pair.begin(), pair.end()) != words.end();
}

}  // namespace

TEST_CASE("hosts are names with the ranks they have room for", "[launch]") {
  CHECK(parse_hosts("a:2,b") == std::vector<LaunchHost>{{"a", 2}, {"b", 1}});
  CHECK(parse_hosts("10.0.0.1:16") == std::vector<LaunchHost>{{"10.0.0.1", 16}});
  CHECK(parse_hosts("node-1.cluster_a:1048576").front().ranks == 1048576);
  for (const char* text : {"", "a,", ",a", ":2", "a:", "a:0", "a:-1", "a:x", "a:2x", "a: 2", "a:2,a:3", "a b", "-oX:1",
                           "a:1048577", "a:99999999999999999999", "a:2:3", "a;reboot", "[::1]:2"}) {
    CAPTURE(text);
    const Error error = error_of([&] { parse_hosts(text); });
    CHECK(error.code() == 2);
    CHECK_THAT(error.block(), Catch::Contains("--hosts node1:4,node2:4"));
  }
}

TEST_CASE("a plan that cannot be meant is refused", "[launch]") {
  const LaunchPlan good{
      .program = "/bin/octet", .args = {}, .ranks = 4, .hosts = {{"a", 2}, {"b", 2}}, .agent = "rsh -x"};
  CHECK_NOTHROW(check_plan(good));
  LaunchPlan plan = good;
  plan.ranks = 0;
  CHECK(error_of([&] { check_plan(plan); }).code() == 2);
  plan = good;
  plan.ranks = 5;
  CHECK_THAT(error_of([&] { check_plan(plan); }).report().what,
             Catch::Contains("5 ranks do not fit on hosts with room for 4"));
  plan = good;
  plan.hosts.clear();
  CHECK_THAT(error_of([&] { check_plan(plan); }).report().what, Catch::Contains("there are none"));
  plan = good;
  plan.agent = "ssh -o ProxyJump=gate:22";
  CHECK_THAT(error_of([&] { check_plan(plan); }).report().what, Catch::Contains("colon"));
  plan = good;
  plan.interface = "eth0;x";
  CHECK(error_of([&] { check_plan(plan); }).code() == 2);
  plan.interface = "eth0,10.1.0.0/16";
  CHECK_NOTHROW(check_plan(plan));
}

TEST_CASE("the command of mpirun says where, over what, and ends with the program and its arguments", "[launch]") {
  LaunchPlan plan{.program = "/bin/octet", .args = {"train", "a b.yaml", "--set", "data.path=it's"}, .ranks = 3};
  std::vector<std::string> words = mpirun_command(plan, "/usr/bin/mpirun");
  CHECK(words.front() == "/usr/bin/mpirun");
  CHECK(has_pair(words, "-n", "3"));
  CHECK(std::find(words.begin(), words.end(), "--oversubscribe") != words.end());
  CHECK(std::find(words.begin(), words.end(), "--host") == words.end());
  CHECK((std::find(words.begin(), words.end(), "--allow-run-as-root") != words.end()) == (::geteuid() == 0));
  CHECK(std::vector<std::string>(words.end() - 5, words.end()) ==
        std::vector<std::string>{"/bin/octet", "train", "a b.yaml", "--set", "data.path=it's"});

  plan.hosts = {{"a", 2}, {"b", 1}};
  plan.interface = "eth1";
  words = mpirun_command(plan, "mpirun");
  CHECK(has_pair(words, "--host", "a:2,b:1"));
  CHECK(has_pair(words, "plm_rsh_agent", "ssh -o BatchMode=yes -o ConnectTimeout=10"));
  CHECK(has_pair(words, "btl_tcp_if_include", "eth1"));
  CHECK(has_pair(words, "oob_tcp_if_include", "eth1"));
  CHECK(std::find(words.begin(), words.end(), "--oversubscribe") == words.end());
  ::setenv("OCTET_DENSE_GEMM", "octet", 1);  // what octet reads is the same on every host
  CHECK(has_pair(mpirun_command(plan, "mpirun"), "-x", "OCTET_DENSE_GEMM"));
  ::unsetenv("OCTET_DENSE_GEMM");
  CHECK_FALSE(has_pair(mpirun_command(plan, "mpirun"), "-x", "OCTET_DENSE_GEMM"));
  plan.agent = "enter  namespace";
  CHECK(has_pair(mpirun_command(plan, "mpirun"), "plm_rsh_agent", "enter namespace"));
}

TEST_CASE("this machine is known by its name and its addresses", "[launch]") {
  char own[256] = {};
  REQUIRE(::gethostname(own, sizeof own - 1) == 0);
  CHECK(is_this_machine(own));
  CHECK(is_this_machine("127.0.0.1"));
  CHECK(is_this_machine("localhost"));
  CHECK_FALSE(is_this_machine("192.0.2.1"));  // RFC 5737: of no machine
  CHECK_FALSE(is_this_machine("no-such-host.invalid"));
}

TEST_CASE("a shell takes a quoted word as it stands", "[launch]") {
  const std::vector<std::string> words = {"",   "plain",   "a b",   "it's", "\"$HOME\"", "`id`",      "a\\b",
                                          "*",  "a\nb",    "'",     "''",   "-n",        "a=b,c:d/e", "~",
                                          "#x", "a;b&c|d", "tab\t", "!x",   "{a,b}",     "ä"};
  for (const std::string& word : words) {
    CAPTURE(word);
    const Finished finished = run_all({{.argv = {"/bin/sh", "-c", "printf %s " + quote_for_shell(word)}}}, 20).front();
    CHECK(finished.code == 0);
    CHECK(finished.output == word);
  }
  CHECK(shell_line({"a", "b c", "--set", "x=1"}) == "a 'b c' --set x=1");
}

TEST_CASE("programs run side by side, are given their input, and are killed when they are late", "[launch]") {
  const auto finished = run_all({{.argv = {"/bin/sh", "-c", "cat; exit 3"}, .input = "some\ntext"},
                                 {.argv = {"/bin/sh", "-c", "kill -KILL $$"}},
                                 {.argv = {"/nowhere/program"}}},
                                20);
  CHECK(finished[0].code == 3);
  CHECK(finished[0].output == "some\ntext");
  CHECK(finished[1].code == 128 + 9);
  CHECK(finished[2].code == 127);
  CHECK_FALSE(finished[0].is_late);
  // What a program has started is killed with it.
  const TemporaryDirectory directory;
  const std::string file = directory / "pid";
  const auto late = run_all({{.argv = {"/bin/sh", "-c", "sleep 100 & echo $! >" + file + "; wait"}}}, 0.3).front();
  CHECK(late.is_late);
  const std::string pid = real_file_system().read_text(file);
  bool is_gone = false;
  for (int i = 0; i < 100 && !is_gone; ++i) {
    is_gone = ::kill(std::stoi(pid), 0) != 0;
    ::usleep(20'000);
  }
  CHECK(is_gone);
  bool stop = false;
  CHECK(run_all({{.argv = {"/bin/sleep", "100"}}}, 50, [&] { return std::exchange(stop, true); }).front().is_late);
}

TEST_CASE("programs are found as a shell finds them", "[launch]") {
  CHECK(find_program("sh").ends_with("/sh"));
  CHECK(find_program("/bin/sh") == "/bin/sh");
  CHECK(find_program("/etc/passwd").empty());  // not to be run
  CHECK(find_program("/bin").empty());
  CHECK(find_program("no-such-program-anywhere").empty());
}

}  // namespace octet::test
