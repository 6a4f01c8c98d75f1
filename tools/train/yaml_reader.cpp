#include "tools/train/yaml_reader.h"

#include <yaml-cpp/depthguard.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <optional>
#include <set>
#include <sstream>

#include "core/base/error.h"
#include "core/base/nearest.h"
#include "tools/data/utf8.h"
#include "tools/train/config_keys.h"

namespace octet {
namespace {

constexpr size_t kMaxProblems = 50;  // a user mends the first screen; a hostile file would go on for ever
constexpr size_t kMaxDepth = 32;     // configurations nest three deep
constexpr size_t kMaxShownLine = 120;
// The parser looks for the end of a possible key up to the end of the line, in time that grows with its square.
constexpr size_t kMaxLineBytes = 4096;
constexpr size_t kMaxValues = 20000;  // keys, values, lists and sections; a configuration has about 60 keys

// Thrown to leave the YAML parser when there is no point in going on.
struct StopReading {};

struct Place {
  size_t line = 1, column = 1, offset = 0;
};

// The text of the file and the places in it. Columns count characters, not bytes.
class Source {
 public:
  Source(std::string_view text, const std::string& name) : text_(text), name_(name) {
    starts_.push_back(0);
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] == '\n') starts_.push_back(i + 1);
    }
  }

  std::string_view text() const { return text_; }
  const std::string& name() const { return name_; }

  Place at(size_t offset) const {
    offset = std::min(offset, text_.size());
    const size_t line = size_t(std::upper_bound(starts_.begin(), starts_.end(), offset) - starts_.begin());
    size_t column = 1;
    for (size_t i = starts_[line - 1]; i < offset; ++i) column += (uint8_t(text_[i]) & 0xc0) != 0x80;
    return {line, column, offset};
  }
  Place at(const YAML::Mark& mark) const { return at(mark.pos < 0 ? text_.size() : size_t(mark.pos)); }

  std::string line_place(const Place& place) const { return fmt::format("{}:{}", name_, place.line); }
  std::string full_place(const Place& place) const { return fmt::format("{}:{}:{}", name_, place.line, place.column); }

  // `key: value` as it stands at the place, with `length` bytes of the key replaced: up to the end of a block line, or
  // to the end of one entry of a flow map. Only the key where its value goes on beyond that.
  std::string corrected_entry(const Place& place, size_t length, std::string_view key) const {
    const size_t begin = starts_[place.line - 1];
    const size_t end = std::min({text_.find('\n', begin), text_.find('\r', begin), text_.size()});
    if (place.offset + length > end) return fmt::format("{}:", key);
    std::string_view rest = text_.substr(place.offset + length, end - place.offset - length);
    const bool is_flow = text_.substr(begin, end - begin).find('{') != std::string_view::npos;
    if (is_flow) rest = rest.substr(0, rest.find_first_of(",}"));
    if (is_flow && rest.find_first_of("[{") != std::string_view::npos) rest = ":";
    return rest.size() > kMaxShownLine ? fmt::format("{}:", key) : fmt::format("{}{}", key, rest);
  }

 private:
  std::string_view text_;
  const std::string& name_;
  std::vector<size_t> starts_;  // of the lines
};

class Reader final : public YAML::EventHandler {
 public:
  Reader(Config& config, const Source& source) : source_(source), keys_(config_keys(config)) {}

  // Whether the characters of the file may be handed to the YAML parser at all.
  bool check_characters() {
    const std::string_view text = source_.text();
    bool is_line_reported = false;
    const auto report = [&](size_t offset, std::string what, std::string fix) {
      if (is_line_reported) return;
      is_line_reported = true;
      add(source_.at(offset), std::move(what), {}, std::move(fix));
    };
    // The parser takes in a whole flow map or list before it reports the first value of it, so its marks are counted.
    const auto marks = std::count_if(text.begin(), text.end(), [](char c) {
      return std::string_view("[{,:?\"'*&!").find(c) != std::string_view::npos;
    });
    if (size_t(marks) > kMaxValues) {
      add(source_.at(0), fmt::format("{} brackets, commas, colons and quotes; wanted at most {}", marks, kMaxValues),
          {}, "a configuration has about 60 keys");
      return false;
    }
    bool is_before_content = true;
    for (size_t i = 0; i < text.size();) {
      const size_t length = utf8_length(text, i);
      const uint8_t c = uint8_t(text[i]);
      const bool is_line_start = i == 0 || text[i - 1] == '\n';
      if (is_line_start) {
        is_line_reported = false;
        const size_t line_bytes = std::min(text.find('\n', i), text.size()) - i;
        if (line_bytes > kMaxLineBytes) {
          report(i, fmt::format("a line of {} bytes; wanted at most {}", line_bytes, kMaxLineBytes),
                 "write one key a line");
        }
      }
      if (length == 0) {
        report(i, fmt::format("byte 0x{:02x} is not UTF-8", c), "save the file as UTF-8");
      } else if (text.substr(i, 3) == "\xef\xbb\xbf") {
        report(i, "a byte order mark (U+FEFF)", "save the file as UTF-8 without one");
      } else if (c == '\t') {
        report(i, "a tab", "write spaces; inside a text in double quotes, write \\t");
      } else if ((c < 0x20 && c != '\n' && !(c == '\r' && text.substr(i, 2) == "\r\n")) || c == 0x7f) {
        report(i, fmt::format("control character 0x{:02x}", c), "remove it");
      } else if (is_line_start && is_before_content && c == '%') {
        report(i, "a YAML directive", "remove the line");
      } else if (is_before_content && c != ' ' && c != '\n' && c != '\r') {
        // A comment runs to the end of its line; anything else is content.
        if (c == '#') {
          i = std::min(text.find('\n', i), text.size());
          continue;
        }
        is_before_content = false;
      }
      i += std::max<size_t>(length, 1);
    }
    return reports_.empty();
  }

  void parse() {
    try {
      std::istringstream stream{std::string(source_.text())};
      try {
        YAML::Parser parser(stream);
        if (parser.HandleNextDocument(*this)) parser.HandleNextDocument(*this);
        return;
      } catch (const YAML::DeepRecursion& error) {
        too_deep(source_.at(error.mark));
      } catch (const YAML::Exception& error) {
        add(source_.at(error.mark), "the YAML breaks off here: " + error.msg, {},
            "look at the indentation, the brackets and quotes, and for a space after each colon, here and just before");
      }
    } catch (const StopReading&) {
      // The reports say why.
    }
    is_whole_ = false;
  }

  void apply(const std::vector<std::string>& overrides) {
    for (const std::string& text : overrides) apply(text);
  }

  // Adds what Config::validate finds, but for what follows from a key that could not be read.
  void validate(const Config& config, const ConfigCheck& check) {
    if (!is_whole_) return;
    Problems problems;
    config.validate(problems);
    if (check) check(config, problems);
    for (const Problem& problem : problems.found()) {
      const bool follows = std::any_of(unread_.begin(), unread_.end(), [&](const std::string& path) {
        return problem.key == path || problem.key.starts_with(path + ".") ||
               problem.what.find(path) != std::string::npos;
      });
      if (follows) continue;
      const auto place = places_.find(problem.key);
      reports_.push_back({.what = problem.key + " " + problem.what,
                          .where = place != places_.end() ? place->second : problem.key + " is at its default",
                          .why = {},
                          .fix = meaning(*find_key(keys_, problem.key))});
    }
  }

  std::vector<Report> take_reports() { return std::move(reports_); }

  Origins origins() const {
    Origins all;
    for (const ConfigKey& key : keys_) {
      if (key.is_section) continue;
      const auto found = origins_.find(key.path);
      all[key.path] = found == origins_.end() ? "default" : found->second;
    }
    return all;
  }

  // The parser's events.
  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++num_documents_ > 1) {
      add(source_.at(mark), "a second document", "only the first would be read", "remove it; one file is one run");
      throw StopReading();
    }
  }
  void OnDocumentEnd() override {}
  void OnAnchor(const YAML::Mark&, const std::string&) override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const Place place = source_.at(mark);
    refuse_properties(place, "", anchor);
    if (stack_.empty()) return;  // an empty file: all defaults
    Frame& top = stack_.back();
    if (top.kind == Frame::kSkip) return;
    if (top.kind == Frame::kList) {
      add(place, top.path + " has an empty entry", {}, fmt::format("write {}", find_key(keys_, top.path)->type));
      top.is_broken = true;
    } else if (top.key_is_next) {
      add(place, "a key is empty", {}, "write `key: value`");
      skip_next_value(top);
    } else {
      if (!top.skips_value) {
        const ConfigKey& key = *top.key;
        add(top.key_place, key.path + " has no value", {},
            key.is_section ? "remove the line, which leaves the defaults"
                           : fmt::format("write `{}: {}`, or remove the line for the default", key.name, key.print()));
        unread_.insert(key.path);
      }
      value_done();
    }
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    add(source_.at(mark), "an alias (*name)", "one value in two places is easy to change in one of them by mistake",
        "write the value out");
    if (stack_.empty()) return;
    Frame& top = stack_.back();
    if (top.kind == Frame::kList) {
      top.is_broken = true;
    } else if (top.kind == Frame::kSection) {
      if (top.key_is_next) return skip_next_value(top);
      if (top.key != nullptr) unread_.insert(top.key->path);
      value_done();
    }
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    const Place place = source_.at(mark);
    const char first = place.offset < source_.text().size() ? source_.text()[place.offset] : '\0';
    // The parser gives plain scalars the tag "?" and all others "!", which may be written out as well.
    const bool is_tagged = tag != "?" && (tag != "!" || first == '!');
    refuse_properties(place, is_tagged ? tag : "", anchor);
    if (value.find('\0') != std::string::npos) {
      add(place, "a text contains the character 0", {}, "remove the \\0");
    }
    const ScalarText scalar{value, tag == "!"};
    if (stack_.empty()) {
      add(place, "the file is one text; wanted sections of keys", {}, "write `section: {key: value}`");
      throw StopReading();
    }
    Frame& top = stack_.back();
    if (top.kind == Frame::kSkip) return;
    if (top.kind == Frame::kList) {
      top.scalars.push_back(scalar);
      top.scalar_places.push_back(place);
      return;
    }
    if (top.key_is_next) return on_key(top, place, scalar);
    if (!top.skips_value) {
      const ConfigKey& key = *top.key;
      if (key.is_section || key.is_list) {
        add(place, fmt::format("{} is {}; wanted {}", key.path, shown(value), key.type), {},
            key.is_section ? fmt::format("write `{}: {{key: value}}` with keys from {}", key.name, keys_of(key.path))
                           : fmt::format("write `{}: [{}]`", key.name, shown(value)));
        unread_.insert(key.path);
      } else {
        assign(key, {scalar}, {place}, place);
      }
    }
    value_done();
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    start(source_.at(mark), tag, anchor, /*is_list=*/true);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    start(source_.at(mark), tag, anchor, /*is_list=*/false);
  }
  void OnSequenceEnd() override {
    const Frame list = std::move(stack_.back());
    stack_.pop_back();
    if (list.kind == Frame::kList) {
      if (list.is_broken) {
        unread_.insert(list.path);
      } else {
        assign(*find_key(keys_, list.path), list.scalars, list.scalar_places, list.place);
      }
    }
    if (!list.is_key) value_done();
  }
  void OnMapEnd() override {
    const bool is_key = stack_.back().is_key;
    stack_.pop_back();
    if (!is_key) value_done();
  }

 private:
  struct Frame {
    enum Kind { kSection, kList, kSkip } kind = kSkip;
    std::string path;     // of the section or the list
    Place place;          // of its first character
    bool is_key = false;  // stands in place of a key: its value is still to come
    // A section:
    bool key_is_next = true;
    bool skips_value = false;        // the key is no key, so its value is not looked at
    const ConfigKey* key = nullptr;  // whose value comes next
    Place key_place;
    std::map<std::string, size_t> lines;
    // A list:
    std::vector<ScalarText> scalars;
    std::vector<Place> scalar_places;
    bool is_broken = false;
  };

  void add(const Place& place, std::string what, std::string why, std::string fix) {
    reports_.push_back(
        {.what = std::move(what), .where = source_.full_place(place), .why = std::move(why), .fix = std::move(fix)});
    if (reports_.size() >= kMaxProblems) throw StopReading();
  }

  void too_deep(const Place& place) {
    add(place, fmt::format("nesting deeper than {}", kMaxDepth), {}, "remove it; a configuration nests three deep");
  }

  static std::string shown(const std::string& text) { return text.size() <= 60 ? text : text.substr(0, 40) + "..."; }

  std::string keys_of(std::string_view section) const {
    std::string text;
    for (const ConfigKey& key : keys_) {
      if (key.parent == section) text += (text.empty() ? "" : ", ") + key.name;
    }
    return text;
  }

  // What every event begins with.
  void refuse_properties(const Place& place, const std::string& tag, YAML::anchor_t anchor) {
    if (++num_values_ > kMaxValues) {
      add(place, fmt::format("more than {} keys and values", kMaxValues), {}, "a configuration has about 60 keys");
      throw StopReading();
    }
    if (!tag.empty()) {
      add(place, fmt::format("a tag ({})", shown(tag)), "the key decides the type of its value", "remove the tag");
    }
    if (anchor != 0) {
      add(place, "an anchor (&name)", "one value in two places is easy to change in one of them by mistake",
          "remove it, and write the value out where it is meant");
    }
  }

  void skip_next_value(Frame& section) {
    section.key_is_next = false;
    section.skips_value = true;
    section.key = nullptr;
  }

  void value_done() {
    if (!stack_.empty() && stack_.back().kind == Frame::kSection) {
      stack_.back().key_is_next = true;
      stack_.back().skips_value = false;
    }
  }

  void on_key(Frame& section, const Place& place, const ScalarText& scalar) {
    const std::string& name = scalar.text;
    section.key_is_next = false;
    section.skips_value = false;
    section.key_place = place;
    const std::string path = section.path.empty() ? name : section.path + "." + name;
    if (const auto [found, is_new] = section.lines.emplace(name, place.line); !is_new) {
      add(place, fmt::format("{} is given twice, first on line {}", shown(path), found->second),
          "one of the two values would be lost", "remove one of the two");
      return skip_next_value(section);
    }
    section.key = find_key(keys_, path);
    if (section.key != nullptr && section.key->parent == section.path) return;
    if (name == "<<") {
      add(place, "a merge key (<<)", {}, "write the keys out");
      return skip_next_value(section);
    }
    const ConfigKey* nearest = nearest_key(keys_, section.path, name);
    std::string fix;
    if (nearest == nullptr) {
      fix = section.path.empty() ? "the sections are " + keys_of("")
                                 : fmt::format("the keys of {} are {}", section.path, keys_of(section.path));
    } else if (nearest->parent == section.path) {
      const size_t length = name.size() + (scalar.is_quoted ? 2 : 0);
      fix = fmt::format("did you mean {}? write `{}`", nearest->name,
                        source_.corrected_entry(place, length, nearest->name));
    } else if (nearest->parent.empty()) {
      fix = fmt::format("did you mean {}? It stands at the left margin", nearest->path);
    } else {
      fix = fmt::format("did you mean {}? Move it into the section {}", nearest->path, nearest->parent);
    }
    add(place, fmt::format("{} is no key", shown(path)), "an unknown key would be a setting that does nothing",
        std::move(fix));
    // Go on as if the nearest key had been written, so that what stands under a misspelt section is read as well.
    if (nearest != nullptr && nearest->parent == section.path && !section.lines.contains(nearest->name)) {
      section.key = nearest;
    } else {
      skip_next_value(section);
      if (nearest != nullptr) unread_.insert(nearest->path);
    }
  }

  void start(const Place& place, const std::string& tag, YAML::anchor_t anchor, bool is_list) {
    refuse_properties(place, tag == "?" ? "" : tag, anchor);
    if (stack_.size() >= kMaxDepth) {
      too_deep(place);
      throw StopReading();
    }
    Frame frame;
    frame.place = place;
    if (stack_.empty()) {
      if (is_list) {
        add(place, "the file is a list; wanted sections of keys", {}, "write `section: {key: value}`");
        throw StopReading();
      }
      frame.kind = Frame::kSection;
    } else if (Frame& top = stack_.back(); top.kind == Frame::kList) {
      add(place,
          fmt::format("{} has {} inside; wanted {}", top.path, is_list ? "a list" : "a section",
                      find_key(keys_, top.path)->type),
          {}, "take the inner brackets away");
      top.is_broken = true;
    } else if (top.kind == Frame::kSection && top.key_is_next) {
      add(place, is_list ? "a list stands where a key was wanted" : "a section stands where a key was wanted", {},
          "write `key: value`");
      skip_next_value(top);
      frame.is_key = true;
    } else if (top.kind == Frame::kSection && !top.skips_value) {
      const ConfigKey& key = *top.key;
      frame.path = key.path;
      if (is_list ? key.is_list : key.is_section) {
        frame.kind = is_list ? Frame::kList : Frame::kSection;
      } else {
        const std::string fix = key.is_section ? fmt::format("write `{}: {{key: value}}`", key.name)
                                               : fmt::format("write `{}: {}`", key.name, key.print());
        add(place, fmt::format("{} is {}; wanted {}", key.path, is_list ? "a list" : "a section", key.type), {}, fix);
        unread_.insert(key.path);
      }
    }
    stack_.push_back(std::move(frame));
  }

  static std::string meaning(const ConfigKey& key) { return fmt::format("{}: {}", key.name, key.documentation); }

  // The corrected line, or what the key means where no value is plainly meant.
  static std::string fix_of(const ConfigKey& key, const std::vector<ScalarText>& scalars, const Mistake& mistake) {
    if (mistake.corrected.empty()) return meaning(key);
    if (!key.is_list) return fmt::format("write `{}: {}`", key.name, mistake.corrected);
    std::string list;
    for (size_t i = 0; i < std::min<size_t>(scalars.size(), 16); ++i) {
      list += (i == 0 ? "" : ", ") + (i == mistake.index ? mistake.corrected : shown(scalars[i].text));
    }
    return fmt::format("write `{}: [{}]`", key.name, list);
  }

  void assign(const ConfigKey& key, const std::vector<ScalarText>& scalars, const std::vector<Place>& places,
              const Place& place) {
    if (const auto mistake = key.assign(scalars)) {
      const Place& at = places[mistake->index];
      add(at, fmt::format("{} {}", key.path, mistake->what), {}, fix_of(key, scalars, *mistake));
      unread_.insert(key.path);
      return;
    }
    places_[key.path] = source_.full_place(place);
    origins_[key.path] = source_.line_place(place);
  }

  void apply(const std::string& text) {
    const auto report = [&](std::string what, std::string why, std::string fix) {
      if (reports_.size() >= kMaxProblems) return;
      reports_.push_back(
          {.what = std::move(what), .where = "--set " + shown(text), .why = std::move(why), .fix = std::move(fix)});
    };
    for (size_t i = 0; i < text.size();) {
      const size_t length = utf8_length(text, i);
      if (length == 0) {
        // The text itself must not reach a terminal.
        reports_.push_back(
            {.what = fmt::format("byte {} of an override is 0x{:02x}, which is not UTF-8", i, uint8_t(text[i])),
             .where = "--set",
             .why = {},
             .fix = "give the text as UTF-8"});
        return;
      }
      i += length;
    }
    const size_t equals = text.find('=');
    if (equals == std::string::npos) {
      return report("an override has no value", {}, fmt::format("write --set {}=VALUE", shown(text)));
    }
    const std::string path = text.substr(0, equals), value = text.substr(equals + 1);
    const ConfigKey* key = find_key(keys_, path);
    if (key == nullptr) {
      const size_t dot = path.rfind('.');
      const ConfigKey* nearest = dot == std::string::npos ? nearest_key(keys_, "", path)
                                                          : nearest_key(keys_, std::string_view(path).substr(0, dot),
                                                                        std::string_view(path).substr(dot + 1));
      // A misspelt section has no keys of its own, so the whole path is compared.
      if (dot != std::string::npos) {
        std::vector<std::string> paths;
        for (const ConfigKey& each : keys_) paths.push_back(each.path);
        const ConfigKey* whole = find_key(keys_, nearest_name(path, paths));
        if (nearest == nullptr ||
            (whole != nullptr && edit_distance(path, whole->path) < edit_distance(path, nearest->path))) {
          nearest = whole;
        }
      }
      if (nearest != nullptr) unread_.insert(nearest->path);
      return report(fmt::format("{} is no key", shown(path)), "an unknown key would be a setting that does nothing",
                    nearest == nullptr ? "the sections are " + keys_of("")
                                       : fmt::format("did you mean --set {}={}?", nearest->path, shown(value)));
    }
    if (key->is_section) {
      return report(fmt::format("{} is a section", path), {},
                    fmt::format("set one of its keys: {}", keys_of(key->path)));
    }
    std::vector<ScalarText> scalars;
    if (key->is_list) {
      std::string_view rest = value;
      if (rest.size() >= 2 && rest.front() == '[' && rest.back() == ']') rest = rest.substr(1, rest.size() - 2);
      while (rest.find_first_not_of(' ') != std::string_view::npos) {
        const size_t comma = std::min(rest.find(','), rest.size());
        std::string_view entry = rest.substr(0, comma);
        while (!entry.empty() && entry.front() == ' ') entry.remove_prefix(1);
        while (!entry.empty() && entry.back() == ' ') entry.remove_suffix(1);
        scalars.push_back({std::string(entry)});
        rest.remove_prefix(std::min(comma + 1, rest.size()));
      }
    } else {
      scalars.push_back({value});
    }
    if (const auto mistake = key->assign(scalars)) {
      unread_.insert(key->path);
      return report(fmt::format("{} {}", key->path, mistake->what), {},
                    mistake->corrected.empty() || key->is_list
                        ? meaning(*key)
                        : fmt::format("write --set {}={}", key->path, mistake->corrected));
    }
    places_[key->path] = "--set " + shown(text);
    origins_[key->path] = "--set";
  }

  const Source& source_;
  std::vector<ConfigKey> keys_;
  std::vector<Frame> stack_;
  std::vector<Report> reports_;
  std::set<std::string> unread_;               // keys and sections that a report already names
  std::map<std::string, std::string> places_;  // for messages
  std::map<std::string, std::string> origins_;
  int num_documents_ = 0;
  size_t num_values_ = 0;
  bool is_whole_ = true;
};

}  // namespace

Config read_config(std::string_view text, const std::string& name, const std::vector<std::string>& overrides,
                   Origins* origins, const ConfigCheck& check) {
  if (text.size() > kMaxConfigBytes) {
    fail(ErrorKind::kConfig,
         {.what = fmt::format("the configuration has {} bytes; wanted at most {}", text.size(), kMaxConfigBytes),
          .where = name,
          .why = {},
          .fix = "give the YAML file of a run, such as configs/quickstart.yaml"});
  }
  Config config;
  const Source source(text, name);
  Reader reader(config, source);
  bool may_parse = false;
  try {
    may_parse = reader.check_characters();
  } catch (const StopReading&) {
    // The list of reports is full.
  }
  if (may_parse) {
    reader.parse();
    reader.apply(overrides);
    reader.validate(config, check);
  }
  if (std::vector<Report> reports = reader.take_reports(); !reports.empty()) {
    fail(ErrorKind::kConfig, "this configuration cannot be run", std::move(reports));
  }
  if (origins != nullptr) *origins = reader.origins();
  return config;
}

Config load_config(FileSystem& files, const std::string& path, const std::vector<std::string>& overrides,
                   Origins* origins, const ConfigCheck& check) {
  if (!files.exists(path)) {
    std::string fix = "give the YAML file of a run, such as configs/quickstart.yaml";
    if (const std::string directory = directory_of(path); files.exists(directory)) {
      std::vector<std::string> names;
      for (const std::string& name : files.list(directory)) {
        if (name.ends_with(".yaml") || name.ends_with(".yml")) names.push_back(name);
      }
      const std::string nearest = nearest_name(file_name_of(path), names);
      if (!nearest.empty()) fix = fmt::format("did you mean {}?", join_path(directory, nearest));
    }
    fail(ErrorKind::kConfig,
         {.what = fmt::format("there is no configuration {}", path), .where = path, .why = {}, .fix = fix});
  }
  const FileInfo info = files.info(path);
  if (!info.is_regular || info.size > kMaxConfigBytes) {
    fail(ErrorKind::kConfig,
         {.what = info.is_regular
                      ? fmt::format("the configuration has {} bytes; wanted at most {}", info.size, kMaxConfigBytes)
                      : "the configuration is no regular file (a directory, link, pipe or device)",
          .where = path,
          .why = {},
          .fix = "give the YAML file of a run, such as configs/quickstart.yaml"});
  }
  return read_config(files.read_text(path, kMaxConfigBytes), path, overrides, origins, check);
}

std::string print_config(const Config& config, const Origins* origins) {
  Config copy = config;  // the list of keys refers to members that may be assigned
  const std::vector<ConfigKey> keys = config_keys(copy);
  std::vector<std::pair<std::string, std::string>> lines;  // text, comment
  size_t width = 0;
  for (const ConfigKey& key : keys) {
    const size_t depth = size_t(std::count(key.path.begin(), key.path.end(), '.'));
    std::string line = std::string(2 * depth, ' ') + key.name + ":";
    std::string comment;
    if (!key.is_section) {
      line += fmt::format(" {}", key.print());
      if (origins != nullptr) {
        const auto found = origins->find(key.path);
        comment = found == origins->end() ? "default" : found->second;
        // The name of a file may hold anything, and a comment ends with its line.
        std::replace_if(
            comment.begin(), comment.end(), [](char c) { return uint8_t(c) < 0x20 || uint8_t(c) >= 0x7f; }, '?');
        if (line.size() <= 60) width = std::max(width, line.size());
      }
    }
    lines.emplace_back(std::move(line), std::move(comment));
  }
  std::string text;
  for (const auto& [line, comment] : lines) {
    text += comment.empty() ? line + "\n" : fmt::format("{:<{}}  # {}\n", line, width, comment);
  }
  return text;
}

}  // namespace octet
