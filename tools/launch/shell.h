// Words for a POSIX shell.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace octet {

// `word` so that a shell takes it as one word and as it stands: in single quotes unless nothing in it is special.
std::string quote_for_shell(std::string_view word);
// The words, each quoted, with spaces between.
std::string shell_line(const std::vector<std::string>& words);

}  // namespace octet
