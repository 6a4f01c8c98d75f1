#include "core/base/shared_library.h"

#include <catch2/catch.hpp>

namespace octet::test {

TEST_CASE("a shared library is found by name or at a path, and its functions by theirs", "[base]") {
  double (*cosine)(double) = nullptr;
  const SharedLibrary by_name("libm.so.6");
  REQUIRE(by_name.find("cos", cosine));
  CHECK(cosine(0.0) == 1.0);
  CHECK_FALSE(by_name.find("octet_has_no_such_function", cosine));
  CHECK(cosine == nullptr);
  CHECK(SharedLibrary("libnowhere.so.0", "libm.so.6").find("cos", cosine));

  const SharedLibrary none("libnowhere.so.0");
  CHECK_FALSE(none.is_loaded());
  CHECK_FALSE(none.find("cos", cosine));
  CHECK_FALSE(SharedLibrary("libnowhere.so.0", "/nowhere/libnowhere.so").is_loaded());
}

}  // namespace octet::test
