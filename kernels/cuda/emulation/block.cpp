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
constexpr size_t kSpan = kDynamicBytes + kStaticBytes;  // from the memory of one block of a cluster to the next
constexpr int kLanes = 32, kMaxThreads = 1024;
constexpr int kMostBlocks = 8;  // of a cluster: what every GPU of compute capability 9.0 can run
constexpr int64_t kRegisters = 65536;

std::atomic<Order> current_order{Order::kForward};
std::atomic<int64_t> num_grids_run{0}, num_clusters_run{0};

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

enum class State { kRuns, kAtWarp, kAtBlock, kAtCluster, kAtSome, kAtMbarrier, kEnded };

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
  size_t barrier = 0;           // the barrier that it waits at: its place, or its block and number
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
constexpr int16_t kTile = kMaxThreads * kMostBlocks, kBarrier = kTile + 1;
// Who writes what arrives after its thread went on: tiles, and copies that an mbarrier waits for. Each block has both.
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
constexpr int kNamedBarriers = 16;  // of a block
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

// The blocks of a cluster, most often one, which run together. Threads, warps and shared memory are numbered through
// all of them: block 0's come first.
class Cluster {
 public:
  // index: of block 0, from which the others follow along x.
  void run(const char* name, int blocks, uint3 index, dim3 grid, int threads, size_t shared_bytes,
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
  void mbarrier_arrive(size_t place, uint32_t bytes_to_come);
  void mbarrier_arrive_at(int b, size_t offset);
  void mbarrier_arrive_after_copies(size_t offset);
  void mbarrier_wait(size_t offset, uint32_t parity);
  void fence_proxy();
  void load_tile(size_t to_offset, const std::vector<std::byte>& bytes, size_t mbarrier, uint32_t blocks);
  void sync_cluster();
  int this_block() const { return block_of(current_); }
  // Where a byte of this thread's block lies.
  size_t mine(size_t offset) const { return size_t(block_of(current_)) * kSpan + offset; }
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
  void end_block();
  void make_room(int blocks);
  void run_threads();
  void resume(Fiber* fiber);
  void enter(int thread);
  bool open_warps();
  bool open_mbarriers();
  bool open_some();
  bool deliver();
  bool open_blocks();
  void open_cluster();
  void begin_epoch(int b);
  void let_go(int begin, int end);
  void go_on(int thread);
  [[noreturn]] void stuck();
  std::string whereabouts(const Thread& thread) const;
  int all_threads() const { return num_blocks_ * num_threads_; }
  int block_of(int thread) const { return thread / num_threads_; }
  int block_at(size_t place) const { return int(place / kSpan); }
  int engine_of(int b, int engine) const { return all_threads() + b * kEngines + engine; }
  Times no_times() const { return Times(size_t(all_threads() + num_blocks_ * kEngines)); }
  std::string called(int thread) const {
    if (thread >= all_threads()) return "a copy";
    const std::string number = fmt::format("thread {}", thread % num_threads_);
    return block_of(thread) == block_of(current_) ? number : fmt::format("{} of block {}", number, block_of(thread));
  }
  int turn(int i, int n) const { return order_ == Order::kForward ? i : n - 1 - i; }
  bool is_before(const Access& access, int b) const;
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
  Mbarrier& mbarrier(size_t place);
  void check_fenced(size_t mbarrier_place, const char* what) const;
  void reach(int b);
  size_t place_in(int b, size_t offset, size_t bytes);
  int64_t num_registers(int b) const;

  const char* name_ = "";
  uint3 index_;
  int num_blocks_ = 0, num_threads_ = 0;  // threads of a block
  int started_ = 0, ended_ = 0;           // of all
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

  int room_ = 0;  // blocks whose shared memory there is
  std::unique_ptr<std::byte[]> shared_;
  std::unique_ptr<Shadow[]> shadow_;
  size_t dynamic_bytes_ = 0, static_bytes_ = 0;
  struct Declaration {
    const void* tag;
    size_t offset;
  };
  std::vector<Declaration> declarations_;
  uint32_t last_epoch_ = 0;
  struct OfBlock {
    uint32_t first_epoch, epoch;              // a new one for each block, and at each barrier of all its threads
    uint32_t met = 0;                         // when they met last, as its first thread knows it
    int ended = 0;                            // of its threads
    uint32_t tile_time = 0;                   // of the last tile that came
    std::map<int, uint32_t> reached_by = {};  // threads of other blocks that used its memory, and when last
  };
  std::vector<OfBlock> of_blocks_;
  OfBlock& here() { return of_blocks_[size_t(block_of(current_))]; }

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

void Cluster::make_room(int blocks) {
  if (blocks <= room_) return;
  threads_.clear(), arrivals_.clear(), mbarriers_.clear();  // of the last cluster: they name places
  shared_.reset(new std::byte[size_t(blocks) * kSpan + 128]);
  shadow_.reset(new Shadow[size_t(blocks) * kSpan]);
  room_ = blocks;
}

Cluster& cluster() {
  thread_local Cluster of_this_worker;
  return of_this_worker;
}

void Cluster::fault(const std::string& what) const {
  fail(ErrorKind::kDevice,
       {.what = fmt::format("{}: {}; block ({}, {}, {}), thread {}", name_, what,
                            index_.x + unsigned(block_of(current_)), index_.y, index_.z, current_ % num_threads_),
        .where = "",
        .why = "a GPU would go on with a wrong result, or hang",
        .fix = ""});
}

void Cluster::run(const char* name, int blocks, uint3 index, dim3 grid, int threads, size_t shared_bytes,
                  const std::function<void()>& body) {
  name_ = name;
  num_blocks_ = blocks;
  index_ = index;
  num_threads_ = threads;
  body_ = &body;
  order_ = current_order;
  started_ = ended_ = current_ = 0;
  error_ = nullptr;
  make_room(blocks);
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
  threads_.assign(size_t(all_threads()), Thread());
  warps_.resize(size_t(all_threads() / kLanes));
  for (Warp& warp : warps_) warp.tick = 0;
  dynamic_bytes_ = shared_bytes;
  static_bytes_ = 0;
  declarations_.clear();
  ++last_epoch_;
  of_blocks_.assign(size_t(blocks), {.first_epoch = last_epoch_, .epoch = last_epoch_});
  if (blocks > 1) begin_times();
  idle_.clear();
  for (const auto& fiber : fibers_) idle_.push_back(fiber.get());
  gridDim = grid;
  blockDim = {unsigned(threads), 1, 1};
  run_threads();
  if (error_ != nullptr) std::rethrow_exception(error_);
}

// A fiber takes threads that nobody began, one after the other, so that a kernel without barriers needs one fiber.
void Cluster::enter_fiber() {
  Cluster& cluster = emulation::cluster();
  for (;;) {
    while (cluster.started_ < cluster.all_threads() && cluster.error_ == nullptr) {
      const int t = cluster.turn(cluster.started_++, cluster.all_threads());
      cluster.threads_[size_t(t)].fiber = cluster.running_;
      cluster.enter(t);
      try {
        (*cluster.body_)();
      } catch (...) {
        cluster.error_ = std::current_exception();
      }
      cluster.end_thread();
    }
    cluster.idle_.push_back(cluster.running_);
    if (_setjmp(cluster.running_->here) == 0) _longjmp(cluster.scheduler_, 1);
  }
}

void Cluster::end_thread() {
  Thread& thread = threads_[size_t(current_)];
  thread.state = State::kEnded;
  ++ended_;
  if (error_ != nullptr) return;
  try {
    for (const Reading& reading : readings_) {
      if (reading.thread == current_) fault("ends while what it asked for reads shared memory");
    }
    if (++here().ended == num_threads_) end_block();
  } catch (...) {
    error_ = std::current_exception();
  }
}

// Its shared memory is another block's from here on.
void Cluster::end_block() {
  const int b = block_of(current_);
  if (num_registers(b) > kRegisters) {
    fault(fmt::format("{} registers after setmaxnreg; a block has {}", num_registers(b), kRegisters));
  }
  const auto is_mine = [&](size_t place) { return block_at(place) == b; };
  for (const Arrival& arrival : arrivals_) {
    if (arrival.engine == kTileEngine && is_mine(arrival.to)) fault("its block ends while a tile is on its way to it");
  }
  if (!has_times_) return;
  // Whether one of its threads knows what another did at that time.
  const auto is_known_here = [&](int who, uint32_t time) {
    for (int t = b * num_threads_; t < (b + 1) * num_threads_; ++t) {
      if (known_[size_t(t)][size_t(who)] > time) return true;
    }
    return false;
  };
  if (here().tile_time != 0 && !is_known_here(engine_of(b, kTileEngine), here().tile_time)) {
    fault("its block ends and has not waited for a tile that came to it");
  }
  for (const auto& [thread, time] : here().reached_by) {
    if (is_known_here(thread, time)) continue;
    fault(fmt::format("its block ends and does not know that {} has done with it", called(thread)));
  }
}

void Cluster::enter(int thread) {
  current_ = thread;
  threadIdx = {unsigned(thread % num_threads_), 0, 0};
  blockIdx = {index_.x + unsigned(block_of(thread)), index_.y, index_.z};
}

void Cluster::resume(Fiber* fiber) {
  running_ = fiber;
  if (_setjmp(scheduler_) != 0) return;
  if (fiber->is_started) _longjmp(fiber->here, 1);
  fiber->is_started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber->memory + kPageBytes;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, &Cluster::enter_fiber, 0);
  swapcontext(&scheduler_context_, &context);
}

void Cluster::run_threads() {
  while (started_ < all_threads() && error_ == nullptr) {
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>());
      idle_.push_back(fibers_.back().get());
    }
    Fiber* const fiber = idle_.back();
    idle_.pop_back();
    resume(fiber);
  }
  while (ended_ < all_threads() && error_ == nullptr) {
    try {
      if (!open_warps() && !open_some() && !open_mbarriers() && !deliver() && !open_blocks()) open_cluster();
    } catch (...) {
      error_ = std::current_exception();
    }
  }
  // After an error the fibers that wait are left where they are; their stacks are begun anew.
  if (error_ != nullptr) {
    for (const auto& fiber : fibers_) fiber->is_started = false;
  }
}

bool Cluster::open_warps() {
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
      fault(fmt::format("{} lanes of a warp wait for each other and this thread {}", waiting, whereabouts(other)));
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

void Cluster::go_on(int thread) {
  threads_[size_t(thread)].state = State::kRuns;
  enter(thread);
  resume(threads_[size_t(thread)].fiber);
}

bool Cluster::open_some() {
  std::map<size_t, std::vector<int>> waiting;
  for (int i = 0; i < all_threads(); ++i) {
    const int t = turn(i, all_threads());
    if (threads_[size_t(t)].state == State::kAtSome) waiting[threads_[size_t(t)].barrier].push_back(t);
  }
  bool any = false;
  for (const auto& [number, threads] : waiting) {
    const uint32_t wanted = threads_[size_t(threads[0])].wanted;
    for (const int t : threads) {
      current_ = t;
      if (threads_[size_t(t)].wanted != wanted || threads.size() > wanted) {
        fault(fmt::format("barrier {} is for {} threads elsewhere, and for {} here, with {} there",
                          number % kNamedBarriers, wanted, threads_[size_t(t)].wanted, threads.size()));
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

bool Cluster::open_mbarriers() {
  bool any = false;
  for (int i = 0; i < all_threads() && error_ == nullptr; ++i) {
    const int t = turn(i, all_threads());
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

bool Cluster::deliver() {
  if (arrivals_.empty()) return false;
  const auto at = order_ == Order::kForward ? arrivals_.begin() : arrivals_.end() - 1;
  const Arrival arrival = std::move(*at);
  arrivals_.erase(at);
  const int b = block_at(arrival.mbarrier), engine = engine_of(b, arrival.engine);
  const auto write = [&](size_t place, const std::vector<std::byte>& bytes) {
    std::memcpy(shared() + place, bytes.data(), bytes.size());
    for (size_t i = place; i < place + bytes.size(); ++i) {
      shadow_[i].coming = -1;
      shadow_[i].write = {of_blocks_[size_t(b)].epoch, 0, now_, int16_t(engine), -1};
    }
  };
  for (const Copy& copy : arrival.copies) write(copy.to, {copy.bytes.begin(), copy.bytes.begin() + copy.size});
  write(arrival.to, arrival.tile);
  Mbarrier& barrier = mbarriers_.at(arrival.mbarrier);
  Times& known = barrier.gathered;
  if (arrival.engine == kCopyEngine) {
    --barrier.pending;
  } else {
    of_blocks_[size_t(b)].tile_time = now_;
    barrier.bytes -= int64_t(arrival.tile.size());
  }
  known[size_t(engine)] = ++now_;
  complete(barrier);
  return true;
}

std::string Cluster::whereabouts(const Thread& thread) const {
  switch (thread.state) {
    case State::kEnded:
      return "has ended";
    case State::kAtCluster:
      return "waits at the barrier of the cluster";
    default:
      return fmt::format("waits at __syncthreads, line {}", thread.line);
  }
}

bool Cluster::open_blocks() {
  bool any = false;
  for (int i = 0; i < num_blocks_ && error_ == nullptr; ++i) {
    const int b = turn(i, num_blocks_), first = b * num_threads_;
    const auto is_there = [&](const Thread& thread) {
      return thread.state == State::kAtBlock && thread.line == threads_[size_t(first)].line;
    };
    if (!std::all_of(threads_.begin() + first, threads_.begin() + first + num_threads_, is_there)) continue;
    any = true;
    begin_epoch(b);
    let_go(first, first + num_threads_);
  }
  return any;
}

void Cluster::open_cluster() {
  const auto is_there = [](const Thread& thread) { return thread.state == State::kAtCluster; };
  if (!std::all_of(threads_.begin(), threads_.end(), is_there)) stuck();
  for (int b = 0; b < num_blocks_; ++b) begin_epoch(b);
  let_go(0, all_threads());
}

// All that its threads did is before what they do now.
void Cluster::begin_epoch(int b) {
  of_blocks_[size_t(b)].epoch = ++last_epoch_;
  if (num_blocks_ == 1) {
    readers_.clear();
  } else {
    readers_.erase(readers_.lower_bound(size_t(b) * kSpan), readers_.lower_bound(size_t(b + 1) * kSpan));
  }
}
// Threads that wait for each other go on.
void Cluster::let_go(int begin, int end) {
  if (has_times_) {
    std::vector<int> all;
    for (int t = begin; t < end; ++t) all.push_back(t);
    meet(all);
    for (int t = begin; t < end; t += num_threads_) {
      of_blocks_[size_t(block_of(t))].met = known_[size_t(t)][size_t(t)];
    }
  }
  for (int t = begin; t < end; ++t) threads_[size_t(t)].state = State::kRuns;
  for (int i = 0; i < end - begin && error_ == nullptr; ++i) {
    const int t = begin + turn(i, end - begin);
    enter(t);
    resume(threads_[size_t(t)].fiber);
  }
}

void Cluster::stuck() {
  for (int i = 0; i < all_threads(); ++i) {
    const Thread& thread = threads_[size_t(i)];
    current_ = i;
    if (thread.state == State::kAtMbarrier) {
      const Mbarrier& barrier = mbarriers_.at(thread.barrier);
      fault(fmt::format("waits for ever: the mbarrier at byte {} lacks {} arrivals and {} bytes to end phase {}",
                        thread.barrier % kSpan, barrier.pending, barrier.bytes, barrier.phase));
    }
    if (thread.state == State::kAtSome) {
      fault(fmt::format("waits for ever at barrier {}", thread.barrier % kNamedBarriers));
    }
  }
  // Each waits at a barrier of its block or of the cluster, or has ended.
  const auto names = [&](int begin, int end, State state) {
    int first = begin;
    while (first < end && threads_[size_t(first)].state != state) ++first;
    for (int t = begin; first < end && t < end; ++t) {
      const Thread &one = threads_[size_t(first)], &other = threads_[size_t(t)];
      if (other.state == state && other.line == one.line) continue;
      current_ = t;
      fault(fmt::format("{} {}, and this thread {}", called(first), whereabouts(one),
                        other.state == state ? fmt::format("at line {}", other.line) : whereabouts(other)));
    }
  };
  for (int b = 0; b < num_blocks_; ++b) names(b * num_threads_, (b + 1) * num_threads_, State::kAtBlock);
  names(0, all_threads(), State::kAtCluster);
  fault("waits for ever");
}

void Cluster::wait(State state, int line) {
  Thread& thread = threads_[size_t(current_)];
  thread.state = state;
  thread.line = line;
  if (_setjmp(running_->here) == 0) _longjmp(scheduler_, 1);
}

const Exchange& Cluster::exchange(const void* value, size_t bytes) {
  Warp& warp = warps_[size_t(current_ / kLanes)];
  Exchange& lanes = warp.exchanges[threads_[size_t(current_)].exchanges++ % 2];
  std::memcpy(lanes[size_t(current_ % kLanes)].data(), value, bytes);
  wait(State::kAtWarp, 0);
  return lanes;
}

std::byte* Cluster::static_shared(const void* tag, size_t bytes) {
  std::byte* const first = shared() + mine(kDynamicBytes);
  for (const Declaration& declaration : declarations_) {
    if (declaration.tag == tag) return first + declaration.offset;
  }
  const size_t offset = static_bytes_;
  static_bytes_ += (bytes + 15) / 16 * 16;
  if (static_bytes_ > kStaticBytes) fault(fmt::format("{} bytes of static shared memory", static_bytes_));
  declarations_.push_back({tag, offset});
  return first + offset;
}

std::byte* Cluster::dynamic_shared(size_t offset, size_t bytes) {
  if (offset + bytes > dynamic_bytes_) {
    fault(fmt::format("bytes {} to {} of {} of dynamic shared memory", offset, offset + bytes, dynamic_bytes_));
  }
  return shared() + mine(offset);
}
size_t Cluster::place_in(int b, size_t offset, size_t bytes) {
  dynamic_shared(offset, bytes);
  if (b < 0 || b >= num_blocks_) fault(fmt::format("block {} of a cluster of {}", b, num_blocks_));
  if (of_blocks_[size_t(b)].ended == num_threads_) {
    fault(fmt::format("writes or arrives at shared memory of block {} of the cluster, which has ended", b));
  }
  return size_t(b) * kSpan + offset;
}

// access: the last to a byte of block b.
bool Cluster::is_before(const Access& access, int b) const {
  const OfBlock& of_block = of_blocks_[size_t(b)];
  if (access.epoch < of_block.first_epoch || access.thread == current_) return true;
  if (access.epoch < of_block.epoch) {
    // Its threads have met since; threads of other blocks may not have heard of it.
    if (b == block_of(current_) || known_[size_t(current_)][size_t(b * num_threads_)] >= of_block.met) return true;
  }
  if (access.warp == current_ / kLanes && access.tick < warps_[size_t(current_ / kLanes)].tick) return true;
  return access.thread >= 0 && is_known(access.thread, access.time);
}
bool Cluster::are_reads_before(size_t at) const {
  if (is_before(shadow_[at].read, block_at(at))) return true;
  const auto found = readers_.find(at);
  return has_times_ && found != readers_.end() &&
         std::all_of(found->second.begin(), found->second.end(), [&](const std::pair<int, uint32_t>& reader) {
           return reader.first == current_ || is_known(reader.first, reader.second);
         });
}

void Cluster::forget(const Copy& copy) {
  for (size_t i = copy.to; i < copy.to + copy.size; ++i) shadow_[i].coming = -1;
}

void Cluster::copy_async(size_t to_offset, const std::byte* from, size_t bytes) {
  if (to_offset % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0) fault("a misaligned cp.async");
  write_shared(dynamic_shared(to_offset, bytes), bytes);
  const size_t to = mine(to_offset);
  Thread& thread = threads_[size_t(current_)];
  Copy& copy = thread.copies.emplace_back();
  copy.to = to;
  copy.batch = thread.batches;
  copy.size = bytes;
  std::memcpy(copy.bytes.data(), from, bytes);
  for (size_t i = to; i < to + bytes; ++i) shadow_[i].coming = int16_t(current_);
}

void Cluster::wait_for_copies(int most_batches) {
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

void Cluster::read_shared(const std::byte* at, size_t bytes) {
  const size_t begin = size_t(at - shared());
  const auto thread = int16_t(current_), warp = int16_t(current_ / kLanes);
  const uint32_t tick = warps_[size_t(warp)].tick, epoch = here().epoch;
  for (size_t i = begin; i < begin + bytes; ++i) {
    check_read(shadow_[i]);
    Access& read = shadow_[i].read;
    if (read.epoch == epoch) {
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
      read = {epoch, tick, now_, thread, warp};
    }
  }
}

void Cluster::check_read(const Shadow& shadow) const {
  const Access& write = shadow.write;
  if (shadow.coming == kTile) fault("reads what a tile on its way brings");
  if (shadow.coming == kBarrier) fault("reads an mbarrier as memory");
  if (shadow.coming >= 0) fault(fmt::format("reads what a cp.async of {} brings", called(shadow.coming)));
  if (write.epoch < of_blocks_[size_t(block_of(current_))].first_epoch) fault("reads shared memory that nobody wrote");
  if (is_before(write, block_of(current_))) return;
  if (write.thread >= all_threads()) fault("reads what arrived, and has not waited for it");
  fault(fmt::format("reads what {} wrote, with no barrier in between", called(write.thread)));
}

void Cluster::write_shared(const std::byte* at, size_t bytes) {
  const size_t begin = size_t(at - shared());
  const int b = block_at(begin);  // by a tile, also that of another block
  const auto thread = int16_t(current_), warp = int16_t(current_ / kLanes);
  for (const Reading& reading : readings_) {
    if (reading.begin < begin + bytes && begin < reading.end) {
      fault(fmt::format("writes where a {} of {} reads",
                        reading.reader == Reader::kProduct ? "product in flight" : "store of a tile",
                        called(reading.thread)));
    }
  }
  for (auto granule = granules_.lower_bound(begin / kGranule);
       granule != granules_.end() && granule->first * kGranule < begin + bytes; ++granule) {
    if (granule->second.epoch < of_blocks_[size_t(b)].epoch && b == block_of(current_)) continue;
    const Times& times = granule->second.times;
    for (int t = 0; t < all_threads(); ++t) {
      if (times[size_t(t)] == 0 || t == current_ || is_known(t, times[size_t(t)])) continue;
      fault(fmt::format("writes where a product of {} read, with no barrier in between", called(t)));
    }
  }
  for (size_t i = begin; i < begin + bytes; ++i) {
    Shadow& shadow = shadow_[i];
    if (shadow.coming == kTile) fault("writes where a tile on its way does");
    if (shadow.coming == kBarrier) fault("writes an mbarrier as memory");
    if (shadow.coming >= 0) fault(fmt::format("writes where a cp.async of {} does", called(shadow.coming)));
    if (!is_before(shadow.write, b)) {
      fault(fmt::format("writes where {} wrote, with no barrier in between", called(shadow.write.thread)));
    }
    if (!are_reads_before(i)) fault("writes what another thread read, with no barrier in between");
    shadow.write = {of_blocks_[size_t(b)].epoch, warps_[size_t(warp)].tick, now_, thread, warp};
  }
}

void Cluster::begin_times() {
  if (has_times_) return;
  has_times_ = true;
  known_.assign(size_t(all_threads()), no_times());
}
// Adds what this thread knows, and did up to now.
void Cluster::release(Times& to) {
  Times& known = known_[size_t(current_)];
  known[size_t(current_)] = ++now_;
  join(to, known);
}
// All that any of them did is before what they do now.
void Cluster::meet(const std::vector<int>& threads) {
  Times all = no_times();
  for (const int t : threads) {
    known_[size_t(t)][size_t(t)] = ++now_;
    join(all, known_[size_t(t)]);
  }
  for (const int t : threads) known_[size_t(t)] = all;
}

void Cluster::sync_some(int number, int threads) {
  if (number < 1 || number >= kNamedBarriers || threads % kLanes != 0 || threads > num_threads_) {
    fault(fmt::format("barrier {} of {} threads; wanted 1 to 15, of whole warps", number, threads));
  }
  begin_times();
  Thread& thread = threads_[size_t(current_)];
  thread.barrier = size_t(block_of(current_) * kNamedBarriers + number), thread.wanted = uint32_t(threads);
  wait(State::kAtSome, 0);
}

Mbarrier& Cluster::mbarrier(size_t place) {
  const auto found = mbarriers_.find(place);
  if (found == mbarriers_.end()) fault(fmt::format("no mbarrier is at byte {}", place % kSpan));
  if (!is_before(shadow_[place].write, block_at(place)))
    fault("uses an mbarrier with no barrier since its mbarrier.init");
  return found->second;
}
void Cluster::check_fenced(size_t mbarrier_place, const char* what) const {
  const Access& init = shadow_[mbarrier_place].write;
  if (threads_[size_t(init.thread)].fenced <= init.time) fault(fmt::format("{} an mbarrier that was not fenced", what));
}
void Cluster::mbarrier_init(size_t offset, uint32_t arrivals) {
  if (offset % kMbarrierBytes != 0) fault("a misaligned mbarrier");
  begin_times();
  write_shared(dynamic_shared(offset, kMbarrierBytes), kMbarrierBytes);
  const size_t place = mine(offset);
  mbarriers_[place] = {arrivals, arrivals, 0, 0, no_times(), no_times()};
  for (size_t i = place; i < place + kMbarrierBytes; ++i) shadow_[i].coming = kBarrier;
}
void Cluster::complete(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
  join(barrier.reached, barrier.gathered);
}
void Cluster::mbarrier_arrive(size_t place, uint32_t bytes_to_come) {
  Mbarrier& barrier = mbarrier(place);
  if (barrier.pending == 0) fault("arrives at an mbarrier once more than its phase has arrivals");
  release(barrier.gathered);
  barrier.bytes += bytes_to_come;
  --barrier.pending;
  complete(barrier);
}
void Cluster::mbarrier_arrive_at(int b, size_t offset) {
  const size_t place = place_in(b, offset, kMbarrierBytes);
  mbarrier(place);
  check_fenced(place, "arrives from another block at");
  reach(b);
  mbarrier_arrive(place, 0);
}
void Cluster::mbarrier_arrive_after_copies(size_t offset) {
  Mbarrier& barrier = mbarrier(mine(offset));
  Thread& thread = threads_[size_t(current_)];
  release(barrier.gathered);
  arrivals_.push_back({kCopyEngine, mine(offset), std::move(thread.copies)});
  thread.copies.clear();
}
void Cluster::mbarrier_wait(size_t offset, uint32_t parity) {
  const Mbarrier& barrier = mbarrier(mine(offset));
  if (barrier.phase % 2 == parity) {
    Thread& thread = threads_[size_t(current_)];
    thread.barrier = mine(offset), thread.wanted = parity;
    wait(State::kAtMbarrier, 0);
  } else {
    join(known_[size_t(current_)], barrier.reached);
  }
}

void Cluster::fence_proxy() { threads_[size_t(current_)].fenced = ++now_; }

// This thread uses memory of block b from here on, until it tells that it has done with it.
void Cluster::reach(int b) {
  if (b != block_of(current_)) of_blocks_[size_t(b)].reached_by[current_] = now_;
}
void Cluster::load_tile(size_t to_offset, const std::vector<std::byte>& bytes, size_t mbarrier_offset,
                        uint32_t blocks) {
  if (blocks >> num_blocks_ != 0) fault(fmt::format("a tile for blocks {:#b} of a cluster of {}", blocks, num_blocks_));
  for (int i = 0; i < num_blocks_; ++i) {
    const int b = turn(i, num_blocks_);
    if ((blocks >> b & 1) == 0) continue;
    const size_t to = place_in(b, to_offset, bytes.size()), barrier = place_in(b, mbarrier_offset, kMbarrierBytes);
    mbarrier(barrier);
    check_fenced(barrier, "gives a tile to");
    write_shared(shared() + to, bytes.size());
    for (size_t j = to; j < to + bytes.size(); ++j) shadow_[j].coming = kTile;
    arrivals_.push_back({kTileEngine, barrier, {}, to, bytes});
  }
}
void Cluster::sync_cluster() {
  begin_times();
  wait(State::kAtCluster, 0);
}

void Cluster::check_async_read(size_t begin, size_t bytes) {
  dynamic_shared(begin, bytes);
  for (size_t i = mine(begin); i < mine(begin) + bytes; ++i) {
    const Access& write = shadow_[i].write;
    check_read(shadow_[i]);
    if (write.thread == engine_of(block_of(current_), kTileEngine)) continue;
    const bool writer_fenced = write.thread < all_threads() && threads_[size_t(write.thread)].fenced > write.time;
    if (!writer_fenced && threads_[size_t(current_)].fenced <= write.time) {
      fault("lets the asynchronous proxy read what was written without it, with no fence.proxy.async in between");
    }
  }
}
void Cluster::begin_reading(Reader reader, size_t begin, size_t bytes) {
  readings_.push_back(
      {mine(begin), mine(begin) + bytes, current_, threads_[size_t(current_)].reading_batches[int(reader)], reader});
}
void Cluster::wait_for_reading(Reader reader, int most_batches) {
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
      if (granule.epoch != here().epoch) granule = {here().epoch, Times(size_t(all_threads()))};
      granule.times[size_t(current_)] = now_;
    }
    return true;
  });
}

const float* Cluster::sums_in_flight(const float* at) {
  for (const Product& product : threads_[size_t(current_)].products) {
    if (product.at == at) return product.sums.data();
  }
  return nullptr;
}
void Cluster::put_in_flight(float* at, const float* sums, int count) {
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

int64_t Cluster::num_registers(int b) const {
  int64_t sum = 0;
  for (int t = b * num_threads_; t < (b + 1) * num_threads_; ++t) sum += threads_[size_t(t)].registers;
  return sum;
}
void Cluster::set_registers(int count) {
  if (count < 24 || count > 256 || count % 8 != 0) {
    fault(fmt::format("setmaxnreg {}; wanted 24 to 256, a multiple of 8", count));
  }
  threads_[size_t(current_)].registers = count;
}

}  // namespace

void run_grid(const char* name, int cluster_blocks, dim3 grid, int threads, size_t shared_bytes, ThreadPool& pool,
              const std::function<void()>& thread) {
  require(threads > 0 && threads % kLanes == 0 && threads <= kMaxThreads,
          "{}: blocks of {} threads; wanted whole warps of 32, at most 1024 threads", name, threads);
  require(shared_bytes <= kDynamicBytes, "{}: {} bytes of shared memory; a block has at most {}", name, shared_bytes,
          kDynamicBytes);
  require(grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535,
          "{}: a grid of {} x {} x {} blocks; at most 2147483647 x 65535 x 65535", name, grid.x, grid.y, grid.z);
  require(1 <= cluster_blocks && cluster_blocks <= kMostBlocks && grid.x % unsigned(cluster_blocks) == 0,
          "{}: clusters of {} blocks in a grid of {} along x; wanted 1 to {} that divide it", name, cluster_blocks,
          grid.x, kMostBlocks);
  const int64_t clusters = int64_t(grid.x) * grid.y * grid.z / cluster_blocks;
  ++num_grids_run;
  if (cluster_blocks > 1) num_clusters_run += clusters;
  const bool backward = current_order == Order::kBackward;
  pool.for_chunks(clusters, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = (backward ? clusters - 1 - i : i) * cluster_blocks;
      const uint3 index{unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
      cluster().run(name, cluster_blocks, index, grid, threads, shared_bytes, thread);
    }
  });
}

int64_t grids_run() { return num_grids_run; }
int64_t clusters_run() { return num_clusters_run; }
void set_order(Order order) { current_order = order; }
void sync_threads(const char*, int line) { cluster().wait(State::kAtBlock, line); }
void sync_warp() { cluster().wait(State::kAtWarp, 0); }
const Exchange& exchange(const void* value, size_t bytes) { return cluster().exchange(value, bytes); }
std::byte* static_shared(const void* tag, size_t bytes) { return cluster().static_shared(tag, bytes); }
std::byte* dynamic_shared(size_t offset, size_t bytes) { return cluster().dynamic_shared(offset, bytes); }
void read_shared(const std::byte* at, size_t bytes) { cluster().read_shared(at, bytes); }
void write_shared(std::byte* at, size_t bytes) { cluster().write_shared(at, bytes); }
void copy_async(size_t to_offset, const std::byte* from, size_t bytes) { cluster().copy_async(to_offset, from, bytes); }
void commit_copies() { cluster().commit_copies(); }
void wait_for_copies(int most_batches) { cluster().wait_for_copies(most_batches); }
void sync_some(int number, int threads) { cluster().sync_some(number, threads); }
void mbarrier_init(size_t offset, uint32_t arrivals) { cluster().mbarrier_init(offset, arrivals); }
void mbarrier_arrive(size_t offset, uint32_t bytes_to_come) {
  cluster().mbarrier_arrive(cluster().mine(offset), bytes_to_come);
}
void mbarrier_arrive_at(int block, size_t offset) { cluster().mbarrier_arrive_at(block, offset); }
void mbarrier_arrive_after_copies(size_t offset) { cluster().mbarrier_arrive_after_copies(offset); }
void mbarrier_wait(size_t offset, uint32_t parity) { cluster().mbarrier_wait(offset, parity); }
void fence_proxy() { cluster().fence_proxy(); }
void load_tile(size_t to_offset, const std::vector<std::byte>& bytes, size_t mbarrier) {
  cluster().load_tile(to_offset, bytes, mbarrier, 1u << cluster().this_block());
}
void load_tile_to(uint32_t blocks, size_t to_offset, const std::vector<std::byte>& bytes, size_t mbarrier) {
  cluster().load_tile(to_offset, bytes, mbarrier, blocks);
}
void sync_cluster() { cluster().sync_cluster(); }
int block_in_cluster() { return cluster().this_block(); }
void begin_reading(Reader reader, size_t begin, size_t bytes) { cluster().begin_reading(reader, begin, bytes); }
void commit_reading(Reader reader) { cluster().commit_reading(reader); }
void wait_for_reading(Reader reader, int most_batches) { cluster().wait_for_reading(reader, most_batches); }
const float* sums_in_flight(const float* at) { return cluster().sums_in_flight(at); }
void put_in_flight(float* at, const float* sums, int count) { cluster().put_in_flight(at, sums, count); }
void check_async_read(size_t begin, size_t bytes) { cluster().check_async_read(begin, bytes); }
void set_registers(int count) { cluster().set_registers(count); }
void fault(const std::string& what) { cluster().fault(what); }

}  // namespace octet::emulation
