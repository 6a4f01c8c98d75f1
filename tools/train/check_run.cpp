#include "tools/train/check_run.h"

#include <unistd.h>

#include <optional>

#include "kernels/device_runtime.h"
#include "parallel/launch_environment.h"
#include "tools/train/device.h"

namespace octet {
namespace {

std::string shown_bytes(double bytes) {
  const char* const kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(kUnits)) bytes /= 1024, ++unit;
  return fmt::format("{:.1f} {}", bytes, kUnits[unit]);
}

std::string nearest_existing(FileSystem& files, std::string path) {
  while (!files.exists(path) && path != directory_of(path)) path = directory_of(path);
  return path;
}

int64_t machine_memory() {
  const long pages = ::sysconf(_SC_PHYS_PAGES), page_bytes = ::sysconf(_SC_PAGE_SIZE);
  return pages > 0 && page_bytes > 0 ? int64_t(pages) * page_bytes : 0;
}

class Checker {
 public:
  Checker(FileSystem& files, const std::string& run_dir, CheckedRun& run)
      : files_(files), run_dir_(run_dir), run_(run) {}

  void check(const Config& config, Problems& problems) {
    run_.vocab_size = config.model.vocab_size;
    // The sizes below mean nothing where the shape of the model is wrong.
    const bool is_sound = problems.empty();
    if (run_.elsewhere) {
      problems.require(config.model.vocab_size > 0, "model.vocab_size",
                       "is 0, the tokenizer's own size, and the dataset is on other hosts; wanted that number");
    } else if (!config.data.path.empty()) {
      check_data(config, problems);
    }
    if (!is_sound || run_.vocab_size <= 0) return;
    count_costs(config);
    if (!run_.elsewhere) check_machine(config, problems);
  }

  // The only fault, where it is not one of the configuration.
  const std::optional<Error>& foreign_fault() const { return foreign_; }

 private:
  void check_data(const Config& config, Problems& problems) {
    const std::string& path = config.data.path;
    if (!problems.require(files_.exists(path), "data.path",
                          "is {}, which does not exist; make it with: octet prepare --input FILE... --output {}", path,
                          path)) {
      return;
    }
    try {
      run_.dataset = read_dataset_info(files_, path);
      TokenDataset(files_, path, Split::kTrain);
      if (!run_.dataset.val.shards.empty()) TokenDataset(files_, path, Split::kVal);
      load_dataset_tokenizer(files_, path);
    } catch (const Error& error) {
      note("data.path", error, problems);
      if (run_.dataset.vocab_size == 0) return;
    }
    const DatasetInfo& data = run_.dataset;
    if (config.model.vocab_size == 0) {
      run_.vocab_size = data.vocab_size;
    } else {
      problems.require(config.model.vocab_size >= data.vocab_size, "model.vocab_size",
                       "is {}; wanted at least the {} tokens of {}, or 0 for just that", config.model.vocab_size,
                       data.vocab_size, path);
    }
    problems.require(data.train.num_tokens > config.data.seq_len, "data.seq_len",
                     "is {}; wanted fewer than the {} training tokens of {}", config.data.seq_len,
                     data.train.num_tokens, path);
    if (config.train.eval_every_steps > 0) {
      problems.require(data.val.num_tokens > 0, "train.eval_every_steps",
                       "is {}, but {} has no validation tokens; wanted 0, or a dataset with a validation split",
                       config.train.eval_every_steps, path);
    }
  }

  void count_costs(const Config& config) {
    const ParallelConfig& parallel = config.parallel;
    run_.rank = fullest_rank(config, run_.vocab_size);
    run_.memory = estimate_memory(config, run_.vocab_size, run_.rank);
    run_.wire = wire_bytes(config, run_.vocab_size, run_.rank);
    run_.host_ranks = parallel.ranks_per_node == 0 ? parallel.dp : std::min(parallel.dp, parallel.ranks_per_node);
    if (local_ranks() > 1) run_.host_ranks = std::min<int64_t>(parallel.dp, local_ranks());
    run_.sharing = config.device == DeviceType::kCpu ? run_.host_ranks : 1;
    if (config.device != DeviceType::kCpu && parallel.dp > 1) {
      run_.transport = parallel.gpu_transport == GpuTransport::kStaged ? "host memory and MPI"
                       : parallel.gpu_transport == GpuTransport::kNccl ? "NCCL"
                                                                       : "NCCL where each rank has a GPU";
    }

    // A tensor has entries in a header, the index and the manifest, about this long together for the names of a model,
    // and a digest of 8 bytes for each 64 KiB; a configuration has 2 KiB.
    constexpr int64_t kBytesPerTensor = 410, kBytesOfConfig = 2048;
    const CheckpointSize size = checkpoint_size(config, run_.vocab_size);
    run_.disk_bytes = uint64_t(size.bytes + size.bytes / 8192 + size.tensors * kBytesPerTensor + kBytesOfConfig);
  }

  void check_machine(const Config& config, Problems& problems) {
    const bool is_gpu = config.device != DeviceType::kCpu;
    if (is_gpu) {
      try {
        run_.memory_bytes = gpu::memory_level(open_device(config.device)).total_bytes;
        const int64_t gpus = std::max(1, gpu::runtime().count);
        run_.sharing = (run_.host_ranks + gpus - 1) / gpus;
      } catch (const Error& error) {
        note("device", error, problems);
      }
      check_transport(config.parallel, problems);
    } else {
      run_.memory_bytes = machine_memory();
    }
    const int64_t activations = run_.memory.activations + run_.memory.workspace;
    const double needed = double(run_.memory.total()) * double(run_.sharing);
    const std::string ranks = run_.sharing == 1 ? "" : fmt::format(" for {} ranks", run_.sharing);
    problems.require(run_.memory_bytes == 0 || needed < double(run_.memory_bytes), "train.micro_batch",
                     "is {}, with which this run needs {} of memory{}, {} of it for activations; wanted at most the {} "
                     "of this {}",
                     config.train.micro_batch, shown_bytes(needed), ranks,
                     shown_bytes(double(activations) * double(run_.sharing)), shown_bytes(double(run_.memory_bytes)),
                     is_gpu ? "GPU" : "machine");

    const std::string tokenizer = join_path(config.data.path, "tokenizer.json");
    if (files_.exists(tokenizer)) run_.disk_bytes += files_.info(tokenizer).size;
    try {
      const std::string place = nearest_existing(files_, run_dir_);
      run_.free_bytes = files_.free_bytes(place);
      if (run_.free_bytes < run_.disk_bytes) {
        fail(ErrorKind::kStorage,
             {.what = fmt::format("{} has {} free; one checkpoint needs {}", place,
                                  shown_bytes(double(run_.free_bytes)), shown_bytes(double(run_.disk_bytes))),
              .where = run_dir_,
              .why = "the first save would fail",
              .fix = "free the space, or give another directory with --out"});
      }
    } catch (const Error& error) {
      note("checkpoint.keep_last", error, problems);
    }
  }

  void check_transport(const ParallelConfig& parallel, Problems& problems) {
    if (parallel.dp == 1 || parallel.gpu_transport == GpuTransport::kStaged) return;
    const std::string trouble = nccl_trouble_of(run_.host_ranks);
    run_.transport = trouble.empty() ? "NCCL" : fmt::format("host memory and MPI: {}", trouble);
    problems.require(trouble.empty() || parallel.gpu_transport == GpuTransport::kAuto, "parallel.gpu_transport",
                     "is nccl, and {}; wanted auto or staged", trouble);
  }

  // Keeps the error for the case that it stays the only one, and lists it with the others.
  void note(std::string_view key, const Error& error, Problems& problems) {
    foreign_ = error;
    const std::string& fix = error.report().fix;
    problems.require(false, key, "cannot be used: {}{}", error.report().what, fix.empty() ? "" : "; " + fix);
  }

  FileSystem& files_;
  const std::string& run_dir_;
  CheckedRun& run_;
  std::optional<Error> foreign_;
};

}  // namespace

CheckedRun check_run(FileSystem& files, const std::string& config_path, const std::vector<std::string>& overrides,
                     const std::string& run_dir, bool elsewhere) {
  CheckedRun run;
  run.elsewhere = elsewhere;
  Checker checker(files, run_dir, run);
  try {
    run.config = load_config(files, config_path, overrides, &run.origins,
                             [&checker](const Config& config, Problems& problems) { checker.check(config, problems); });
  } catch (const Error& error) {
    if (error.parts().empty() && checker.foreign_fault()) throw *checker.foreign_fault();
    throw;
  }
  return run;
}

}  // namespace octet
