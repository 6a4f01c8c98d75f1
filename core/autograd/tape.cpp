#include "core/autograd/tape.h"

#include <map>

#include "kernels/elementwise.h"

namespace octet {
namespace {

thread_local bool recording_now = false;
thread_local bool recomputing_now = false;
thread_local uint64_t ops_recorded = 0;

}  // namespace

namespace autograd {

Node::Node(const char* op, int num_outputs, std::vector<Edge> edges, Backward backward)
    : op_(op),
      order_(++ops_recorded),
      edges_(std::move(edges)),
      backward_(std::move(backward)),
      gradients_(size_t(num_outputs)) {}

// A long chain of nodes must not be freed by a chain of destructor calls as deep: each takes its inputs with it.
Node::~Node() {
  std::vector<std::shared_ptr<Node>> pending;
  const auto take = [&pending](Node& node) {
    node.backward_ = nullptr;  // the closure's tensors may hold nodes too, but each only one op deep
    for (Edge& edge : node.edges_) {
      if (edge.node) pending.push_back(std::move(edge.node));
    }
    node.edges_.clear();
  };
  take(*this);
  while (!pending.empty()) {
    const std::shared_ptr<Node> node = std::move(pending.back());
    pending.pop_back();
    if (node.use_count() == 1) take(*node);
  }
}

namespace {
void add_gradient(Tensor& sum, const Tensor& more) {
  if (!sum.is_defined()) {
    sum = more;
    return;
  }
  require(sum.shape() == more.shape(), "backward: gradients of shape {} and {} for one tensor", sum.shape(),
          more.shape());
  // Into a new tensor: `sum` may be shared with another op that was handed the same gradient.
  Tensor total = empty_like(sum);
  kernels::add_into({.a = sum, .b = more, .y = total}, total.stream());
  sum = total;
}
}  // namespace

void run_backward(std::vector<std::pair<Tensor, Tensor>> roots) {
  const Recording off(false);
  std::map<uint64_t, std::shared_ptr<Node>, std::greater<>> ready;  // newest first
  const auto arrive = [&ready](const std::shared_ptr<Node>& node, int output_index, const Tensor& gradient) {
    if (!node || !gradient.is_defined()) return;
    require(node->backward_ != nullptr, "backward: {} ran before; a tape runs once", node->op_);
    add_gradient(node->gradients_[size_t(output_index)], gradient);
    ready.emplace(node->order_, node);
  };
  for (auto& [y, dy] : roots) arrive(y.node(), y.output_index(), dy);
  roots.clear();
  while (!ready.empty()) {
    const std::shared_ptr<Node> node = ready.begin()->second;
    ready.erase(ready.begin());
    const Node::Backward run = std::move(node->backward_);
    node->backward_ = nullptr;
    const std::vector<Tensor> arrived = std::move(node->gradients_);
    Gradients gradients = run(arrived);
    require(gradients.size() == node->edges_.size(), "backward: {} gave {} gradients for {} inputs", node->op_,
            gradients.size(), node->edges_.size());
    for (size_t i = 0; i < gradients.size(); ++i) {
      arrive(node->edges_[i].node, node->edges_[i].output_index, gradients[i]);
    }
  }
}

}  // namespace autograd

std::vector<Tensor> record_many(const char* op, std::vector<Tensor> outputs, const std::vector<Tensor>& inputs,
                                autograd::Node::Backward backward) {
  bool any = false;
  for (const Tensor& input : inputs) any = any || input.requires_grad();
  for (Tensor& output : outputs) output = output.detach();
  if (!any || !recording_now) return outputs;
  std::vector<autograd::Node::Edge> edges;
  edges.reserve(inputs.size());
  for (const Tensor& input : inputs) edges.push_back({input.node(), input.output_index()});
  const auto node = std::make_shared<autograd::Node>(op, int(outputs.size()), std::move(edges), std::move(backward));
  for (size_t i = 0; i < outputs.size(); ++i) outputs[i].set_node(node, int(i));
  return outputs;
}

Tensor record(const char* op, Tensor y, const std::vector<Tensor>& inputs,
              std::function<Gradients(const Tensor& dy)> backward) {
  return record_many(op, {std::move(y)}, inputs,
                     [backward = std::move(backward)](const std::vector<Tensor>& dys) { return backward(dys[0]); })[0];
}

Tensor make_source(const Tensor& x, std::function<void(const Tensor& dx)> on_gradient) {
  Tensor source = x.detach();
  if (!recording_now) return source;
  source.set_node(
      std::make_shared<autograd::Node>("source", 1, std::vector<autograd::Node::Edge>{},
                                       [on_gradient = std::move(on_gradient)](const std::vector<Tensor>& dx) {
                                         on_gradient(dx[0]);
                                         return Gradients{};
                                       }),
      0);
  return source;
}

void backward(const Tensor& y, const Tensor& dy) { autograd::run_backward({{y, dy}}); }

bool is_recording() { return recording_now; }
Recording::Recording(bool on) : before_(recording_now) { recording_now = on; }
Recording::~Recording() { recording_now = before_; }
bool is_recomputing() { return recomputing_now; }

Tensor recompute(const Tensor& x, std::function<Tensor(const Tensor& x)> body) {
  if (!is_recording()) return body(x);
  Tensor y;
  {
    const Recording off(false);
    y = body(x.detach());
  }
  return record("recompute", y, {x}, [x = x.detach(), body = std::move(body)](const Tensor& dy) -> Gradients {
    const Recording on(true);
    struct Flag {
      bool before = recomputing_now;
      Flag() { recomputing_now = true; }
      ~Flag() { recomputing_now = before; }
    } flag;
    Tensor dx;
    const Tensor again = body(make_source(x, [&dx](const Tensor& gradient) { dx = gradient; }));
    backward(again, dy);
    return {dx};
  });
}

}  // namespace octet
