// What Octet asks of the GPUs of a machine, without the headers of CUDA. CMake chooses one of three forms:
//   cuda/device_runtime.cpp            the CUDA toolkit's runtime
//   device_runtime_absent.cpp          none: there is no GPU, and open() says so
//   cuda/emulation/device_runtime.cpp  an emulated GPU, for tests (OCTET_EMULATE_CUDA): the kernels run on the CPU, and
//                                      its memory is host memory that is closed to host code
// What is asked of a stream runs in its order; the host waits only where a comment says so, and looks meanwhile
// (kernels/wait_look.h). A failed call is an Error(kDevice) that names it.
//
// The emulated GPU finds what would be silent or random on another: a host that touches device memory (the process ends
// with a message that names the allocation), a copy from or to host memory that is not pinned, a host that reads what a
// copy brings before it waited for it (it finds 0xff), use of memory that nothing was written to (0xff: every float
// type reads NaN), and writes behind the end of an allocation (found when it is freed).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/base/stream.h"

struct CUevent_st;  // what cudaEvent_t points to

namespace octet::gpu {

// What this octet was built for: "CUDA 13.0", "an emulated GPU", "no CUDA"; and whether that is more than nothing.
std::string built_for();
bool is_built_in();

struct Runtime {
  int driver = 0;       // the newest CUDA that the driver serves: 13000 is 13.0; 0: no driver
  int count = 0;        // GPUs
  std::string trouble;  // why there are none, in the runtime's words
  bool is_emulated = false;
};
Runtime runtime();

struct Properties {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int64_t memory_bytes = 0;
  int multiprocessors = 0;
  std::string id;  // no other GPU has it; that of an emulated one is empty
};
Properties properties(int index);
// What kernels are built for: no other GPU can run them.
inline constexpr int kComputeMajor = 9, kComputeMinor = 0;

// Makes a GPU usable in this process and for any thread: chooses it, keeps what its memory pool frees, and makes its
// default_stream. Doing it again does nothing. Error(kDevice) where there is no such GPU or it cannot run the kernels.
void open(Device device);
bool is_open(Device device);

struct MemoryLevel {
  int64_t free_bytes = 0, total_bytes = 0;  // of the GPU, whoever uses it
};
MemoryLevel memory_level(Device device);

// Memory of the stream's GPU, at least 256-byte aligned, not initialised, from now on in the order of the stream. Null
// where there is none left. what: a word that lives for ever, for messages.
void* allocate(int64_t bytes, const char* what, Stream& stream);
void release(void* memory, Stream& stream) noexcept;

// Host memory that a GPU reads and writes by itself. Making it may wait for all streams.
std::byte* allocate_pinned(int64_t bytes);
void release_pinned(std::byte* memory) noexcept;

// Between device memory and device memory or pinned host memory. rows of row_bytes, each a pitch after the last.
void copy(void* to, const void* from, int64_t bytes, Stream& stream);
void copy_rows(void* to, int64_t to_pitch, const void* from, int64_t from_pitch, int64_t row_bytes, int64_t rows,
               Stream& stream);
// Every byte of device memory becomes `byte`.
void fill(void* to, int byte, int64_t bytes, Stream& stream);

// The host waits for all that was asked of the stream.
void synchronize(Stream& stream);
// How often the host has waited in this process, here and for events: a training step is held to a count.
int64_t host_waits();

// A place in a stream.
class Event {
 public:
  Event() = default;
  ~Event();
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;

  void record(Stream& stream);
  bool is_done() const;             // true where nothing was recorded
  void wait() const;                // the host waits
  void hold(Stream& stream) const;  // the stream waits

 private:
  CUevent_st* event_ = nullptr;
  Device device_;
  int64_t place_ = -1;  // of an emulated stream
};

// How long a GPU took from one place in a stream to a later one, by its own clock: the host asks, and waits only to
// read it. An emulated GPU has the host's clock.
class Stopwatch {
 public:
  void start(Stream& stream);
  void stop(Stream& stream);
  double seconds() const;  // the host waits for the later place

 private:
  struct Places;
  std::shared_ptr<Places> places_;
};

// Work that a stream was asked for once, to be asked for again in one call: the same kernels on the same addresses.
class Graph {
 public:
  bool is_defined() const { return parts_ != nullptr; }
  // In the order of the stream, which is the one that was captured.
  void launch(Stream& stream) const;

 private:
  friend class Capture;
  struct Parts;
  std::shared_ptr<Parts> parts_;
};

// While it lives, what this thread asks of the stream is written down and not run: kernels, fills, and copies inside
// the GPU. Memory that is taken and released meanwhile belongs to the graph, at addresses that it keeps. Refused, by an
// Error where it is asked for or by finish(): that the host waits; events and stopwatches; host memory; releasing
// memory from before; and memory that is still held at the end. What was refused leaves the stream as it was.
class Capture {
 public:
  explicit Capture(Stream& stream);  // the host waits, and gives what the memory pool keeps to the graph
  ~Capture();                        // what was written down is forgotten
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  Graph finish();  // once

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// A further stream of a GPU; it ends with its last owner.
std::shared_ptr<Stream> make_stream(Device device);

// What a kernel finds wrong with numbers that decide where it reads and writes. It leaves such a row out, and the first
// record for the host, which looks where it waits anyway (core/tensor/device_fault.h).
enum class Fault : int64_t { kNone, kToken, kExpert, kRow, kGroups, kRoom };
struct FaultRecord {
  int64_t fault = 0;             // a Fault
  int64_t value = 0, limit = 0;  // the number, and what it had to be below
  int64_t from = 0, to = 0;      // kRoom: ranks of the group that experts lie on
};
// In the memory of the GPU; no fault at first.
FaultRecord* fault_record(Device device);

// Throws what the launch of a kernel, or one that ran before it, left.
void check_launch(const char* kernel);

// Of an emulated GPU: the time in which a kernel runs, when its memory is open. `kernel` names it in messages.
// Elsewhere nothing.
class LaunchWindow {
 public:
  explicit LaunchWindow(const char* kernel);
  ~LaunchWindow();
  LaunchWindow(const LaunchWindow&) = delete;
  LaunchWindow& operator=(const LaunchWindow&) = delete;
};
// Whether an address lies in the memory of an emulated GPU; elsewhere true.
bool is_device_memory(const void* address);

}  // namespace octet::gpu
