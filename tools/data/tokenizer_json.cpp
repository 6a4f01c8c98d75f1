#include <algorithm>
#include <unordered_map>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/io/json.h"
#include "tools/data/tokenizer.h"

namespace octet {
namespace {

// 150 k tokens and 300 k merges written as pairs are 1.1 M values; the largest vocabularies in use have 260 k tokens.
constexpr JsonLimits kLimits{.bytes = Tokenizer::kMaxJsonBytes, .depth = 32, .values = uint64_t(1) << 22};

[[noreturn]] void unsupported(const std::string& name, std::string what) {
  fail(ErrorKind::kData, {.what = fmt::format("{}: {}", name, what),
                          .where = {},
                          .why = "without it, this program's tokens would not be those the tokenizer means",
                          .fix = "use a byte-level BPE tokenizer (GPT-2, Llama 3, Qwen, DeepSeek), or train one with "
                                 "octet prepare --vocab-size"});
}

bool is_absent(const std::optional<JsonCursor>& cursor) { return !cursor || cursor->value().is_null(); }
bool flag(const JsonCursor& object, std::string_view key, bool otherwise) {
  const auto found = object.find(key);
  return found ? found->as_bool() : otherwise;
}

class Parser {
 public:
  Parser(std::string_view json, std::string name)
      : source_{.kind = ErrorKind::kData, .file = std::move(name)}, root_(parse_json(json, source_, kLimits)) {}

  TokenizerSpec parse() {
    const JsonCursor top(root_, source_);
    top.allow_keys({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
                    "decoder", "model"});
    if (const auto version = top.find("version"); version && version->as_string() != "1.0") {
      unsupported(source_.file,
                  fmt::format("tokenizer.json version \"{}\"; this program reads \"1.0\"", version->as_string()));
    }
    if (const auto normalizer = top.find("normalizer"); !is_absent(normalizer)) check_normalizer(*normalizer);
    const auto pre_tokenizer = top.find("pre_tokenizer");
    if (is_absent(pre_tokenizer)) unsupported(source_.file, "there is no pre_tokenizer; wanted one with \"ByteLevel\"");
    read_pre_tokenizer(*pre_tokenizer);
    if (!has_byte_level_) unsupported(source_.file, "the pre_tokenizer has no \"ByteLevel\" step");
    if (const auto decoder = top.find("decoder"); !is_absent(decoder)) check_decoder(*decoder);
    if (const auto processor = top.find("post_processor"); !is_absent(processor)) read_post_processor(*processor);
    if (const auto added = top.find("added_tokens"); !is_absent(added)) read_added_tokens(*added);
    read_model(top["model"]);
    return std::move(spec_);
  }

 private:
  void check_normalizer(const JsonCursor& normalizer) {
    const std::string& type = normalizer["type"].as_string();
    if (type == "Sequence") {
      const JsonCursor list = normalizer["normalizers"];
      for (size_t i = 0; i < list.size(); ++i) check_normalizer(list.at(i));
    } else if (type == "NFC") {
      log_debug("{}: normalizer NFC is not applied, so that every text can be read back as it was", source_.file);
    } else {
      unsupported(source_.file, fmt::format("normalizer \"{}\"; wanted none, or \"NFC\"", type));
    }
  }

  void read_pre_tokenizer(const JsonCursor& step) {
    const std::string& type = step["type"].as_string();
    if (has_byte_level_) {
      unsupported(source_.file, fmt::format("a pre_tokenizer step \"{}\" after \"ByteLevel\"", type));
    }
    if (type == "Sequence") {
      const JsonCursor list = step["pretokenizers"];
      for (size_t i = 0; i < list.size(); ++i) read_pre_tokenizer(list.at(i));
    } else if (type == "ByteLevel") {
      step.allow_keys({"type", "add_prefix_space", "trim_offsets", "use_regex"});
      if (flag(step, "add_prefix_space", true)) {
        unsupported(source_.file, "\"add_prefix_space\" is true, which adds a space that is not in the text");
      }
      if (flag(step, "use_regex", true)) spec_.steps.push_back({.pattern = std::string(kGpt2Pattern)});
      has_byte_level_ = true;
    } else if (type == "Split") {
      step.allow_keys({"type", "pattern", "behavior", "invert"});
      read_split(step);
    } else if (type == "Digits") {
      step.allow_keys({"type", "individual_digits"});
      spec_.steps.push_back({.pattern = flag(step, "individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)"});
    } else {
      unsupported(source_.file, fmt::format("pre_tokenizer \"{}\"; wanted \"ByteLevel\", \"Split\", \"Digits\" or a "
                                            "\"Sequence\" of them",
                                            type));
    }
  }

  void read_split(const JsonCursor& step) {
    constexpr std::pair<std::string_view, SplitBehavior> kBehaviors[] = {
        {"Isolated", SplitBehavior::kIsolated},
        {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
        {"MergedWithNext", SplitBehavior::kMergedWithNext},
        {"Contiguous", SplitBehavior::kContiguous}};
    SplitStep split;
    const JsonCursor pattern = step["pattern"];
    if (const auto regex = pattern.find("Regex")) {
      split.pattern = regex->as_string();
    } else {
      split.pattern = pattern["String"].as_string();
      split.is_literal = true;
    }
    const std::string& behavior = step["behavior"].as_string();
    const auto* found = std::find_if(std::begin(kBehaviors), std::end(kBehaviors),
                                     [&](const auto& named) { return named.first == behavior; });
    if (found == std::end(kBehaviors)) {
      unsupported(source_.file, fmt::format("a \"Split\" with behavior \"{}\"; wanted one that keeps all of the text: "
                                            "Isolated, MergedWithPrevious, MergedWithNext or Contiguous",
                                            behavior));
    }
    split.behavior = found->second;
    split.invert = flag(step, "invert", false);
    spec_.steps.push_back(std::move(split));
  }

  void check_decoder(const JsonCursor& decoder) {
    const std::string& type = decoder["type"].as_string();
    if (type == "Sequence") {
      const JsonCursor list = decoder["decoders"];
      for (size_t i = 0; i < list.size(); ++i) check_decoder(list.at(i));
    } else if (type != "ByteLevel") {
      unsupported(source_.file, fmt::format("decoder \"{}\"; wanted \"ByteLevel\"", type));
    }
  }

  void read_post_processor(const JsonCursor& processor) {
    const std::string& type = processor["type"].as_string();
    if (type == "Sequence") {
      const JsonCursor list = processor["processors"];
      for (size_t i = 0; i < list.size(); ++i) read_post_processor(list.at(i));
    } else if (type == "TemplateProcessing") {
      const JsonCursor single = processor["single"];
      if (single.size() == 0) return;
      if (const auto token = single.at(0).find("SpecialToken")) spec_.bos = (*token)["id"].as_string();
    }
  }

  void read_added_tokens(const JsonCursor& list) {
    for (size_t i = 0; i < list.size(); ++i) {
      const JsonCursor entry = list.at(i);
      AddedToken token;
      token.content = entry["content"].as_string();
      token.id = int32_t(entry["id"].as_int64(0, INT32_MAX));
      token.special = flag(entry, "special", false);
      token.normalized = flag(entry, "normalized", false);
      for (const std::string_view key : {"single_word", "lstrip", "rstrip"}) {
        if (flag(entry, key, false)) {
          unsupported(source_.file, fmt::format("the added token \"{}\" has \"{}\"", token.content, key));
        }
      }
      if (!added_id_.emplace(token.content, token.id).second) {
        entry.refuse(fmt::format("has the content \"{}\" for the second time", token.content));
      }
      spec_.added_tokens.push_back(std::move(token));
    }
  }

  void read_model(const JsonCursor& model) {
    // The oldest files, GPT-2's among them, leave the type out.
    if (const auto type = model.find("type"); type && type->as_string() != "BPE") {
      unsupported(source_.file, fmt::format("model \"{}\"; wanted \"BPE\"", type->as_string()));
    }
    model.allow_keys({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                      "byte_fallback", "ignore_merges", "vocab", "merges"});
    if (const auto dropout = model.find("dropout"); !is_absent(dropout) && dropout->as_double() != 0) {
      unsupported(source_.file, "the model has a dropout, which draws its tokens at random");
    }
    for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (const auto text = model.find(key); !is_absent(text) && !text->as_string().empty()) {
        unsupported(source_.file, fmt::format("the model has a \"{}\"", key));
      }
    }
    if (flag(model, "byte_fallback", false)) unsupported(source_.file, "the model has \"byte_fallback\"");
    spec_.ignore_merges = flag(model, "ignore_merges", false);

    const JsonCursor vocab = model["vocab"];
    vocab.find("");  // refuses what is no object
    std::string bytes;
    for (const auto& [token, id] : *vocab.value().if_object()) {
      if (id.if_int64() == nullptr) {
        vocab.refuse(fmt::format("gives the token \"{}\" {} as its id; wanted an integer", token, id.type_name()));
      }
      const bool is_bytes = from_byte_alphabet(token, bytes);
      if (const auto added = added_id_.find(token); added != added_id_.end()) {
        if (added->second != *id.if_int64()) {
          vocab.refuse(fmt::format("gives the token \"{}\" the id {}, and added_tokens the id {}", token,
                                   *id.if_int64(), added->second));
        }
        if (!is_bytes || bytes != token) continue;  // its bytes are its content
      } else if (!is_bytes) {
        vocab.refuse(fmt::format("has the token \"{}\", which is not written in the byte-level alphabet", token));
      }
      spec_.vocab.emplace_back(bytes, *id.if_int64());
    }

    const JsonCursor merges = model["merges"];
    const size_t num_merges = merges.size();
    spec_.merges.reserve(num_merges);
    for (size_t i = 0; i < num_merges; ++i) {
      const Json& merge = (*merges.value().if_array())[i];
      std::string left, right;
      if (const std::string* text = merge.if_string()) {  // "left right": a space is not in the alphabet
        const size_t space = text->find(' ');
        if (space == std::string::npos) merges.at(i).refuse("is one word; wanted \"left right\"");
        left = text->substr(0, space);
        right = text->substr(space + 1);
      } else {
        const JsonCursor pair = merges.at(i);
        if (pair.size() != 2) pair.refuse(fmt::format("has {} elements; wanted 2", pair.size()));
        left = pair.at(0).as_string();
        right = pair.at(1).as_string();
      }
      std::string left_bytes, right_bytes;
      if (!from_byte_alphabet(left, left_bytes) || !from_byte_alphabet(right, right_bytes)) {
        merges.at(i).refuse(
            fmt::format("joins \"{}\" and \"{}\", which are not in the byte-level alphabet", left, right));
      }
      spec_.merges.emplace_back(std::move(left_bytes), std::move(right_bytes));
    }
  }

  JsonSource source_;
  Json root_;
  TokenizerSpec spec_;
  std::unordered_map<std::string, int32_t> added_id_;
  bool has_byte_level_ = false;
};

std::string json_string(std::string_view text) { return Json(text).text(); }

std::string_view name_of(SplitBehavior behavior) {
  switch (behavior) {
    case SplitBehavior::kIsolated:
      return "Isolated";
    case SplitBehavior::kMergedWithPrevious:
      return "MergedWithPrevious";
    case SplitBehavior::kMergedWithNext:
      return "MergedWithNext";
    case SplitBehavior::kContiguous:
      return "Contiguous";
  }
  return "?";
}

}  // namespace

TokenizerSpec parse_tokenizer_json(std::string_view json, const std::string& name) {
  return Parser(json, name).parse();
}

std::string to_tokenizer_json(const TokenizerSpec& spec) {
  std::string out = "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": [";
  const char* comma = "";
  for (const AddedToken& token : spec.added_tokens) {
    out += fmt::format(
        "{}\n    {{\"id\": {}, \"content\": {}, \"single_word\": false, \"lstrip\": false, \"rstrip\": false, "
        "\"normalized\": {}, \"special\": {}}}",
        comma, token.id, json_string(token.content), token.normalized, token.special);
    comma = ",";
  }
  out += "\n  ],\n  \"normalizer\": null,\n  \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [\n";
  for (const SplitStep& step : spec.steps) {
    out += fmt::format(
        "    {{\"type\": \"Split\", \"pattern\": {{\"{}\": {}}}, \"behavior\": \"{}\", \"invert\": {}}},\n",
        step.is_literal ? "String" : "Regex", json_string(step.pattern), name_of(step.behavior), step.invert);
  }
  out +=
      "    {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": false}\n  "
      "]},\n"
      "  \"post_processor\": ";
  if (spec.bos.empty()) {
    out += "null";
  } else {
    const auto bos = std::find_if(spec.added_tokens.begin(), spec.added_tokens.end(),
                                  [&](const AddedToken& token) { return token.content == spec.bos; });
    require(bos != spec.added_tokens.end(), "tokenizer: bos \"{}\" is not an added token", spec.bos);
    const std::string name = json_string(spec.bos);
    out += fmt::format(
        "{{\"type\": \"TemplateProcessing\", \"single\": [{{\"SpecialToken\": {{\"id\": {0}, \"type_id\": 0}}}}, "
        "{{\"Sequence\": {{\"id\": \"A\", \"type_id\": 0}}}}], \"pair\": [{{\"Sequence\": {{\"id\": \"A\", "
        "\"type_id\": 0}}}}, {{\"Sequence\": {{\"id\": \"B\", \"type_id\": 1}}}}], \"special_tokens\": {{{0}: "
        "{{\"id\": "
        "{0}, \"ids\": [{1}], \"tokens\": [{0}]}}}}}}",
        name, bos->id);
  }
  out += fmt::format(
      ",\n  \"decoder\": {{\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": true, \"use_regex\": "
      "true}},\n  \"model\": {{\n    \"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, "
      "\"continuing_subword_prefix\": null, \"end_of_word_suffix\": null, \"fuse_unk\": false, \"byte_fallback\": "
      "false, \"ignore_merges\": {},\n    \"vocab\": {{",
      spec.ignore_merges);
  comma = "\n";
  for (const auto& [token, id] : spec.vocab) {
    out += fmt::format("{}{}: {}", comma, json_string(to_byte_alphabet(token)), id);
    comma = ",\n";
  }
  out += "\n    },\n    \"merges\": [";
  comma = "\n";
  for (const auto& [left, right] : spec.merges) {
    out += fmt::format("{}{}", comma, json_string(to_byte_alphabet(left) + " " + to_byte_alphabet(right)));
    comma = ",\n";
  }
  out += "\n    ]\n  }\n}\n";
  return out;
}

}  // namespace octet
