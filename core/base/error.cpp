#include "core/base/error.h"

#include "core/base/exit_code.h"
#include "core/base/log.h"

namespace octet {

int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kArgument:
    case ErrorKind::kConfig:
    case ErrorKind::kDevice:
      return 2;
    case ErrorKind::kData:
      return 3;
    case ErrorKind::kCheckpoint:
      return 4;
    case ErrorKind::kStorage:
      return 5;
    case ErrorKind::kNumeric:
      return 6;
    case ErrorKind::kCommunication:
      return 7;
    case ErrorKind::kHang:
      return 8;
    case ErrorKind::kMemory:
      return 9;
  }
  return 2;
}

std::string_view meaning_of_code(int code) {
  switch (code) {
    case 2:
      return "usage or configuration";
    case 3:
      return "data";
    case 4:
      return "checkpoint";
    case 5:
      return "storage";
    case 6:
      return "numeric";
    case 7:
      return "peer lost";
    case 8:
      return "hang";
    case 9:
      return "out of memory";
    default:
      return "";
  }
}

Error::Error(ErrorKind kind, Report report)
    : std::runtime_error(report.what), kind_(kind), report_(std::move(report)) {}

Error::Error(ErrorKind kind, std::string_view summary, std::vector<Report> parts)
    : std::runtime_error(fmt::format("{}: {}{}", summary, parts.front().what,
                                     parts.size() == 1 ? "" : fmt::format(", and {} more", parts.size() - 1))),
      kind_(kind) {
  if (parts.size() == 1) {
    report_ = std::move(parts.front());
  } else {
    report_.what = fmt::format("{}: {} problems", summary, parts.size());
    parts_ = std::move(parts);
  }
}

std::string Error::block() const {
  std::string text = "octet: error: " + report_.what + "\n";
  const auto line = [&text](const char* name, const std::string& part, const char* indent = "  ") {
    if (!part.empty()) text += fmt::format("{}{:<6} {}\n", indent, name, part);
  };
  const auto lines = [&line](const Report& report, const char* indent) {
    line("where:", report.where, indent);
    line("why:", report.why, indent);
    line("do:", report.fix, indent);
  };
  lines(report_, "  ");
  for (size_t i = 0; i < parts_.size(); ++i) {
    text += fmt::format("  {}. {}\n", i + 1, parts_[i].what);
    lines(parts_[i], "     ");
  }
  line("code:", fmt::format("{} ({})", code(), meaning_of_code(code())));
  return text;
}

void fail(ErrorKind kind, Report report) { throw Error(kind, std::move(report)); }

void fail(ErrorKind kind, std::string_view summary, std::vector<Report> parts) {
  throw Error(kind, summary, std::move(parts));
}

void detail::throw_at(ErrorKind kind, std::string what, const std::source_location& place) {
  log_debug("{} at {}:{}", what, place.file_name(), place.line());
  throw Error(kind, Report{.what = std::move(what), .where = {}, .why = {}, .fix = {}});
}

}  // namespace octet
