// For a build without NCCL.
#include "core/base/error.h"
#include "parallel/nccl_communicator.h"

namespace octet {
namespace {

[[noreturn]] void refuse() {
  fail(ErrorKind::kDevice, {.what = "there is no NCCL: " + nccl_trouble(),
                            .where = {},
                            .why = "CUDA or nccl.h was not found when it was built, or OCTET_NCCL=OFF",
                            .fix = "install NCCL and build again, or set parallel.gpu_transport: staged"});
}

}  // namespace

std::string nccl_trouble() { return "this octet was built without it"; }

std::unique_ptr<Communicator> make_nccl_communicator(std::shared_ptr<Communicator>, int, const CommunicatorOptions&) {
  refuse();
}
std::unique_ptr<Communicator> make_nccl_communicator(Communicator&, int, const CommunicatorOptions&) { refuse(); }

int count_gpus() { return 0; }

}  // namespace octet
