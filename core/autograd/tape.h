// The tape: each recorded op leaves a closure that turns the gradient of its output into those of its inputs, and
// backward() runs the closures from a loss back, each once, newest first. Weights are not on the tape: an op adds to
// the float32 gradient of its Parameter itself, since that gradient sums over micro-batches and a copy of it would cost
// as much as the product that made it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/tensor/tensor.h"

namespace octet {

// One gradient for each input of the op; an undefined Tensor where there is none.
using Gradients = std::vector<Tensor>;

namespace autograd {

class Node {
 public:
  using Backward = std::function<Gradients(const std::vector<Tensor>& gradients_of_outputs)>;
  struct Edge {
    std::shared_ptr<Node> node;  // null: the input is not on the tape
    int output_index = 0;
  };
  Node(const char* op, int num_outputs, std::vector<Edge> edges, Backward backward);
  ~Node();

  const char* op() const { return op_; }

 private:
  friend void run_backward(std::vector<std::pair<Tensor, Tensor>> roots);
  const char* op_;
  uint64_t order_;  // rises with each recorded op: inputs are always older
  std::vector<Edge> edges_;
  Backward backward_;
  std::vector<Tensor> gradients_;  // of each output, as far as they have arrived
};

// Runs the tape back from the roots: pairs of a recorded tensor and its gradient. Each closure is dropped when it has
// run, and with it the activations that it kept.
void run_backward(std::vector<std::pair<Tensor, Tensor>> roots);

}  // namespace autograd

// Puts an op on the tape and returns y with its place there. Without any input on the tape, or while recording is off,
// y comes back as it is and the closure is dropped.
Tensor record(const char* op, Tensor y, const std::vector<Tensor>& inputs,
              std::function<Gradients(const Tensor& dy)> backward);
// The same for an op of several outputs; an output that nothing used has an undefined gradient.
std::vector<Tensor> record_many(const char* op, std::vector<Tensor> outputs, const std::vector<Tensor>& inputs,
                                autograd::Node::Backward backward);
// Puts a tensor on the tape as a source. on_gradient is called once with its gradient when backward() reaches it.
Tensor make_source(const Tensor& x, std::function<void(const Tensor& dx)> on_gradient);

// Runs back from y, whose gradient is dy.
void backward(const Tensor& y, const Tensor& dy);

bool is_recording();
// Turns recording on or off on this thread for the life of the object.
class Recording {
 public:
  explicit Recording(bool on);
  ~Recording();
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

 private:
  bool before_;
};

// Runs `body` now without keeping anything but x, and again, recorded, when the gradient of its result arrives: memory
// for time. body must be a pure function of x and of weights that do not change before the backward pass, so that the
// second run gives the same bits; is_recomputing() tells it apart, for statistics that must be counted once.
Tensor recompute(const Tensor& x, std::function<Tensor(const Tensor& x)> body);
bool is_recomputing();

}  // namespace octet
