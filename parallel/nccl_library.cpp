#include "parallel/nccl_library.h"

#include <dlfcn.h>

#include <cstring>

#include "core/base/error.h"

namespace octet {
namespace {

template <class Function>
void find(void* library, const char* name, Function& function) {
  void* const found = ::dlsym(library, name);
  require(ErrorKind::kDevice, found != nullptr, "libnccl.so.2 has no {}; wanted NCCL 2.28 or a later 2.x", name);
  std::memcpy(&function, &found, sizeof found);
}

NcclLibrary load() {
  // As the linker would: where the system has it, or else where the build had it.
  void* library = ::dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) library = ::dlopen(OCTET_NCCL_LIBRARY, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    fail(ErrorKind::kDevice, {.what = "NCCL: libnccl.so.2 cannot be loaded",
                              .where = {},
                              .why = "ranks on GPUs talk by way of it",
                              .fix = "octet doctor says which version to install; or set "
                                     "parallel.gpu_transport: staged"});
  }
  NcclLibrary all{};
  find(library, "ncclGetErrorString", all.get_error_string);
  find(library, "ncclGetLastError", all.get_last_error);
  find(library, "ncclGetUniqueId", all.get_unique_id);
  find(library, "ncclCommInitRankConfig", all.init_rank);
  find(library, "ncclCommFinalize", all.finalize);
  find(library, "ncclCommDestroy", all.destroy);
  find(library, "ncclCommAbort", all.abort);
  find(library, "ncclCommGetAsyncError", all.get_async_error);
  find(library, "ncclGroupStart", all.group_start);
  find(library, "ncclGroupEnd", all.group_end);
  find(library, "ncclSend", all.send);
  find(library, "ncclRecv", all.receive);
  return all;
}

}  // namespace

const NcclLibrary& nccl() {
  static const NcclLibrary library = load();
  return library;
}

}  // namespace octet
