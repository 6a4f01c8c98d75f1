#include "parallel/nccl_library.h"

#include "core/base/error.h"
#include "core/base/shared_library.h"

namespace octet {
namespace {

NcclLibrary load() {
  // As the linker would: where the system has it, or else where the build had it.
  const SharedLibrary library("libnccl.so.2", OCTET_NCCL_LIBRARY);
  if (!library.is_loaded()) {
    fail(ErrorKind::kDevice, {.what = "NCCL: libnccl.so.2 cannot be loaded",
                              .where = {},
                              .why = "ranks on GPUs talk by way of it",
                              .fix = "octet doctor says which version to install; or set "
                                     "parallel.gpu_transport: staged"});
  }
  const auto find = [&](const char* name, auto& function) {
    require(ErrorKind::kDevice, library.find(name, function), "libnccl.so.2 has no {}; wanted NCCL 2.28 or a later 2.x",
            name);
  };
  NcclLibrary all{};
  find("ncclGetErrorString", all.get_error_string);
  find("ncclGetLastError", all.get_last_error);
  find("ncclGetUniqueId", all.get_unique_id);
  find("ncclCommInitRankConfig", all.init_rank);
  find("ncclCommFinalize", all.finalize);
  find("ncclCommDestroy", all.destroy);
  find("ncclCommAbort", all.abort);
  find("ncclCommGetAsyncError", all.get_async_error);
  find("ncclGroupStart", all.group_start);
  find("ncclGroupEnd", all.group_end);
  find("ncclSend", all.send);
  find("ncclRecv", all.receive);
  return all;
}

}  // namespace

const NcclLibrary& nccl() {
  static const NcclLibrary library = load();
  return library;
}

}  // namespace octet
