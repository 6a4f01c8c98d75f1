#include "kernels/device_runtime.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "kernels/cuda/capture_rules.h"
#include "kernels/cuda/emulation/launch.h"
#include "kernels/cuda/multiprocessors.h"
#include "kernels/wait_look.h"

namespace octet::gpu {
namespace {

constexpr int64_t kAlignment = 256;  // of cudaMalloc (CUDA C++ Programming Guide, "Device Memory Accesses")
constexpr int64_t kRedZone = 256;    // behind each allocation
constexpr int kUnwritten = 0xff, kRed = 0xa5;
constexpr int64_t kDefaultMiB = 4096;
constexpr int kMultiprocessors = 5;  // few, so that a persistent block has several tiles, and one without a partner

int64_t setting(const char* variable, int64_t otherwise) {
  const char* text = std::getenv(variable);
  if (text == nullptr) return otherwise;
  int64_t value = 0;
  const char* end = text + std::strlen(text);
  const auto [rest, error] = std::from_chars(text, end, value);
  require(ErrorKind::kConfig, error == std::errc() && rest == end && value >= 0, "{} is \"{}\"; wanted a number",
          variable, text);
  return value;
}

void watch();

std::atomic<const char*> last_kernel{"none"};
std::atomic<int> kernels_running{0};

// The GPU's memory: addresses that are reserved at the start and closed but for the time of a launch or a copy.
class Memory {
 public:
  Memory()
      : total_(setting("OCTET_EMULATED_GPU_MIB", kDefaultMiB) << 20),
        is_guarded_(setting("OCTET_EMULATED_GPU_GUARD", 1) != 0) {
    void* reserved = ::mmap(nullptr, size_t(total_), is_guarded_ ? PROT_NONE : PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    require(ErrorKind::kMemory, reserved != MAP_FAILED, "the emulated GPU: no address space for {} MiB", total_ >> 20);
    base_ = static_cast<char*>(reserved);
    ::madvise(base_, size_t(total_), MADV_HUGEPAGE);  // fewer pages to open and close
    free_[0] = total_;
  }

  int64_t total() const { return total_; }
  bool contains(const void* address) const {
    const char* at = static_cast<const char*>(address);
    return base_ <= at && at < base_ + total_;
  }

  void* allocate(int64_t bytes, const char* what) {
    const int64_t rounded = (bytes + kRedZone + kAlignment - 1) / kAlignment * kAlignment;
    int64_t at = -1;
    {
      const std::lock_guard lock(mutex_);
      for (auto& [offset, size] : free_) {
        if (size < rounded) continue;
        at = offset;
        const int64_t left = size - rounded;
        free_.erase(offset);
        if (left > 0) free_[at + rounded] = left;
        break;
      }
      if (at < 0) return nullptr;
      live_[at] = {.bytes = bytes, .rounded = rounded, .what = what};
      used_ += rounded;
      reach_ = std::max(reach_.load(), at + rounded);
    }
    const Access access(*this);
    std::memset(base_ + at, kUnwritten, size_t(bytes));
    std::memset(base_ + at + bytes, kRed, size_t(rounded - bytes));
    return base_ + at;
  }

  void release(void* memory) {
    const int64_t at = static_cast<char*>(memory) - base_;
    const Access access(*this);
    const std::lock_guard lock(mutex_);
    const auto found = live_.find(at);
    if (found == live_.end()) {
      log_error("the emulated GPU: {} is freed and was not allocated", fmt::ptr(memory));
      std::abort();
    }
    const Block block = found->second;
    clear(at, block);
    live_.erase(found);
    used_ -= block.rounded;
    auto next = free_.emplace(at, block.rounded).first;
    if (const auto after = std::next(next); after != free_.end() && at + next->second == after->first) {
      next->second += after->second;
      free_.erase(after);
    }
    if (next != free_.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == at) {
        before->second += next->second;
        free_.erase(next);
      }
    }
  }

  // The numbers of an allocation are gone, as if it were new.
  void clear(void* memory) {
    const Access access(*this);
    const std::lock_guard lock(mutex_);
    const int64_t at = static_cast<char*>(memory) - base_;
    clear(at, live_.at(at));
  }

  int64_t free_bytes() {
    const std::lock_guard lock(mutex_);
    return total_ - used_;
  }

  // Open for as long as one of these lives.
  class Access {
   public:
    explicit Access(Memory& memory) : memory_(memory) { memory_.enter(); }
    ~Access() { memory_.leave(); }
    Access(const Access&) = delete;
    Access& operator=(const Access&) = delete;

   private:
    Memory& memory_;
  };
  void enter() {
    if (!is_guarded_) return;
    const std::lock_guard lock(door_);
    if (inside_++ == 0 || opened_ < reach_) protect(PROT_READ | PROT_WRITE);
  }
  void leave() {
    if (!is_guarded_) return;
    const std::lock_guard lock(door_);
    if (--inside_ == 0) protect(PROT_NONE);
  }

  // For the signal handler: the allocation that holds this offset, or null. Takes no lock that may be held for ever.
  struct Block {
    int64_t bytes = 0, rounded = 0;
    const char* what = "";
  };
  int64_t offset_of(const void* address) const { return static_cast<const char*>(address) - base_; }
  const Block* holder(int64_t offset, int64_t& begin) {
    if (!mutex_.try_lock()) return nullptr;
    const auto after = live_.upper_bound(offset);
    const Block* found = nullptr;
    if (after != live_.begin()) {
      const auto before = std::prev(after);
      if (offset < before->first + before->second.rounded) begin = before->first, found = &before->second;
    }
    mutex_.unlock();
    return found;
  }

 private:
  void clear(int64_t at, const Block& block) {
    for (int64_t i = block.bytes; i < block.rounded; ++i) {
      if (uint8_t(base_[at + i]) == kRed) continue;
      log_error("the emulated GPU: a kernel wrote {} bytes behind the end of {} bytes of {}; the last to run was {}",
                i - block.bytes + 1, block.bytes, block.what, last_kernel.load());
      std::abort();
    }
    std::memset(base_ + at, kUnwritten, size_t(block.bytes));  // whoever still reads it finds no numbers
  }
  void protect(int access) {
    if (access != PROT_NONE) opened_ = reach_;  // all that was ever handed out
    if (access == PROT_NONE) watch();
    const int64_t page = ::sysconf(_SC_PAGESIZE);
    ::mprotect(base_, size_t((opened_ + page - 1) / page * page), access);
  }

  const int64_t total_;
  const bool is_guarded_;
  char* base_ = nullptr;
  std::mutex mutex_;
  std::map<int64_t, int64_t> free_;  // offset to size
  std::map<int64_t, Block> live_;
  int64_t used_ = 0;
  std::atomic<int64_t> reach_{0};
  std::mutex door_;
  int inside_ = 0;
  int64_t opened_ = 0;
};

Memory* memory_now = nullptr;  // for the signal handler
struct sigaction before_us;

// Text without memory of its own: a signal handler may not allocate.
class Line {
 public:
  Line& operator<<(const char* text) {
    while (*text != 0 && size_ < int(sizeof text_)) text_[size_++] = *text++;
    return *this;
  }
  Line& operator<<(int64_t number) {
    const auto [end, error] = std::to_chars(text_ + size_, text_ + sizeof text_, number);
    if (error == std::errc()) size_ = int(end - text_);
    return *this;
  }
  void write() const { [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text_, size_t(size_)); }

 private:
  char text_[512];
  int size_ = 0;
};

void on_fault(int signal, siginfo_t* info, void*) {
  if (memory_now != nullptr && memory_now->contains(info->si_addr)) {
    const int64_t offset = memory_now->offset_of(info->si_addr);
    int64_t begin = 0;
    const Memory::Block* block = memory_now->holder(offset, begin);
    Line line;
    if (kernels_running > 0) {
      line << "octet: error: " << last_kernel << " left the memory of the emulated GPU\n  where: ";
    } else {
      line << "octet: error: host code touched the memory of the emulated GPU\n  where: ";
    }
    if (block == nullptr) {
      line << "offset " << offset << ", which no tensor has\n";
    } else {
      line << "byte " << offset - begin << " of " << block->bytes << " of " << block->what << "\n";
    }
    if (kernels_running == 0) {
      line << "  why:   on a GPU this address means nothing to the host\n"
           << "  fix:   copy it first (core/tensor/transfer.h), or make it a kernel\n";
    }
    line.write();
  }
  ::sigaction(signal, &before_us, nullptr);  // the access is made again, and ends the process as it would have
}

// Again whenever the memory closes: a test framework has handlers of its own for each test.
void watch() {
  struct sigaction ours {};
  ours.sa_sigaction = on_fault;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  ::sigemptyset(&ours.sa_mask);
  struct sigaction before {};
  ::sigaction(SIGSEGV, &ours, &before);
  if ((before.sa_flags & SA_SIGINFO) == 0 || before.sa_sigaction != on_fault) before_us = before;
}

Memory& memory() {
  static Memory* const instance = [] {
    memory_now = new Memory;  // outlives every tensor
    watch();
    return memory_now;
  }();
  return *instance;
}

// Copies to the host arrive when the host waits for them: until then it finds kUnwritten.
class Arrivals {
 public:
  int64_t place_of(CUstream_st* stream) {
    const std::lock_guard lock(mutex_);
    return places_[stream];
  }
  void add(CUstream_st* stream, void* to, std::vector<char> bytes) {
    const std::lock_guard lock(mutex_);
    std::memset(to, kUnwritten, bytes.size());
    waiting_.push_back({stream, ++places_[stream], static_cast<char*>(to), std::move(bytes)});
  }
  // The host has waited for all up to a place.
  void reach(CUstream_st* stream, int64_t place) {
    const std::lock_guard lock(mutex_);
    reached_[stream] = std::max(reached_[stream], place);
    deliver([&](const Waiting& one) { return one.stream == stream && one.place <= place; });
  }
  bool has_reached(CUstream_st* stream, int64_t place) {
    const std::lock_guard lock(mutex_);
    return reached_[stream] >= place;
  }
  // Before a stream reads host memory, what was written there is there.
  void deliver_to(const void* from, int64_t bytes) {
    const char* begin = static_cast<const char*>(from);
    const std::lock_guard lock(mutex_);
    deliver([&](const Waiting& one) { return one.to < begin + bytes && begin < one.to + one.bytes.size(); });
  }

 private:
  struct Waiting {
    CUstream_st* stream;
    int64_t place;
    char* to;
    std::vector<char> bytes;
  };
  void deliver(auto&& is_due) {
    std::erase_if(waiting_, [&](const Waiting& one) {
      if (!is_due(one)) return false;
      std::memcpy(one.to, one.bytes.data(), one.bytes.size());
      return true;
    });
  }

  std::mutex mutex_;
  std::map<CUstream_st*, int64_t> places_, reached_;
  std::vector<Waiting> waiting_;
};
Arrivals& arrivals() {
  static auto* const instance = new Arrivals;
  return *instance;
}

class PinnedBlocks {
 public:
  void add(std::byte* block, int64_t bytes) {
    const std::lock_guard lock(mutex_);
    blocks_[block] = bytes;
  }
  void remove(std::byte* block) {
    const std::lock_guard lock(mutex_);
    blocks_.erase(block);
  }
  bool holds(const void* from, int64_t bytes) {
    const auto* at = static_cast<const std::byte*>(from);
    const std::lock_guard lock(mutex_);
    auto after = blocks_.upper_bound(const_cast<std::byte*>(at));
    if (after == blocks_.begin()) return false;
    --after;
    return at + bytes <= after->first + after->second;
  }

 private:
  std::mutex mutex_;
  std::map<std::byte*, int64_t> blocks_;
};
PinnedBlocks& pinned() {
  static auto* const instance = new PinnedBlocks;
  return *instance;
}

std::mutex opening;
std::atomic<bool> opened{false};
std::atomic<int64_t> waits{0};
std::atomic<int64_t> streams{0};

// What a capture has written down.
struct Written {
  std::vector<std::function<void()>> work;
  std::vector<void*> memory;
  std::multimap<int64_t, void*> free;  // by size: what comes later may have it
  Written() = default;
  ~Written() {
    for (void* block : memory) gpu::memory().release(block);
  }
  Written(const Written&) = delete;
  Written& operator=(const Written&) = delete;

  void* allocate(int64_t bytes, const char* what) {
    const auto fitting = free.find(bytes);
    void* block = nullptr;
    if (fitting != free.end()) {
      block = fitting->second;
      free.erase(fitting);
    } else {
      block = gpu::memory().allocate(bytes, what);
      if (block == nullptr) return nullptr;
      memory.push_back(block);
    }
    sizes[block] = bytes;
    work.emplace_back([block] { gpu::memory().clear(block); });
    return block;
  }
  void release(void* block) {
    free.emplace(sizes.at(block), block);
    work.emplace_back([block] { gpu::memory().clear(block); });
  }

 private:
  std::map<void*, int64_t> sizes;
};
thread_local Written* writing = nullptr;

// A handle that names a stream and is no address of anything.
CUstream_st* new_handle() { return reinterpret_cast<CUstream_st*>(++streams); }  // NOLINT

}  // namespace

std::string built_for() { return "an emulated GPU"; }
bool is_built_in() { return true; }
Runtime runtime() { return {.driver = 0, .count = 1, .trouble = {}, .is_emulated = true}; }

Properties properties(int index) {
  require(ErrorKind::kDevice, index == 0, "properties: GPU {}; there is one, emulated", index);
  return {.name = "emulated GPU",
          .major = kComputeMajor,
          .minor = kComputeMinor,
          .memory_bytes = memory().total(),
          .multiprocessors = kMultiprocessors,
          .id = {}};
}
int multiprocessors(Device) { return kMultiprocessors; }

void open(Device device) {
  if (device.is_cpu() || device.index != 0) {
    fail(ErrorKind::kDevice, {.what = fmt::format("{} is not there; this octet emulates one GPU", device),
                              .where = {},
                              .why = {},
                              .fix = "use cuda:0"});
  }
  const std::lock_guard lock(opening);
  if (opened) return;
  memory();
  set_default_stream(device, new Stream(default_thread_pool(), device, new_handle()));
  opened = true;
}

bool is_open(Device device) { return device == Device{DeviceType::kCuda, 0} && opened; }

MemoryLevel memory_level(Device) { return {.free_bytes = memory().free_bytes(), .total_bytes = memory().total()}; }

void* allocate(int64_t bytes, const char* what, Stream&) {
  if (writing == nullptr) return memory().allocate(bytes, what);
  void* const block = writing->allocate(bytes, what);
  if (block != nullptr) CaptureRules::current()->allocated(block, bytes, what);
  return block;
}
void release(void* block, Stream&) noexcept {
  if (writing == nullptr) return memory().release(block);
  if (CaptureRules::current()->released(block)) writing->release(block);
}

std::byte* allocate_pinned(int64_t bytes) {
  CaptureRules::refuse("pinned memory");
  auto* block = static_cast<std::byte*>(std::malloc(size_t(std::max<int64_t>(bytes, 1))));
  require(ErrorKind::kMemory, block != nullptr, "allocate_pinned: no memory for {} bytes", bytes);
  pinned().add(block, bytes);
  return block;
}
void release_pinned(std::byte* block) noexcept {
  pinned().remove(block);
  std::free(block);
}

void copy(void* to, const void* from, int64_t bytes, Stream& stream) {
  copy_rows(to, bytes, from, bytes, bytes, 1, stream);
}

void copy_rows(void* to, int64_t to_pitch, const void* from, int64_t from_pitch, int64_t row_bytes, int64_t rows,
               Stream& stream) {
  if (row_bytes == 0 || rows == 0) return;
  const auto extent = [&](int64_t pitch) { return (rows - 1) * pitch + row_bytes; };
  const bool to_device = memory().contains(to), from_device = memory().contains(from);
  require(ErrorKind::kDevice, to_device || pinned().holds(to, extent(to_pitch)),
          "copy: to host memory that is not pinned");
  require(ErrorKind::kDevice, from_device || pinned().holds(from, extent(from_pitch)),
          "copy: from host memory that is not pinned");
  if (!to_device || !from_device) CaptureRules::refuse("a copy from or to the host");
  if (writing != nullptr) {
    writing->work.emplace_back([=, &stream] { copy_rows(to, to_pitch, from, from_pitch, row_bytes, rows, stream); });
    return;
  }
  if (!from_device) arrivals().deliver_to(from, extent(from_pitch));
  const Memory::Access access(memory());
  for (int64_t row = 0; row < rows; ++row) {
    const char* source = static_cast<const char*>(from) + row * from_pitch;
    char* target = static_cast<char*>(to) + row * to_pitch;
    if (to_device) {
      std::memmove(target, source, size_t(row_bytes));
    } else {
      arrivals().add(stream.cuda(), target, std::vector<char>(source, source + row_bytes));
    }
  }
}

void fill(void* to, int byte, int64_t bytes, Stream& stream) {
  if (bytes == 0) return;
  require(ErrorKind::kDevice, memory().contains(to), "fill: of host memory");
  if (writing != nullptr) {
    writing->work.emplace_back([=, &stream] { fill(to, byte, bytes, stream); });
    return;
  }
  const Memory::Access access(memory());
  std::memset(to, byte, size_t(bytes));
}

void synchronize(Stream& stream) {
  CaptureRules::refuse("a wait");
  ++waits;
  look_while_waiting();  // each wait is a long one
  arrivals().reach(stream.cuda(), arrivals().place_of(stream.cuda()));
}
int64_t host_waits() { return waits; }

Event::~Event() = default;
Event::Event(Event&& other) noexcept
    : event_(std::exchange(other.event_, nullptr)), device_(other.device_), place_(other.place_) {}
Event& Event::operator=(Event&& other) noexcept {
  std::swap(event_, other.event_);
  std::swap(device_, other.device_);
  std::swap(place_, other.place_);
  return *this;
}
void Event::record(Stream& stream) {
  CaptureRules::refuse("an event");
  device_ = stream.device();
  event_ = reinterpret_cast<CUevent_st*>(stream.cuda());  // an event knows its stream
  place_ = arrivals().place_of(stream.cuda());
}
bool Event::is_done() const {
  if (event_ == nullptr) return true;
  CaptureRules::refuse("a look at an event");
  return arrivals().has_reached(reinterpret_cast<CUstream_st*>(event_), place_);
}
void Event::wait() const {
  if (event_ == nullptr) return;
  CaptureRules::refuse("a wait");
  ++waits;
  look_while_waiting();
  arrivals().reach(reinterpret_cast<CUstream_st*>(event_), place_);
}
void Event::hold(Stream&) const {  // one stream runs after the other
  if (event_ != nullptr) CaptureRules::refuse("a wait for another stream");
}

struct Stopwatch::Places {
  int64_t from_ns = 0, to_ns = 0;
};
void Stopwatch::start(Stream&) {
  CaptureRules::refuse("a stopwatch");
  places_ = std::make_shared<Places>();
  places_->from_ns = real_clock().monotonic_ns();
}
void Stopwatch::stop(Stream&) { places_->to_ns = real_clock().monotonic_ns(); }
double Stopwatch::seconds() const {
  ++waits;
  return double(places_->to_ns - places_->from_ns) * 1e-9;
}

struct Graph::Parts {
  Written written;
};
void Graph::launch(Stream&) const {
  CaptureRules::refuse("the launch of a graph");
  for (const auto& work : parts_->written.work) work();
}

struct Capture::State {
  Stream& stream;
  CaptureRules rules;
  std::shared_ptr<Graph::Parts> parts = std::make_shared<Graph::Parts>();

  void end() {
    if (writing != &parts->written) return;
    writing = nullptr;
    rules.end();
    // What outlives the capture, which is refused, is freed by whoever holds it.
    std::erase_if(parts->written.memory, [this](void* block) { return rules.is_live(block); });
    for (void* block : rules.from_before()) release(block, stream);
  }
};
Capture::Capture(Stream& stream) {
  synchronize(stream);
  state_ = std::unique_ptr<State>(new State{.stream = stream, .rules = {}});
  writing = &state_->parts->written;
}
Capture::~Capture() { state_->end(); }
Graph Capture::finish() {
  const std::string trouble = state_->rules.trouble();
  state_->end();
  require(ErrorKind::kDevice, trouble.empty(), "Capture: {}", trouble);
  Graph made;
  made.parts_ = state_->parts;
  return made;
}

std::shared_ptr<Stream> make_stream(Device device) {
  open(device);
  return std::make_shared<Stream>(default_thread_pool(), device, new_handle());
}

FaultRecord* fault_record(Device) {
  static auto* const record = [] {
    void* made = memory().allocate(sizeof(FaultRecord), "the record of faults");
    const Memory::Access access(memory());
    return new (made) FaultRecord;
  }();
  return record;
}

void check_launch(const char*) {}
LaunchWindow::LaunchWindow(const char* kernel) {
  last_kernel = kernel;
  ++kernels_running;
  memory().enter();
}
LaunchWindow::~LaunchWindow() {
  memory().leave();
  --kernels_running;
}
bool is_device_memory(const void* address) { return memory().contains(address); }

}  // namespace octet::gpu

namespace octet::emulation {

void launch(const char* kernel, Stream&, std::function<void()> body) {
  auto run = [kernel, body = std::move(body)] {
    const gpu::LaunchWindow window(kernel);
    body();
  };
  if (gpu::writing == nullptr) return run();
  gpu::writing->work.emplace_back(std::move(run));
}

}  // namespace octet::emulation
