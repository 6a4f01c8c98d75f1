#include <cstdio>

#include "tools/commands/commands.h"
#include "tools/data/dataset.h"
#include "tools/train/device.h"
#include "tools/train/run_state.h"

namespace octet {
namespace {

struct EvalOptions {
  std::string checkpoint, data, split = "val", device = "cpu";
  int64_t batches = 0;
};

int run_eval(const EvalOptions& options) {
  FileSystem& files = real_file_system();
  const std::string path = newest_checkpoint_of(files, options.checkpoint);
  const CheckpointReader reader(files, path);
  const Config config = config_of(reader);
  const TokenDataset data(files, options.data, options.split == "val" ? Split::kVal : Split::kTrain);
  require(ErrorKind::kData, tokenizer_of(reader).digest() == load_dataset_tokenizer(files, options.data).digest(),
          "{} was made with another tokenizer than {}: prepare it with --tokenizer {}", options.data, path,
          join_path(path, "tokenizer.json"));
  const int64_t S = config.data.seq_len;
  const DataLoader loader(data, SampleOrder::in_order(data.num_tokens(), S));
  const Device device = open_device(device_type(options.device));
  const auto model = load_model(reader, S, device);
  const int64_t each = config.sequences_per_micro_batch(), all = loader.order().samples_per_epoch();
  const int64_t wanted = options.batches == 0 ? all : std::min(all, options.batches * config.train.batch_size);
  double sum = 0;
  int64_t tokens = 0;
  for (int64_t first = 0; first < wanted; first += each) {
    const int64_t count = std::min(each, wanted - first);
    const Batch batch = loader.fetch(first, count);
    const auto loss = model->evaluate(from_vector(batch.inputs, {count * S}, device),
                                      from_vector(batch.targets, {count * S}, device), count);
    sum += loss.sum;
    tokens += loss.tokens;
  }
  const double loss = sum / double(tokens);
  Json record = Json::object();
  record.set("checkpoint", path).set("split", options.split).set("tokens", tokens).set("loss", loss);
  record.set("bits_per_byte", data.info().bits_per_byte(loss));
  record.set("unigram_entropy", data.info().unigram_nats_per_token);
  std::puts(record.text().c_str());
  return 0;
}

}  // namespace

void add_eval_command(CommandLine& line) {
  auto options = std::make_shared<EvalOptions>();
  Command command = line.subcommand("eval", "Measure the loss of a trained model on a dataset; prints one JSON record");
  command.option("checkpoint", &options->checkpoint, "A checkpoint, or a run directory for its newest good one")
      .required();
  command.option("--data", &options->data, "Directory that octet prepare wrote").type_name("DIR").required();
  command.option("--split", &options->split, "Which tokens of it").one_of({"train", "val"}).shows_default();
  command.option("--batches", &options->batches, "Most batches of train.batch_size sequences; 0 reads the whole split")
      .type_name("N")
      .not_negative()
      .shows_default();
  add_device_option(command, &options->device);
  command.run([options] { return run_eval(*options); });
}

}  // namespace octet
