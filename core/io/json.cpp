#include "core/io/json.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <nlohmann/json.hpp>

namespace octet {

struct JsonEventsState {
  static void place(JsonEvents& events, const JsonSource* source) { events.source_ = source; }
  static void move_to(JsonEvents& events, uint64_t position) { events.position_ = position; }
};

namespace {

[[noreturn]] void refuse_text(const JsonSource& source, uint64_t position, std::string what) {
  fail(source.kind, {.what = fmt::format("{}: {}", source.file, what),
                     .where = fmt::format("{}, byte {}", source.file, source.offset + position),
                     .why = "",
                     .fix = "the file is damaged or was not written as JSON; write or fetch it again"});
}

// The bytes of a text, in memory or in a file, and where the parser is in them: its own position is known only for
// syntax errors.
class Bytes {
 public:
  Bytes(std::string_view text, const JsonSource& source) : source_(source), size_(text.size()), ends_at_(text.size()) {
    take(text);
  }
  Bytes(const ReadableFile& file, const JsonSource& source) : source_(source), file_(&file), size_(file.size()) {}

  uint64_t size() const { return size_; }
  uint64_t position() const { return ends_at_ - uint64_t(end_ - at_); }
  bool is_at_end() { return at_ == end_ && !read_more(); }
  const char& current() const { return *at_; }
  void advance() { ++at_; }

 private:
  bool read_more() {
    if (ends_at_ == size_) return false;
    constexpr uint64_t kBytesAtOnce = uint64_t(64) << 10;
    buffer_.resize(std::min(kBytesAtOnce, size_ - ends_at_));
    file_->read_at(ends_at_, buffer_.data(), buffer_.size());
    ends_at_ += buffer_.size();
    take(buffer_);
    return true;
  }
  // The library skips a byte order mark, and takes a zero byte for the end of the text.
  void take(std::string_view text) {
    at_ = text.data(), end_ = text.data() + text.size();
    if (position() == 0 && text.substr(0, 3) == "\xef\xbb\xbf") {
      refuse_text(source_, 0, "starts with a byte order mark; wanted plain JSON");
    }
    const size_t zero = text.find('\0');
    if (zero != std::string_view::npos) refuse_text(source_, position() + zero, "holds a zero byte");
  }

  const JsonSource& source_;
  const ReadableFile* file_ = nullptr;
  uint64_t size_, ends_at_ = 0;  // of what was read so far
  std::string buffer_;
  const char* at_ = nullptr;
  const char* end_ = nullptr;
};

// All of its copies stand at the same byte, that of the text. Without a text it is the end.
class ByteIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  explicit ByteIterator(Bytes* bytes) : bytes_(bytes) {}
  reference operator*() const { return bytes_->current(); }
  ByteIterator& operator++() {
    bytes_->advance();
    return *this;
  }
  bool operator==(const ByteIterator& other) const { return is_end() == other.is_end(); }
  bool operator!=(const ByteIterator& other) const { return is_end() != other.is_end(); }

 private:
  bool is_end() const { return bytes_ == nullptr || bytes_->is_at_end(); }

  Bytes* bytes_;
};

// The parser's words for a syntax error, without its prefix, cut to a length that a terminal can take.
std::string reason_of(std::string_view what) {
  const size_t column = what.find("column ");
  const size_t colon = column == std::string_view::npos ? what.find("] ") : what.find(": ", column);
  if (colon != std::string_view::npos) what.remove_prefix(colon + 2);
  constexpr size_t kLongest = 160;
  std::string reason(what.substr(0, kLongest));
  for (char& c : reason) {
    if (static_cast<unsigned char>(c) >= 0x80 || static_cast<unsigned char>(c) < 0x20) c = '?';
  }
  return what.size() > kLongest ? reason + "..." : reason;
}

// Passes the library's events on, with limits.
class Relay {
 public:
  Relay(const Bytes& bytes, const JsonSource& source, const JsonLimits& limits, JsonEvents& events)
      : bytes_(bytes), source_(source), limits_(limits), events_(events) {
    JsonEventsState::place(events_, &source_);
  }

  bool null() {
    return value([&] { events_.null(); });
  }
  bool boolean(bool value_read) {
    return value([&] { events_.boolean(value_read); });
  }
  bool number_integer(int64_t value_read) {
    return value([&] { events_.integer(value_read); });
  }
  bool number_unsigned(uint64_t value_read) {
    return value([&] {
      if (value_read <= uint64_t(INT64_MAX)) {
        events_.integer(int64_t(value_read));
      } else {
        events_.large_integer(value_read);
      }
    });
  }
  bool number_float(double value_read, const std::string& spelled) {
    // The library turns an integer that is too large into a double.
    if (spelled.find_first_of(".eE") == std::string::npos) {
      refuse_text(source_, position(), fmt::format("the integer {} does not fit 64 bits", reason_of(spelled)));
    }
    return value([&] { events_.real(value_read); });
  }
  bool string(std::string& value_read) {
    return value([&] { events_.string(value_read); });
  }
  bool binary(nlohmann::json::binary_t&) { return false; }  // no JSON text has one
  bool start_object(size_t) {
    deepen();
    return value([&] { events_.begin_object(); });
  }
  bool key(std::string& name) {
    move();
    events_.key(name);
    return true;
  }
  bool end_object() {
    --depth_;
    move();
    events_.end_object();
    return true;
  }
  bool start_array(size_t) {
    deepen();
    return value([&] { events_.begin_array(); });
  }
  bool end_array() {
    --depth_;
    move();
    events_.end_array();
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception& error) {
    refuse_text(source_, position(), fmt::format("not valid JSON: {}", reason_of(error.what())));
  }

 private:
  uint64_t position() const { return bytes_.position(); }
  void move() { JsonEventsState::move_to(events_, position()); }
  void deepen() {
    if (++depth_ > limits_.depth) {
      refuse_text(source_, position(), fmt::format("nested more than {} deep", limits_.depth));
    }
  }
  template <class Report>
  bool value(Report&& report) {
    if (++values_ > limits_.values) {
      refuse_text(source_, position(), fmt::format("has more than {} values", limits_.values));
    }
    move();
    report();
    return true;
  }

  const Bytes& bytes_;
  const JsonSource& source_;
  const JsonLimits& limits_;
  JsonEvents& events_;
  int depth_ = 0;
  uint64_t values_ = 0;
};

void require_limit(uint64_t bytes, const JsonSource& source, const JsonLimits& limits) {
  if (bytes > limits.bytes) {
    refuse_text(source, 0, fmt::format("has {} bytes; at most {} are read", bytes, limits.bytes));
  }
}

void parse(Bytes& bytes, const JsonSource& source, JsonEvents& events, const JsonLimits& limits) {
  Relay relay(bytes, source, limits, events);
  nlohmann::json::sax_parse(ByteIterator(&bytes), ByteIterator(nullptr), &relay);
}

}  // namespace

void JsonEvents::refuse(std::string what) const { refuse_text(*source_, position_, std::move(what)); }

void parse_json_events(std::string_view text, const JsonSource& source, JsonEvents& events, const JsonLimits& limits) {
  require_limit(text.size(), source, limits);
  Bytes bytes(text, source);
  parse(bytes, source, events, limits);
}

void parse_json_events(const ReadableFile& file, const JsonSource& source, JsonEvents& events,
                       const JsonLimits& limits) {
  require_limit(file.size(), source, limits);
  Bytes bytes(file, source);
  parse(bytes, source, events, limits);
}

// Builds a value. The open objects and arrays lie on a stack; depth is limited by the reader.
class JsonBuilder : public JsonEvents {
 public:
  void null() override { add(Json()); }
  void boolean(bool value) override { add(Json(value)); }
  void integer(int64_t value) override { add(Json(value)); }
  void large_integer(uint64_t value) override { add(Json(value)); }
  void real(double value) override { add(Json(value)); }
  void string(std::string& value) override { add(Json(std::move(value))); }
  void begin_array() override { open_.push_back({Json::array(), {}}); }
  void begin_object() override { open_.push_back({Json::object(), {}}); }
  void key(std::string& name) override { open_.back().key = std::move(name); }
  void end_array() override { close(); }
  void end_object() override {
    const auto& members = std::get<Json::Object>(open_.back().value.value_);
    std::vector<const std::string*> keys;
    keys.reserve(members.size());
    for (const auto& member : members) keys.push_back(&member.first);
    std::sort(keys.begin(), keys.end(), [](const auto* a, const auto* b) { return *a < *b; });
    const auto twice =
        std::adjacent_find(keys.begin(), keys.end(), [](const auto* a, const auto* b) { return *a == *b; });
    if (twice != keys.end()) refuse(fmt::format("the key \"{}\" stands twice in one object", reason_of(**twice)));
    close();
  }
  Json take() { return std::move(root_); }

 protected:
  struct Open {
    Json value;
    std::string key;
  };
  // A value is complete, inside of what is open.
  virtual void add(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (auto* array = std::get_if<Json::Array>(&open_.back().value.value_)) {
      array->push_back(std::move(value));
    } else {
      std::get<Json::Object>(open_.back().value.value_).emplace_back(std::move(open_.back().key), std::move(value));
    }
  }

  std::vector<Open> open_;

 private:
  void close() {
    Json done = std::move(open_.back().value);
    open_.pop_back();
    add(std::move(done));
  }

  Json root_;
};

namespace {

class PartsBuilder final : public JsonBuilder {
 public:
  PartsBuilder(const JsonSource& source, const std::vector<std::string_view>& large,
               const std::function<void(const JsonPart&)>& take)
      : source_(source), large_(large), take_(take) {}

 private:
  void add(Json value) override {
    if (!is_in_large_member()) {
      if (open_.size() <= 1) count_ = 0;
      return JsonBuilder::add(std::move(value));
    }
    const std::string& member = open_[0].key;
    const bool is_in_array = open_[1].value.if_array() != nullptr;
    std::string way = is_in_array ? fmt::format("{}[{}]", member, count_) : fmt::format("{}.{}", member, open_[1].key);
    ++count_;
    take_({.member = member,
           .key = is_in_array ? std::nullopt : std::optional<std::string_view>(open_[1].key),
           .before = open_[0].value,
           .value = JsonCursor(value, source_, std::move(way))});
  }
  bool is_in_large_member() const {
    return open_.size() == 2 && open_[0].value.if_object() != nullptr &&
           std::find(large_.begin(), large_.end(), open_[0].key) != large_.end();
  }

  const JsonSource& source_;
  const std::vector<std::string_view>& large_;
  const std::function<void(const JsonPart&)>& take_;
  size_t count_ = 0;  // of the parts of the member so far
};

}  // namespace

Json parse_json_in_parts(const ReadableFile& file, const JsonSource& source, const std::vector<std::string_view>& large,
                         const std::function<void(const JsonPart&)>& take, const JsonLimits& limits) {
  PartsBuilder builder(source, large, take);
  parse_json_events(file, source, builder, limits);
  return builder.take();
}

Json parse_json(std::string_view text, const JsonSource& source, const JsonLimits& limits) {
  JsonBuilder builder;
  parse_json_events(text, source, builder, limits);
  return builder.take();
}

Json read_json(FileSystem& fs, const std::string& path, ErrorKind kind, const JsonLimits& limits) {
  return parse_json(fs.read_text(path, limits.bytes), {.kind = kind, .file = path}, limits);
}

std::string_view Json::type_name() const {
  constexpr std::string_view kNames[] = {
      "null", "a boolean", "an integer", "an integer", "a number with a fraction", "a string", "an array", "an object"};
  return kNames[value_.index()];
}

const Json* Json::find(std::string_view key) const {
  const Object* object = if_object();
  if (object == nullptr) return nullptr;
  for (const Member& member : *object) {
    if (member.first == key) return &member.second;
  }
  return nullptr;
}

Json& Json::set(std::string_view key, Json value) {
  if (is_null()) value_ = Object();
  require(if_object() != nullptr, "Json::set of \"{}\" in {}; wanted an object", key, type_name());
  for (Member& member : std::get<Object>(value_)) {
    if (member.first == key) {
      member.second = std::move(value);
      return *this;
    }
  }
  std::get<Object>(value_).emplace_back(std::string(key), std::move(value));
  return *this;
}

Json& Json::push_back(Json value) {
  if (is_null()) value_ = Array();
  require(if_array() != nullptr, "Json::push_back on {}; wanted an array", type_name());
  std::get<Array>(value_).push_back(std::move(value));
  return *this;
}

namespace {

void write_string(std::string& out, std::string_view text) {
  require(is_utf8(text), "Json: a string of {} bytes is not UTF-8; wanted text", text.size());
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\r':
        out += "\\r";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          out += fmt::format("\\u{:04x}", unsigned(c));
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

void write_double(std::string& out, double value) {
  require(std::isfinite(value), "Json: the number {} is not finite; JSON has no such number", value);
  const std::string digits = fmt::format("{}", value);  // the shortest that reads back as the same double
  out += digits;
  if (digits.find_first_of(".e") == std::string::npos) out += ".0";
}

void start_line(std::string& out, bool is_on_lines, int indent) {
  if (!is_on_lines) return;
  out += '\n';
  out.append(size_t(2 * indent), ' ');
}

}  // namespace

void Json::write(std::string& out, int line_depth, int indent) const {
  const bool is_on_lines = line_depth > 0;
  if (const auto* value = if_bool()) {
    out += *value ? "true" : "false";
  } else if (const auto* integer = if_int64()) {
    fmt::format_to(std::back_inserter(out), "{}", *integer);
  } else if (const auto* large = if_uint64()) {
    fmt::format_to(std::back_inserter(out), "{}", *large);
  } else if (const auto* real = if_double()) {
    write_double(out, *real);
  } else if (const auto* text = if_string()) {
    write_string(out, *text);
  } else if (const auto* array = if_array()) {
    out += '[';
    for (size_t i = 0; i < array->size(); ++i) {
      if (i > 0) out += is_on_lines ? "," : ", ";
      start_line(out, is_on_lines, indent + 1);
      (*array)[i].write(out, line_depth - 1, indent + 1);
    }
    if (!array->empty()) start_line(out, is_on_lines, indent);
    out += ']';
  } else if (const auto* object = if_object()) {
    out += '{';
    for (size_t i = 0; i < object->size(); ++i) {
      if (i > 0) out += is_on_lines ? "," : ", ";
      start_line(out, is_on_lines, indent + 1);
      write_string(out, (*object)[i].first);
      out += ": ";
      (*object)[i].second.write(out, line_depth - 1, indent + 1);
    }
    if (!object->empty()) start_line(out, is_on_lines, indent);
    out += '}';
  } else {
    out += "null";
  }
}

std::string Json::text(int line_depth) const {
  std::string out;
  write(out, line_depth, 0);
  return out;
}

void JsonCursor::refuse(std::string_view what) const {
  fail(source_->kind, {.what = fmt::format("{}: {} {}", source_->file, way_.empty() ? "the whole" : way_, what),
                       .where = source_->file,
                       .why = "",
                       .fix = "the file is damaged or of another program; write or fetch it again"});
}

void JsonCursor::refuse_type(std::string_view wanted) const {
  refuse(fmt::format("is {}; wanted {}", value_->type_name(), wanted));
}

JsonCursor JsonCursor::operator[](std::string_view key) const {
  const auto found = find(key);
  if (!found) refuse(fmt::format("has no key \"{}\"", key));
  return *found;
}

std::optional<JsonCursor> JsonCursor::find(std::string_view key) const {
  if (value_->if_object() == nullptr) refuse_type("an object");
  const Json* member = value_->find(key);
  if (member == nullptr) return std::nullopt;
  return JsonCursor(*member, *source_, way_.empty() ? std::string(key) : fmt::format("{}.{}", way_, key));
}

JsonCursor JsonCursor::at(size_t index) const {
  if (index >= size()) refuse(fmt::format("has {} elements; wanted one more", size()));
  return JsonCursor((*value_->if_array())[index], *source_, fmt::format("{}[{}]", way_, index));
}

size_t JsonCursor::size() const {
  if (value_->if_array() == nullptr) refuse_type("an array");
  return value_->if_array()->size();
}

void JsonCursor::allow_keys(std::initializer_list<std::string_view> keys) const {
  if (value_->if_object() == nullptr) refuse_type("an object");
  for (const auto& member : *value_->if_object()) {
    if (std::find(keys.begin(), keys.end(), member.first) == keys.end()) {
      refuse(fmt::format("has an unknown key \"{}\"", reason_of(member.first)));
    }
  }
}

bool JsonCursor::as_bool() const {
  if (value_->if_bool() == nullptr) refuse_type("a boolean");
  return *value_->if_bool();
}

int64_t JsonCursor::as_int64(int64_t lowest, int64_t highest) const {
  if (value_->if_uint64() != nullptr) refuse(fmt::format("is {}; wanted at most {}", *value_->if_uint64(), highest));
  if (value_->if_int64() == nullptr) refuse_type("an integer");
  const int64_t integer = *value_->if_int64();
  if (integer < lowest || integer > highest) {
    refuse(fmt::format("is {}; wanted {} to {}", integer, lowest, highest));
  }
  return integer;
}

uint64_t JsonCursor::as_uint64() const {
  if (value_->if_uint64() != nullptr) return *value_->if_uint64();
  return uint64_t(as_int64(0));
}

double JsonCursor::as_double() const {
  if (value_->if_double() != nullptr) return *value_->if_double();
  constexpr int64_t kExact = int64_t(1) << 53;
  return double(as_int64(-kExact, kExact));
}

const std::string& JsonCursor::as_string() const {
  if (value_->if_string() == nullptr) refuse_type("a string");
  return *value_->if_string();
}

bool is_utf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const auto byte = [&](size_t i) { return uint32_t(static_cast<unsigned char>(text[at + i])); };
    const uint32_t lead = byte(0);
    const size_t length = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
    if (length == 0 || length > text.size() - at) return false;
    uint32_t code = length == 1 ? lead : lead & (0x7fu >> length);
    for (size_t i = 1; i < length; ++i) {
      if ((byte(i) & 0xc0) != 0x80) return false;
      code = code << 6 | (byte(i) & 0x3f);
    }
    constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (code < kSmallest[length] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return false;
    at += length;
  }
  return true;
}

}  // namespace octet
