#include "parallel/agreement.h"

#include <catch2/catch.hpp>

#include "parallel/local_communicator.h"
#include "parallel/self_communicator.h"
#include "tests/parallel/outcomes.h"

namespace octet::test {
namespace {

// The whole report of what each rank threw, "" where nothing.
std::vector<std::string> thrown_by(int ranks, const std::function<void(Communicator&)>& body) {
  std::vector<std::string> texts;
  for (const Outcome& outcome : outcomes(ranks, {}, body)) texts.push_back(outcome.text);
  return texts;
}

}  // namespace

TEST_CASE("texts are packed and unpacked", "[parallel][agreement]") {
  const std::vector<std::string> texts = {"", "a", std::string(3, '\0'), "longer than eight bytes"};
  CHECK(unpack(pack(texts)) == texts);
  CHECK(unpack("").empty());
  const std::string packed = pack(texts);
  CHECK_THROWS_AS(unpack(std::string_view(packed).substr(0, packed.size() - 1)), Error);
  CHECK_THROWS_AS(unpack(std::string_view(packed).substr(0, 5)), Error);
}

TEST_CASE("ranks learn each other's texts", "[parallel][agreement]") {
  const int ranks = GENERATE(1, 2, 5);
  const auto text_of = [](int rank) { return std::string(size_t(rank) * 1000, char('a' + rank)); };  // rank 0: empty
  const auto errors = thrown_by(ranks, [&](Communicator& world) {
    const std::vector<std::string> all = gather_texts(world, text_of(world.rank()));
    require(int(all.size()) == world.size(), "{} texts", all.size());
    for (int rank = 0; rank < world.size(); ++rank) {
      require(all[size_t(rank)] == text_of(rank), "text {}", rank);
      std::string text = text_of(world.rank());
      broadcast_text(world, text, rank);
      require(text == text_of(rank), "broadcast {}", rank);
    }
  });
  CHECK(errors == std::vector<std::string>(size_t(ranks)));
}

TEST_CASE("an error of some ranks is the error of all", "[parallel][agreement]") {
  // Often, since ranks leave a vote at different times.
  for (int round = 0; round < 50; ++round) {
    const auto errors = thrown_by(4, [](Communicator& world) {
      all_or_none(world, [] {});
      all_or_none(world, [&] {
        if (world.rank() == 3) throw std::bad_alloc();
        if (world.rank() != 2) return;
        fail(ErrorKind::kStorage, {.what = "the disk is full", .where = "here", .why = "because", .fix = "so"});
      });
    });
    for (const std::string& error : errors) {
      REQUIRE(error == errors[0]);
      REQUIRE_THAT(error, Catch::Contains("rank 2 (host ") && Catch::Contains(") and 1 more: the disk is full") &&
                              Catch::Contains("here") && Catch::Contains("because") && Catch::Contains("so"));
    }
    const auto others = thrown_by(2, [](Communicator& world) {
      all_or_none(world, [&] {
        if (world.rank() == 0) throw std::bad_alloc();
      });
    });
    REQUIRE_THAT(others[1], Catch::Contains("): out of memory"));
  }
}

TEST_CASE("a rank by itself throws its own error", "[parallel][agreement]") {
  const auto self = make_self_communicator();
  all_or_none(*self, [] {});
  CHECK_THROWS_WITH(all_or_none(*self, [] { require(false, "no"); }), "no");
}

}  // namespace octet::test
