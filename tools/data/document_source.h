// The documents of text files, JSONL files and directories of them, one after the other.
//   FILE          one document: its bytes as they are, UTF-8 or not
//   FILE.jsonl    one document per line: the string under a key of the line's object; blank lines are passed over
//   DIRECTORY     its files whose names match one of the patterns, and its directories', sorted by name; names that
//                 begin with a dot, links and devices are left out
// Empty documents are left out and counted.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/base/file_system.h"

namespace octet {

enum class OnBadLine { kStop, kSkip };

struct SourceOptions {
  std::vector<std::string> inputs;
  // For files in directories: shell patterns, for the name, or for the path below the directory where the pattern has
  // a slash.
  std::vector<std::string> include = {"*.txt", "*.md", "*.jsonl"};
  std::string text_key = "text";
  OnBadLine on_bad_line = OnBadLine::kStop;
};

struct SourceCounts {
  int64_t documents = 0, empty_documents = 0, bad_lines = 0;
};

class DocumentSource {
 public:
  static constexpr uint64_t kMaxDocumentBytes = uint64_t(1) << 30;

  // Finds the files. Throws kData where an input is missing, holds no files, or is compressed.
  DocumentSource(FileSystem& files, SourceOptions options);
  ~DocumentSource();

  const std::vector<std::string>& paths() const { return paths_; }
  uint64_t total_bytes() const { return total_bytes_; }  // of the files
  uint64_t bytes_read() const { return bytes_read_; }    // of them, since the start
  const SourceCounts& counts() const { return counts_; }

  // Goes back to the first document.
  void rewind();
  // The next documents: at least one and about `bytes` bytes of them; none at the end. Throws kData with file and line
  // for a line that is not an object with a text, unless such lines are skipped.
  std::vector<std::string> next_batch(uint64_t bytes);

 private:
  class LineReader;

  void add_directory(const std::string& path, const std::string& relative, int depth);
  void add_file(const std::string& path);
  bool is_included(const std::string& name, const std::string& relative) const;
  void keep(std::string text, std::vector<std::string>& batch, uint64_t& batch_bytes);

  FileSystem& files_;
  SourceOptions options_;
  std::vector<std::string> paths_;
  uint64_t total_bytes_ = 0, bytes_read_ = 0;
  SourceCounts counts_;
  bool has_rewound_ = false;  // bad lines were named already
  size_t next_path_ = 0;
  std::unique_ptr<LineReader> lines_;  // of the JSONL file that is being read
};

// The string under `key` in a line of JSONL. Throws kData where the line is no JSON object or the key is missing, there
// twice, or no string. where: "file:line", for messages.
std::string text_of_json_line(std::string_view line, const std::string& key, const std::string& where);

}  // namespace octet
