#include "kernels/cuda/emulation/block.h"

#include <fmt/format.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <vector>

#include "core/base/error.h"

namespace octet::emulation {
namespace {

constexpr size_t kStackBytes = size_t(128) << 10, kPageBytes = 4096;
constexpr size_t kDynamicBytes = size_t(227) << 10;  // the most a block may ask for on sm_90
constexpr size_t kStaticBytes = size_t(48) << 10;
constexpr int kLanes = 32, kMaxThreads = 1024;

std::atomic<Order> current_order{Order::kForward};

// A stack and where it stopped. ucontext starts it; turns are taken by setjmp and longjmp, which make no system calls.
struct Fiber {
  std::byte* memory;  // a page that may not be touched, then the stack
  jmp_buf here;
  bool is_started = false;

  Fiber() {
    void* const pages = mmap(nullptr, kPageBytes + kStackBytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    require(ErrorKind::kMemory, pages != MAP_FAILED, "emulation: no memory for the stack of a thread");
    memory = static_cast<std::byte*>(pages);
    mprotect(memory, kPageBytes, PROT_NONE);
  }
  ~Fiber() { munmap(memory, kPageBytes + kStackBytes); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
};

enum class State { kRuns, kAtWarp, kAtBlock, kEnded };

constexpr size_t kCopyBytes = 16;
struct Copy {
  size_t to;  // in shared memory
  int batch;
  std::array<std::byte, kCopyBytes> bytes;
};
struct Thread {
  State state = State::kRuns;
  Fiber* fiber = nullptr;
  int line = 0;                // of the __syncthreads that it waits at
  uint32_t exchanges = 0;      // made so far
  int batches = 0;             // of copies, committed so far
  std::vector<Copy> copies{};  // on their way
};
struct Warp {
  uint32_t tick = 0;      // rises when its barrier opens
  Exchange exchanges[2];  // the lanes' turn about, so that one barrier for each is enough
};

// The last write and the last reads of a byte of shared memory: who, and when.
struct Access {
  uint32_t epoch = 0, tick = 0;
  int16_t thread = -1;  // kSeveral: more than one
  int16_t warp = -1;    // kSeveral: more than one
};
constexpr int16_t kSeveral = -2;
struct Shadow {
  Access write, read;
  int16_t coming = -1;  // the thread whose copy to this byte is on its way
};

class Block {
 public:
  void run(const char* name, uint3 index, dim3 grid, int threads, size_t shared_bytes,
           const std::function<void()>& body);

  void wait(State state, int line);
  const Exchange& exchange(const void* value, size_t bytes);
  std::byte* static_shared(const void* tag, size_t bytes);
  std::byte* dynamic_shared(size_t offset, size_t bytes);
  void read_shared(const std::byte* at, size_t bytes);
  void write_shared(const std::byte* at, size_t bytes);
  void copy_async(size_t to_offset, const std::byte* from);
  void commit_copies() { ++threads_[size_t(current_)].batches; }
  void wait_for_copies(int most_batches);
  [[noreturn]] void fault(const std::string& what) const;

 private:
  static void enter_fiber();
  void run_threads();
  void resume(Fiber* fiber);
  void enter(int thread);
  bool open_warps();
  void open_block();
  int turn(int i, int n) const { return order_ == Order::kForward ? i : n - 1 - i; }
  bool is_before(const Access& access) const;
  void forget(const Copy& copy);

  const char* name_ = "";
  uint3 index_;
  int num_threads_ = 0, started_ = 0, ended_ = 0;
  Order order_ = Order::kForward;
  const std::function<void()>* body_ = nullptr;
  int current_ = 0;
  Fiber* running_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  jmp_buf scheduler_;
  ucontext_t scheduler_context_;
  std::exception_ptr error_;

  std::unique_ptr<std::byte[]> shared_{new std::byte[kDynamicBytes + kStaticBytes + 128]};
  std::unique_ptr<Shadow[]> shadow_{new Shadow[kDynamicBytes + kStaticBytes]};
  size_t dynamic_bytes_ = 0, static_bytes_ = 0;
  struct Declaration {
    const void* tag;
    size_t offset;
  };
  std::vector<Declaration> declarations_;
  uint32_t epoch_ = 0, first_epoch_ = 0;  // rises at each barrier of the block and for each block

  std::byte* shared() const {  // on a boundary of 128 bytes
    const auto address = reinterpret_cast<uintptr_t>(shared_.get());
    return shared_.get() + ((address + 127) / 128 * 128 - address);
  }
};

Block& block() {
  thread_local Block of_this_worker;
  return of_this_worker;
}

void Block::fault(const std::string& what) const {
  fail(ErrorKind::kDevice, {.what = fmt::format("{}: {}; block ({}, {}, {}), thread {}", name_, what, index_.x,
                                                index_.y, index_.z, current_),
                            .where = "",
                            .why = "a GPU would go on with a wrong result, or hang",
                            .fix = ""});
}

void Block::run(const char* name, uint3 index, dim3 grid, int threads, size_t shared_bytes,
                const std::function<void()>& body) {
  name_ = name;
  index_ = index;
  num_threads_ = threads;
  body_ = &body;
  order_ = current_order;
  started_ = ended_ = current_ = 0;
  error_ = nullptr;
  for (const Thread& thread : threads_) {
    for (const Copy& copy : thread.copies) forget(copy);
  }
  threads_.assign(size_t(threads), Thread());
  warps_.resize(size_t(threads / kLanes));
  for (Warp& warp : warps_) warp.tick = 0;
  dynamic_bytes_ = shared_bytes;
  static_bytes_ = 0;
  declarations_.clear();
  first_epoch_ = ++epoch_;
  idle_.clear();
  for (const auto& fiber : fibers_) idle_.push_back(fiber.get());
  blockIdx = index;
  gridDim = grid;
  blockDim = {unsigned(threads), 1, 1};
  run_threads();
  if (error_ != nullptr) std::rethrow_exception(error_);
}

// A fiber takes threads that nobody began, one after the other, so that a kernel without barriers needs one fiber.
void Block::enter_fiber() {
  Block& block = emulation::block();
  for (;;) {
    while (block.started_ < block.num_threads_ && block.error_ == nullptr) {
      const int t = block.turn(block.started_++, block.num_threads_);
      block.threads_[size_t(t)].fiber = block.running_;
      block.enter(t);
      try {
        (*block.body_)();
      } catch (...) {
        block.error_ = std::current_exception();
      }
      block.threads_[size_t(block.current_)].state = State::kEnded;
      ++block.ended_;
    }
    block.idle_.push_back(block.running_);
    if (_setjmp(block.running_->here) == 0) _longjmp(block.scheduler_, 1);
  }
}

void Block::enter(int thread) {
  current_ = thread;
  threadIdx = {unsigned(thread), 0, 0};
}

void Block::resume(Fiber* fiber) {
  running_ = fiber;
  if (_setjmp(scheduler_) != 0) return;
  if (fiber->is_started) _longjmp(fiber->here, 1);
  fiber->is_started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber->memory + kPageBytes;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, &Block::enter_fiber, 0);
  swapcontext(&scheduler_context_, &context);
}

void Block::run_threads() {
  while (started_ < num_threads_ && error_ == nullptr) {
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>());
      idle_.push_back(fibers_.back().get());
    }
    Fiber* const fiber = idle_.back();
    idle_.pop_back();
    resume(fiber);
  }
  while (ended_ < num_threads_ && error_ == nullptr) {
    try {
      if (!open_warps()) open_block();
    } catch (...) {
      error_ = std::current_exception();
    }
  }
  // After an error the fibers that wait are left where they are; their stacks are begun anew.
  if (error_ != nullptr) {
    for (const auto& fiber : fibers_) fiber->is_started = false;
  }
}

bool Block::open_warps() {
  bool any = false;
  const int num_warps = int(warps_.size());
  for (int i = 0; i < num_warps && error_ == nullptr; ++i) {
    const int w = turn(i, num_warps);
    int waiting = 0, elsewhere = -1;
    for (int t = w * kLanes; t < (w + 1) * kLanes; ++t) {
      if (threads_[size_t(t)].state == State::kAtWarp) {
        ++waiting;
      } else {
        elsewhere = t;
      }
    }
    if (waiting == 0) continue;
    if (waiting < kLanes) {
      const Thread& other = threads_[size_t(elsewhere)];
      current_ = elsewhere;
      fault(fmt::format("{} lanes of a warp wait for each other and this thread {}", waiting,
                        other.state == State::kEnded ? std::string("has ended")
                                                     : fmt::format("waits at __syncthreads, line {}", other.line)));
    }
    any = true;
    ++warps_[size_t(w)].tick;
    for (int lane = 0; lane < kLanes && error_ == nullptr; ++lane) {
      const int t = w * kLanes + turn(lane, kLanes);
      threads_[size_t(t)].state = State::kRuns;
      enter(t);
      resume(threads_[size_t(t)].fiber);
    }
  }
  return any;
}

void Block::open_block() {
  int first = -1;
  for (int t = 0; t < num_threads_ && first < 0; ++t) {
    if (threads_[size_t(t)].state == State::kAtBlock) first = t;
  }
  for (int t = 0; t < num_threads_; ++t) {
    const Thread& thread = threads_[size_t(t)];
    const int line = threads_[size_t(first)].line;
    if (thread.state == State::kAtBlock && thread.line == line) continue;
    current_ = t;
    fault(thread.state == State::kEnded
              ? fmt::format("thread {} waits at __syncthreads, line {}, and this thread has ended", first, line)
              : fmt::format("thread {} waits at __syncthreads, line {}, and this thread at line {}", first, line,
                            thread.line));
  }
  ++epoch_;
  for (Thread& thread : threads_) thread.state = State::kRuns;
  for (int i = 0; i < num_threads_ && error_ == nullptr; ++i) {
    const int t = turn(i, num_threads_);
    enter(t);
    resume(threads_[size_t(t)].fiber);
  }
}

void Block::wait(State state, int line) {
  Thread& thread = threads_[size_t(current_)];
  thread.state = state;
  thread.line = line;
  if (_setjmp(running_->here) == 0) _longjmp(scheduler_, 1);
}

const Exchange& Block::exchange(const void* value, size_t bytes) {
  Warp& warp = warps_[size_t(current_ / kLanes)];
  Exchange& lanes = warp.exchanges[threads_[size_t(current_)].exchanges++ % 2];
  std::memcpy(lanes[size_t(current_ % kLanes)].data(), value, bytes);
  wait(State::kAtWarp, 0);
  return lanes;
}

std::byte* Block::static_shared(const void* tag, size_t bytes) {
  for (const Declaration& declaration : declarations_) {
    if (declaration.tag == tag) return shared() + kDynamicBytes + declaration.offset;
  }
  const size_t offset = static_bytes_;
  static_bytes_ += (bytes + 15) / 16 * 16;
  if (static_bytes_ > kStaticBytes) fault(fmt::format("{} bytes of static shared memory", static_bytes_));
  declarations_.push_back({tag, offset});
  return shared() + kDynamicBytes + offset;
}

std::byte* Block::dynamic_shared(size_t offset, size_t bytes) {
  if (offset + bytes > dynamic_bytes_) {
    fault(fmt::format("bytes {} to {} of {} of dynamic shared memory", offset, offset + bytes, dynamic_bytes_));
  }
  return shared() + offset;
}

bool Block::is_before(const Access& access) const {
  if (access.epoch < epoch_ || access.thread == current_) return true;
  return access.warp == current_ / kLanes && access.tick < warps_[size_t(current_ / kLanes)].tick;
}

void Block::forget(const Copy& copy) {
  for (size_t i = copy.to; i < copy.to + kCopyBytes; ++i) shadow_[i].coming = -1;
}

void Block::copy_async(size_t to_offset, const std::byte* from) {
  if (to_offset % kCopyBytes != 0 || reinterpret_cast<uintptr_t>(from) % kCopyBytes != 0) {
    fault("a misaligned cp.async");
  }
  std::byte* const to = dynamic_shared(to_offset, kCopyBytes);
  write_shared(to, kCopyBytes);
  Thread& thread = threads_[size_t(current_)];
  Copy& copy = thread.copies.emplace_back();
  copy.to = to_offset;
  copy.batch = thread.batches;
  std::memcpy(copy.bytes.data(), from, kCopyBytes);
  for (size_t i = to_offset; i < to_offset + kCopyBytes; ++i) shadow_[i].coming = int16_t(current_);
}

void Block::wait_for_copies(int most_batches) {
  Thread& thread = threads_[size_t(current_)];
  std::erase_if(thread.copies, [&](const Copy& copy) {
    if (copy.batch >= thread.batches - most_batches) return false;
    forget(copy);
    std::byte* const to = shared() + copy.to;
    write_shared(to, kCopyBytes);
    std::memcpy(to, copy.bytes.data(), kCopyBytes);
    return true;
  });
}

void Block::read_shared(const std::byte* at, size_t bytes) {
  const size_t begin = size_t(at - shared());
  const auto thread = int16_t(current_), warp = int16_t(current_ / kLanes);
  const uint32_t tick = warps_[size_t(warp)].tick;
  for (size_t i = begin; i < begin + bytes; ++i) {
    const Access& write = shadow_[i].write;
    if (shadow_[i].coming >= 0) fault(fmt::format("reads what a cp.async of thread {} brings", shadow_[i].coming));
    if (write.epoch < first_epoch_) fault("reads shared memory that nobody wrote");
    if (!is_before(write)) fault(fmt::format("reads what thread {} wrote, with no barrier in between", write.thread));
    Access& read = shadow_[i].read;
    if (read.epoch == epoch_) {
      if (read.thread != thread) read.thread = kSeveral;
      if (read.warp != warp) read.warp = kSeveral;
      read.tick = tick;
    } else {
      read = {epoch_, tick, thread, warp};
    }
  }
}

void Block::write_shared(const std::byte* at, size_t bytes) {
  const size_t begin = size_t(at - shared());
  const auto thread = int16_t(current_), warp = int16_t(current_ / kLanes);
  for (size_t i = begin; i < begin + bytes; ++i) {
    Shadow& shadow = shadow_[i];
    if (shadow.coming >= 0) fault(fmt::format("writes where a cp.async of thread {} does", shadow.coming));
    if (!is_before(shadow.write)) {
      fault(fmt::format("writes where thread {} wrote, with no barrier in between", shadow.write.thread));
    }
    if (!is_before(shadow.read)) fault("writes what another thread read, with no barrier in between");
    shadow.write = {epoch_, warps_[size_t(warp)].tick, thread, warp};
  }
}

}  // namespace

void run_grid(const char* name, dim3 grid, int threads, size_t shared_bytes, ThreadPool& pool,
              const std::function<void()>& thread) {
  require(threads > 0 && threads % kLanes == 0 && threads <= kMaxThreads,
          "{}: blocks of {} threads; wanted whole warps of 32, at most 1024 threads", name, threads);
  require(shared_bytes <= kDynamicBytes, "{}: {} bytes of shared memory; a block has at most {}", name, shared_bytes,
          kDynamicBytes);
  require(grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535,
          "{}: a grid of {} x {} x {} blocks; at most 2147483647 x 65535 x 65535", name, grid.x, grid.y, grid.z);
  const int64_t blocks = int64_t(grid.x) * grid.y * grid.z;
  const bool backward = current_order == Order::kBackward;
  pool.for_chunks(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = backward ? blocks - 1 - i : i;
      const uint3 index{unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
      block().run(name, index, grid, threads, shared_bytes, thread);
    }
  });
}

void set_order(Order order) { current_order = order; }
void sync_threads(const char*, int line) { block().wait(State::kAtBlock, line); }
void sync_warp() { block().wait(State::kAtWarp, 0); }
const Exchange& exchange(const void* value, size_t bytes) { return block().exchange(value, bytes); }
std::byte* static_shared(const void* tag, size_t bytes) { return block().static_shared(tag, bytes); }
std::byte* dynamic_shared(size_t offset, size_t bytes) { return block().dynamic_shared(offset, bytes); }
void read_shared(const std::byte* at, size_t bytes) { block().read_shared(at, bytes); }
void write_shared(std::byte* at, size_t bytes) { block().write_shared(at, bytes); }
void copy_async(size_t to_offset, const std::byte* from) { block().copy_async(to_offset, from); }
void commit_copies() { block().commit_copies(); }
void wait_for_copies(int most_batches) { block().wait_for_copies(most_batches); }
void fault(const std::string& what) { block().fault(what); }

}  // namespace octet::emulation
