#include "tools/data/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>

#include "core/base/error.h"
#include "tools/data/utf8.h"

namespace octet {
namespace {

constexpr size_t kMaxPatternBytes = 1 << 16;
// A step is one decision to backtrack. The patterns in use need a few per byte, and a run of n white-space bytes needs
// n at one place, so the limit grows with the text; an exponential pattern passes any such limit within 50 bytes.
constexpr uint32_t kMatchStepsFloor = 10'000'000, kMatchStepsPerByte = 16;
constexpr uint32_t kProbeSteps = 100'000;  // for a probe of kProbeBytes
constexpr size_t kProbeBytes = 256;
constexpr size_t kJitStackBytes = 1 << 20;
constexpr uint32_t kHeapLimitKib = 256 << 10;  // of the interpreter, which runs where the JIT stack is too small

std::string message_of(int code) {
  PCRE2_UCHAR text[256];
  if (pcre2_get_error_message(code, text, sizeof text) < 0) return "error " + std::to_string(code);
  return reinterpret_cast<const char*>(text);
}

std::string shortened(std::string_view pattern) {
  return pattern.size() <= 120 ? std::string(pattern) : std::string(pattern.substr(0, 120)) + "...";
}

// True where a character class holds another, or an intersection: PCRE2 would read both as plain characters.
bool has_nested_class(std::string_view pattern) {
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\') {
      ++i;
    } else if (!in_class) {
      if (c == '[') {
        in_class = true;
        if (i + 1 < pattern.size() && pattern[i + 1] == '^') ++i;
        if (i + 1 < pattern.size() && pattern[i + 1] == ']') ++i;  // a first ']' is a plain character
      }
    } else if (c == ']') {
      in_class = false;
    } else if (c == '[' || (c == '&' && i + 1 < pattern.size() && pattern[i + 1] == '&')) {
      const bool is_posix = c == '[' && i + 1 < pattern.size() && pattern[i + 1] == ':';
      if (!is_posix) return true;
      i = std::min(pattern.size(), pattern.find(":]", i)) + 1;
    }
  }
  return false;
}

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};

}  // namespace

struct PreTokenizer::Step {
  SplitStep spec;
  std::unique_ptr<pcre2_code, FreeCode> code;
  bool has_jit = false;
};

struct PreTokenizer::Scratch::Parts {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);  // the whole match only: groups are of no interest
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr);
  std::vector<std::string_view> now, next;
  std::vector<std::pair<std::string_view, bool>> spans;  // text and whether it counts as a match
  Parts() {
    require(ErrorKind::kMemory, match != nullptr && context != nullptr && stack != nullptr,
            "pre-tokenizer: no memory for a regular-expression match");
    pcre2_jit_stack_assign(context, nullptr, stack);
    pcre2_set_heap_limit(context, kHeapLimitKib);
  }
  ~Parts() {
    pcre2_match_data_free(match);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

PreTokenizer::Scratch::Scratch(const PreTokenizer&) : parts_(std::make_unique<Parts>()) {}
PreTokenizer::Scratch::~Scratch() = default;
PreTokenizer::Scratch::Scratch(Scratch&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;

PreTokenizer::PreTokenizer(std::vector<SplitStep> steps, std::string name) : name_(std::move(name)) {
  for (SplitStep& spec : steps) {
    require(ErrorKind::kData, spec.pattern.size() <= kMaxPatternBytes, "{}: a pattern of {} bytes; wanted at most {}",
            name_, spec.pattern.size(), kMaxPatternBytes);
    if (!spec.is_literal && has_nested_class(spec.pattern)) {
      fail(ErrorKind::kData, {.what = fmt::format("{}: the pattern \"{}\" has a set inside a set or an intersection",
                                                  name_, shortened(spec.pattern)),
                              .where = {},
                              .why = "PCRE2 gives such sets another meaning, and the tokens would differ",
                              .fix = "write the set as one flat class or with a look-ahead"});
    }
    Step step;
    int error = 0;
    PCRE2_SIZE at = 0;
    const uint32_t options =
        spec.is_literal ? PCRE2_UTF | PCRE2_LITERAL : PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
    step.code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(spec.pattern.data()), spec.pattern.size(), options,
                                  &error, &at, nullptr));
    if (!step.code) {
      fail(ErrorKind::kData, {.what = fmt::format("{}: the pattern \"{}\" is not a regular expression: {}", name_,
                                                  shortened(spec.pattern), message_of(error)),
                              .where = fmt::format("character {} of the pattern", at),
                              .why = {},
                              .fix = {}});
    }
    step.has_jit = pcre2_jit_compile(step.code.get(), PCRE2_JIT_COMPLETE) == 0;
    step.spec = std::move(spec);
    steps_.push_back(std::move(step));
  }
  // An exponential pattern shows itself on a run of one kind of character with a surprise at its end. All of ASCII
  // stands behind, because PCRE2 does not even begin to match where a character that every match needs is not there.
  std::string tail;
  for (char c = '!'; c <= '~'; ++c) tail += c;
  Scratch scratch(*this);
  std::vector<std::string_view> pieces;
  for (const std::string_view unit : {"a", " ", "1", "\n", "!", "aA", "a1", " a", "\xc3\xa9", "\xe4\xb8\x80", "'s"}) {
    for (const std::string_view end : {"", "!", "\n", "a", " "}) {
      std::string probe;
      while (probe.size() < kProbeBytes) probe += unit;
      probe += end;
      probe += tail;
      pieces.clear();
      split_valid(probe, scratch, pieces, kProbeSteps);
    }
  }
}

void PreTokenizer::split_by(const Step& step, std::string_view text, Scratch& scratch,
                            std::vector<std::string_view>& pieces, uint32_t match_limit) const {
  Scratch::Parts& parts = *scratch.parts_;
  pcre2_set_match_limit(parts.context, match_limit);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const bool is_plain = step.spec.behavior == SplitBehavior::kIsolated;
  auto& spans = parts.spans;
  spans.clear();
  const auto emit = [&](size_t begin, size_t end, bool is_match) {
    if (begin == end) return;
    const std::string_view piece = text.substr(begin, end - begin);
    if (is_plain) {
      pieces.push_back(piece);
    } else {
      spans.emplace_back(piece, is_match != step.spec.invert);
    }
  };
  size_t done = 0, at = 0;
  while (at < text.size()) {
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    if (step.has_jit) {
      rc = pcre2_jit_match(step.code.get(), subject, text.size(), at, 0, parts.match, parts.context);
    }
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(step.code.get(), subject, text.size(), at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, parts.match,
                       parts.context);
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      fail(ErrorKind::kData, {.what = fmt::format("{}: the pattern \"{}\" gave up on the text: {} ({} steps)", name_,
                                                  shortened(step.spec.pattern), message_of(rc), match_limit),
                              .where = fmt::format("byte {} of {} bytes of text", at, text.size()),
                              .why = "a pattern that backtracks without bound would keep the program busy for years",
                              .fix = "use a tokenizer whose pattern has no repetition inside a repetition"});
    }
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(parts.match);
    // \K in a look-ahead can set a start behind the end; such a match counts as empty.
    const size_t begin = std::min(bounds[0], bounds[1]), end = bounds[1];
    if (end <= done || begin == end) {  // nothing to cut here: look on after the next character
      at = std::max(end, at);
      at += std::max<size_t>(1, utf8_length(text, at));
      continue;
    }
    emit(done, std::max(begin, done), false);
    emit(std::max(begin, done), end, true);
    done = at = end;
  }
  emit(done, text.size(), false);
  if (is_plain) return;

  const size_t first = pieces.size();
  const auto joined = [](std::string_view a, std::string_view b) {
    return std::string_view(a.data(), a.size() + b.size());
  };
  bool was_match = false;
  switch (step.spec.behavior) {
    case SplitBehavior::kIsolated:
      break;
    case SplitBehavior::kMergedWithPrevious:
      for (const auto& [span, is_match] : spans) {
        if (is_match && !was_match && pieces.size() > first) {
          pieces.back() = joined(pieces.back(), span);
        } else {
          pieces.push_back(span);
        }
        was_match = is_match;
      }
      break;
    case SplitBehavior::kMergedWithNext:
      for (auto it = spans.rbegin(); it != spans.rend(); ++it) {
        if (it->second && !was_match && pieces.size() > first) {
          pieces.back() = joined(it->first, pieces.back());
        } else {
          pieces.push_back(it->first);
        }
        was_match = it->second;
      }
      std::reverse(pieces.begin() + int64_t(first), pieces.end());
      break;
    case SplitBehavior::kContiguous:
      for (const auto& [span, is_match] : spans) {
        if (is_match == was_match && pieces.size() > first) {
          pieces.back() = joined(pieces.back(), span);
        } else {
          pieces.push_back(span);
        }
        was_match = is_match;
      }
      break;
  }
}

void PreTokenizer::split_valid(std::string_view text, Scratch& scratch, std::vector<std::string_view>& pieces,
                               uint32_t match_limit) const {
  if (steps_.empty()) {
    if (!text.empty()) pieces.push_back(text);
    return;
  }
  if (steps_.size() == 1) return split_by(steps_.front(), text, scratch, pieces, match_limit);
  auto &now = scratch.parts_->now, &next = scratch.parts_->next;
  now.assign(1, text);
  for (size_t s = 0; s + 1 < steps_.size(); ++s) {
    next.clear();
    for (const std::string_view piece : now) split_by(steps_[s], piece, scratch, next, match_limit);
    std::swap(now, next);
  }
  for (const std::string_view piece : now) split_by(steps_.back(), piece, scratch, pieces, match_limit);
}

void PreTokenizer::split(std::string_view text, Scratch& scratch, std::vector<std::string_view>& pieces) const {
  pieces.clear();
  size_t at = 0;
  while (at < text.size()) {
    const size_t end = utf8_run_end(text, at);
    if (end > at) {
      const std::string_view run = text.substr(at, end - at);
      const uint64_t limit = kMatchStepsFloor + uint64_t(kMatchStepsPerByte) * run.size();
      split_valid(run, scratch, pieces, uint32_t(std::min<uint64_t>(limit, UINT32_MAX)));
    }
    at = end;
    while (at < text.size() && utf8_length(text, at) == 0) ++at;
    if (at > end) pieces.push_back(text.substr(end, at - end));
  }
}

}  // namespace octet
