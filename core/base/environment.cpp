#include "core/base/environment.h"

#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/isa.h"
#include "core/base/nearest.h"

namespace octet {
namespace {

const std::vector<std::string> kKnown = {"OCTET_ISA", "OCTET_LOG"};
const std::vector<std::string> kLogLevels = {"debug", "info", "warning", "error", "off"};

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const Isa isa : supported_isas()) names.emplace_back(name_of(isa));
  return names;
}

}  // namespace

void check_environment() {
  std::vector<Report> reports;
  const auto check_value = [&reports](const std::string& name, const std::string& value,
                                      const std::vector<std::string>& wanted) {
    if (value.empty() || std::find(wanted.begin(), wanted.end(), value) != wanted.end()) return;
    std::string list;
    for (const std::string& each : wanted) list += (list.empty() ? "" : ", ") + each;
    const std::string nearest = nearest_name(value, wanted);
    reports.push_back(
        {.what = fmt::format("{} is \"{}\"; wanted one of {}", name, value, list),
         .where = "environment variable " + name,
         .why = {},
         .fix = nearest.empty() ? "unset " + name + " for the default" : fmt::format("write {}={}", name, nearest)});
  };
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string text = *entry;
    if (text.rfind("OCTET_", 0) != 0) continue;
    const size_t equals = std::min(text.find('='), text.size());
    const std::string name = text.substr(0, equals);
    const std::string value = equals < text.size() ? text.substr(equals + 1) : std::string();
    if (name == "OCTET_LOG") {
      check_value(name, value, kLogLevels);
    } else if (name == "OCTET_ISA") {
      check_value(name, value, isa_names());
    } else {
      const std::string nearest = nearest_name(name, kKnown);
      reports.push_back({.what = fmt::format("{} is no environment variable that Octet reads", name.substr(0, 80)),
                         .where = "environment variable " + name.substr(0, 80),
                         .why = "a misspelt variable would be a setting that does nothing",
                         .fix = nearest.empty() ? "unset it; Octet reads OCTET_ISA and OCTET_LOG"
                                                : fmt::format("unset it; did you mean {}?", nearest)});
    }
  }
  std::sort(reports.begin(), reports.end(), [](const Report& a, const Report& b) { return a.where < b.where; });
  if (!reports.empty()) fail(ErrorKind::kConfig, "the environment cannot be used", std::move(reports));
}

}  // namespace octet
