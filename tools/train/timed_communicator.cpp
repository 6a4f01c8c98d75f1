#include "tools/train/timed_communicator.h"

namespace octet {
namespace {

class TimedWork final : public Pending::Work {
 public:
  TimedWork(Pending pending, Clock& clock, std::shared_ptr<double> seconds_waited)
      : pending_(std::move(pending)), clock_(clock), seconds_waited_(std::move(seconds_waited)) {}
  bool is_done() override { return pending_.is_done(); }
  void wait() override {
    const int64_t start_ns = clock_.monotonic_ns();
    pending_.wait();
    *seconds_waited_ += double(clock_.monotonic_ns() - start_ns) * 1e-9;
  }
  // In an exception, in which Pending gives up what it lets go of.
  void give_up() noexcept override { pending_ = {}; }

 private:
  Pending pending_;
  Clock& clock_;
  std::shared_ptr<double> seconds_waited_;
};

}  // namespace

TimedCommunicator::TimedCommunicator(Communicator& inner, Clock& clock)
    : Communicator(inner.rank(), inner.size(), inner.name()),
      inner_(inner),
      clock_(clock),
      seconds_waited_(std::make_shared<double>(0.0)) {}

TimedCommunicator::TimedCommunicator(std::unique_ptr<Communicator> inner, Clock& clock,
                                     std::shared_ptr<double> seconds_waited)
    : Communicator(inner->rank(), inner->size(), inner->name()),
      owned_(std::move(inner)),
      inner_(*owned_),
      clock_(clock),
      seconds_waited_(std::move(seconds_waited)) {}

std::unique_ptr<Communicator> TimedCommunicator::group(std::span<const int> ranks, std::string name) {
  return std::unique_ptr<Communicator>(
      new TimedCommunicator(inner_.group(ranks, std::move(name)), clock_, seconds_waited_));
}

Pending TimedCommunicator::start(CollectiveCall call, Stream& stream) {
  return Pending(std::make_shared<TimedWork>(inner_.start(std::move(call), stream), clock_, seconds_waited_));
}

}  // namespace octet
