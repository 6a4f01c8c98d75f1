// Every communicator runs one list of cases; and what only threads can show: that ranks wait for each other, and what
// happens when one dies, stalls or does something else.
#include "parallel/communicator.h"

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <mutex>
#include <thread>

#include "core/base/clock.h"
#include "parallel/local_communicator.h"
#include "parallel/ordered_sum.h"
#include "parallel/process_identity.h"
#include "parallel/self_communicator.h"
#include "tests/parallel/communicator_cases.h"
#include "tests/parallel/outcomes.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

using Element = CollectiveCall::Element;

void run_fine(int ranks, const LocalOptions& options, const std::function<void(Communicator&)>& body) {
  rethrow_first(run_local_ranks(ranks, options, body));
}

double seconds_of(const std::function<void()>& body) {
  const auto began = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

Stream& stream() { return default_stream(); }

// A step as a training run would make it: every kind of operation once, on two communicators.
constexpr int kStepCollectives = 6;
void make_step(Communicator& world, Communicator& group) {
  std::vector<float> gradient(5000, 1.0f), shard(size_t(5000 / world.size()));
  const auto view = [](std::vector<float>& x) { return View(x.data(), {int64_t(x.size())}, DType::kFloat32); };
  gradient.resize(shard.size() * size_t(world.size()));
  std::vector<int64_t> counts(size_t(group.size()), 10);
  std::vector<float> send(size_t(10 * group.size())), receive = send;
  group.all_to_all_v(
      {.send = view(send), .send_pieces = {counts}, .receive = view(receive), .receive_pieces = {counts}}, stream());
  world.reduce_scatter(view(gradient), view(shard), stream());
  double norm[] = {1.0};
  world.all_reduce(std::span<double>(norm));
  world.all_gather(view(shard), view(gradient), stream());
  group.all_reduce(view(gradient), stream());
  world.broadcast(view(gradient), 0, stream());
}

}  // namespace

TEST_CASE("one rank by itself does what every communicator does", "[parallel]") {
  const auto self = make_self_communicator();
  for (const CommunicatorCase& each : communicator_cases()) {
    INFO(each.name);
    CHECK_NOTHROW(each.run(*self));
  }
}

TEST_CASE("ranks as threads do what every communicator does", "[parallel]") {
  const int ranks = GENERATE(1, 2, 3, 4);
  const auto [seed, delay_us] = GENERATE(table<uint64_t, int64_t>({{0, 0}, {1, 200}, {2, 2000}}));
  for (const CommunicatorCase& each : communicator_cases()) {
    CAPTURE(each.name, ranks, seed, delay_us);
    LocalOptions options;
    options.seed = seed;
    options.max_delay_us = delay_us;
    CHECK_NOTHROW(run_fine(ranks, options, each.run));
  }
}

TEST_CASE("a sum has the same bits on every rank and in every communicator", "[parallel]") {
  for (const int ranks : {1, 3}) {
    std::vector<std::vector<uint64_t>> bits(static_cast<size_t>(ranks));
    run_fine(ranks, {}, [&](Communicator& c) { bits[size_t(c.rank())] = reduced_bits(c); });
    for (const auto& each : bits) CHECK(each == bits[0]);
    if (ranks == 1) CHECK(reduced_bits(*make_self_communicator()) == bits[0]);
  }
}

TEST_CASE("nobody leaves a collective before all have entered it", "[parallel]") {
  LocalOptions options;
  options.max_delay_us = 300;
  options.seed = GENERATE(1, 2, 3);
  std::atomic<int> entered{0};
  run_fine(4, options, [&](Communicator& c) {
    std::vector<float> x(100, 0.0f);
    const View view(x.data(), {100}, DType::kFloat32);
    for (int round = 1; round <= 20; ++round) {
      if (c.rank() == round % 4) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      ++entered;
      if (round % 2 == 0) {
        c.barrier();
      } else {
        c.broadcast(view, round % 4, stream());
      }
      require(entered >= round * 4, "rank {} left round {} when {} had entered", c.rank(), round, entered.load());
    }
  });
}

TEST_CASE("an ordered sum may be written over any of its arrays", "[parallel]") {
  const int64_t n = GENERATE(0, 1, 2047, 2048, 2049, 70001);
  for (const Element element : {Element::kFloat32, Element::kBFloat16, Element::kFloat64}) {
    const auto bytes = size_t(n * size_of(element));
    for (size_t target = 0; target < 3; ++target) {
      std::vector<std::vector<std::byte>> arrays(3, std::vector<std::byte>(bytes + 8, std::byte(0)));
      std::vector<const std::byte*> from;
      for (size_t r = 0; r < 3; ++r) {
        for (int64_t i = 0; i < n; ++i) {
          const double x = double(int64_t(r * 1000) + i % 97) / 8;
          if (element == Element::kFloat32) reinterpret_cast<float*>(arrays[r].data())[i] = float(x);
          if (element == Element::kBFloat16) reinterpret_cast<bfloat16*>(arrays[r].data())[i] = bfloat16(float(x));
          if (element == Element::kFloat64) reinterpret_cast<double*>(arrays[r].data())[i] = x;
        }
        from.push_back(arrays[r].data());
      }
      std::vector<std::byte> apart(bytes + 8, std::byte(0));
      ordered_sum(element, from, n, apart.data(), stream());
      ordered_sum(element, from, n, arrays[target].data(), stream());
      REQUIRE(arrays[target] == apart);
    }
  }
}

TEST_CASE("arguments that cannot be meant are refused before anything is sent", "[parallel]") {
  const auto self = make_self_communicator();
  std::vector<float> x(12), y(12);
  const View flat(x.data(), {12}, DType::kFloat32), other(y.data(), {12}, DType::kFloat32);
  const View apart(x.data(), {3, 2}, DType::kFloat32, {}, /*row_stride=*/4), codes(x.data(), {12}, DType::kUInt8);
  const std::vector<int64_t> twelve = {12}, thirteen = {13}, minus = {-1}, two = {6, 6}, one = {1};
  const auto said = [](auto&& call) { return error_of(call).report().what; };
  CHECK_THAT(said([&] { self->all_reduce(codes, stream()); }),
             Catch::Contains("all_reduce: a sum of uint8; wanted float32 or bfloat16"));
  CHECK_THAT(said([&] { self->all_reduce(apart, stream()); }),
             Catch::Contains("the rows of `values` are 4 elements apart; wanted 2"));
  CHECK_THAT(said([&] { self->broadcast(flat, 1, stream()); }),
             Catch::Contains("broadcast: from rank 1; wanted 0 to 0"));
  CHECK_THAT(said([&] { self->send(flat, 0, stream()); }), Catch::Contains("send: to rank 0 from rank 0"));
  CHECK_THAT(said([&] { self->receive(flat, 2, stream()); }), Catch::Contains("receive: from rank 2"));
  CHECK_THAT(said([&] { self->all_gather(flat, View(y.data(), {11}, DType::kFloat32), stream()); }),
             Catch::Contains("`mine` is [12] and `all` [11]; wanted 1 times as much"));
  const auto exchange = [&](const Pieces& out, const Pieces& in) {
    self->all_to_all_v({.send = flat, .send_pieces = out, .receive = other, .receive_pieces = in}, stream());
  };
  CHECK_NOTHROW(exchange({twelve}, {twelve}));
  CHECK_THAT(said([&] { exchange({thirteen}, {twelve}); }),
             Catch::Contains("piece 0 of `send` is 13 from 0; wanted one inside its first axis, 12"));
  CHECK_THAT(said([&] { exchange({twelve, one}, {twelve}); }), Catch::Contains("piece 0 of `send` is 12 from 1"));
  CHECK_THAT(said([&] { exchange({minus}, {twelve}); }), Catch::Contains("piece 0 of `send` is -1"));
  CHECK_THAT(said([&] { exchange({twelve}, {two}); }), Catch::Contains("2 counts for `receive`; wanted 1"));
  CHECK_THAT(said([&] { exchange({twelve}, {one}); }), Catch::Contains("sends itself 48 bytes and receives 4"));
  const std::vector<int> pair = {0, 1};
  CHECK_THAT(said([&] { self->group(pair, "pair"); }), Catch::Contains("group pair: 2 ranks"));

  run_fine(2, {}, [&](Communicator& c) {
    const std::vector<int64_t> counts = {2, 2}, offsets = {0, 1};
    std::vector<float> z(5);
    const View five(z.data(), {5}, DType::kFloat32);
    const auto refused = [](auto&& call, std::string_view words) {
      try {
        call();
      } catch (const Error& error) {
        require(error.report().what.find(words) != std::string::npos, "said {}; wanted {}", error.what(), words);
        return;
      }
      require(false, "nothing was refused; wanted {}", words);
    };
    refused([&] { c.reduce_scatter(five, five, stream()); }, "5 along the first axis over 2 ranks leave 1 over");
    refused(
        [&] {
          c.all_gather_v(View(z.data(), {2}, DType::kFloat32), five, {counts, offsets}, stream());
        },
        "two pieces of `all` overlap at 1");
    const std::vector<int> wrong[] = {{0, 2}, {0, 0, 1}, {1 - c.rank()}};
    refused([&] { c.group(wrong[0], "g"); }, "group g: rank 2; wanted 0 to 1");
    refused([&] { c.group(wrong[1], "g"); }, "a rank is there twice");
    refused([&] { c.group(wrong[2], "g"); }, "makes it and is not in it");
    c.barrier();  // and nothing is out of step
  });
}

TEST_CASE("ranks in different collectives are told apart at once", "[parallel][faults]") {
  struct Mismatch {
    std::string name;
    std::function<void(Communicator&)> body;  // rank 1 differs from the others
    std::vector<std::string> words;           // in the error of each of them
  };
  std::vector<float> x(9000);
  const auto view = [&](int64_t n, DType dtype = DType::kFloat32) { return View(x.data(), {n}, dtype); };
  static const std::vector<int64_t> kUneven = {1, 2, 3}, kOther = {2, 1, 3}, kOne = {1, 1, 1}, kMore = {2, 1, 1};
  const std::vector<Mismatch> all = {
      {"operation",
       [&](Communicator& c) { c.rank() == 1 ? c.barrier() : c.all_reduce(view(0), stream()); },
       {"barrier, number 1 of group world", "all_reduce of 0 float32, number 1 of group world"}},
      {"size",
       [&](Communicator& c) { c.all_reduce(view(c.rank() == 1 ? 9000 : 5), stream()); },
       {"all_reduce of 9000 float32", "all_reduce of 5 float32"}},
      {"element type",
       [&](Communicator& c) { c.all_reduce(view(7, c.rank() == 1 ? DType::kBFloat16 : DType::kFloat32), stream()); },
       {"all_reduce of 7 bfloat16", "all_reduce of 7 float32"}},
      {"root",
       [&](Communicator& c) { c.broadcast(view(8), c.rank() == 1 ? 1 : 0, stream()); },
       {"broadcast of 8 float32 from rank 1", "broadcast of 8 float32 from rank 0"}},
      {"pieces",
       [&](Communicator& c) {
         const auto& counts = c.rank() == 1 ? kOther : kUneven;
         std::vector<float> mine(size_t(counts[size_t(c.rank())])), gathered(6);
         c.all_gather_v(View(mine.data(), {int64_t(mine.size())}, DType::kFloat32),
                        View(gathered.data(), {6}, DType::kFloat32), {.counts = counts}, stream());
       },
       {"the element types, sizes or pieces differ"}},
      {"one left out",
       [&](Communicator& c) {
         if (c.rank() != 1) c.barrier();
         c.all_reduce(view(6), stream());
         c.barrier();
       },
       {"barrier, number 1", "all_reduce of 6 float32, number 1"}},
      {"phase",
       [&](Communicator& c) {
         c.set_phase(c.rank() == 1 ? "step 8, forward" : "step 7, forward");
         c.barrier();
       },
       {"in step 8, forward", "in step 7, forward", "the same operation in different phases"}},
      {"counts of a pair",
       [&](Communicator& c) {
         std::vector<float> in(8), out(8);
         c.all_to_all_v({.send = View(out.data(), {8}, DType::kFloat32),
                         .send_pieces = {c.rank() == 1 ? kMore : kOne},
                         .receive = View(in.data(), {8}, DType::kFloat32),
                         .receive_pieces = {kOne}},
                        stream());
         c.barrier();
       },
       {"rank 1 sends rank 0 8 bytes", "it expects 4"}},
      {"parts of a piece",
       [&](Communicator& c) {
         std::vector<float> in(9), out(9);
         const std::vector<int64_t> counts = {1, 2, 1, 2, 1, 2}, others = {2, 1, 1, 2, 2, 1};
         c.all_to_all_v({.send = View(out.data(), {9}, DType::kFloat32),
                         .send_pieces = {c.rank() == 1 ? others : counts},
                         .receive = View(in.data(), {9}, DType::kFloat32),
                         .receive_pieces = {counts},
                         .parts = 2},
                        stream());
         c.barrier();
       },
       {"rank 1 sends rank", "in other parts than it expects"}},
  };
  for (const Mismatch& each : all) {
    INFO(each.name);
    std::vector<Outcome> found;
    const double seconds = seconds_of([&] { found = outcomes(3, {}, each.body); });
    CHECK(seconds < 10);
    for (size_t rank = 0; rank < 3; ++rank) {
      CAPTURE(rank, found[rank].text);
      CHECK(found[rank].code == 7);
      for (const std::string& words : each.words) {
        // A rank may hear of it from another, which then says what it saw.
        if (found[rank].text.find("gave up") == std::string::npos) CHECK_THAT(found[rank].text, Catch::Contains(words));
      }
    }
  }
}

TEST_CASE("a piece of the wrong size is not written anywhere", "[parallel][faults]") {
  std::mutex mutex;
  std::vector<std::string> texts;
  const auto errors = run_local_ranks(2, {}, [&](Communicator& c) {
    const std::vector<int64_t> one = {1, 1}, much = {1, 400}, counts = c.rank() == 0 ? much : one;
    std::vector<float> out(401, 1.0f), in(2, -7.0f);
    try {
      c.all_to_all_v({.send = View(out.data(), {401}, DType::kFloat32),
                      .send_pieces = {counts},
                      .receive = View(in.data(), {2}, DType::kFloat32),
                      .receive_pieces = {one}},
                     stream());
    } catch (const Error& error) {
      const std::lock_guard lock(mutex);
      if (c.rank() == 1) texts.push_back(error.block());
    }
    require(in[size_t(1 - c.rank())] == -7.0f || c.rank() == 0, "rank {} got {}", c.rank(), in[0]);
  });
  for (const auto& error : errors) CHECK(error == nullptr);
  REQUIRE(texts.size() == 1);
  CHECK_THAT(texts[0], Catch::Contains("rank 0 sends rank 1 1600 bytes in all_to_all of rows of 1 float32, number 1 of "
                                       "group world; it expects 4"));
}

TEST_CASE("a rank that dies is named by all others at once, whatever they do", "[parallel][faults]") {
  const int ranks = GENERATE(2, 4);
  for (int at = 1; at <= 2 * kStepCollectives; ++at) {
    const int victim = at % ranks;
    CAPTURE(ranks, at, victim);
    LocalOptions options;
    options.communicator.timeout_s = 20;
    options.max_delay_us = 100;
    options.faults = {{.rank = victim, .at_collective = at, .kind = LocalFault::Kind::kDie}};
    std::vector<Outcome> found;
    const double seconds = seconds_of([&] {
      found = outcomes(ranks, options, [](Communicator& world) {
        const std::vector<int> pair = {world.rank() / 2 * 2, world.rank() / 2 * 2 + 1};
        const auto group = world.group(pair, "pair");
        for (int step = 1; step <= 2; ++step) {
          world.set_phase(fmt::format("step {}", step));
          make_step(world, *group);
        }
      });
    });
    CHECK(seconds < 10);
    for (int rank = 0; rank < ranks; ++rank) {
      const Outcome& outcome = found[size_t(rank)];
      CAPTURE(rank, outcome.text);
      if (rank == victim) {
        CHECK(outcome.text == "stopped");
        continue;
      }
      CHECK(outcome.code == 7);
      CHECK_THAT(outcome.text, Catch::Contains(fmt::format("rank {} ", victim)) && Catch::Contains("is gone"));
      CHECK_THAT(outcome.text, Catch::Contains(at <= kStepCollectives ? "step 1" : "step 2"));
    }
  }
}

TEST_CASE("a rank that stalls is named when the time is up", "[parallel][faults]") {
  const int at = GENERATE(1, 4, 8);
  LocalOptions options;
  options.communicator.timeout_s = 0.5;
  options.faults = {{.rank = 2, .at_collective = at, .kind = LocalFault::Kind::kStall}};
  std::vector<Outcome> found;
  const double seconds = seconds_of([&] {
    found = outcomes(4, options, [](Communicator& world) {
      const std::vector<int> pair = {world.rank() / 2 * 2, world.rank() / 2 * 2 + 1};
      const auto group = world.group(pair, "pair");
      for (int step = 1; step <= 2; ++step) {
        world.set_phase(fmt::format("step {}", step));
        make_step(world, *group);
      }
    });
  });
  CHECK(seconds >= 0.5);
  CHECK(seconds < 10);
  for (size_t rank = 0; rank < 4; ++rank) {
    CAPTURE(at, rank, found[rank].text);
    if (rank == 2) {
      CHECK(found[rank].text == "stopped");
      continue;
    }
    CHECK(found[rank].code == 8);
    // Ranks 0 and 1 may be waiting for 3, which waits for 2: the one that named it is then in the text.
    CHECK_THAT(found[rank].text, Catch::Contains("rank 2") || Catch::Contains("ranks 2"));
    CHECK_THAT(found[rank].text, Catch::Contains("has waited 0.5 s"));
    CHECK_THAT(found[rank].text, Catch::Contains("8 (hang)"));
  }
}

TEST_CASE("the message about a stalled rank says who, where, what, when and how long", "[parallel][faults]") {
  LocalOptions options;
  options.communicator.timeout_s = 0.3;
  options.faults = {{.rank = 1, .at_collective = 3, .kind = LocalFault::Kind::kStall}};
  const std::vector<Outcome> found = outcomes(2, options, [](Communicator& world) {
    std::vector<float> x(64);
    for (int step = 1; step <= 3; ++step) {
      world.set_phase(fmt::format("step {}, backward", step));
      world.all_reduce(View(x.data(), {64}, DType::kFloat32), stream());
    }
  });
  const std::string& text = found[0].text;
  INFO(text);
  const ProcessIdentity process = this_process();
  for (const std::string& words :
       {std::string("rank 0 has waited 0.3 s for rank 1 in all_reduce of 64 float32, number 3 of group world"),
        fmt::format("where: rank 0 (host {}, process {}), in step 3, backward", process.host, process.pid),
        fmt::format("rank 1 (host {}, process {}) has not entered it, is running, and was last heard of 0.",
                    process.host, process.pid),
        std::string("s ago in all_reduce of 64 float32, number 2 of group world, in step 2, backward"),
        std::string("the limit is 0.3 s")}) {
    CHECK_THAT(text, Catch::Contains(words));
  }
}

TEST_CASE("a rank that leaves one collective out is caught in the next", "[parallel][faults]") {
  LocalOptions options;
  options.faults = {{.rank = 0, .at_collective = 2, .kind = LocalFault::Kind::kMiscount}};
  const std::vector<Outcome> found = outcomes(3, options, [](Communicator& world) {
    for (int i = 0; i < 4; ++i) world.barrier();
  });
  for (const Outcome& outcome : found) {
    INFO(outcome.text);
    CHECK(outcome.code == 7);
    CHECK_THAT(outcome.text, Catch::Contains("barrier, number 3 of group world") &&
                                 Catch::Contains("barrier, number 2 of group world"));
  }
}

TEST_CASE("a rank that gives up tells the others why", "[parallel][faults]") {
  std::vector<Outcome> found;
  const double seconds = seconds_of([&] {
    found = outcomes(3, {}, [](Communicator& world) {
      world.barrier();
      if (world.rank() == 1) {
        world.abort(ErrorKind::kStorage, "cannot read shard 7: No such file");
        fail(ErrorKind::kStorage, {.what = "cannot read shard 7", .where = {}, .why = {}, .fix = {}});
      }
      std::vector<float> x(64);
      world.all_reduce(View(x.data(), {64}, DType::kFloat32), stream());
    });
  });
  CHECK(seconds < 10);
  for (const Outcome& outcome : found) CHECK(outcome.code == 5);
  for (const size_t rank : {0, 2}) {
    CHECK_THAT(found[rank].text, Catch::Contains("rank 1 gave up: cannot read shard 7: No such file"));
  }
}

TEST_CASE("a rank that only reports that it gets on hears that another gave up", "[parallel][faults]") {
  const std::vector<Outcome> found = outcomes(2, {}, [](Communicator& world) {
    world.barrier();
    if (world.rank() == 1)
      fail(ErrorKind::kStorage, {.what = "cannot read shard 7", .where = {}, .why = {}, .fix = {}});
    const double until = real_clock().seconds() + 10;
    while (real_clock().seconds() < until) world.progress();
  });
  CHECK(found[1].code == 5);
  CHECK(found[0].code == 7);
  CHECK_THAT(found[0].text, Catch::Contains("rank 1 gave up"));
}

TEST_CASE("an exception that leaves an operation under way ends the run of all", "[parallel][faults]") {
  std::atomic<bool> has_left{false};  // and until then the operation cannot be done
  const std::vector<Outcome> found = outcomes(2, {}, [&](Communicator& world) {
    std::vector<float> x(64);
    const View view(x.data(), {64}, DType::kFloat32);
    if (world.rank() == 0) {
      try {
        const Pending pending = world.start_all_reduce(view, stream());
        fail(ErrorKind::kData, {.what = "a bad token", .where = {}, .why = {}, .fix = {}});
      } catch (const Error&) {
        has_left = true;
        throw;
      }
    }
    while (!has_left) std::this_thread::yield();
    world.all_reduce(view, stream());
  });
  CHECK(found[0].code == 3);
  CHECK(found[1].code == 7);
  CHECK_THAT(found[1].text, Catch::Contains("rank 0 gave up: an error ended it during all_reduce"));
}

TEST_CASE("an exception that leaves an operation that is done ends nothing", "[parallel][faults]") {
  CHECK_NOTHROW(run_fine(2, {}, [](Communicator& world) {
    try {
      Pending pending = world.start_barrier();
      while (!pending.is_done()) continue;
      fail(ErrorKind::kData, {.what = "a bad token", .where = {}, .why = {}, .fix = {}});
    } catch (const Error&) {
      world.barrier();
    }
  }));
}

TEST_CASE("a rank that ends its run while others wait for it is named at once", "[parallel][faults]") {
  LocalOptions options;
  options.communicator.timeout_s = 20;
  std::vector<Outcome> found;
  const double seconds = seconds_of([&] {
    found = outcomes(3, options, [](Communicator& world) {
      world.barrier();
      if (world.rank() != 2) world.barrier();
    });
  });
  CHECK(seconds < 10);
  for (const size_t rank : {0, 1}) {
    INFO(found[rank].text);
    CHECK(found[rank].code == 7);
    CHECK_THAT(found[rank].text, Catch::Contains("rank 2 ") && Catch::Contains("has ended its run"));
  }
}

TEST_CASE("the first error is the answer to every later call", "[parallel][faults]") {
  LocalOptions options;
  options.communicator.timeout_s = 0.2;
  options.faults = {{.rank = 1, .at_collective = 1, .kind = LocalFault::Kind::kStall}};
  const auto errors = run_local_ranks(2, options, [](Communicator& world) {
    const std::vector<int> both = {0, 1};
    const auto group = world.group(both, "both");
    std::string first;
    const auto expect_same = [&](auto&& call) {
      try {
        call();
      } catch (const Error& error) {
        if (first.empty()) first = error.block();
        require(error.block() == first, "said {}; wanted {}", error.block(), first);
        return;
      }
      require(false, "no error; wanted {}", first);
    };
    std::vector<float> x(9000);
    Pending before = group->start_all_reduce(View(x.data(), {9000}, DType::kFloat32), stream());
    expect_same([&] { before.wait(); });
    expect_same([&] { world.barrier(); });
    expect_same([&] { group->broadcast(View(x.data(), {9000}, DType::kFloat32), 0, stream()); });
    expect_same([&] { world.group(both, "again"); });
  });
  CHECK(errors[0] == nullptr);
}

TEST_CASE("a slow rank is waited for as long as something arrives", "[parallel][faults]") {
  // Eight messages of up to 150 ms each, a limit of 400 ms, and in all longer than that.
  LocalOptions options;
  options.communicator.timeout_s = 0.4;
  options.max_delay_us = 150'000;
  options.seed = 5;
  double seconds = 0;
  CHECK_NOTHROW(seconds = seconds_of([&] {
                  run_fine(2, options, [](Communicator& c) {
                    for (int i = 0; i < 8; ++i) c.barrier();
                  });
                }));
  CHECK(seconds > 0.4);
}

}  // namespace octet::test
