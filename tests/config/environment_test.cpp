#include "core/base/environment.h"

#include <catch2/catch.hpp>
#include <cstdlib>

#include "core/base/error.h"

namespace octet::test {
namespace {

// Sets a variable for the life of the object.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    ::setenv(name, value, 1);
  }
  ~Variable() {
    if (before_.empty()) {
      ::unsetenv(name_);
    } else {
      ::setenv(name_, before_.c_str(), 1);
    }
  }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
  std::string before_;
};

std::string block_of_check() {
  try {
    check_environment();
  } catch (const Error& error) {
    CHECK(error.code() == 2);
    return error.block();
  }
  return {};
}

}  // namespace

TEST_CASE("check_environment accepts what Octet reads, and variables that are not its own", "[config][environment]") {
  const Variable log("OCTET_LOG", "warning"), isa("OCTET_ISA", "generic"), other("OCTETS", "8");
  CHECK(block_of_check().empty());
}

TEST_CASE("every environment variable that the docs name is one that the program takes", "[config][environment]") {
  const Variable gemm("OCTET_DENSE_GEMM", "octet"), clusters("OCTET_GEMM_CLUSTERS", "off"),
      swiglu("OCTET_SWIGLU_IN_GEMM", "on"), memory("OCTET_EMULATED_GPU_MIB", "64"),
      guard("OCTET_EMULATED_GPU_GUARD", "0");
  CHECK(block_of_check().empty());
  const Variable wrong("OCTET_DENSE_GEMM", "cublas");
  CHECK(block_of_check().find("write OCTET_DENSE_GEMM=cublaslt") != std::string::npos);
  const Variable also_wrong("OCTET_GEMM_CLUSTERS", "of");
  CHECK(block_of_check().find("write OCTET_GEMM_CLUSTERS=off") != std::string::npos);
  const Variable wrong_too("OCTET_SWIGLU_IN_GEMM", "onn");
  CHECK(block_of_check().find("write OCTET_SWIGLU_IN_GEMM=on") != std::string::npos);
}

TEST_CASE("a variable of what is decided by what pays is auto, off or on", "[config][environment]") {
  const char* const name = "OCTET_SWIGLU_IN_GEMM";
  CHECK(wanted_of(name) == Wanted::kAuto);
  for (const auto& [word, wanted] :
       {std::pair("", Wanted::kAuto), {"auto", Wanted::kAuto}, {"off", Wanted::kOff}, {"on", Wanted::kOn}}) {
    const Variable set(name, word);
    CHECK(wanted_of(name) == wanted);
  }
  const Variable wrong(name, "yes");
  CHECK_THROWS_AS(wanted_of(name), Error);
}

TEST_CASE("check_environment names the variable that a misspelt one may have meant", "[config][environment]") {
  const Variable misspelt("OCTET_LOGS", "debug");
  const std::string block = block_of_check();
  CHECK(block.find("OCTET_LOGS is no environment variable") != std::string::npos);
  CHECK(block.find("did you mean OCTET_LOG?") != std::string::npos);
}

TEST_CASE("check_environment reports every fault at once", "[config][environment]") {
  const Variable log("OCTET_LOG", "debgu"), isa("OCTET_ISA", "sse9"), other("OCTET_NUM_GPUS_PER_NODE", "8");
  const std::string block = block_of_check();
  CHECK(block.find("3 problems") != std::string::npos);
  CHECK(block.find("OCTET_LOG is \"debgu\"; wanted one of debug, info, warning, error, off") != std::string::npos);
  CHECK(block.find("write OCTET_LOG=debug") != std::string::npos);
  CHECK(block.find("OCTET_ISA is \"sse9\"; wanted one of generic") != std::string::npos);
  CHECK(block.find("OCTET_NUM_GPUS_PER_NODE is no environment variable") != std::string::npos);
}

}  // namespace octet::test
