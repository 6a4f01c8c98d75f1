#include "kernels/self_test.h"

#include "tests/support/numeric.h"

namespace octet::test {

TEST_CASE("the self-test finds no fault with any instruction set here", "[kernels][self_test]") {
  for (const Isa isa : supported_isas()) {
    const UseIsa use(isa);
    CAPTURE(name_of(isa));
    CHECK(kernels::self_test_fault() == "");
    kernels::run_self_test();
    CHECK(current_isa() == isa);
  }
}

TEST_CASE("a faulty instruction set gives way to the next lower one", "[kernels][self_test]") {
  const std::vector<Isa> isas = supported_isas();
  for (size_t sound = 0; sound < isas.size(); ++sound) {
    std::vector<Isa> warned;
    const Isa chosen = kernels::sound_isa(
        isas.back(), [&](Isa isa) { return isa == isas[sound] ? "" : "a fault"; },
        [&](Isa isa, const std::string& fault) {
          CHECK(fault == "a fault");
          warned.push_back(isa);
        });
    CHECK(chosen == isas[sound]);
    CHECK(warned.size() == isas.size() - 1 - sound);
  }
  int asked = 0;
  const Isa lowest = kernels::sound_isa(
      isas.back(), [&](Isa) { return ++asked, "a fault"; }, [](Isa, const std::string&) {});
  CHECK(lowest == isas.front());
  CHECK(asked == int(isas.size()));
  // One that was chosen below the best is not left for a better one.
  CHECK(kernels::sound_isa(
            Isa::kGeneric, [](Isa) { return ""; }, [](Isa, const std::string&) {}) == Isa::kGeneric);
}

}  // namespace octet::test
