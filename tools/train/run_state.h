// Between a model in memory and a checkpoint on disk (checkpoint_store.h). Tensors, by group:
//   model  each weight under its Hugging Face name, in the dtype that the forward pass reads: bfloat16, or float32 for
//          norms and in the fp32 recipe; and <gate>.e_score_correction_bias. A model made from these alone gives the
//          logits of the model in training, bit for bit.
//   optim  <name>.master (float32, where the weight itself is not), <name>.exp_avg, <name>.exp_avg_sq
//   state  <gate>.last_load_share
// The manifest names the weights whose gradients are no longer products of tiles (core/nn/wgrad_tiles.h).
// Many ranks. Each gives the rows that it owns (Parameter::own) of the masters and moments, as boxes of those tensors;
// so any ranks read what any others wrote. A weight is written whole by the rank that owns its first row; what exists
// in FP8 only, it collects from the masters of the other owners. Rank 0 gives the routers' tensors.
#pragma once

#include <memory>
#include <string>

#include "core/base/clock.h"
#include "core/nn/transformer.h"
#include "optim/adamw.h"
#include "parallel/communicator.h"
#include "tools/data/dataset.h"
#include "tools/train/checkpoint_store.h"
#include "tools/train/config.h"

namespace octet {

struct RunState {
  std::string run_id;
  int64_t step = 0;         // optimizer steps done
  int64_t tokens = 0;       // trained on
  SampleCursor cursor;      // of the next sample
  std::string data_digest;  // of the dataset
};

// config and tokenizer are saved beside the tensors; keep_last as in CheckpointConfig. Returns the checkpoint's path.
std::string save_run_state(FileSystem& files, const std::string& directory, const RunState& state, const Config& config,
                           const Tokenizer& tokenizer, Transformer& model, const AdamW& optimizer);
// Called by all ranks, with weights that are whole (gathered) on each; each row of a parameter is owned by one of the
// ranks that hold it. Errors are those of save_checkpoint. Memory beside the model: the bfloat16 values of the FP8
// weights that this rank writes, and 4 MiB; of a GPU, all
// that this rank writes, on the host.
std::string save_run_state(FileSystem& files, const std::string& directory, const RunState& state, const Config& config,
                           const Tokenizer& tokenizer, Transformer& model, const AdamW& optimizer, Communicator& world);

// Fills weights, moments and router state, and refreshes the weights. The recipe, the dtype of the moments and the
// ranks may be others than those that wrote the checkpoint.
RunState load_run_state(const CheckpointReader& reader, Transformer& model, const AdamW& optimizer);
// Called by all ranks; an error of one is thrown by all. Each reads the rows that it owns, and refreshes those: the
// caller then gathers the weights. Memory beside the model and the reader: 4 MiB.
RunState load_run_state(const CheckpointReader& reader, Transformer& model, const AdamW& optimizer,
                        Communicator& world);

// Throws kCheckpoint, with each key and both values, where the checkpoint is of a run that this configuration cannot go
// on with: another model, sequence length, seed or dataset.
void require_same_run(const CheckpointReader& reader, const Config& config, const std::string& data_digest);

// For inference. A path is that of a checkpoint, or of a run directory, of which it is the newest good checkpoint.
std::string newest_checkpoint_of(FileSystem& files, const std::string& path);
Config config_of(const CheckpointReader& reader);
// Those of the newest checkpoint that can be read; none where there is none. Where it says no format, FP8 was taken.
std::optional<ProductFormats> formats_of_run(FileSystem& files, const std::string& checkpoints);
Tokenizer tokenizer_of(const CheckpointReader& reader);
// max_positions: longest sequence it will be given.
std::unique_ptr<Transformer> load_model(const CheckpointReader& reader, int64_t max_positions, Device device = {});

// Of a new run: the time and 32 random bits of the system, "20261124-074500-1f2e3d4c".
std::string new_run_id(Clock& clock);

}  // namespace octet
