// JSON (RFC 8259), read strictly: a key twice in one object, an integer that no 64-bit type holds, bytes that are not
// UTF-8, a byte order mark, nesting and sizes over the limits are errors. No number is ever converted: 1 is an integer,
// 1.0 is a double. Objects keep the order of their keys, so that the same value is always the same text.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/base/error.h"
#include "core/base/file_system.h"

namespace octet {

class Json {
 public:
  using Member = std::pair<std::string, Json>;
  using Array = std::vector<Json>;
  using Object = std::vector<Member>;

  Json() = default;  // null
  Json(bool value) : value_(value) {}
  Json(int value) : value_(int64_t(value)) {}
  Json(int64_t value) : value_(value) {}
  Json(uint64_t value) {  // one integer, one form: unsigned only where signed does not hold it
    if (value <= uint64_t(INT64_MAX)) {
      value_ = int64_t(value);
    } else {
      value_ = value;
    }
  }
  Json(double value) : value_(value) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(std::string_view value) : value_(std::string(value)) {}
  Json(const char* value) : value_(std::string(value)) {}
  static Json array() { return Json(Value(Array())); }
  static Json object() { return Json(Value(Object())); }

  bool is_null() const { return value_.index() == 0; }
  // Null where the value is of another type.
  const bool* if_bool() const { return std::get_if<bool>(&value_); }
  const int64_t* if_int64() const { return std::get_if<int64_t>(&value_); }
  const uint64_t* if_uint64() const { return std::get_if<uint64_t>(&value_); }  // only above INT64_MAX
  const double* if_double() const { return std::get_if<double>(&value_); }
  const std::string* if_string() const { return std::get_if<std::string>(&value_); }
  const Array* if_array() const { return std::get_if<Array>(&value_); }
  const Object* if_object() const { return std::get_if<Object>(&value_); }
  // "null", "a boolean", "an integer", "a number with a fraction", "a string", "an array", "an object"
  std::string_view type_name() const;

  // The member of an object; null where there is none, or this is no object.
  const Json* find(std::string_view key) const;
  // Sets a member of an object (an existing one keeps its place) or adds to an array; null becomes one first.
  Json& set(std::string_view key, Json value);
  Json& push_back(Json value);

  // Compact text. With line_depth 1, each member of the outermost value stands on a line of its own, and so on inwards.
  // Numbers that are not finite and strings that are not UTF-8 are argument errors.
  std::string text(int line_depth = 0) const;
  bool operator==(const Json&) const = default;

 private:
  friend class JsonBuilder;
  using Value = std::variant<std::monostate, bool, int64_t, uint64_t, double, std::string, Array, Object>;
  explicit Json(Value value) : value_(std::move(value)) {}
  void write(std::string& out, int line_depth, int indent) const;

  Value value_;
};

// Where a text came from, for errors: their kind, the file, and the offset in it of the first byte of the text.
struct JsonSource {
  ErrorKind kind = ErrorKind::kData;
  std::string file;
  uint64_t offset = 0;
};

struct JsonLimits {
  uint64_t bytes = uint64_t(64) << 20;
  int depth = 64;  // objects and arrays around a value
  uint64_t values = uint64_t(1) << 24;
};

// What parse_json_events reports, in the order of the text. Strings may be moved from.
class JsonEvents {
 public:
  virtual ~JsonEvents() = default;
  virtual void null() = 0;
  virtual void boolean(bool value) = 0;
  virtual void integer(int64_t value) = 0;
  virtual void large_integer(uint64_t value) = 0;  // above INT64_MAX
  virtual void real(double value) = 0;
  virtual void string(std::string& value) = 0;
  virtual void begin_array() = 0;
  virtual void end_array() = 0;
  virtual void begin_object() = 0;
  virtual void key(std::string& name) = 0;
  virtual void end_object() = 0;

 protected:
  // Throws an error of the source's kind with the file and the byte where the reader is.
  [[noreturn]] void refuse(std::string what) const;

 private:
  friend struct JsonEventsState;
  const JsonSource* source_ = nullptr;
  uint64_t position_ = 0;
};

// Reads without building values: memory does not grow with the text, nor with the file, of which 64 KiB are there at a
// time. Does not look for duplicate keys.
void parse_json_events(std::string_view text, const JsonSource& source, JsonEvents& events,
                       const JsonLimits& limits = {});
void parse_json_events(const ReadableFile& file, const JsonSource& source, JsonEvents& events,
                       const JsonLimits& limits = {});
Json parse_json(std::string_view text, const JsonSource& source, const JsonLimits& limits = {});
// Reads a whole file; a file that cannot be read is an error of the file system's kind.
Json read_json(FileSystem& fs, const std::string& path, ErrorKind kind, const JsonLimits& limits = {});

// A value together with the way to it, so that what is wrong with it is said in full:
// "manifest.json: tensors[3].step is a string; wanted an integer". Refers to both of its arguments.
class JsonCursor {
 public:
  JsonCursor(const Json& value, const JsonSource& source, std::string way = {})
      : value_(&value), source_(&source), way_(std::move(way)) {}

  const Json& value() const { return *value_; }
  JsonCursor operator[](std::string_view key) const;  // must be there
  std::optional<JsonCursor> find(std::string_view key) const;
  JsonCursor at(size_t index) const;
  size_t size() const;  // of an array
  // The value must be an object with no other keys than these.
  void allow_keys(std::initializer_list<std::string_view> keys) const;

  bool as_bool() const;
  int64_t as_int64(int64_t lowest = INT64_MIN, int64_t highest = INT64_MAX) const;
  uint64_t as_uint64() const;
  double as_double() const;  // an integer is one if a double holds it exactly
  const std::string& as_string() const;

  // Throws an error of the source's kind: "FILE: WAY what".
  [[noreturn]] void refuse(std::string_view what) const;

 private:
  [[noreturn]] void refuse_type(std::string_view wanted) const;

  const Json* value_;
  const JsonSource* source_;
  std::string way_;
};

// A part of a large member: an element of an array, or what an object has under a key.
struct JsonPart {
  std::string_view member;              // the large member, of the outermost object
  std::optional<std::string_view> key;  // of the part, where the member is an object
  const Json& before;                   // the outermost object as far as it is read, without its large members' parts
  JsonCursor value;                     // lives as long as the call
};
// Reads an object whose members named in `large` are not kept: each part of one is handed over when it is complete, and
// of the member an empty array or object remains. So memory is that of the rest. That a key of a large object stands
// twice is not noticed.
Json parse_json_in_parts(const ReadableFile& file, const JsonSource& source, const std::vector<std::string_view>& large,
                         const std::function<void(const JsonPart&)>& take, const JsonLimits& limits = {});

bool is_utf8(std::string_view text);

}  // namespace octet
