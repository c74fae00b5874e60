// The threads of shim.h.

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "shim.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

Index threadIdx, blockIdx, blockDim, gridDim;

namespace uk::shim {
namespace {

constexpr size_t kStack = 256 * 1024;

struct Copy {
  void* to;
  const void* from;
  bool inside;
};

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  std::vector<std::vector<Copy>> groups{1};  // the last one is being filled
  const char* file = nullptr;                // of the barrier where it waits; null: it is done
  int line = 0;
  void (*operation)(void* const (&lanes)[kLanes]) = nullptr;  // its warp's, for which it waits
  void* own = nullptr;
  bool done = false;
};

ucontext_t scheduler;
std::vector<Fibre> fibres;
Fibre* current;
const std::function<void()>* body;
std::unique_ptr<unsigned char[]> memory;

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
  current->done = true;
  leave(true);
}

// All lanes to the block's next barrier.
void run_warp(int first, int lanes, bool reversed) {
  for (;;) {
    for (int i = 0; i < lanes; ++i) {
      const int thread = first + (reversed ? lanes - 1 - i : i);
      current = &fibres[thread];
      threadIdx.x = thread;
      current->file = nullptr;
      current->operation = nullptr;
      enter(*current);
    }
    const auto operation = fibres[first].operation;
    for (int i = 0; i < lanes; ++i)
      if (fibres[first + i].operation != operation || (operation != nullptr && lanes < kLanes))
        fail("expected all lanes of a warp at one exchange");
    if (operation == nullptr) return;
    void* own[kLanes];
    for (int i = 0; i < kLanes; ++i) own[i] = fibres[first + i].own;
    operation(own);
  }
}

void run_block(int threads) {
  for (int i = 0; i < threads; ++i) {
    Fibre& fibre = fibres[i];
    fibre.done = false;
    fibre.file = nullptr;
    fibre.groups.assign(1, {});
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = kStack;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, start, 0);
  }
  static const bool reversed = std::getenv("UK_REVERSED") != nullptr;
  while (!fibres[0].done) {
    const int warps = (threads + kLanes - 1) / kLanes;
    for (int i = 0; i < warps; ++i) {
      const int first = (reversed ? warps - 1 - i : i) * kLanes;
      run_warp(first, std::min(kLanes, threads - first), reversed);
    }
    for (int i = 1; i < threads; ++i)
      if (fibres[i].file != fibres[0].file || (fibres[i].file && fibres[i].line != fibres[0].line))
        fail("expected all threads at one barrier");
  }
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s (block %u, thread %u)\n", what, blockIdx.x, threadIdx.x);
  std::_Exit(3);
}

void barrier(const char* file, int line) {
  static const char* skipped = std::getenv("UK_SKIP_BARRIER");
  if (skipped != nullptr) {
    const char* name = std::strrchr(file, '/');
    if (std::string(name ? name + 1 : file) + ":" + std::to_string(line) == skipped) return;
  }
  current->file = file;
  current->line = line;
  leave(false);
}

void exchange(void (*operation)(void* const (&lanes)[kLanes]), void* own) {
  current->operation = operation;
  current->own = own;
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
    memory.reset(new unsigned char[shared]);
    std::memset(memory.get(), 0xff, shared);
    run_block(threads);
  }
}

}  // namespace uk::shim
