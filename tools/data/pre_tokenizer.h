// Cuts text into the pieces inside which byte-pair merges happen, by regular expressions: the "pre_tokenizer" of a
// Hugging Face tokenizer.json. Each step cuts every piece of the step before; the pieces together are the text.
//
// Patterns are run by PCRE2 (UTF, UCP, JIT) with the meaning they have in Oniguruma, which the Hugging Face library
// uses, but for two things: U+180E counts as white space, and characters newer than PCRE2's Unicode tables (14.0 in
// PCRE2 10.42) have no class. A pattern with a set inside a set ("[a&&[bc]]"), where the two differ, is refused.
//
// Text need not be UTF-8: each longest run of bytes that no well-formed character covers is one piece, and the text
// between is cut as if it stood alone.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace octet {

// The pattern of GPT-2, which the "ByteLevel" step stands for when its "use_regex" is true.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// What becomes of the text that a pattern matches and of the text between two matches.
enum class SplitBehavior {
  kIsolated,            // every match and every gap is a piece
  kMergedWithPrevious,  // a match ends the piece of the gap before it
  kMergedWithNext,      // a match begins the piece of the gap after it
  kContiguous,          // matches that touch are one piece
};

struct SplitStep {
  std::string pattern;
  bool is_literal = false;  // the pattern is plain text
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // gaps count as matches and matches as gaps
};

class PreTokenizer {
 public:
  // Throws kData where a pattern does not compile, or backtracks without bound on one of a set of short probes.
  // name: the file, for messages.
  PreTokenizer(std::vector<SplitStep> steps, std::string name);
  ~PreTokenizer();
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;

  // What one thread needs to split; it must not outlive the PreTokenizer.
  class Scratch {
   public:
    explicit Scratch(const PreTokenizer& of);
    ~Scratch();
    Scratch(Scratch&&) noexcept;

   private:
    friend class PreTokenizer;
    struct Parts;
    std::unique_ptr<Parts> parts_;
  };

  // Puts the pieces of `text` into `pieces`, in order, none empty; they point into `text`. Throws kData where the
  // pattern needs more than a bounded number of steps per byte.
  void split(std::string_view text, Scratch& scratch, std::vector<std::string_view>& pieces) const;

 private:
  struct Step;
  void split_by(const Step& step, std::string_view text, Scratch& scratch, std::vector<std::string_view>& pieces,
                uint32_t match_limit) const;
  void split_valid(std::string_view text, Scratch& scratch, std::vector<std::string_view>& pieces,
                   uint32_t match_limit) const;
  std::vector<Step> steps_;
  std::string name_;
};

}  // namespace octet
