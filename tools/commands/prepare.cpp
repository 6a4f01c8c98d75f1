// octet prepare: makes a dataset from text.
#include "tools/data/prepare.h"

#include <unistd.h>

#include <cstdio>

#include "core/base/error.h"
#include "core/base/log.h"
#include "tools/commands/commands.h"

namespace octet {
namespace {

struct Arguments {
  PrepareOptions options;
  std::string on_bad_line = "stop";
  int threads = 0;
};

// One line that is drawn again on a terminal; elsewhere a log line for each stage.
class PrepareLine {
 public:
  explicit PrepareLine(Clock& clock) : clock_(clock), is_live_(::isatty(STDERR_FILENO) == 1) {}
  ~PrepareLine() { clear(); }

  void show(const PrepareProgress& progress) {
    if (stage_ != progress.stage) {
      if (!is_live_) log_info("{}", progress.stage);
      stage_ = progress.stage;
      last_ = 0;
    }
    const double now = clock_.seconds();
    constexpr double kEverySeconds = 0.1;
    if (!is_live_ || now - last_ < kEverySeconds) return;
    last_ = now;
    std::fprintf(stderr, "\r\x1b[K%s %3.0f %%", progress.stage, 100 * progress.done);
    std::fflush(stderr);
    is_shown_ = true;
    set_progress_line_shown(true);
  }
  void clear() {
    if (is_shown_) std::fputs("\r\x1b[K", stderr);
    is_shown_ = false;
    set_progress_line_shown(false);
  }

 private:
  Clock& clock_;
  bool is_live_, is_shown_ = false;
  std::string stage_;
  double last_ = 0;
};

void print_split(const char* name, const SplitInfo& split) {
  if (split.num_tokens == 0) {
    fmt::print("{:<6} empty\n", name);
    return;
  }
  fmt::print("{:<6} {} documents, {} bytes, {} tokens, {:.3f} bytes per token\n", name, split.num_documents,
             split.text_bytes, split.num_tokens, split.bytes_per_token());
}

void run(Arguments& arguments) {
  PrepareOptions& options = arguments.options;
  options.source.on_bad_line = arguments.on_bad_line == "skip" ? OnBadLine::kSkip : OnBadLine::kStop;
  ThreadPool pool(arguments.threads);
  PrepareLine line(real_clock());
  const PrepareSummary summary = prepare_dataset(options, real_file_system(), real_clock(), pool,
                                                 [&](const PrepareProgress& progress) { line.show(progress); });
  line.clear();
  const DatasetInfo& dataset = summary.dataset;
  print_split("train", dataset.train);
  print_split("val", dataset.val);
  if (dataset.val.num_tokens > 0) {
    const double nats = dataset.val.unigram_nats_per_token;
    fmt::print("unigram entropy of val: {:.4f} nats per token, {:.4f} bits per byte\n", nats,
               dataset.val.bits_per_byte(nats));
  }
  if (summary.counts.empty_documents > 0) fmt::print("left out: {} empty documents\n", summary.counts.empty_documents);
  if (summary.counts.bad_lines > 0) fmt::print("left out: {} bad lines\n", summary.counts.bad_lines);
  fmt::print("wrote {} in {:.1f} s: vocabulary of {} tokens; tokenized at {:.1f} MB/s on {} threads\n", options.output,
             summary.seconds, dataset.vocab_size, summary.encoded_megabytes_per_second(), pool.num_threads());
}

}  // namespace

void add_prepare_command(CommandLine& line) {
  auto arguments = std::make_shared<Arguments>();
  PrepareOptions& options = arguments->options;
  Command command = line.subcommand("prepare",
                                    "Make a dataset from text: train a tokenizer, or take one, and "
                                    "write the tokens in shards with checksums");
  command.footer(
      "Examples:\n"
      "  octet prepare --input book.txt --output data/book\n"
      "  octet prepare --input docs src --include '*.md' '*.cpp' --vocab-size 4096 --output data/code\n"
      "  octet prepare --input web.jsonl --tokenizer tokenizer.json --output data/web");
  command
      .option("--input", &options.source.inputs,
              "Text files (a document each), .jsonl files (a document per line), and directories of them")
      .required();
  command.option("--output", &options.output, "Directory to write; must not exist, or be empty").required();
  const Option vocab =
      command
          .option("--vocab-size", &options.vocab_size,
                  "Train a byte-level BPE tokenizer of this many tokens, the 256 bytes and <|endoftext|> among them")
          .shows_default();
  command
      .option("--tokenizer", &options.tokenizer_path,
              "Take this Hugging Face tokenizer.json (byte-level BPE) instead of training one")
      .excludes(vocab);
  command.option("--eos-token", &options.eos_token,
                 "The special token of that tokenizer that ends a document, where it has no usual name");
  command
      .option("--include", &options.source.include,
              "Which files of a directory to take: patterns for the name, or with a slash for the path below it")
      .separated_by(',')
      .shows_default();
  command.option("--text-key", &options.source.text_key, "The field of a JSONL line that holds the text")
      .shows_default();
  command
      .option("--on-bad-line", &arguments->on_bad_line,
              "What to do at a JSONL line without a text: stop, or skip it and count")
      .one_of({"stop", "skip"})
      .shows_default();
  command.option("--val-fraction", &options.val_fraction, "Share of the documents to keep for validation, 0 to 0.5")
      .shows_default();
  command.option("--seed", &options.seed, "Decides which documents are for validation")
      .range(uint64_t(0), uint64_t(INT64_MAX))
      .shows_default();
  command.option("--threads", &arguments->threads, "Threads to use; 0 is one per core")
      .range(int64_t(0), int64_t(1024))
      .shows_default();
  command.flag("--overwrite", &options.overwrite, "Replace a dataset that is there already");
  command.run([arguments] {
    run(*arguments);
    return 0;
  });
}

}  // namespace octet
