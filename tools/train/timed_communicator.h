// A communicator that measures how long its rank waits in it and in its groups: the time in which a rank does not work.
#pragma once

#include <memory>
#include <string>

#include "core/base/clock.h"
#include "parallel/communicator.h"

namespace octet {

class TimedCommunicator final : public Communicator {
 public:
  // Both outlive this; its groups do not.
  TimedCommunicator(Communicator& inner, Clock& clock);

  double seconds_waited() const { return *seconds_waited_; }  // so far

  int world_rank(int rank) const override { return inner_.world_rank(rank); }
  const std::string& host(int rank) const override { return inner_.host(rank); }
  std::unique_ptr<Communicator> group(std::span<const int> ranks, std::string name) override;
  Pending start(CollectiveCall call, Stream& stream) override;
  void set_phase(std::string_view phase) override { inner_.set_phase(phase); }
  void progress() override { inner_.progress(); }
  void abort(ErrorKind kind, std::string_view reason) noexcept override { inner_.abort(kind, reason); }

 private:
  TimedCommunicator(std::unique_ptr<Communicator> inner, Clock& clock, std::shared_ptr<double> seconds_waited);

  std::unique_ptr<Communicator> owned_;
  Communicator& inner_;
  Clock& clock_;
  std::shared_ptr<double> seconds_waited_;
};

}  // namespace octet
