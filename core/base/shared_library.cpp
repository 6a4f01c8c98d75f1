#include "core/base/shared_library.h"

#include <dlfcn.h>

namespace octet {

SharedLibrary::SharedLibrary(const char* name, const char* or_at) : handle_(::dlopen(name, RTLD_NOW | RTLD_LOCAL)) {
  if (handle_ == nullptr && or_at != nullptr) handle_ = ::dlopen(or_at, RTLD_NOW | RTLD_LOCAL);
}

void* SharedLibrary::address_of(const char* name) const {
  return handle_ == nullptr ? nullptr : ::dlsym(handle_, name);
}

}  // namespace octet
