#include "core/io/json.h"

#include "core/base/fault_file_system.h"
#include "tests/support/memory.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

const JsonSource kSource{.kind = ErrorKind::kCheckpoint, .file = "a.json"};

Json parse(std::string_view text) { return parse_json(text, kSource); }

std::string repeated(std::string_view text, size_t times) {
  std::string all;
  all.reserve(text.size() * times);
  for (size_t i = 0; i < times; ++i) all += text;
  return all;
}

}  // namespace

TEST_CASE("a value survives writing and reading", "[io][json]") {
  Json value = Json::object();
  value.set("null", Json())
      .set("yes", true)
      .set("least", int64_t(INT64_MIN))
      .set("most", uint64_t(UINT64_MAX))
      .set("one", 1)
      .set("one point zero", 1.0)
      .set("tenth", 0.1)
      .set("tiny", 5e-324)
      .set("text", "\"quoted\" \\ \n \t \x01 \x7f gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80")
      .set("empty", Json::object());
  Json list = Json::array();
  list.push_back(Json::array()).push_back(-5).push_back("x");
  value.set("list", list);
  for (const int depth : {0, 1, 2, 5}) CHECK(parse(value.text(depth)) == value);
  value.set("one", 2);  // keeps its place
  CHECK(value.text().find("\"one\": 2, \"one point zero\": 1.0, \"tenth\": 0.1") != std::string::npos);
  CHECK(list.text(1) == "[\n  [],\n  -5,\n  \"x\"\n]");
  CHECK(Json(uint64_t(7)) == Json(7));
}

TEST_CASE("numbers keep their type and their value, or are refused", "[io][json]") {
  CHECK(*parse("9223372036854775807").if_int64() == INT64_MAX);
  CHECK(*parse("-9223372036854775808").if_int64() == INT64_MIN);
  CHECK(*parse("9223372036854775808").if_uint64() == uint64_t(1) << 63);
  CHECK(*parse("18446744073709551615").if_uint64() == UINT64_MAX);
  CHECK(*parse("1.0").if_double() == 1.0);
  CHECK(*parse("1e3").if_double() == 1000.0);
  CHECK(*parse("-0").if_int64() == 0);
  for (const char* text : {"18446744073709551616", "-9223372036854775809", "1e999", "-1e999", "01", "+1", ".5", "5.",
                           "0x10", "NaN", "Infinity", "1_000", "-", "1e", "--1"}) {
    CAPTURE(text);
    const Error error = error_of([&] { parse(text); });
    CHECK(error.kind() == ErrorKind::kCheckpoint);
    CHECK(error.code() == 4);
    CHECK_THAT(error.report().where, Catch::StartsWith("a.json, byte "));
  }
  const Json value = parse(R"({"a": [1, 2.5, "3", 18446744073709551615, -1, 9007199254740993]})");
  const JsonCursor list = JsonCursor(value, kSource)["a"];
  CHECK(list.at(0).as_int64() == 1);
  CHECK(list.at(0).as_double() == 1.0);
  CHECK(list.at(1).as_double() == 2.5);
  CHECK(list.at(3).as_uint64() == UINT64_MAX);
  const auto message = [](auto call) { return error_of(call).report().what; };
  CHECK(message([&] { list.at(1).as_int64(); }) == "a.json: a[1] is a number with a fraction; wanted an integer");
  CHECK(message([&] { list.at(2).as_int64(); }) == "a.json: a[2] is a string; wanted an integer");
  CHECK(message([&] { list.at(3).as_int64(); }) ==
        "a.json: a[3] is 18446744073709551615; wanted at most 9223372036854775807");
  CHECK_THAT(message([&] { list.at(4).as_uint64(); }), Catch::StartsWith("a.json: a[4] is -1; wanted 0 to"));
  CHECK_THAT(message([&] { list.at(5).as_double(); }), Catch::StartsWith("a.json: a[5] is 9007199254740993"));
  CHECK(message([&] { list.at(0).as_string(); }) == "a.json: a[0] is an integer; wanted a string");
  CHECK(message([&] { list.at(0).as_bool(); }) == "a.json: a[0] is an integer; wanted a boolean");
  CHECK(message([&] { list.at(9); }) == "a.json: a has 6 elements; wanted one more");
  CHECK(message([&] { list["b"]; }) == "a.json: a is an array; wanted an object");
  CHECK(message([&] { JsonCursor(value, kSource)["b"]; }) == "a.json: the whole has no key \"b\"");
  CHECK(message([&] { JsonCursor(value, kSource).allow_keys({"b"}); }) == "a.json: the whole has an unknown key \"a\"");
  CHECK_FALSE(JsonCursor(value, kSource).find("b").has_value());
}

TEST_CASE("text that is not strict JSON is refused with its place", "[io][json]") {
  struct Case {
    std::string text, what;
    int byte;  // where the reader notices; -1: not told exactly
  };
  const std::vector<Case> cases = {
      {"", "not valid JSON", 0},
      {" ", "not valid JSON", -1},
      {"{", "not valid JSON", -1},
      {"[1,]", "not valid JSON", -1},
      {"{\"a\":1,}", "not valid JSON", -1},
      {"{a:1}", "not valid JSON", -1},
      {"{'a':1}", "not valid JSON", -1},
      {"[1] [2]", "not valid JSON", -1},
      {"[1]x", "not valid JSON", -1},
      {"// no\n1", "not valid JSON", -1},
      {"tru", "not valid JSON", -1},
      {"\"\x01\"", "not valid JSON", -1},
      {"\"\xff\"", "not valid JSON", -1},
      {"\"\xc0\xaf\"", "not valid JSON", -1},        // a slash in two bytes
      {"\"\xed\xa0\x80\"", "not valid JSON", -1},    // a surrogate in UTF-8
      {"\"\\ud800\"", "not valid JSON", -1},         // half of a pair
      {"\"\\udc00\\ud800\"", "not valid JSON", -1},  // a pair reversed
      {"\"\\x41\"", "not valid JSON", -1},
      {"\xef\xbb\xbf[1]", "byte order mark", 0},
      {std::string("[1]\0", 4), "zero byte", 3},  // the library takes it for the end
      {std::string("[1]\0[2]", 7), "zero byte", 3},
      {R"({"a":1,"a":2})", "\"a\" stands twice", 13},
      {R"({"a":1,"\u0061":2})", "\"a\" stands twice", 18},
      {R"([{"x":{"b":1,"c":2,"b":3}}])", "\"b\" stands twice", 25},
      {R"({"":1,"":2})", "\"\" stands twice", 11},
  };
  for (const Case& c : cases) {
    CAPTURE(c.text);
    const Error error = error_of([&] { parse(c.text); });
    CHECK(error.code() == 4);
    CHECK_THAT(error.report().what, Catch::StartsWith("a.json: ") && Catch::Contains(c.what));
    CHECK_THAT(error.report().where, Catch::StartsWith("a.json, byte "));
    if (c.byte >= 0) CHECK(error.report().where == "a.json, byte " + std::to_string(c.byte));
  }
  CHECK(error_of([] { parse_json("x", {.kind = ErrorKind::kData, .file = "b", .offset = 100}); }).code() == 3);
  CHECK(error_of([] { parse_json("x", {.kind = ErrorKind::kData, .file = "b", .offset = 100}); }).report().where ==
        "b, byte 101");
}

TEST_CASE("sizes over the limits are refused in little time and memory", "[io][json]") {
  CHECK_THAT(error_of([] { parse_json("[1,2,3]", kSource, {.bytes = 6}); }).report().what,
             Catch::Contains("has 7 bytes; at most 6"));
  CHECK_THAT(error_of([] { parse_json("[1,2,3]", kSource, {.values = 3}); }).report().what,
             Catch::Contains("more than 3 values"));
  CHECK(parse_json("[1,2,3]", kSource, {.values = 4}).if_array()->size() == 3);
  CHECK(parse(repeated("[", 64) + repeated("]", 64)).if_array() != nullptr);
  CHECK_THAT(error_of([] { parse(repeated("[", 65) + repeated("]", 65)); }).report().what,
             Catch::Contains("nested more than 64 deep"));
  const Cost cost;
  const std::string nested = repeated("[", 5'000'000);
  CHECK_THAT(error_of([&] { parse(nested); }).report().what, Catch::Contains("nested more than 64 deep"));
  CHECK_THAT(error_of([&] { parse(repeated("{\"a\":", 1'000'000)); }).report().what,
             Catch::Contains("nested more than 64 deep"));
  // One token of 5 MB is quoted in part.
  CHECK(error_of([&] { parse(std::string(5'000'000, 'x')); }).report().what.size() < 400);
  CHECK(cost.is_within(uint64_t(64 + 2 * 5) << 20, 1.0));
}

TEST_CASE("every cut and every changed byte of a document is read or refused", "[io][json]") {
  const std::string text = R"({"run": "a\u00e9", "step": 12, "list": [1.5, -2, true, null], "deep": {"x": {}}})";
  for (size_t length = 0; length < text.size(); ++length) {
    CHECK(error_of([&] { parse(text.substr(0, length)); }).code() == 4);
  }
  int refused = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string changed = text;
      changed[at] = char(changed[at] ^ (1 << bit));
      try {
        parse(changed).text();
      } catch (const Error& error) {
        refused += error.code() == 4;
      }
    }
  }
  CHECK(refused > 200);
}

TEST_CASE("an object is read in parts", "[io][json]") {
  FaultFileSystem fs;
  const auto read = [&](const std::string& text, std::vector<std::string>* ways = nullptr) {
    fs.write_atomically("/a", text);
    return parse_json_in_parts(*fs.open("/a"), kSource, {"list", "map"}, [&](const JsonPart& part) {
      if (ways == nullptr) return;
      const std::string key = part.key ? std::string(*part.key) : "none";
      ways->push_back(fmt::format("{} {} {} {}", part.member, key, part.value.value().text(), part.before.text()));
      ways->push_back(error_of([&] { part.value.refuse("is it"); }).report().what);
    });
  };
  std::vector<std::string> ways;
  const Json rest =
      read(R"({"a": [1], "list": [{"list": [7]}, "x"], "map": {"k": {"map": 1}}, "b": {"list": [2]}})", &ways);
  CHECK(rest.text() == R"({"a": [1], "list": [], "map": {}, "b": {"list": [2]}})");
  CHECK(ways == std::vector<std::string>{R"(list none {"list": [7]} {"a": [1]})", "a.json: list[0] is it",
                                         R"(list none "x" {"a": [1]})", "a.json: list[1] is it",
                                         R"(map k {"map": 1} {"a": [1], "list": []})", "a.json: map.k is it"});
  CHECK(read(R"([{"list": [1]}])").text() == R"([{"list": [1]}])");
  CHECK(read(R"({"list": 1})").text() == R"({"list": 1})");
  CHECK_THAT(error_of([&] { read(R"({"list": [1], "list": [2]})"); }).report().what, Catch::Contains("stands twice"));
  CHECK_THAT(error_of([&] { read(R"({"list": [{"b": 1, "b": 1}]})"); }).report().what, Catch::Contains("stands twice"));

  // Longer than what is in memory at a time.
  std::string text = R"({"list": [)";
  for (int i = 0; i < 40'000; ++i) text += fmt::format("{}{}", i == 0 ? "" : ", ", i);
  int64_t next = 0;
  fs.write_atomically("/a", text + "]}");
  parse_json_in_parts(*fs.open("/a"), kSource, {"list"},
                      [&](const JsonPart& part) { next += part.value.as_int64() == next; });
  CHECK(next == 40'000);
  const auto where = [&](const std::string& all) { return error_of([&] { read(all); }).report().where; };
  CHECK(where(text + ", x") == fmt::format("a.json, byte {}", text.size() + 3));
  CHECK(where(text + std::string(1, '\0')) == fmt::format("a.json, byte {}", text.size()));
  CHECK(where("\xef\xbb\xbf" + text) == "a.json, byte 0");
}

TEST_CASE("a file is read with the kind of error that the caller wants", "[io][json]") {
  FaultFileSystem fs;
  fs.create("/a.json")->append("[1, 2", 5);
  CHECK(error_of([&] { read_json(fs, "/a.json", ErrorKind::kData); }).code() == 3);
  fs.append_to("/a.json")->append("]", 1);
  CHECK(read_json(fs, "/a.json", ErrorKind::kData).text() == "[1, 2]");
  CHECK(error_of([&] { read_json(fs, "/b.json", ErrorKind::kData); }).code() == 5);
}

TEST_CASE("what JSON cannot say is not written", "[io][json]") {
  CHECK_THROWS_AS(Json(1.0 / 0.0).text(), Error);
  CHECK_THROWS_AS(Json(std::string("\xff")).text(), Error);
  CHECK_THROWS_AS(Json(1).set("a", 1), Error);
  CHECK_THROWS_AS(Json(1).push_back(1), Error);
  CHECK(is_utf8("gr\xc3\xbc\xc3\x9f \xf0\x9f\x98\x80 \xef\xbf\xbf"));
  for (const char* bad : {"\x80", "\xc3", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                          "\xf0\x80\x80\x80", "\xf5\x80\x80\x80", "a\xe2\x82"}) {
    CHECK_FALSE(is_utf8(bad));
  }
}

}  // namespace octet::test
