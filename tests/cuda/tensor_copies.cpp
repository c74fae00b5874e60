// Copies of boxes by TMA, and the barriers in shared memory at which they arrive.
//
// What a copy is to write is NaN from its start to its arrival, and a sanitizer lets no thread
// touch it.  Copies arrive as late as they can, when all threads wait and one of them for this; in
// the reversed order of threads as early as they can, at once.  So a thread that does not await
// them, or not the right phase, meets NaN, and one that starts them too early takes from others what
// they need.

#include <map>
#include <string>
#include <vector>

#include "fibres.h"
#include "shim.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, size)
#define ASAN_UNPOISON_MEMORY_REGION(at, size)
#endif

namespace uk::shim {
namespace {

using uk::cuda::Axes;
using uk::cuda::Barrier;
using uk::cuda::TensorBoxes;
using uk::cuda::TensorMap;

constexpr uint64_t kMark = 0x5afe0ba221e25afe;  // in a barrier that nobody overwrote
constexpr int64_t kMostBytes = (1 << 20) - 1;   // that a barrier counts

struct Phase {
  int arrivals, pending;
  int64_t bytes, number;  // still to come; phases before
  bool fenced;
};
struct BoxCopy {
  unsigned char* to;
  TensorBoxes boxes;
  Axes from;
  Barrier* barrier;
  int64_t bytes;
};

std::map<const Barrier*, Phase> phases;
std::vector<BoxCopy> under_way;
std::vector<unsigned char> fenced;  // shared memory as copies know it

std::string name_of(const void* at) {
  return "at byte " + std::to_string(static_cast<const unsigned char*>(at) - shared_memory()) +
         " of shared memory";
}

bool inside(const void* at, int64_t bytes) {
  const auto offset = static_cast<const unsigned char*>(at) - shared_memory();
  return offset >= 0 && offset + bytes <= shared_size();
}

Phase& phase_of(const Barrier* barrier) {
  const auto found = phases.find(barrier);
  if (found == phases.end()) fail("expected a barrier that was begun " + name_of(barrier));
  if (barrier->state != kMark) fail("somebody wrote over the barrier " + name_of(barrier));
  return found->second;
}

void settle(const Barrier* barrier, Phase& phase) {
  if (std::abs(phase.bytes) > kMostBytes)
    fail("too many bytes for the barrier " + name_of(barrier));
  if (phase.pending > 0) return;
  if (phase.bytes < 0)
    fail("more bytes arrive than are expected by the barrier " + name_of(barrier));
  if (phase.bytes > 0) return;
  ++phase.number;
  phase.pending = phase.arrivals;
}

void fence() {
  const unsigned char* memory = shared_memory();
  fenced.assign(memory, memory + shared_size());
}

bool as_fenced(const BoxCopy& copy) {
  return std::equal(copy.to, copy.to + copy.bytes, fenced.begin() + (copy.to - shared_memory()));
}

void set_fenced(const BoxCopy& copy) {
  std::copy(copy.to, copy.to + copy.bytes, fenced.begin() + (copy.to - shared_memory()));
}

void write(const BoxCopy& copy) {
  const TensorBoxes& m = copy.boxes;
  unsigned char* to = copy.to;
  Axes at{};
  const auto each = [&](auto self, int axis, const unsigned char* from, bool inside) -> void {
    for (at[axis] = 0; at[axis] < m.box[axis]; ++at[axis]) {
      const int64_t i = copy.from[axis] + at[axis];
      const bool there = inside && i >= 0 && i < m.extent[axis];
      const unsigned char* here = there ? from + i * (axis ? m.stride[axis - 1] : m.size) : from;
      if (axis > 0) {
        self(self, axis - 1, here, there);
        continue;
      }
      there ? std::memcpy(to, here, m.size) : std::memset(to, 0, m.size);
      to += m.size;
    }
  };
  each(each, uk::cuda::kTensorAxes - 1, static_cast<const unsigned char*>(m.base), true);
}

void land(const BoxCopy& copy) {
  ASAN_UNPOISON_MEMORY_REGION(copy.to, copy.bytes);
  if (!as_fenced(copy)) fail("threads wrote where a copy was under way " + name_of(copy.to));
  write(copy);
  set_fenced(copy);
  Phase& phase = phase_of(copy.barrier);
  phase.bytes -= copy.bytes;
  settle(copy.barrier, phase);
}

}  // namespace

bool land_copy(const void* barrier) {
  const auto found = std::find_if(under_way.begin(), under_way.end(),
                                  [&](const BoxCopy& copy) { return copy.barrier == barrier; });
  if (found == under_way.end()) return false;
  const BoxCopy copy = *found;
  under_way.erase(found);
  land(copy);
  return true;
}

void end_copies() {
  if (!under_way.empty()) fail("a block ends with a copy under way " + name_of(under_way[0].to));
  for (const auto& [barrier, phase] : phases)
    if (phase.bytes != 0)
      fail("a block ends with bytes to come at the barrier " + name_of(barrier));
  phases.clear();
  fenced.clear();
}

}  // namespace uk::shim

namespace uk::cuda {

using namespace uk::shim;

// What the driver's documentation asks for.
bool encode(TensorMap& to, const TensorBoxes& from) {
  static_assert(sizeof(TensorBoxes) <= sizeof(TensorMap));
  const auto expect = [](bool right, const char* what) {
    if (!right) fail(std::string("cuTensorMapEncodeTiled: expected ") + what);
  };
  expect(reinterpret_cast<uintptr_t>(from.base) % 16 == 0, "an address that is a multiple of 16");
  expect(from.size == 2 || from.size == 4, "16 or 32 bits");
  expect(from.box[0] * from.size % 16 == 0, "rows of a box that are multiples of 16 bytes");
  for (int i = 0; i < kTensorAxes; ++i) {
    expect(from.extent[i] > 0 && from.extent[i] <= int64_t{1} << 32, "extents from 1 to 2^32");
    expect(from.box[i] > 0 && from.box[i] <= 256, "boxes from 1 to 256");
  }
  int64_t inner = 16;
  for (const int64_t stride : from.stride) {
    expect(stride > 0 && stride < int64_t{1} << 40, "strides below 2^40");
    expect(stride % inner == 0, "strides that are multiples of 16 and of the one before");
    inner = stride;
  }
  std::memcpy(to.opaque, &from, sizeof(from));
  return true;
}

void begin_barrier(Barrier* barrier, int arrivals) {
  if (!inside(barrier, sizeof(Barrier)) || reinterpret_cast<uintptr_t>(barrier) % 8 != 0)
    fail("expected a barrier in shared memory, at a multiple of 8 bytes");
  if (!phases.insert({barrier, {arrivals, arrivals, 0, 0, false}}).second)
    fail("begun once more: the barrier " + name_of(barrier));
  barrier->state = kMark;
}

void fence_copies() {
  fence();
  for (auto& [barrier, phase] : phases) phase.fenced = true;
}

void expect_bytes(Barrier* barrier, int bytes) {
  Phase& phase = phase_of(barrier);
  phase.bytes += bytes;
  settle(barrier, phase);
}

void arrive(Barrier* barrier) {
  Phase& phase = phase_of(barrier);
  if (phase.pending == 0) fail("more arrivals than the barrier counts " + name_of(barrier));
  --phase.pending;
  settle(barrier, phase);
}

void await_phase(Barrier* barrier, int parity, const char* file, int line) {
  const Phase& phase = phase_of(barrier);
  const auto what = [=, &phase] {
    return std::string(file) + ":" + std::to_string(line) + ", for phase " +
           std::to_string(phase.number) + " of the barrier " + name_of(barrier) + ", which lacks " +
           std::to_string(phase.pending) + " arrivals and " + std::to_string(phase.bytes) +
           " bytes";
  };
  wait(barrier, [&phase, parity] { return phase.number % 2 != parity; }, what);
}

void copy_box(void* to, const TensorMap& map, int c, int w, int h, int t, int b, Barrier* barrier) {
  BoxCopy copy{static_cast<unsigned char*>(to), {}, {c, w, h, t, b}, barrier, 0};
  std::memcpy(static_cast<void*>(&copy.boxes), map.opaque, sizeof(copy.boxes));
  copy.bytes = copy.boxes.size;
  for (const int64_t length : copy.boxes.box) copy.bytes *= length;
  if (copy.bytes <= 0) fail("expected a tensor map that was encoded");
  if (!phase_of(barrier).fenced) fail("copies do not know of the barrier " + name_of(barrier));
  if (reinterpret_cast<uintptr_t>(to) % kTensorAlignment != 0 || !inside(to, copy.bytes))
    fail("expected a box in shared memory, at a multiple of 128 bytes: " + name_of(to));
  for (const BoxCopy& other : under_way)
    if (copy.to < other.to + other.bytes && other.to < copy.to + copy.bytes)
      fail("two copies under way to the same place " + name_of(to));
  if (!as_fenced(copy))
    fail("threads wrote, with no fence behind, where a copy writes " + name_of(to));
  std::memset(to, 0xff, copy.bytes);
  set_fenced(copy);
  ASAN_POISON_MEMORY_REGION(to, copy.bytes);
  under_way.push_back(copy);
  if (reversed()) land_copy(barrier);
}

}  // namespace uk::cuda
