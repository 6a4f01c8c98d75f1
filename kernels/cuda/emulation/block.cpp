#include "kernels/cuda/emulation/block.h"

#include <fmt/format.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <vector>

#include "core/base/error.h"

namespace octet::emulation {
namespace {

constexpr size_t kStackBytes = size_t(128) << 10, kPageBytes = 4096;
constexpr size_t kDynamicBytes = size_t(227) << 10;  // the most a block may ask for on sm_90
constexpr size_t kStaticBytes = size_t(48) << 10;
constexpr int kLanes = 32, kMaxThreads = 1024;
constexpr int64_t kRegisters = 65536;

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

enum class State { kRuns, kAtWarp, kAtBlock, kAtSome, kAtMbarrier, kEnded };

constexpr size_t kMostCopyBytes = 16;
struct Copy {
  size_t to;  // in shared memory
  size_t size;
  int batch;
  std::array<std::byte, kMostCopyBytes> bytes;
};
// What the asynchronous proxy reads for a thread.
struct Reading {
  size_t begin, end;
  int thread, batch;
  Reader reader;
};
struct Product {
  float* at;
  int batch;
  std::vector<float> sums;
};
struct Thread {
  State state = State::kRuns;
  Fiber* fiber = nullptr;
  int line = 0;                 // of the __syncthreads that it waits at
  size_t barrier = 0;           // number or offset of the barrier that it waits at
  uint32_t wanted = 0;          // threads at it, or the parity of its phase
  uint32_t fenced = 0;          // the time of its last fence_proxy
  int reading_batches[2] = {};  // of each Reader, committed so far
  int registers = 0;
  std::vector<Product> products{};  // in flight
  uint32_t exchanges = 0;           // made so far
  int batches = 0;                  // of copies, committed so far
  std::vector<Copy> copies{};       // on their way
};
struct Warp {
  uint32_t tick = 0;      // rises when its barrier opens
  Exchange exchanges[2];  // the lanes' turn about, so that one barrier for each is enough
};

// The last write and the last reads of a byte of shared memory: who, and when.
struct Access {
  uint32_t epoch = 0, tick = 0, time = 0;
  int16_t thread = -1;  // kSeveral: more than one
  int16_t warp = -1;    // kSeveral: more than one
};
constexpr int16_t kSeveral = -2;
struct Shadow {
  Access write, read;
  int16_t coming = -1;  // the thread whose copy to this byte is on its way, or one of the two below
};
constexpr int16_t kTile = kMaxThreads, kBarrier = kMaxThreads + 1;
// Who writes what arrives after its thread went on: tiles, and copies that an mbarrier waits for.
constexpr int kTileEngine = 0, kCopyEngine = 1, kEngines = 2;

// The times up to which each thread and engine is known.
using Times = std::vector<uint32_t>;
void join(Times& to, const Times& from) {
  for (size_t i = 0; i < to.size(); ++i) to[i] = std::max(to[i], from[i]);
}
struct Mbarrier {
  uint32_t arrivals, pending, phase = 0;
  int64_t bytes = 0;        // announced, not here yet
  Times gathered, reached;  // what is known to who arrived in this phase, and before
};
constexpr size_t kMbarrierBytes = 8;
// What arrives later, with the mbarrier that it tells.
struct Arrival {
  int engine;
  size_t mbarrier;
  std::vector<Copy> copies;
  size_t to = 0;  // of a tile
  std::vector<std::byte> tile{};
};
constexpr size_t kGranule = 1024;
// The last reads of a granule of shared memory by products, by thread.
struct Granule {
  uint32_t epoch = 0;
  Times times{};
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
  void copy_async(size_t to_offset, const std::byte* from, size_t bytes);
  void commit_copies() { ++threads_[size_t(current_)].batches; }
  void wait_for_copies(int most_batches);
  void sync_some(int number, int threads);
  void mbarrier_init(size_t offset, uint32_t arrivals);
  void mbarrier_arrive(size_t offset, uint32_t bytes_to_come);
  void mbarrier_arrive_after_copies(size_t offset);
  void mbarrier_wait(size_t offset, uint32_t parity);
  void fence_proxy();
  void load_tile(size_t to_offset, const std::vector<std::byte>& bytes, size_t mbarrier);
  void begin_reading(Reader reader, size_t begin, size_t bytes);
  void commit_reading(Reader reader) { ++threads_[size_t(current_)].reading_batches[int(reader)]; }
  void wait_for_reading(Reader reader, int most_batches);
  const float* sums_in_flight(const float* at);
  void put_in_flight(float* at, const float* sums, int count);
  void check_async_read(size_t begin, size_t bytes);
  void set_registers(int count);
  [[noreturn]] void fault(const std::string& what) const;

 private:
  static void enter_fiber();
  void end_thread();
  void run_threads();
  void resume(Fiber* fiber);
  void enter(int thread);
  bool open_warps();
  bool open_mbarriers();
  bool open_some();
  bool deliver();
  void open_block();
  void go_on(int thread);
  [[noreturn]] void stuck();
  int turn(int i, int n) const { return order_ == Order::kForward ? i : n - 1 - i; }
  bool is_before(const Access& access) const;
  bool is_known(int thread, uint32_t time) const {
    return has_times_ && known_[size_t(current_)][size_t(thread)] > time;
  }
  bool are_reads_before(size_t at) const;
  void check_read(const Shadow& shadow) const;
  void forget(const Copy& copy);
  void begin_times();
  void meet(const std::vector<int>& threads);
  void release(Times& to);
  void complete(Mbarrier& barrier);
  Mbarrier& mbarrier(size_t offset);
  int64_t num_registers() const;

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

  // Once a block uses barriers of less than all its threads, each thread keeps what it knows of the others: one time
  // for all, which rises whenever a thread lets others know what it did.
  bool has_times_ = false;
  uint32_t now_ = 1;
  std::vector<Times> known_;
  std::map<size_t, Mbarrier> mbarriers_;
  std::vector<Arrival> arrivals_;
  std::vector<Reading> readings_;
  std::map<size_t, Granule> granules_;
  std::map<size_t, std::vector<std::pair<int, uint32_t>>> readers_;  // of bytes that several read, in this epoch

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
  for (const Arrival& arrival : arrivals_) {
    for (const Copy& copy : arrival.copies) forget(copy);
    for (size_t i = 0; i < arrival.tile.size(); ++i) shadow_[arrival.to + i].coming = -1;
  }
  for (const auto& [offset, barrier] : mbarriers_) {
    for (size_t i = 0; i < kMbarrierBytes; ++i) shadow_[offset + i].coming = -1;
  }
  arrivals_.clear(), mbarriers_.clear(), readings_.clear(), granules_.clear(), readers_.clear();
  has_times_ = false;
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
      block.end_thread();
    }
    block.idle_.push_back(block.running_);
    if (_setjmp(block.running_->here) == 0) _longjmp(block.scheduler_, 1);
  }
}

void Block::end_thread() {
  Thread& thread = threads_[size_t(current_)];
  thread.state = State::kEnded;
  ++ended_;
  if (error_ != nullptr) return;
  try {
    for (const Reading& reading : readings_) {
      if (reading.thread == current_) fault("ends while what it asked for reads shared memory");
    }
    if (ended_ == num_threads_ && num_registers() > kRegisters) {
      fault(fmt::format("{} registers after setmaxnreg; a block has {}", num_registers(), kRegisters));
    }
  } catch (...) {
    error_ = std::current_exception();
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
      if (!open_warps() && !open_some() && !open_mbarriers() && !deliver()) open_block();
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
    bool will_come = false;
    for (int t = w * kLanes; t < (w + 1) * kLanes; ++t) {
      const State state = threads_[size_t(t)].state;
      if (state == State::kAtWarp) {
        ++waiting;
      } else if (state == State::kAtSome || state == State::kAtMbarrier) {
        will_come = true;
      } else {
        elsewhere = t;
      }
    }
    if (waiting == 0 || (will_come && elsewhere < 0)) continue;
    if (waiting < kLanes) {
      const Thread& other = threads_[size_t(elsewhere)];
      current_ = elsewhere;
      fault(fmt::format("{} lanes of a warp wait for each other and this thread {}", waiting,
                        other.state == State::kEnded ? std::string("has ended")
                                                     : fmt::format("waits at __syncthreads, line {}", other.line)));
    }
    any = true;
    ++warps_[size_t(w)].tick;
    if (has_times_) {
      std::vector<int> lanes;
      for (int t = w * kLanes; t < (w + 1) * kLanes; ++t) lanes.push_back(t);
      meet(lanes);
    }
    for (int lane = 0; lane < kLanes && error_ == nullptr; ++lane) go_on(w * kLanes + turn(lane, kLanes));
  }
  return any;
}

void Block::go_on(int thread) {
  threads_[size_t(thread)].state = State::kRuns;
  enter(thread);
  resume(threads_[size_t(thread)].fiber);
}

bool Block::open_some() {
  std::map<size_t, std::vector<int>> waiting;
  for (int i = 0; i < num_threads_; ++i) {
    const int t = turn(i, num_threads_);
    if (threads_[size_t(t)].state == State::kAtSome) waiting[threads_[size_t(t)].barrier].push_back(t);
  }
  bool any = false;
  for (const auto& [number, threads] : waiting) {
    const uint32_t wanted = threads_[size_t(threads[0])].wanted;
    for (const int t : threads) {
      current_ = t;
      if (threads_[size_t(t)].wanted != wanted || threads.size() > wanted) {
        fault(fmt::format("barrier {} is for {} threads elsewhere, and for {} here, with {} there", number, wanted,
                          threads_[size_t(t)].wanted, threads.size()));
      }
    }
    if (threads.size() < wanted) continue;
    any = true;
    meet(threads);
    for (const int t : threads) {
      if (error_ == nullptr) go_on(t);
    }
  }
  return any;
}

bool Block::open_mbarriers() {
  bool any = false;
  for (int i = 0; i < num_threads_ && error_ == nullptr; ++i) {
    const int t = turn(i, num_threads_);
    const Thread& thread = threads_[size_t(t)];
    if (thread.state != State::kAtMbarrier) continue;
    const Mbarrier& barrier = mbarriers_.at(thread.barrier);
    if (barrier.phase % 2 == thread.wanted) continue;
    any = true;
    join(known_[size_t(t)], barrier.reached);
    go_on(t);
  }
  return any;
}

bool Block::deliver() {
  if (arrivals_.empty()) return false;
  const auto at = order_ == Order::kForward ? arrivals_.begin() : arrivals_.end() - 1;
  const Arrival arrival = std::move(*at);
  arrivals_.erase(at);
  const auto write = [&](size_t offset, const std::vector<std::byte>& bytes) {
    std::memcpy(shared() + offset, bytes.data(), bytes.size());
    for (size_t i = offset; i < offset + bytes.size(); ++i) {
      shadow_[i].coming = -1;
      shadow_[i].write = {epoch_, 0, now_, int16_t(num_threads_ + arrival.engine), -1};
    }
  };
  for (const Copy& copy : arrival.copies) write(copy.to, {copy.bytes.begin(), copy.bytes.begin() + copy.size});
  write(arrival.to, arrival.tile);
  Mbarrier& barrier = mbarriers_.at(arrival.mbarrier);
  Times& known = barrier.gathered;
  known[size_t(num_threads_ + arrival.engine)] = ++now_;
  if (arrival.engine == kCopyEngine) {
    --barrier.pending;
  } else {
    barrier.bytes -= int64_t(arrival.tile.size());
  }
  complete(barrier);
  return true;
}

void Block::stuck() {
  for (int i = 0; i < num_threads_; ++i) {
    const Thread& thread = threads_[size_t(i)];
    current_ = i;
    if (thread.state == State::kAtMbarrier) {
      const Mbarrier& barrier = mbarriers_.at(thread.barrier);
      fault(fmt::format("waits for ever: the mbarrier at byte {} lacks {} arrivals and {} bytes to end phase {}",
                        thread.barrier, barrier.pending, barrier.bytes, barrier.phase));
    }
    if (thread.state == State::kAtSome) fault(fmt::format("waits for ever at barrier {}", thread.barrier));
  }
  fault("waits for ever");
}

void Block::open_block() {
  const auto is_elsewhere = [](const Thread& thread) {
    return thread.state == State::kAtMbarrier || thread.state == State::kAtSome;
  };
  if (std::any_of(threads_.begin(), threads_.end(), is_elsewhere)) stuck();
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
  readers_.clear();
  if (has_times_) {
    std::vector<int> all;
    for (int t = 0; t < num_threads_; ++t) all.push_back(t);
    meet(all);
  }
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
  if (access.warp == current_ / kLanes && access.tick < warps_[size_t(current_ / kLanes)].tick) return true;
  return access.thread >= 0 && is_known(access.thread, access.time);
}
bool Block::are_reads_before(size_t at) const {
  if (is_before(shadow_[at].read)) return true;
  const auto found = readers_.find(at);
  return has_times_ && found != readers_.end() &&
         std::all_of(found->second.begin(), found->second.end(), [&](const std::pair<int, uint32_t>& reader) {
           return reader.first == current_ || is_known(reader.first, reader.second);
         });
}

void Block::forget(const Copy& copy) {
  for (size_t i = copy.to; i < copy.to + copy.size; ++i) shadow_[i].coming = -1;
}

void Block::copy_async(size_t to_offset, const std::byte* from, size_t bytes) {
  if (to_offset % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0) fault("a misaligned cp.async");
  std::byte* const to = dynamic_shared(to_offset, bytes);
  write_shared(to, bytes);
  Thread& thread = threads_[size_t(current_)];
  Copy& copy = thread.copies.emplace_back();
  copy.to = to_offset;
  copy.batch = thread.batches;
  copy.size = bytes;
  std::memcpy(copy.bytes.data(), from, bytes);
  for (size_t i = to_offset; i < to_offset + bytes; ++i) shadow_[i].coming = int16_t(current_);
}

void Block::wait_for_copies(int most_batches) {
  Thread& thread = threads_[size_t(current_)];
  std::erase_if(thread.copies, [&](const Copy& copy) {
    if (copy.batch >= thread.batches - most_batches) return false;
    forget(copy);
    std::byte* const to = shared() + copy.to;
    write_shared(to, copy.size);
    std::memcpy(to, copy.bytes.data(), copy.size);
    return true;
  });
}

void Block::read_shared(const std::byte* at, size_t bytes) {
  const size_t begin = size_t(at - shared());
  const auto thread = int16_t(current_), warp = int16_t(current_ / kLanes);
  const uint32_t tick = warps_[size_t(warp)].tick;
  for (size_t i = begin; i < begin + bytes; ++i) {
    check_read(shadow_[i]);
    Access& read = shadow_[i].read;
    if (read.epoch == epoch_) {
      if (has_times_ && read.thread != thread) {
        auto& readers = readers_[i];
        if (read.thread >= 0) readers.assign(1, {read.thread, read.time});
        std::erase_if(readers, [&](const std::pair<int, uint32_t>& reader) { return reader.first == thread; });
        readers.push_back({thread, now_});
      }
      if (read.thread != thread) read.thread = kSeveral;
      if (read.warp != warp) read.warp = kSeveral;
      read.tick = tick;
      read.time = now_;
    } else {
      read = {epoch_, tick, now_, thread, warp};
    }
  }
}

void Block::check_read(const Shadow& shadow) const {
  const Access& write = shadow.write;
  if (shadow.coming == kTile) fault("reads what a tile on its way brings");
  if (shadow.coming == kBarrier) fault("reads an mbarrier as memory");
  if (shadow.coming >= 0) fault(fmt::format("reads what a cp.async of thread {} brings", shadow.coming));
  if (write.epoch < first_epoch_) fault("reads shared memory that nobody wrote");
  if (is_before(write)) return;
  if (write.thread >= num_threads_) fault("reads what arrived, and has not waited for it");
  fault(fmt::format("reads what thread {} wrote, with no barrier in between", write.thread));
}

void Block::write_shared(const std::byte* at, size_t bytes) {
  const size_t begin = size_t(at - shared());
  const auto thread = int16_t(current_), warp = int16_t(current_ / kLanes);
  for (const Reading& reading : readings_) {
    if (reading.begin < begin + bytes && begin < reading.end) {
      fault(fmt::format("writes where a {} of thread {} reads",
                        reading.reader == Reader::kProduct ? "product in flight" : "store of a tile", reading.thread));
    }
  }
  for (auto granule = granules_.lower_bound(begin / kGranule);
       granule != granules_.end() && granule->first * kGranule < begin + bytes; ++granule) {
    if (granule->second.epoch < epoch_) continue;
    const Times& times = granule->second.times;
    for (int t = 0; t < num_threads_; ++t) {
      if (times[size_t(t)] == 0 || t == current_ || is_known(t, times[size_t(t)])) continue;
      fault(fmt::format("writes where a product of thread {} read, with no barrier in between", t));
    }
  }
  for (size_t i = begin; i < begin + bytes; ++i) {
    Shadow& shadow = shadow_[i];
    if (shadow.coming == kTile) fault("writes where a tile on its way does");
    if (shadow.coming == kBarrier) fault("writes an mbarrier as memory");
    if (shadow.coming >= 0) fault(fmt::format("writes where a cp.async of thread {} does", shadow.coming));
    if (!is_before(shadow.write)) {
      fault(fmt::format("writes where thread {} wrote, with no barrier in between", shadow.write.thread));
    }
    if (!are_reads_before(i)) fault("writes what another thread read, with no barrier in between");
    shadow.write = {epoch_, warps_[size_t(warp)].tick, now_, thread, warp};
  }
}

void Block::begin_times() {
  if (has_times_) return;
  has_times_ = true;
  known_.assign(size_t(num_threads_), Times(size_t(num_threads_ + kEngines)));
}
// Adds what this thread knows, and did up to now.
void Block::release(Times& to) {
  Times& known = known_[size_t(current_)];
  known[size_t(current_)] = ++now_;
  join(to, known);
}
// All that any of them did is before what they do now.
void Block::meet(const std::vector<int>& threads) {
  Times all(size_t(num_threads_ + kEngines));
  for (const int t : threads) {
    known_[size_t(t)][size_t(t)] = ++now_;
    join(all, known_[size_t(t)]);
  }
  for (const int t : threads) known_[size_t(t)] = all;
}

void Block::sync_some(int number, int threads) {
  if (number < 1 || number > 15 || threads % kLanes != 0 || threads > num_threads_) {
    fault(fmt::format("barrier {} of {} threads; wanted 1 to 15, of whole warps", number, threads));
  }
  begin_times();
  Thread& thread = threads_[size_t(current_)];
  thread.barrier = size_t(number), thread.wanted = uint32_t(threads);
  wait(State::kAtSome, 0);
}

Mbarrier& Block::mbarrier(size_t offset) {
  const auto found = mbarriers_.find(offset);
  if (found == mbarriers_.end()) fault(fmt::format("no mbarrier is at byte {}", offset));
  if (!is_before(shadow_[offset].write)) fault("uses an mbarrier with no barrier since its mbarrier.init");
  return found->second;
}
void Block::mbarrier_init(size_t offset, uint32_t arrivals) {
  if (offset % kMbarrierBytes != 0) fault("a misaligned mbarrier");
  begin_times();
  write_shared(dynamic_shared(offset, kMbarrierBytes), kMbarrierBytes);
  const Times nothing(size_t(num_threads_ + kEngines));
  mbarriers_[offset] = {arrivals, arrivals, 0, 0, nothing, nothing};
  for (size_t i = offset; i < offset + kMbarrierBytes; ++i) shadow_[i].coming = kBarrier;
}
void Block::complete(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
  join(barrier.reached, barrier.gathered);
}
void Block::mbarrier_arrive(size_t offset, uint32_t bytes_to_come) {
  Mbarrier& barrier = mbarrier(offset);
  if (barrier.pending == 0) fault("arrives at an mbarrier once more than its phase has arrivals");
  release(barrier.gathered);
  barrier.bytes += bytes_to_come;
  --barrier.pending;
  complete(barrier);
}
void Block::mbarrier_arrive_after_copies(size_t offset) {
  mbarrier(offset);
  Thread& thread = threads_[size_t(current_)];
  release(mbarriers_.at(offset).gathered);
  arrivals_.push_back({kCopyEngine, offset, std::move(thread.copies)});
  thread.copies.clear();
}
void Block::mbarrier_wait(size_t offset, uint32_t parity) {
  const Mbarrier& barrier = mbarrier(offset);
  if (barrier.phase % 2 == parity) {
    Thread& thread = threads_[size_t(current_)];
    thread.barrier = offset, thread.wanted = parity;
    wait(State::kAtMbarrier, 0);
  } else {
    join(known_[size_t(current_)], barrier.reached);
  }
}

void Block::fence_proxy() { threads_[size_t(current_)].fenced = ++now_; }

void Block::load_tile(size_t to_offset, const std::vector<std::byte>& bytes, size_t mbarrier_offset) {
  mbarrier(mbarrier_offset);
  const Access& init = shadow_[mbarrier_offset].write;
  if (threads_[size_t(init.thread)].fenced <= init.time) fault("gives a tile to an mbarrier that was not fenced");
  write_shared(dynamic_shared(to_offset, bytes.size()), bytes.size());
  for (size_t i = to_offset; i < to_offset + bytes.size(); ++i) shadow_[i].coming = kTile;
  arrivals_.push_back({kTileEngine, mbarrier_offset, {}, to_offset, bytes});
}

void Block::check_async_read(size_t begin, size_t bytes) {
  dynamic_shared(begin, bytes);
  for (size_t i = begin; i < begin + bytes; ++i) {
    const Access& write = shadow_[i].write;
    check_read(shadow_[i]);
    if (write.thread == num_threads_ + kTileEngine) continue;
    const bool writer_fenced = write.thread < num_threads_ && threads_[size_t(write.thread)].fenced > write.time;
    if (!writer_fenced && threads_[size_t(current_)].fenced <= write.time) {
      fault("lets the asynchronous proxy read what was written without it, with no fence.proxy.async in between");
    }
  }
}
void Block::begin_reading(Reader reader, size_t begin, size_t bytes) {
  readings_.push_back(
      {begin, begin + bytes, current_, threads_[size_t(current_)].reading_batches[int(reader)], reader});
}
void Block::wait_for_reading(Reader reader, int most_batches) {
  Thread& thread = threads_[size_t(current_)];
  const int batches = thread.reading_batches[int(reader)];
  std::erase_if(thread.products, [&](const Product& product) {
    if (reader != Reader::kProduct || product.batch >= batches - most_batches) return false;
    std::copy(product.sums.begin(), product.sums.end(), product.at);
    return true;
  });
  std::erase_if(readings_, [&](const Reading& reading) {
    if (reading.thread != current_ || reading.reader != reader || reading.batch >= batches - most_batches) return false;
    for (size_t i = reading.begin / kGranule; i * kGranule < reading.end; ++i) {
      Granule& granule = granules_[i];
      if (granule.epoch != epoch_) granule = {epoch_, Times(size_t(num_threads_))};
      granule.times[size_t(current_)] = now_;
    }
    return true;
  });
}

const float* Block::sums_in_flight(const float* at) {
  for (const Product& product : threads_[size_t(current_)].products) {
    if (product.at == at) return product.sums.data();
  }
  return nullptr;
}
void Block::put_in_flight(float* at, const float* sums, int count) {
  Thread& thread = threads_[size_t(current_)];
  const Product product{at, thread.reading_batches[int(Reader::kProduct)], {sums, sums + count}};
  std::fill(at, at + count, NAN);
  for (Product& other : thread.products) {
    if (other.at == at) {
      other = product;
      return;
    }
  }
  thread.products.push_back(product);
}

int64_t Block::num_registers() const {
  int64_t sum = 0;
  for (const Thread& thread : threads_) sum += thread.registers;
  return sum;
}
void Block::set_registers(int count) {
  if (count < 24 || count > 256 || count % 8 != 0) {
    fault(fmt::format("setmaxnreg {}; wanted 24 to 256, a multiple of 8", count));
  }
  threads_[size_t(current_)].registers = count;
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
void copy_async(size_t to_offset, const std::byte* from, size_t bytes) { block().copy_async(to_offset, from, bytes); }
void commit_copies() { block().commit_copies(); }
void wait_for_copies(int most_batches) { block().wait_for_copies(most_batches); }
void sync_some(int number, int threads) { block().sync_some(number, threads); }
void mbarrier_init(size_t offset, uint32_t arrivals) { block().mbarrier_init(offset, arrivals); }
void mbarrier_arrive(size_t offset, uint32_t bytes_to_come) { block().mbarrier_arrive(offset, bytes_to_come); }
void mbarrier_arrive_after_copies(size_t offset) { block().mbarrier_arrive_after_copies(offset); }
void mbarrier_wait(size_t offset, uint32_t parity) { block().mbarrier_wait(offset, parity); }
void fence_proxy() { block().fence_proxy(); }
void load_tile(size_t to_offset, const std::vector<std::byte>& bytes, size_t mbarrier) {
  block().load_tile(to_offset, bytes, mbarrier);
}
void begin_reading(Reader reader, size_t begin, size_t bytes) { block().begin_reading(reader, begin, bytes); }
void commit_reading(Reader reader) { block().commit_reading(reader); }
void wait_for_reading(Reader reader, int most_batches) { block().wait_for_reading(reader, most_batches); }
const float* sums_in_flight(const float* at) { return block().sums_in_flight(at); }
void put_in_flight(float* at, const float* sums, int count) { block().put_in_flight(at, sums, count); }
void check_async_read(size_t begin, size_t bytes) { block().check_async_read(begin, bytes); }
void set_registers(int count) { block().set_registers(count); }
void fault(const std::string& what) { block().fault(what); }

}  // namespace octet::emulation
