#include "tests/gpu/host_device.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace tim4rec::host_device {
namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kGuardBytes = 256;
constexpr unsigned char kGuard = 0xa5;
constexpr unsigned char kPoison = 0xff;
constexpr unsigned kMostThreads = 1024;
constexpr int kMostShared = 227 << 10;

// ---- fibers: a context with its stack, told to the sanitizers

// swapcontext asks the system for the signal mask each time, which costs more than all else here;
// the sanitizers do not follow jumps between stacks.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TIM4REC_SWAP_CONTEXTS
#endif

class Fiber {
 public:
  Fiber() {
    stack_ = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack_ == MAP_FAILED) Fail("no memory for the stack of a thread");
#if defined(__SANITIZE_THREAD__)
    fiber_ = __tsan_create_fiber(0);
#endif
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The fiber begins with `entry` when it is next resumed.
  void Begin(void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
    begun_ = false;
  }

  // From the scheduler to the fiber, until it yields.
  void Resume() {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack_, kStackBytes);
#endif
#if defined(__SANITIZE_THREAD__)
    scheduler_fiber_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber_, 0);
#endif
#if defined(TIM4REC_SWAP_CONTEXTS)
    swapcontext(&scheduler_, &context_);
#else
    if (_setjmp(scheduler_) == 0) {
      if (begun_) _longjmp(yielded_, 1);
      begun_ = true;
      setcontext(&context_);
    }
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  // First thing on a fiber.
  void Entered() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

  void Yield([[maybe_unused]] bool for_ever) {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(for_ever ? nullptr : &fake, scheduler_stack_,
                                   scheduler_stack_bytes_);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(scheduler_fiber_, 0);
#endif
#if defined(TIM4REC_SWAP_CONTEXTS)
    swapcontext(&context_, &scheduler_);
#else
    if (_setjmp(yielded_) == 0) _longjmp(scheduler_, 1);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

 private:
  void* stack_;
  ucontext_t context_;
  bool begun_ = false;
#if defined(TIM4REC_SWAP_CONTEXTS)
  ucontext_t scheduler_;
#else
  jmp_buf scheduler_, yielded_;
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
#endif
#if defined(__SANITIZE_THREAD__)
  void *fiber_, *scheduler_fiber_;
#endif
};

// ---- threads of a block

enum class State { kReady, kAtBlockBarrier, kInWarpFunction, kDone };

struct Copy {
  void* to;
  unsigned char bytes[16];
};

struct Thread {
  std::unique_ptr<Fiber> fiber = std::make_unique<Fiber>();
  Index index;
  State state;
  bool late;  // runs only when no thread of an early warp can
  Where where;
  unsigned mask;
  uint64_t given;
  uint64_t received[32];
  std::vector<std::vector<Copy>> copies;  // groups under way, the last one not yet committed
};

struct Device {
  std::mutex mutex;  // of launches
  std::mt19937_64 random{0};
  std::vector<Thread> threads;
  unsigned count = 0;
  Thread* current = nullptr;
  Index block, block_size, grid_size;
  unsigned char* shared = nullptr;
  const std::function<void()>* body = nullptr;
};

Device& TheDevice() {
  static auto* device = [] {
    auto* made = new Device;
    if (const char* seed = std::getenv("TIM4REC_SEED")) {
      made->random.seed(std::strtoull(seed, nullptr, 10));
    }
    return made;
  }();
  return *device;
}

void RunThread() {
  Device& device = TheDevice();
  Thread* self = device.current;
  self->fiber->Entered();
  (*device.body)();
  for (const auto& group : self->copies) {
    if (!group.empty()) Fail("a thread ends with copies that it did not await");
  }
  self->state = State::kDone;
  self->fiber->Yield(/*for_ever=*/true);
}

void Wait(State state, Where where) {
  Thread* self = TheDevice().current;
  self->state = state;
  self->where = where;
  self->fiber->Yield(/*for_ever=*/false);
}

const char* NameOf(State state) {
  switch (state) {
    case State::kReady:
      return "runs";
    case State::kAtBlockBarrier:
      return "waits at a barrier of the block";
    case State::kInWarpFunction:
      return "waits in a warp function";
    case State::kDone:
      return "has ended";
  }
  return "?";
}

[[noreturn]] void FailDeadlock() {
  Device& device = TheDevice();
  std::fprintf(stderr, "host_device: deadlock in block %u:\n", device.block.x);
  for (unsigned i = 0; i < device.count; ++i) {
    const Thread& thread = device.threads[i];
    const Thread* before = i == 0 ? nullptr : &device.threads[i - 1];
    if (before != nullptr && before->state == thread.state &&
        (thread.state == State::kDone || before->where.line() == thread.where.line())) {
      continue;  // as the thread before
    }
    std::fprintf(stderr, "  from thread %u: %s", i, NameOf(thread.state));
    if (thread.state != State::kDone) {
      std::fprintf(stderr, ", %s:%u", thread.where.file_name(), thread.where.line());
    }
    std::fprintf(stderr, "\n");
  }
  std::abort();
}

// Lets all go on if every thread that has not ended is at the block's barrier.
bool ReleaseBlock() {
  Device& device = TheDevice();
  const Thread* first = nullptr;
  for (unsigned i = 0; i < device.count; ++i) {
    const Thread& thread = device.threads[i];
    if (thread.state == State::kDone) continue;
    if (thread.state != State::kAtBlockBarrier) return false;
    if (first == nullptr) first = &thread;
    if (thread.where.line() != first->where.line()) {
      device.current = const_cast<Thread*>(&thread);
      std::fprintf(stderr, "host_device: thread %u is at %s:%u\n", first->index.x,
                   first->where.file_name(), first->where.line());
      Fail("the threads of a block are at barriers of different lines", thread.where);
    }
  }
  if (first == nullptr) return false;
  for (unsigned i = 0; i < device.count; ++i) {
    Thread& thread = device.threads[i];
    if (thread.state == State::kAtBlockBarrier) thread.state = State::kReady;
  }
  return true;
}

void RunBlock() {
  Device& device = TheDevice();
  for (unsigned i = 0; i < device.count; ++i) {
    Thread& thread = device.threads[i];
    thread.index = {i, 0, 0};
    thread.state = State::kReady;
    // Whole warps lag behind, as far as barriers let them.
    thread.late = i % 32 == 0 ? device.random() % 2 == 0 : device.threads[i - 1].late;
    thread.copies.assign(1, {});
    thread.fiber->Begin(RunThread);
  }
  std::vector<Thread*> ready;
  for (;;) {
    ready.clear();
    bool all_done = true;
    for (unsigned i = 0; i < device.count; ++i) {
      Thread& thread = device.threads[i];
      all_done = all_done && thread.state == State::kDone;
      if (thread.state == State::kReady) ready.push_back(&thread);
    }
    if (all_done) return;
    if (ready.empty() && !ReleaseBlock()) FailDeadlock();
    std::shuffle(ready.begin(), ready.end(), device.random);
    const auto late = std::partition(ready.begin(), ready.end(), [](auto* t) { return !t->late; });
    if (late != ready.begin()) ready.erase(late, ready.end());
    for (Thread* thread : ready) {
      device.current = thread;
      thread->fiber->Resume();
    }
  }
}

void SetGuard(unsigned char* guard) {
  std::memset(guard, kGuard, kGuardBytes);
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(guard, kGuardBytes);
#endif
}

void CheckGuard(const unsigned char* guard, const char* what) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(guard, kGuardBytes);
#endif
  for (size_t i = 0; i < kGuardBytes; ++i) {
    if (guard[i] != kGuard) Fail(what);
  }
}

}  // namespace

const Index& ThreadIndex() { return TheDevice().current->index; }
const Index& BlockIndex() { return TheDevice().block; }
const Index& BlockSize() { return TheDevice().block_size; }
const Index& GridSize() { return TheDevice().grid_size; }
void* SharedBytes() { return TheDevice().shared; }

void SetSeed(uint64_t seed) { TheDevice().random.seed(seed); }

void Fail(const char* what, Where where) {
  const Device& device = TheDevice();
  std::fprintf(stderr, "host_device: %s: block %u, thread %u, %s:%u\n", what, device.block.x,
               device.current == nullptr ? 0 : device.current->index.x, where.file_name(),
               where.line());
  std::abort();
}

void RunGrid(unsigned blocks, unsigned threads, size_t shared_bytes,
             const std::function<void()>& body) {
  Device& device = TheDevice();
  const std::lock_guard<std::mutex> lock(device.mutex);
  if (blocks == 0 || threads == 0 || threads > kMostThreads) Fail("a launch of a wrong size");
  if (shared_bytes > kMostShared) Fail("a launch with more shared memory than a block can have");
  while (device.threads.size() < threads) device.threads.emplace_back();
  device.count = threads;
  device.block_size = {threads, 1, 1};
  device.grid_size = {blocks, 1, 1};
  device.body = &body;
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), device.random);
  auto* memory = static_cast<unsigned char*>(
      std::aligned_alloc(128, (shared_bytes + kGuardBytes + 127) / 128 * 128));
  SetGuard(memory + shared_bytes);
  device.shared = memory;
  for (const unsigned block : order) {
    device.block = {block, 0, 0};
    std::memset(memory, kPoison, shared_bytes);
    RunBlock();
  }
  device.current = nullptr;
  CheckGuard(memory + shared_bytes, "a block wrote beyond its shared memory");
  std::free(memory);
}

void AwaitBlock(Where where) { Wait(State::kAtBlockBarrier, where); }

const uint64_t* Exchange(unsigned mask, uint64_t value, Where where) {
  Device& device = TheDevice();
  Thread* self = device.current;
  const unsigned warp = self->index.x / 32 * 32;
  if ((mask >> (self->index.x - warp) & 1) == 0) Fail("a lane is not in its own mask", where);
  self->mask = mask;
  self->given = value;
  self->where = where;
  self->state = State::kInWarpFunction;
  Thread* lanes[32] = {};
  bool complete = true;
  for (unsigned i = 0; i < 32; ++i) {
    if ((mask >> i & 1) == 0) continue;
    // The full mask may be given in a warp that the block does not fill.
    if (warp + i >= device.count) continue;
    lanes[i] = &device.threads[warp + i];
    if (lanes[i]->state == State::kDone) Fail("a mask names a lane that has ended", where);
    complete = complete && lanes[i]->state == State::kInWarpFunction && lanes[i]->mask == mask &&
               lanes[i]->where.line() == where.line();
  }
  if (!complete) {
    self->fiber->Yield(/*for_ever=*/false);
    return self->received;
  }
  for (Thread* lane : lanes) {
    if (lane == nullptr) continue;
    for (unsigned i = 0; i < 32; ++i) lane->received[i] = lanes[i] ? lanes[i]->given : 0;
    lane->state = State::kReady;
  }
  return self->received;
}

void CheckPrefetch(const void* at, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(at) % 16 != 0 || bytes % 16 != 0) {
    Fail("a prefetch that is not of 16-byte words");
  }
  volatile unsigned char sink = 0;  // reads what it names, for the address sanitizer
  for (size_t i = 0; i < bytes; i += 16) sink = static_cast<const unsigned char*>(at)[i];
  static_cast<void>(sink);
}

void BeginCopy16(void* shared, const void* global) {
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % 16 != 0) {
    Fail("a copy that is not of a 16-byte word");
  }
  Copy copy = {shared, {}};
  std::memcpy(copy.bytes, global, sizeof(copy.bytes));
  std::memset(shared, kPoison, sizeof(copy.bytes));
  TheDevice().current->copies.back().push_back(copy);
}

void CommitCopies() { TheDevice().current->copies.emplace_back(); }

void AwaitCopies(int pending) {
  auto& groups = TheDevice().current->copies;
  while (static_cast<int>(groups.size()) - 1 > pending) {
    for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.bytes, sizeof(copy.bytes));
    groups.erase(groups.begin());
  }
}

}  // namespace tim4rec::host_device

// ---- the runtime

namespace {

using tim4rec::host_device::Fail;
using tim4rec::host_device::kGuardBytes;
using tim4rec::host_device::kPoison;

struct Allocations {
  std::mutex mutex;
  std::map<void*, size_t> bytes;
};

Allocations& TheAllocations() {
  static auto* allocations = new Allocations;
  return *allocations;
}

}  // namespace

cudaError_t cudaMalloc(void** at, size_t bytes) {
  const size_t whole = (bytes + kGuardBytes + 255) / 256 * 256;
  auto* memory = static_cast<unsigned char*>(std::aligned_alloc(256, whole));
  if (memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(memory, kPoison, bytes);
  tim4rec::host_device::SetGuard(memory + bytes);
  Allocations& allocations = TheAllocations();
  const std::lock_guard<std::mutex> lock(allocations.mutex);
  allocations.bytes[memory] = bytes;
  *at = memory;
  return cudaSuccess;
}

cudaError_t cudaFree(void* at) {
  if (at == nullptr) return cudaSuccess;
  Allocations& allocations = TheAllocations();
  const std::lock_guard<std::mutex> lock(allocations.mutex);
  const auto found = allocations.bytes.find(at);
  if (found == allocations.bytes.end()) return cudaErrorInvalidValue;
  tim4rec::host_device::CheckGuard(static_cast<unsigned char*>(at) + found->second,
                                   "device memory was written beyond its end");
  allocations.bytes.erase(found);
  std::free(at);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memmove(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}

cudaError_t cudaMemset(void* at, int value, size_t bytes) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(at, value, bytes);
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 8 : tim4rec::host_device::kMostShared;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
  }
  return "unknown error";
}
