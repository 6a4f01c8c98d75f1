// Something is wrong with one rank only: one block on the terminal, every rank ends, and nothing is lost. A script in
// place of the program gives rank 1 what the others do not have.
#include "tests/ranks/launched.h"

namespace octet::test {
namespace {

constexpr int64_t kSteps = 4;

std::string rank_1(const TemporaryDirectory& directory, const std::string& commands,
                   const std::string& otherwise = "") {
  const std::string path = directory / "octet.sh";
  make_script(path, fmt::format("program={}\nif [ \"$OMPI_COMM_WORLD_RANK\" = 1 ]; then\n{}\nelse :\n{}\nfi\nexec "
                                "\"$program\" \"$@\"",
                                kOctet, commands, otherwise));
  return path;
}

void check_refused(Launched& launched, int code, const std::string& says) {
  const int ended = launched.wait();
  const std::string err = launched.err();
  CAPTURE(err);
  CHECK(ended == code);
  CHECK(launched.seconds() < 30);
  const size_t first = err.find("octet: error:");
  REQUIRE(first != std::string::npos);
  CHECK(err.find("octet: error:", first + 1) == std::string::npos);  // one block
  CHECK_THAT(err, Catch::Contains(says) && Catch::Contains("rank 1") && Catch::Contains("host ") &&
                      Catch::Contains(fmt::format("code:  {} (", code)));
  CHECK_THAT(err, !Catch::Contains("MPI_ABORT") && !Catch::Contains("-----"));
}

}  // namespace

TEST_CASE("ranks that do not run the same are refused before the first step", "[ranks]") {
  if (is_skipped()) return;
  const TemporaryDirectory directory;
  const std::string run = directory / "run";
  constexpr int kRanks = 2;
  const auto start = [&](const std::string& commands, const Sets& more = {}, const std::string& otherwise = "") {
    Sets sets = short_run(kRanks, kSteps);
    sets.insert(sets.end(), more.begin(), more.end());
    return std::make_unique<LaunchedTraining>(kRanks, run, rank_1(directory, commands, otherwise),
                                              octet_train(run, sets));
  };
  {
    const auto launched = start("set -- \"$@\" --set optim.lr=2e-3");
    check_refused(*launched, 2, "rank 1 has another configuration than rank 0");
    CHECK_THAT(launched->err(), Catch::Contains("0.002"));
  }
  {
    const std::string copy = directory / "copy";
    const auto launched = start(fmt::format("cp {} {}; printf x >> {}; program={}", kOctet, copy, copy, copy));
    check_refused(*launched, 2, "rank 1 is another build of octet than rank 0");
  }
  {
    const auto launched = start("set -- \"$@\" --set model.heads=3");
    check_refused(*launched, 2, "model.heads");
  }
  // The same path, that is other things on each host.
  const TemporaryDirectory other;
  const std::string other_data = prepared(other, OCTET_SOURCE_DIR "/core/io");
  const std::string here = fmt::format("cd {}", directory_of(data()));
  {
    const auto launched = start(fmt::format("cd {}", directory.path()), {"data.path=data"}, here);
    check_refused(*launched, 2, "data, which does not exist");
  }
  {
    const auto launched = start(fmt::format("cd {}", other.path()), {"data.path=data"}, here);
    check_refused(*launched, 3, "other tokens than rank 0");
  }
  CHECK(losses(run).empty());
}

TEST_CASE("a rank that sees another run directory, or cannot write to it, ends all", "[ranks]") {
  if (is_skipped()) return;
  const std::string unshare = ::geteuid() == 0 ? "unshare -m" : "unshare -rm";
  if (run_all({{.argv = {"/bin/sh", "-c", unshare + " mount -t tmpfs none /mnt"}}}, 20).front().code != 0) {
    WARN("skipped: this machine makes no mount namespaces");
    return;
  }
  const TemporaryDirectory directory;
  const std::string run = directory / "run";
  const auto start = [&](const std::string& mount) {
    const std::string commands =
        fmt::format("mkdir -p {}; exec {} sh -c '{} && exec \"$@\"' sh \"$program\" \"$@\"", run, unshare, mount);
    return std::make_unique<LaunchedTraining>(2, run, rank_1(directory, commands),
                                              octet_train(run, short_run(2, kSteps)));
  };
  {
    const auto launched = start(fmt::format("mount -t tmpfs none {}", run));
    check_refused(*launched, 5, "does not see the directory");
  }
  {
    const auto launched = start(fmt::format("mount --bind {0} {0} && mount -o remount,ro,bind {0}", run));
    check_refused(*launched, 5, "ead-only file system");
  }
  LaunchedTraining launched(2, run, kOctet, octet_train(run, short_run(2, kSteps)));
  CHECK(launched.wait() == 0);
  CHECK(losses(run).size() == size_t(kSteps));
}

TEST_CASE("a disk that is full for one rank costs warnings, then ends all with the older checkpoint kept", "[ranks]") {
  if (is_skipped()) return;
  const TemporaryDirectory directory;
  const std::string run = directory / "run", whole = directory / "whole";
  constexpr int64_t kLonger = 10;
  Sets sets = short_run(2, kLonger);
  sets.emplace_back("checkpoint.max_failed_saves=1");
  {
    LaunchedTraining launched(2, whole, kOctet, octet_train(whole, sets));
    REQUIRE(launched.wait() == 0);
  }
  {
    Sets first = sets;
    first.emplace_back("train.steps=2");
    LaunchedTraining launched(2, run, kOctet, octet_train(run, first));
    REQUIRE(launched.wait() == 0);
  }
  // No file of this rank may grow beyond 16 KiB: a write fails, as on a disk that is full.
  LaunchedTraining launched(2, run, rank_1(directory, "ulimit -f 32"), octet_train(run, sets));
  check_refused(launched, 5, "the checkpoint of step 6 is not saved");
  CHECK_THAT(launched.err(), Catch::Contains("saving step 4 failed") && Catch::Contains("1 of at most 1"));
  CHECK(run_all({{.argv = {kOctet, "ckpt", "verify", join_path(run, "checkpoints")}}}, 60).front().code == 0);
  LaunchedTraining again(2, run, kOctet, octet_train(run, sets));
  CHECK(again.wait() == 0);
  check_same(run, whole, kLonger);
}

}  // namespace octet::test
