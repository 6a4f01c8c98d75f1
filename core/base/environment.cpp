#include "core/base/environment.h"

#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.h"
#include "core/base/isa.h"
#include "core/base/nearest.h"

namespace octet {
namespace {

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const Isa isa : supported_isas()) names.emplace_back(name_of(isa));
  return names;
}

}  // namespace

std::vector<EnvironmentVariable> environment_variables() {
  return {{"OCTET_ISA", isa_names()},
          {"OCTET_LOG", {"debug", "info", "warning", "error", "off"}},
          {"OCTET_DENSE_GEMM", {"octet", "cublaslt"}},
          {"OCTET_GEMM_CLUSTERS", {"auto", "off", "on"}},
          {"OCTET_SWIGLU_IN_GEMM", {"auto", "off", "on"}},
          {"OCTET_LAUNCHED", {"1"}},
          {"OCTET_EMULATED_GPU_MIB", {}},
          {"OCTET_EMULATED_GPU_GUARD", {}}};
}

void check_environment() {
  const std::vector<EnvironmentVariable> variables = environment_variables();
  std::vector<std::string> known;
  for (const EnvironmentVariable& variable : variables) known.push_back(variable.name);
  std::vector<Report> reports;
  const auto check_value = [&reports](const std::string& name, const std::string& value,
                                      const std::vector<std::string>& wanted) {
    if (value.empty() || wanted.empty() || std::find(wanted.begin(), wanted.end(), value) != wanted.end()) return;
    const std::string nearest = nearest_name(value, wanted);
    reports.push_back(
        {.what = fmt::format("{} is \"{}\"; wanted one of {}", name, value, fmt::join(wanted, ", ")),
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
    const auto variable = std::find(known.begin(), known.end(), name);
    if (variable != known.end()) {
      check_value(name, value, variables[size_t(variable - known.begin())].values);
      continue;
    }
    const std::string nearest = nearest_name(name, known);
    reports.push_back({.what = fmt::format("{} is no environment variable that Octet reads", name.substr(0, 80)),
                       .where = "environment variable " + name.substr(0, 80),
                       .why = "a misspelt variable would be a setting that does nothing",
                       .fix = nearest.empty() ? fmt::format("unset it; Octet reads {}", fmt::join(known, ", "))
                                              : fmt::format("unset it; did you mean {}?", nearest)});
  }
  std::sort(reports.begin(), reports.end(), [](const Report& a, const Report& b) { return a.where < b.where; });
  if (!reports.empty()) fail(ErrorKind::kConfig, "the environment cannot be used", std::move(reports));
}

Wanted wanted_of(const char* variable) {
  const char* const value = std::getenv(variable);
  const std::string_view word = value == nullptr ? "" : value;
  if (word.empty() || word == "auto") return Wanted::kAuto;
  if (word == "off") return Wanted::kOff;
  if (word == "on") return Wanted::kOn;
  fail(ErrorKind::kConfig, {.what = fmt::format("{} is \"{}\"; wanted auto, off or on", variable, word),
                            .where = fmt::format("environment variable {}", variable),
                            .why = {},
                            .fix = fmt::format("unset {} for what pays", variable)});
}

}  // namespace octet
