// A library that is loaded while the program runs, and stays: one that is large, or that a host may not have.
#pragma once

#include <cstring>

namespace octet {

class SharedLibrary {
 public:
  // name: as the linker knows it ("libnccl.so.2"). or_at: a path to try after it; null: none.
  explicit SharedLibrary(const char* name, const char* or_at = nullptr);
  bool is_loaded() const { return handle_ != nullptr; }
  // Whether it has the function; function is null where it has not.
  template <class Result, class... Args>
  bool find(const char* name, Result (*&function)(Args...)) const {
    void* const address = address_of(name);
    std::memcpy(&function, &address, sizeof address);
    return address != nullptr;
  }

 private:
  void* address_of(const char* name) const;

  void* handle_;
};

}  // namespace octet
