// What the program's exit codes say, in a word or two.
#pragma once

#include <string_view>

namespace octet {

// "hang" for 8; empty for a code that no error has.
std::string_view meaning_of_code(int code);

}  // namespace octet
