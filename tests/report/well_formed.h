// A small judge of XML and of HTML that is written like it.
#pragma once

#include <set>
#include <string>
#include <vector>

namespace octet::test {

// What is wrong with the text, "" where nothing is: tags that do not match, a '<' or '&' that begins nothing,
// attributes without quotes. Elements in `without_end` need no end tag.
inline std::string markup_fault(const std::string& text, const std::set<std::string>& without_end = {}) {
  std::vector<std::string> open;
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '&') {
      const size_t end = text.find(';', at);
      const std::string entity = end == std::string::npos ? "" : text.substr(at, end + 1 - at);
      if (!std::set<std::string>{"&amp;", "&lt;", "&gt;", "&quot;", "&#39;", "&minus;"}.count(entity)) {
        return "a bare & at " + text.substr(at, 20);
      }
    }
    if (text[at] != '<') continue;
    if (text.compare(at, 9, "<!DOCTYPE") == 0) continue;
    // The tag ends at the first '>' outside quotes.
    size_t end = at + 1;
    bool quoted = false;
    while (end < text.size() && (quoted || text[end] != '>')) {
      if (text[end] == '"') quoted = !quoted;
      if (quoted && text[end] == '<') return "a < in an attribute: " + text.substr(at, 60);
      ++end;
    }
    if (end == text.size()) return "a tag without end: " + text.substr(at, 60);
    const std::string tag = text.substr(at + 1, end - at - 1);
    const bool closes = !tag.empty() && tag[0] == '/', is_empty = !tag.empty() && tag.back() == '/';
    const size_t begin = closes ? 1 : 0;
    const std::string name = tag.substr(begin, tag.find_first_of(" \n/", begin) - begin);
    if (name.empty() || !isalpha(uint8_t(name[0]))) return "a bare <: " + text.substr(at, 20);
    for (size_t equals = tag.find('='); equals != std::string::npos; equals = tag.find('=', equals + 1)) {
      const size_t open_quote = tag.find('"', equals);
      if (open_quote != equals + 1) return "an attribute without quotes: " + tag;
      equals = tag.find('"', open_quote + 1);
      if (equals == std::string::npos) return "an attribute without end: " + tag;
    }
    if (closes) {
      if (open.empty() || open.back() != name)
        return "</" + name + "> closes " + (open.empty() ? "nothing" : open.back());
      open.pop_back();
    } else if (!is_empty && !without_end.count(name)) {
      open.push_back(name);
    }
    if (!closes && name == "style") {  // its content is CSS
      end = text.find("</style>", end);
      if (end == std::string::npos) return "style without end";
      --end;
    }
    at = end;
  }
  return open.empty() ? "" : "<" + open.back() + "> is not closed";
}

}  // namespace octet::test
