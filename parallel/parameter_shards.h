// The parameters of a model over its data-parallel ranks: each holds all weights and all gradients, and master weights
// and moments of its own rows only (ZeRO stage 1, arXiv:1910.02054). A step is
//   reduce   own rows of the gradient = sum over ranks, in the order of ranks
//   update   own rows of master and weight (optim/adamw.h)
//   gather   all rows of the weight, from their owners: bfloat16 or float32, or E4M3 codes and their scales
// Bytes of a parameter of n elements over r ranks, sent by each rank: reduce 4 n (r - 1) / r; gather, at most,
// (r - 1) / r times the bytes of the weight.
//
// Parameters lie in buckets, each one piece of memory, so that a bucket is one message to each rank. A bucket is
// reduced as soon as the backward pass has left it. Inside a bucket each rank owns neighbouring slabs, about equally
// many elements. Which rank owns what, and how parameters are divided in buckets, changes no bit of any result.
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "core/autograd/parameter.h"
#include "parallel/communicator.h"

namespace octet {

struct ShardOptions {
  int64_t bucket_bytes = int64_t(8) << 20;  // of gradients; a bucket ends with the unit that reaches it
};

// What parameters consist of, each kind in memory of its own: the gradient, and the weight in one of three forms.
enum ShardKind { kShardGrad, kShardFloat32, kShardBFloat16, kShardCodes, kShardScale };
inline constexpr int kShardKinds = 5;
inline constexpr DType kShardDTypes[kShardKinds] = {DType::kFloat32, DType::kFloat32, DType::kBFloat16,
                                                    DType::kFloat8E4M3, DType::kFloat32};

using ShardCounts = std::array<int64_t, kShardKinds>;  // elements of each kind

// What the rows of a parameter before `row` have; row is where a slab begins, or num_rows().
ShardCounts shard_elements(const Parameter& parameter, int64_t row);

// How the parameters of a bucket lie, and which rank owns what: a function of shapes alone.
struct BucketPlan {
  std::vector<Parameter*> parameters;
  size_t first_unit = 0;
  std::vector<ShardCounts> begin;                           // of each parameter
  ShardCounts elements{};                                   // of all
  std::array<std::vector<int64_t>, kShardKinds> of_rank{};  // of them each rank's, in order
  std::vector<RowRange> own;                                // of each parameter, those of rank `me`
};

// The buckets of the parameters that are cut (Parameter::cut), or of the others, over so many ranks that hold the same;
// last units first.
void plan_buckets(const std::vector<std::vector<Parameter*>>& units, bool cut, int64_t ranks, int64_t me,
                  const ShardOptions& options, const std::function<void(BucketPlan&&)>& visit);

class ParameterShards {
 public:
  // units: as Transformer::units(); nothing may have been made of the parameters yet. dense: the ranks that hold the
  // same parameters; experts: those that hold the same slices of cut ones (Parameter::cut). Both outlive this. A group
  // of one rank leaves its parameters as they are.
  ParameterShards(const std::vector<std::vector<Parameter*>>& units, Communicator& dense, Communicator& experts,
                  const ShardOptions& options = {});

  // The gradients of a unit are complete; units come last first. Starts to reduce what is complete.
  void unit_done(size_t unit);
  // Starts the rest, and waits: own rows of each gradient are then the sum, other rows mean nothing.
  void finish_reduction();
  // After the masters, or own rows of the weights, have changed.
  void gather_weights();

 private:
  struct Bucket {
    Communicator* ranks = nullptr;
    BucketPlan plan;
    std::array<Tensor, kShardKinds> flat;
    Pending reduction;
    bool is_reducing = false;

    Tensor mine(ShardKind kind) const;  // of flat[kind]
  };

  void add_buckets(const std::vector<std::vector<Parameter*>>& units, bool cut, Communicator& ranks,
                   const ShardOptions& options);
  static void place(Bucket& bucket);
  static void start_reduction(Bucket& bucket);

  std::vector<Bucket> buckets_;  // last units first
};

}  // namespace octet
