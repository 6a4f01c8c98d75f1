#include "core/base/error.h"
#include "kernels/device_runtime.h"

namespace octet::gpu {
namespace {

[[noreturn]] void refuse() {
  fail(ErrorKind::kDevice,
       {.what = "this octet was built without CUDA and has kernels for the CPU only",
        .where = {},
        .why = {},
        .fix = "set device: cpu, or build octet where the CUDA toolkit 12.8 or later is installed"});
}

}  // namespace

std::string built_for() { return "no CUDA"; }
bool is_built_in() { return false; }
Runtime runtime() { return {.driver = 0, .count = 0, .trouble = "this octet was built without it", .is_emulated = {}}; }
Properties properties(int) { refuse(); }
void open(Device) { refuse(); }
bool is_open(Device) { return false; }
MemoryLevel memory_level(Device) { refuse(); }
void* allocate(int64_t, const char*, Stream&) { refuse(); }
void release(void*, Stream&) noexcept {}
std::byte* allocate_pinned(int64_t) { refuse(); }
void release_pinned(std::byte*) noexcept {}
void copy(void*, const void*, int64_t, Stream&) { refuse(); }
void copy_rows(void*, int64_t, const void*, int64_t, int64_t, int64_t, Stream&) { refuse(); }
void fill(void*, int, int64_t, Stream&) { refuse(); }
void synchronize(Stream&) { refuse(); }
int64_t host_waits() { return 0; }
Event::~Event() = default;
Event::Event(Event&&) noexcept = default;
Event& Event::operator=(Event&&) noexcept = default;
void Event::record(Stream&) { refuse(); }
bool Event::is_done() const { return event_ == nullptr && place_ < 0 && device_.is_cpu(); }
void Event::wait() const {}
void Event::hold(Stream&) const {}
struct Stopwatch::Places {};
void Stopwatch::start(Stream&) { refuse(); }
void Stopwatch::stop(Stream&) { refuse(); }
double Stopwatch::seconds() const { refuse(); }
struct Graph::Parts {};
void Graph::launch(Stream&) const { refuse(); }
struct Capture::State {};
Capture::Capture(Stream&) { refuse(); }
Capture::~Capture() = default;
Graph Capture::finish() { refuse(); }
std::shared_ptr<Stream> make_stream(Device) { refuse(); }
FaultRecord* fault_record(Device) { refuse(); }
void check_launch(const char*) {}
LaunchWindow::LaunchWindow(const char*) {}
LaunchWindow::~LaunchWindow() = default;
bool is_device_memory(const void*) { return true; }

}  // namespace octet::gpu
