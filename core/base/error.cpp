#include "core/base/error.h"

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

namespace {
const char* code_meaning(int code) {
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
    default:
      return "out of memory";
  }
}
}  // namespace

Error::Error(ErrorKind kind, Report report)
    : std::runtime_error(report.what), kind_(kind), report_(std::move(report)) {}

std::string Error::block() const {
  std::string text = "octet: error: " + report_.what + "\n";
  const auto line = [&text](const char* name, const std::string& part) {
    if (!part.empty()) text += fmt::format("  {:<6} {}\n", name, part);
  };
  line("where:", report_.where);
  line("why:", report_.why);
  line("do:", report_.fix);
  line("code:", fmt::format("{} ({})", code(), code_meaning(code())));
  return text;
}

void fail(ErrorKind kind, Report report) { throw Error(kind, std::move(report)); }

void detail::throw_at(ErrorKind kind, std::string what, const std::source_location& place) {
  log_debug("{} at {}:{}", what, place.file_name(), place.line());
  throw Error(kind, Report{.what = std::move(what), .where = {}, .why = {}, .fix = {}});
}

}  // namespace octet
