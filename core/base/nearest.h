// Finds the word a user meant.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace octet {

// The least number of single-character insertions, deletions, replacements and exchanges of neighbours that turn a
// into b, none of them touching the same place twice ("optimal string alignment").
int edit_distance(std::string_view a, std::string_view b);

// How far apart two names look: their edit distance, or less where one is some words of the other ("num_layers" and
// "layers") or its beginning ("optimizer" and "optim"), or both are the same but for upper and lower case and '-' in
// place of '_'.
double name_distance(std::string_view a, std::string_view b);

// The farthest that a name of this length may be and still be a likely misspelling: a third of it, at least 2.
double plausible_distance(std::string_view name);

// The candidate nearest to the name, the first of equals; empty where none is plausible.
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace octet
