#include "core/base/nearest.h"

#include <algorithm>

namespace octet {
namespace {

std::string folded(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = char(c - 'A' + 'a');
    if (c == '-') c = '_';
  }
  return out;
}

// Whether `part` is some of the '_'-separated words of `whole`, or a good part of its beginning.
bool has_part(std::string_view whole, std::string_view part) {
  if (part.empty()) return false;
  if (part.size() >= 4 && whole.starts_with(part)) return true;
  for (size_t at = whole.find(part); at != std::string_view::npos; at = whole.find(part, at + 1)) {
    const bool begins = at == 0 || whole[at - 1] == '_';
    const bool ends = at + part.size() == whole.size() || whole[at + part.size()] == '_';
    if (begins && ends) return true;
  }
  return false;
}

}  // namespace

int edit_distance(std::string_view a, std::string_view b) {
  // Three rows of the table suffice: an exchange looks two rows back.
  std::vector<int> before(b.size() + 1), above(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = int(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    std::swap(before, above);
    std::swap(above, row);
    row[0] = int(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row[b.size()];
}

double name_distance(std::string_view a, std::string_view b) {
  if (a == b) return 0.0;
  const std::string x = folded(a), y = folded(b);
  if (x == y) return 0.25;
  const double distance = edit_distance(x, y);
  if (!has_part(x, y) && !has_part(y, x)) return distance;
  // The larger the common part, the nearer: 1 to 2.
  return std::min(distance, 2.0 - double(std::min(x.size(), y.size())) / double(std::max(x.size(), y.size())));
}

double plausible_distance(std::string_view name) { return std::max(2.0, double(name.size()) / 3.0); }

std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates) {
  // A name far longer than any candidate is no misspelling, and the table would be large.
  if (name.size() > 256) return {};
  std::string best;
  double best_distance = plausible_distance(name);
  for (const std::string& candidate : candidates) {
    const double distance = name_distance(name, candidate);
    if (distance < best_distance || (best.empty() && distance == best_distance)) {
      best = candidate, best_distance = distance;
    }
  }
  return best;
}

}  // namespace octet
