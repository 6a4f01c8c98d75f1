// octet ckpt: lists checkpoints and checks every byte of them.
#include <cstdio>

#include "core/base/clock.h"
#include "tools/commands/commands.h"
#include "tools/train/checkpoint_store.h"

namespace octet {
namespace {

struct CkptOptions {
  std::string path;
  bool is_json = false;
};

// The checkpoints that a path means: itself, those of a directory of checkpoints, or those of a run.
std::vector<std::string> checkpoints_at(FileSystem& fs, const std::string& path) {
  if (!fs.exists(path)) {
    fail(ErrorKind::kCheckpoint, {.what = fmt::format("there is nothing at {}", path),
                                  .where = path,
                                  .why = "",
                                  .fix = "name a run directory, its checkpoints directory, or one checkpoint"});
  }
  if (fs.exists(join_path(path, kManifestName))) return {path};
  const std::string inside = join_path(path, "checkpoints");
  const std::string directory = fs.exists(inside) ? inside : path;
  std::vector<std::string> paths;
  for (const CheckpointEntry& entry : list_checkpoints(fs, directory)) paths.push_back(entry.path);
  if (paths.empty()) {
    fail(ErrorKind::kCheckpoint, {.what = fmt::format("there is no checkpoint in {}", directory),
                                  .where = directory,
                                  .why = "",
                                  .fix = "octet train writes one every checkpoint.every_steps steps and at its end"});
  }
  return paths;
}

std::string bytes_text(uint64_t bytes) {
  return bytes < 1'000'000       ? fmt::format("{:.1f} kB", double(bytes) * 1e-3)
         : bytes < 1'000'000'000 ? fmt::format("{:.1f} MB", double(bytes) * 1e-6)
                                 : fmt::format("{:.2f} GB", double(bytes) * 1e-9);
}

void list_tensors(const CheckpointReader& reader, bool is_json) {
  for (size_t i = 0; i < reader.num_tensors(); ++i) {
    const CheckpointReader::Tensor tensor = reader.tensor(i);
    if (is_json) {
      Json shape = Json::array();
      for (int axis = 0; axis < tensor.shape.rank(); ++axis) shape.push_back(tensor.shape[axis]);
      Json record = Json::object();
      record.set("name", tensor.name).set("group", name_of(tensor.group)).set("dtype", name_of(tensor.dtype));
      fmt::print("{}\n", record.set("shape", std::move(shape)).text());
    } else {
      fmt::print("{:<6} {:<8} {:<16} {}\n", name_of(tensor.group), name_of(tensor.dtype), to_string(tensor.shape),
                 tensor.name);
    }
  }
}

int run_ls(FileSystem& fs, const CkptOptions& options) {
  const std::vector<std::string> paths = checkpoints_at(fs, options.path);
  if (paths.size() == 1 && paths.front() == options.path) {
    list_tensors(CheckpointReader(fs, options.path), options.is_json);
    return 0;
  }
  if (!options.is_json)
    fmt::print("{:>10} {:>16} {:>8} {:>10}  {:<28} {}\n", "step", "tokens", "tensors", "size", "run", "path");
  for (const std::string& path : paths) {
    try {
      const CheckpointReader reader(fs, path);
      const CheckpointInfo& info = reader.info();
      if (options.is_json) {
        Json record = Json::object();
        record.set("path", path).set("step", info.step).set("tokens", info.tokens).set("run_id", info.run_id);
        record.set("code_version", info.code_version).set("tensors", uint64_t(reader.num_tensors()));
        fmt::print("{}\n", record.set("bytes", reader.bytes()).text());
      } else {
        fmt::print("{:>10} {:>16} {:>8} {:>10}  {:<28} {}\n", info.step, info.tokens, reader.num_tensors(),
                   bytes_text(reader.bytes()), info.run_id, path);
      }
    } catch (const Error& error) {
      if (options.is_json) {
        Json record = Json::object();
        fmt::print("{}\n", record.set("path", path).set("damage", error.report().what).text());
      } else {
        fmt::print("{:>10} {}\n", "damaged:", error.report().what);
      }
    }
  }
  return 0;
}

int run_verify(FileSystem& fs, const CkptOptions& options) {
  int damaged = 0;
  for (const std::string& path : checkpoints_at(fs, options.path)) {
    const double start = real_clock().seconds();
    const std::vector<CheckpointDamage> damages = verify_checkpoint(fs, path);
    damaged += !damages.empty();
    const uint64_t bytes = damages.empty() ? CheckpointReader(fs, path).bytes() : 0;
    if (options.is_json) {
      Json list = Json::array();
      for (const CheckpointDamage& damage : damages) {
        Json entry = Json::object();
        entry.set("file", damage.file).set("tensor", damage.tensor).set("block", damage.block);
        list.push_back(std::move(entry.set("what", damage.what)));
      }
      Json record = Json::object();
      record.set("path", path).set("good", damages.empty());
      fmt::print("{}\n", record.set("damages", std::move(list)).text());
      continue;
    }
    if (damages.empty()) {
      fmt::print("good     {}  {} read in {:.2f} s\n", path, bytes_text(bytes), real_clock().seconds() - start);
    }
    for (const CheckpointDamage& damage : damages) fmt::print("damaged  {}\n", damage.what);
  }
  return damaged == 0 ? 0 : exit_code(ErrorKind::kCheckpoint);
}

}  // namespace

void add_ckpt_command(CommandLine& line) {
  Command command = line.subcommand("ckpt", "List checkpoints, or check every byte of them");
  command.require_subcommand();
  auto options = std::make_shared<CkptOptions>();
  const auto add = [&](const std::string& name, const std::string& help, int (*run)(FileSystem&, const CkptOptions&)) {
    Command sub = command.subcommand(name, help);
    sub.option("path", &options->path, "A run directory, its checkpoints directory, or one checkpoint")
        .type_name("DIR")
        .required();
    sub.flag("--json", &options->is_json, "Print one JSON record a line");
    sub.run([options, run] { return run(real_file_system(), *options); });
  };
  add("ls", "List the checkpoints of a run, or the tensors of one checkpoint", run_ls);
  add("verify",
      "Read every byte and name the file, tensor and 64 KiB block of any damage; exit code 4 where there is one",
      run_verify);
}

}  // namespace octet
