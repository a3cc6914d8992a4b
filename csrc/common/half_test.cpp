// ctest of the 16-bit floats of the host.
#include "half.h"

#include <cmath>

#include "test.h"

using namespace stratcore;
using namespace stratcore::test;

namespace {

// Every float16 and bfloat16 survives the way to float32 and back; values between them go to the even one.
template <class E>
void test_half(uint32_t infinity) {
  for (uint32_t bits = 0; bits < (1u << 16); ++bits) {
    E value{static_cast<uint16_t>(bits)}, back{};
    narrow(widen(value), back);
    const bool nan = (bits & 0x7FFFu) > infinity;
    expect(nan ? std::isnan(widen(value)) && std::isnan(widen(back)) : back.bits == value.bits,
           "16-bit floats");
    if ((bits & 0x7FFFu) + 1 >= infinity) continue;
    E next{static_cast<uint16_t>(bits + 1)};
    narrow(widen(value) / 2 + widen(next) / 2, back);
    expect(back.bits == (bits % 2 ? bits + 1 : bits), "rounding to even");
  }
}

}  // namespace

int main() {
  test_half<BFloat16>(0x7F80);
  test_half<Float16>(0x7C00);
  return summary();
}
