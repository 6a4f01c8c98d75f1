#include <cstdio>

#include "tools/commands/commands.h"
#include "tools/train/device.h"
#include "tools/train/generate.h"
#include "tools/train/run_state.h"

namespace octet {
namespace {

struct SampleOptions {
  std::string checkpoint, prompt, device = "cpu";
  int64_t tokens = 128, seed = 1;
  float temperature = 0.8f, top_p = 0.95f;
};

int run_sample(const SampleOptions& options) {
  FileSystem& files = real_file_system();
  const CheckpointReader reader(files, newest_checkpoint_of(files, options.checkpoint));
  const Tokenizer tokenizer = tokenizer_of(reader);
  const int64_t positions = int64_t(options.prompt.size()) + 1 + options.tokens;
  const auto model = load_model(reader, positions, open_device(device_type(options.device)));
  std::fputs(options.prompt.c_str(), stdout);
  generate(*model, tokenizer,
           {.prompt = options.prompt,
            .tokens = options.tokens,
            .sampling = {.temperature = options.temperature, .top_p = options.top_p},
            .seed = uint64_t(options.seed)},
           [](std::string_view piece) {
             std::fwrite(piece.data(), 1, piece.size(), stdout);
             std::fflush(stdout);
           });
  std::fputc('\n', stdout);
  return 0;
}

}  // namespace

void add_sample_command(CommandLine& line) {
  auto options = std::make_shared<SampleOptions>();
  Command command = line.subcommand("sample", "Continue a text with a trained model");
  command.option("checkpoint", &options->checkpoint, "A checkpoint, or a run directory for its newest good one")
      .required();
  command.option("--prompt", &options->prompt, "Text to continue; empty starts a new document").type_name("TEXT");
  command.option("--tokens", &options->tokens, "Most tokens to add")
      .type_name("N")
      .range(int64_t(1), int64_t(1) << 20)
      .shows_default();
  command.option("--temperature", &options->temperature, "Divides the logits; 0 always takes the likeliest token")
      .type_name("T")
      .range(0.0, 100.0)
      .shows_default();
  command.option("--top-p", &options->top_p, "Choose among the likeliest tokens that sum to this probability")
      .type_name("P")
      .range(0.0, 1.0)
      .shows_default();
  command.option("--seed", &options->seed, "Of the random numbers: the same seed gives the same text")
      .type_name("S")
      .not_negative()
      .shows_default();
  add_device_option(command, &options->device);
  command.run([options] { return run_sample(*options); });
}

}  // namespace octet
