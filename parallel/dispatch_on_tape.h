// What dispatchers between ranks share: the two ways of a dispatch on the tape, and the form in which tokens travel.
#pragma once

#include <memory>

#include "core/autograd/tape.h"
#include "core/nn/dispatcher.h"
#include "kernels/quantize.h"
#include "parallel/token_route.h"

namespace octet {

// Tokens on their way, as values or as codes with their scales.
class TokensOnWire {
 public:
  TokensOnWire() = default;
  explicit TokensOnWire(std::unique_ptr<TokensInFlight> values) : values_(std::move(values)) {}
  TokensOnWire(std::unique_ptr<TokensInFlight> codes, std::unique_ptr<TokensInFlight> scale)
      : codes_(std::move(codes)), scale_(std::move(scale)) {}

  void start() {
    for (TokensInFlight* matrix : {values_.get(), codes_.get(), scale_.get()}) {
      if (matrix != nullptr) matrix->start();
    }
  }
  Fp8Rows wait_quantized() {
    if (values_ != nullptr) return quantize_rows(values_->wait(), nullptr);
    Fp8Rows rows{.codes = codes_->wait(), .scale = {}};
    rows.scale = scale_->wait();
    return rows;
  }
  Tensor wait_values(DType dtype) {
    if (values_ != nullptr) return values_->wait();
    const Fp8Rows rows = wait_quantized();
    const Tensor values = empty(rows.codes.shape(), dtype, MemoryCategory::kWorkspace, rows.codes.device());
    kernels::dequantize_rows({.codes = rows.codes, .scale = rows.scale, .x = values}, values.stream());
    return values;
  }

 private:
  std::unique_ptr<TokensInFlight> values_, codes_, scale_;
};

// Exchange: send(), wait_rows() for the weights of the rows of experts here, arrive(place); start_back(rows) and
// wait_back(base); start_gradient(dy) and wait_gradient(); start_weight_gradients(dweights) and
// wait_weight_gradients().
template <class Exchange>
class DispatchOnTape final : public Dispatch {
 public:
  DispatchOnTape(std::shared_ptr<Exchange> exchange, const LinearInput& input, const Tensor& weights)
      : dtype_(input.x().dtype()),
        device_(input.x().device()),
        width_(input.x().cols()),
        exchange_(std::move(exchange)) {
    // The placeholders between the two ends of a way have no numbers. Backwards each end does what its other end does
    // forwards: it starts where the other waits.
    started_ = record("dispatch", place_of(input.x().shape()), {input.x(), weights},
                      [exchange = exchange_](const Tensor&) -> Gradients {
                        return {exchange->wait_back(/*base=*/{}), exchange->wait_weight_gradients()};
                      });
  }

  void send() override { exchange_->send(); }

  Dispatched arrive() override {
    const Tensor weights = exchange_->wait_rows();
    const std::vector<Tensor> arrived =
        record_many("arrive", {place_of({weights.size(0), width_}), weights}, {started_},
                    [exchange = exchange_](const std::vector<Tensor>& gradients) -> Gradients {
                      const Tensor& drows = gradients[0];
                      exchange->start_back(drows);
                      exchange->start_weight_gradients(gradients[1]);
                      return {Tensor::without_data(drows.shape(), drows.dtype(), drows.device())};
                    });
    Dispatched dispatched = exchange_->arrive(arrived[0]);
    dispatched.weights = arrived[1];
    return dispatched;
  }

  void send_back(const Tensor& rows) override {
    exchange_->start_back(rows.detach());
    sent_ = record("send_back", place_of(rows.shape()), {rows},
                   [exchange = exchange_](const Tensor&) -> Gradients { return {exchange->wait_gradient()}; });
  }

  Tensor combine(const Tensor& base) override {
    return record("combine", exchange_->wait_back(base), {sent_, base},
                  [exchange = exchange_](const Tensor& dy) -> Gradients {
                    exchange->start_gradient(dy);
                    return {Tensor::without_data(dy.shape(), dy.dtype(), dy.device()), dy};
                  });
  }

 private:
  Tensor place_of(Shape shape) const { return Tensor::without_data(shape, dtype_, device_); }

  const DType dtype_;
  const Device device_;
  const int64_t width_;
  std::shared_ptr<Exchange> exchange_;
  Tensor started_, sent_;
};

}  // namespace octet
