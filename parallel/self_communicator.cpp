#include "parallel/self_communicator.h"

#include <cstring>

#include "parallel/process_identity.h"

namespace octet {
namespace {

class SelfCommunicator final : public Communicator {
 public:
  explicit SelfCommunicator(std::string name)
      : Communicator(/*rank=*/0, /*size=*/1, std::move(name)), host_(this_process().host) {}

  int world_rank(int) const override { return 0; }
  const std::string& host(int) const override { return host_; }
  std::unique_ptr<Communicator> group(std::span<const int> ranks, std::string name) override {
    require(ranks.size() == 1 && ranks[0] == 0, "group {}: {} ranks; wanted rank 0, the only one", name, ranks.size());
    return std::make_unique<SelfCommunicator>(std::move(name));
  }
  void set_phase(std::string_view) override {}
  void progress() override {}
  void abort(ErrorKind, std::string_view) noexcept override {}
  Pending start(CollectiveCall call, Stream&) override {
    require(call.device.is_cpu(), "{}: on {}; this communicator moves host memory", name_of(call.operation),
            call.device);
    ++traffic_[call.operation].calls;
    std::byte* to = call.to + (call.to_pieces.empty() ? 0 : call.to_pieces[0].offset);
    for (const CollectiveCall::Piece& from : call.parts_to(0)) {
      if (from.bytes > 0 && call.from + from.offset != to) std::memcpy(to, call.from + from.offset, size_t(from.bytes));
      to += from.bytes;
    }
    return {};
  }

 private:
  std::string host_;
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator() { return std::make_unique<SelfCommunicator>("world"); }

}  // namespace octet
