#include "tools/data/document_source.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <cstring>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/io/json.h"

namespace octet {
namespace {

constexpr int kMaxDirectoryDepth = 64;
constexpr uint64_t kReadBytes = 4 << 20;
constexpr int64_t kBadLinesNamed = 10;  // the rest is counted

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// The name of the compression that a file's first bytes are of, or null.
const char* compression_of(std::string_view head) {
  constexpr std::pair<std::string_view, const char*> kMagics[] = {{"\x1f\x8b", "gzip"},
                                                                  {"\x28\xb5\x2f\xfd", "zstd"},
                                                                  {"BZh", "bzip2"},
                                                                  {"\xfd\x37zXZ", "xz"},
                                                                  {"PK\x03\x04", "zip"}};
  for (const auto& [magic, name] : kMagics) {
    if (head.substr(0, magic.size()) == magic) return name;
  }
  return nullptr;
}

// Takes the value of one key of the outermost object.
class TextField final : public JsonEvents {
 public:
  TextField(const std::string& key, const std::string& where) : key_(key), where_(where) {}
  void null() override { other("null"); }
  void boolean(bool) override { other("a boolean"); }
  void integer(int64_t) override { other("a number"); }
  void large_integer(uint64_t) override { other("a number"); }
  void real(double) override { other("a number"); }
  void string(std::string& value) override {
    if (depth_ == 0) other("a string");
    if (depth_ == 1 && is_wanted_) text_ = std::move(value), is_wanted_ = false;
  }
  void begin_array() override {
    other("an array");
    ++depth_;
  }
  void end_array() override { --depth_; }
  void begin_object() override {
    if (depth_ > 0) other("an object");
    ++depth_;
  }
  void end_object() override { --depth_; }
  void key(std::string& name) override {
    if (depth_ != 1 || name != key_) return;
    require(ErrorKind::kData, !is_found_, "{}: the key \"{}\" is there twice", where_, key_);
    is_found_ = is_wanted_ = true;
  }
  std::string take() {
    require(ErrorKind::kData, is_found_, "{}: there is no key \"{}\"", where_, key_);
    return std::move(text_);
  }

 private:
  // A value that is no text, where the line's object or the text should be.
  void other(const char* what) {
    require(ErrorKind::kData, depth_ > 0, "{}: the line is {}; wanted an object", where_, what);
    require(ErrorKind::kData, depth_ > 1 || !is_wanted_, "{}: \"{}\" is {}; wanted a string", where_, key_, what);
  }

  const std::string& key_;
  const std::string& where_;
  std::string text_;
  int depth_ = 0;
  bool is_wanted_ = false, is_found_ = false;
};

}  // namespace

std::string text_of_json_line(std::string_view line, const std::string& key, const std::string& where) {
  TextField field(key, where);
  parse_json_events(line, {.kind = ErrorKind::kData, .file = where}, field,
                    {.bytes = DocumentSource::kMaxDocumentBytes, .depth = 64, .values = uint64_t(1) << 24});
  return field.take();
}

// Lines of a file, by pread of large pieces.
class DocumentSource::LineReader {
 public:
  LineReader(FileSystem& files, const std::string& path) : path_(path), file_(files.open(path)) {}
  const std::string& path() const { return path_; }
  int64_t line_number() const { return line_number_; }  // of the line that next() gave
  uint64_t bytes_taken() const { return bytes_taken_; }

  // False at the end. The line has no end-of-line mark.
  bool next(std::string& line) {
    line.clear();
    bytes_taken_ = 0;
    ++line_number_;
    while (true) {
      if (at_ == buffer_.size()) {
        const uint64_t left = file_->size() - offset_;
        if (left == 0) break;
        buffer_.resize(std::min(left, kReadBytes));
        file_->read_at(offset_, buffer_.data(), buffer_.size());
        offset_ += buffer_.size();
        at_ = 0;
      }
      const char* from = buffer_.data() + at_;
      const void* end = std::memchr(from, '\n', buffer_.size() - at_);
      const size_t length = end == nullptr ? buffer_.size() - at_ : size_t(static_cast<const char*>(end) - from);
      if (line.size() + length > kMaxDocumentBytes) {
        fail(ErrorKind::kData,
             {.what = fmt::format("{}:{}: a line of more than {} bytes", path_, line_number_, kMaxDocumentBytes),
              .where = {},
              .why = "a document is held in memory as a whole",
              .fix = "cut the document into several lines"});
      }
      line.append(from, length);
      at_ += length;
      if (end != nullptr) {
        ++at_;
        bytes_taken_ = line.size() + 1;
        return true;
      }
    }
    bytes_taken_ = line.size();
    return !line.empty();
  }

 private:
  std::string path_;
  std::unique_ptr<ReadableFile> file_;
  std::string buffer_;
  uint64_t offset_ = 0, bytes_taken_ = 0;
  size_t at_ = 0;
  int64_t line_number_ = 0;
};

DocumentSource::~DocumentSource() = default;

DocumentSource::DocumentSource(FileSystem& files, SourceOptions options) : files_(files), options_(std::move(options)) {
  require(!options_.inputs.empty(), "there is no input; wanted files or directories");
  for (const std::string& input : options_.inputs) {
    if (!files_.exists(input)) {
      fail(ErrorKind::kData, {.what = fmt::format("the input {} is not there", input),
                              .where = {},
                              .why = {},
                              .fix = "check the spelling of the path"});
    }
    if (files_.info(input).is_directory) {
      const size_t before = paths_.size();
      add_directory(input, "", 0);
      if (paths_.size() == before) {
        log_warning("no file in the directory {} matches {}", input, fmt::join(options_.include, " "));
      }
    } else {
      add_file(input);
    }
  }
  if (paths_.empty()) {
    fail(ErrorKind::kData, {.what = fmt::format("no file in {} matches {}", fmt::join(options_.inputs, " "),
                                                fmt::join(options_.include, " ")),
                            .where = {},
                            .why = {},
                            .fix = "name the files wanted, for example --include '*.txt' '*.md'"});
  }
}

bool DocumentSource::is_included(const std::string& name, const std::string& relative) const {
  return std::any_of(options_.include.begin(), options_.include.end(), [&](const std::string& pattern) {
    const bool is_path = pattern.find('/') != std::string::npos;
    return ::fnmatch(pattern.c_str(), (is_path ? relative : name).c_str(), 0) == 0;
  });
}

void DocumentSource::add_directory(const std::string& path, const std::string& relative, int depth) {
  require(ErrorKind::kData, depth < kMaxDirectoryDepth, "{} lies more than {} directories deep", path,
          kMaxDirectoryDepth);
  for (const std::string& name : files_.list(path)) {
    if (name[0] == '.') continue;
    const std::string full = join_path(path, name), below = join_path(relative, name);
    const FileInfo info = files_.info(full);
    if (info.is_directory) {
      add_directory(full, below, depth + 1);
    } else if (info.is_regular && is_included(name, below)) {
      add_file(full);
    }
  }
}

void DocumentSource::add_file(const std::string& path) {
  const auto file = files_.open(path);
  std::string head(std::min<uint64_t>(file->size(), 8), '\0');
  file->read_at(0, head.data(), head.size());
  if (const char* compression = compression_of(head)) {
    fail(ErrorKind::kData, {.what = fmt::format("{} is compressed ({})", path, compression),
                            .where = {},
                            .why = "its bytes are not text, and unpacked it may have any size",
                            .fix = "unpack it first"});
  }
  if (!ends_with(path, ".jsonl") && file->size() > kMaxDocumentBytes) {
    fail(ErrorKind::kData, {.what = fmt::format("{} is one document of {} bytes; wanted at most {}", path, file->size(),
                                                kMaxDocumentBytes),
                            .where = {},
                            .why = "a document is held in memory as a whole",
                            .fix = "cut it into files, or write a .jsonl file with one document per line"});
  }
  total_bytes_ += file->size();
  paths_.push_back(path);
}

void DocumentSource::rewind() {
  has_rewound_ = true;
  next_path_ = 0;
  lines_.reset();
  bytes_read_ = 0;
  counts_ = {};
}

void DocumentSource::keep(std::string text, std::vector<std::string>& batch, uint64_t& batch_bytes) {
  if (text.empty()) {
    ++counts_.empty_documents;
    return;
  }
  ++counts_.documents;
  batch_bytes += text.size();
  batch.push_back(std::move(text));
}

std::vector<std::string> DocumentSource::next_batch(uint64_t bytes) {
  std::vector<std::string> batch;
  uint64_t batch_bytes = 0;
  std::string line;
  while (batch_bytes < bytes) {
    if (!lines_) {
      if (next_path_ == paths_.size()) break;
      const std::string& path = paths_[next_path_++];
      if (ends_with(path, ".jsonl")) {
        lines_ = std::make_unique<LineReader>(files_, path);
      } else {
        std::string text = files_.read_text(path, kMaxDocumentBytes);
        bytes_read_ += text.size();
        keep(std::move(text), batch, batch_bytes);
      }
      continue;
    }
    if (!lines_->next(line)) {
      lines_.reset();
      continue;
    }
    bytes_read_ += lines_->bytes_taken();
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{}:{}", lines_->path(), lines_->line_number());
    try {
      keep(text_of_json_line(line, options_.text_key, where), batch, batch_bytes);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kData) throw;
      if (options_.on_bad_line == OnBadLine::kStop) {
        fail(ErrorKind::kData,
             {.what = error.report().what,
              .where = where,
              .why = "a line without a text may mean that this is another file, or a damaged one",
              .fix = "correct the line, name another field with --text-key, or leave such lines out with "
                     "--on-bad-line skip"});
      }
      if (++counts_.bad_lines <= kBadLinesNamed && !has_rewound_) log_warning("left out: {}", error.report().what);
    }
  }
  return batch;
}

}  // namespace octet
