// docs/configuration.md, written from the lists of keys, so that it cannot fall behind them.
#pragma once

#include <string>

namespace octet {

// Markdown: one table for each section, a row for each key: type, default, meaning.
std::string configuration_reference();

}  // namespace octet
