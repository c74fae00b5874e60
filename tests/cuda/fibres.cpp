// The threads of shim.h.

#include "fibres.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "shim.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

Index threadIdx, blockIdx, blockDim, gridDim;

namespace uk::shim {

int architecture = 90;

namespace {

constexpr size_t kStack = 256 * 1024;

struct Copy {
  void* to;
  const void* from;
  bool inside;
};

enum class Stop { none, barrier, exchange, wait, end };

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  std::vector<std::vector<Copy>> groups{1};  // the last one is being filled
  Stop stop = Stop::none;                    // where it is
  const char* file = nullptr;                // of that barrier
  int line = 0;
  void (*operation)(void* const (&lanes)[kLanes]) = nullptr;  // its warp's
  void* own = nullptr;
  const void* awaited = nullptr;  // a barrier of tensor copies
  std::function<bool()> ready;
  std::function<std::string()> what;  // it waits for
};

struct Aligned {
  void operator()(unsigned char* at) const {
    ::operator delete[](at, std::align_val_t(uk::cuda::kTensorAlignment));
  }
};

ucontext_t scheduler;
std::vector<Fibre> fibres;
Fibre* current;
const std::function<void()>* body;
std::unique_ptr<unsigned char[], Aligned> memory;
int memory_size;

// The sanitizer has to know whose stack it is on.
void enter(Fibre& fibre) {
#ifdef __SANITIZE_ADDRESS__
  void* saved;
  __sanitizer_start_switch_fiber(&saved, fibre.stack.get(), kStack);
#endif
  swapcontext(&scheduler, &fibre.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(saved, nullptr, nullptr);
#endif
}

#ifdef __SANITIZE_ADDRESS__
const void* scheduler_stack;
size_t scheduler_size;
#endif

void leave(bool for_good) {
#ifdef __SANITIZE_ADDRESS__
  void* saved;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &saved, scheduler_stack, scheduler_size);
#endif
  Fibre* self = current;
  swapcontext(&self->context, &scheduler);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(saved, &scheduler_stack, &scheduler_size);
#endif
  (void)for_good;
}

void start() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  (*body)();
  current->stop = Stop::end;
  leave(true);
}

// All lanes to the block's next barrier, or to what some of them wait for.
void run_warp(int first, int lanes) {
  for (;;) {
    int exchanging = 0, waiting = 0;
    for (int i = 0; i < lanes; ++i) {
      const int thread = first + (reversed() ? lanes - 1 - i : i);
      current = &fibres[thread];
      threadIdx.x = thread;
      if (current->stop == Stop::none) enter(*current);
      exchanging += current->stop == Stop::exchange;
      waiting += current->stop == Stop::wait;
    }
    if (exchanging == 0 || waiting > 0) return;
    void* own[kLanes];
    for (int i = 0; i < lanes; ++i) {
      Fibre& lane = fibres[first + i];
      if (exchanging < kLanes || lane.operation != fibres[first].operation)
        fail("expected all lanes of a warp at one exchange");
      own[i] = lane.own;
      lane.stop = Stop::none;
    }
    fibres[first].operation(own);
  }
}

// Whether threads wait; some of them are ready then, if need be by a copy.
bool wake(int threads) {
  std::vector<Fibre*> waiting;
  bool ready = false;
  for (int i = 0; i < threads; ++i) {
    if (fibres[i].stop != Stop::wait) continue;
    waiting.push_back(&fibres[i]);
    if (!fibres[i].ready()) continue;
    fibres[i].stop = Stop::none;
    ready = true;
  }
  if (ready || waiting.empty()) return ready;
  for (const Fibre* fibre : waiting)
    if (land_copy(fibre->awaited)) return true;
  fail("all threads wait: " + waiting[0]->what());
}

void run_block(int threads) {
  for (int i = 0; i < threads; ++i) {
    Fibre& fibre = fibres[i];
    fibre.stop = Stop::none;
    fibre.groups.assign(1, {});
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = kStack;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, start, 0);
  }
  for (;;) {
    const int warps = (threads + kLanes - 1) / kLanes;
    for (int i = 0; i < warps; ++i) {
      const int first = (reversed() ? warps - 1 - i : i) * kLanes;
      run_warp(first, std::min(kLanes, threads - first));
    }
    if (wake(threads)) continue;
    const Fibre& one = fibres[0];
    for (int i = 1; i < threads; ++i)
      if (fibres[i].stop != one.stop ||
          (one.stop == Stop::barrier && (fibres[i].file != one.file || fibres[i].line != one.line)))
        fail("expected all threads at one barrier");
    if (one.stop == Stop::end) return;
    for (int i = 0; i < threads; ++i) fibres[i].stop = Stop::none;
  }
}

}  // namespace

bool reversed() {
  static const bool asked = std::getenv("UK_REVERSED") != nullptr;
  return asked;
}

int shared_size() { return memory_size; }

void fail(const std::string& what) {
  std::fprintf(stderr, "emulator: %s (block %u, thread %u)\n", what.c_str(), blockIdx.x,
               threadIdx.x);
  std::_Exit(3);
}

void barrier(const char* file, int line) {
  static const char* skipped = std::getenv("UK_SKIP_BARRIER");
  if (skipped != nullptr) {
    const char* name = std::strrchr(file, '/');
    if (std::string(name ? name + 1 : file) + ":" + std::to_string(line) == skipped) return;
  }
  current->stop = Stop::barrier;
  current->file = file;
  current->line = line;
  leave(false);
}

void exchange(void (*operation)(void* const (&lanes)[kLanes]), void* own) {
  current->stop = Stop::exchange;
  current->operation = operation;
  current->own = own;
  leave(false);
}

void wait(const void* barrier, std::function<bool()> ready, std::function<std::string()> what) {
  if (ready()) return;
  current->stop = Stop::wait;
  current->awaited = barrier;
  current->ready = std::move(ready);
  current->what = std::move(what);
  leave(false);
}

unsigned char* shared_memory() { return memory.get(); }

void copy_async(void* to, const void* from, bool inside) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
    fail("copy_async: expected addresses that are multiples of 16");
  std::memset(to, 0xff, 16);
  current->groups.back().push_back({to, from, inside});
}

void commit_copies() { current->groups.emplace_back(); }

void await_copies(int all_but) {
  auto& groups = current->groups;
  const int complete = static_cast<int>(groups.size()) - 1 - all_but;
  if (complete <= 0) return;
  for (int group = 0; group < complete; ++group)
    for (const Copy& copy : groups[group])
      copy.inside ? std::memcpy(copy.to, copy.from, 16) : std::memset(copy.to, 0, 16);
  groups.erase(groups.begin(), groups.begin() + complete);
}

void run(int64_t grid, int threads, int shared, const std::function<void()>& kernel) {
  body = &kernel;
  blockDim.x = threads;
  gridDim.x = static_cast<unsigned>(grid);
  while (fibres.size() < static_cast<size_t>(threads)) fibres.emplace_back();
  for (int64_t block = 0; block < grid; ++block) {
    blockIdx.x = static_cast<unsigned>(block);
    constexpr auto kAlignment = std::align_val_t(uk::cuda::kTensorAlignment);
    memory.reset(static_cast<unsigned char*>(::operator new[](shared, kAlignment)));
    memory_size = shared;
    std::memset(memory.get(), 0xff, shared);
    run_block(threads);
    end_copies();
  }
}

}  // namespace uk::shim
