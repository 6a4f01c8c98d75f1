// The training loop: from a configuration and a run directory to a trained model, resumed wherever an earlier process
// stopped.
//
// The state of a run is the weights, Adam's moments, the routers' biases and last loads, the weights whose gradients
// have gone back from tiles to columns, and the number of steps done.
// All else follows from it: the data cursor is steps * batch_size samples, random numbers are functions of the seed. So
// a run that was stopped, or killed, and started again is bit for bit the run that was never stopped.
//
// Many ranks run one Trainer each, on the same run directory. Rank 0 writes what is not a checkpoint, and speaks; every
// decision is taken by all alike.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "core/base/clock.h"
#include "core/base/file_system.h"
#include "core/nn/transformer.h"
#include "core/ops/fp8_tally.h"
#include "optim/adamw.h"
#include "parallel/parallelize.h"
#include "tools/data/dataset.h"
#include "tools/train/config.h"
#include "tools/train/heartbeat_file_system.h"
#include "tools/train/metrics.h"
#include "tools/train/run_state.h"
#include "tools/train/slow_rank.h"
#include "tools/train/step_graph.h"
#include "tools/train/timed_communicator.h"
#include "tools/train/training_step.h"
#include "tools/train/yaml_reader.h"

namespace octet {

class Trainer {
 public:
  // Reads the dataset and builds the model; the run directory is made where it is missing. Throws what octet check
  // would. world: of parallel.dp ranks; outlives this. Null: this process is alone.
  Trainer(const Config& config, const Origins& origins, std::string run_dir, FileSystem& files, Clock& clock,
          Communicator* world = nullptr);
  ~Trainer();

  // Resumes from the newest good checkpoint, or starts; trains to the last step or until a StopSignal; saves. Returns
  // 0, or 75 where it was stopped. Throws kNumeric for a number that is not finite, kStorage where saving keeps
  // failing.
  int run();

  // The pieces of run(), for tests. resume() gives the steps done; train_step() does one more.
  int64_t resume();
  StepRecord train_step();
  void save();
  double evaluate();  // mean loss in nats per token of the validation split
  int64_t steps_done() const { return state_.step; }
  Transformer& model() { return *model_; }
  int64_t graph_launches() const { return graph_->launches(); }

 private:
  void add_router_metrics(StepRecord& record, const std::vector<std::vector<int64_t>>& loads) const;
  bool counts_numbers() const;  // what quantising and the limit of SwiGLU did
  void add_machine_metrics(StepRecord& record);
  void watch_ranks(StepRecord& record, bool is_interval_over, double seconds_waited);
  void validate_into(StepRecord& record);
  void try_save();
  void write_sample();
  double seconds_per_step_before();
  void print_start() const;
  void print_end(int64_t first_step) const;
  void decide_product_formats();
  bool is_first() const { return world_.rank() == 0; }
  StepRanks step_ranks() const;
  bool is_stopped();
  std::string first_non_finite(double loss);
  [[noreturn]] void refuse_non_finite(double loss);

  Config config_;
  SwigluInGemm swiglu_in_gemm_;
  Origins origins_;
  const std::string run_dir_;
  Clock& clock_;

  const Device device_;
  const std::unique_ptr<Communicator> alone_, of_gpus_;
  TimedCommunicator timed_;
  Communicator& world_;  // timed_
  HeartbeatFileSystem files_;
  std::optional<Ranks> ranks_;

  std::unique_ptr<TokenDataset> train_data_, val_data_;
  std::unique_ptr<DataLoader> train_loader_, val_loader_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Transformer> model_;
  std::unique_ptr<ParameterShards> shards_;
  std::unique_ptr<AdamW> optimizer_;
  std::unique_ptr<MetricsWriter> metrics_;
  std::optional<Fp8Tally> fp8_tally_;
  std::optional<StepTokens> tokens_;
  std::optional<StepLosses> losses_;
  std::optional<StepGraph> graph_;

  RunState state_;
  int64_t saved_step_ = -1;  // of the newest checkpoint, -1 for none
  int64_t failed_saves_ = 0, skipped_in_a_row_ = 0;
  bool asks_to_stop_ = false;  // a rank did, when the gradients of the last step were there
  double flops_per_token_ = 0, peak_flops_ = 0;
  std::optional<StepRecord> last_, last_with_validation_;

  SlowRankWatch slow_ranks_;
  double worked_s_ = 0, interval_s_ = 0;  // in the steps since the ranks were last compared
  int told_slow_rank_ = -1;               // the log names it
};

}  // namespace octet
