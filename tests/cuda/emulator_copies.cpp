// What a tensor copy brings, and what the model of the machine says of its misuse.

#include "emulator.h"

namespace uk::shim {
namespace {

using namespace uk::cuda;

enum Fault : int64_t {
  kNone,
  kOtherParity,
  kNoCopy,
  kNoExpectation,
  kTooFewBytes,
  kTooManyBytes,
  kUnaligned,
  kBeside,
  kBegunTwice,
  kNotBegun,
  kNoFence,
  kNoFenceBehindStore,
  kStoreUnderWay,
  kSlotInUse,
  kNotAwaited,
  kArrivedTwice,
  kOverwritten,
};

struct Request {
  int64_t fault, steps, size;
  Axes box, shape, from, stride;
  int64_t offset, bytes;  // of the map in its storage, of the storage
};

struct CopyFrames {
  Fault fault;
  int steps, bytes;
  Axes from;
  TensorMap map;
  char* y;  // [steps, bytes]
};

constexpr int kCopyThreads = 32, kSlots = 2;

// Frame after frame, two under way, through two slots.
void copy_frames(const CopyFrames p) {
  auto* barriers = reinterpret_cast<Barrier*>(shared_memory());
  unsigned char* slots = shared_memory() + kTensorAlignment;
  const int thread = static_cast<int>(threadIdx.x);
  const int pitch = (p.bytes + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment;
  if (thread == 0) {
    for (int i = 0; i < kSlots - (p.fault == kNotBegun); ++i) begin_barrier(barriers + i, 1);
    if (p.fault == kBegunTwice) begin_barrier(barriers, 1);
    if (p.fault != kNoFence) fence_copies();
  }
  __syncthreads();
  const auto store = [&] { slots[thread] = 1; };
  if (p.fault == kNoFenceBehindStore) store();
  __syncthreads();
  const auto stage = [&](int step) {
    if (thread != 0) return;
    const bool second = step == 1;
    Barrier* barrier = barriers + step % kSlots;
    const int other = (p.fault == kTooManyBytes) - (p.fault == kTooFewBytes);
    if (!(second && p.fault == kNoExpectation))
      expect_bytes(barrier, p.bytes + (second ? 16 * other : 0));
    unsigned char* to = slots + step % kSlots * pitch + 16 * (second && p.fault == kUnaligned) +
                        pitch * (second && p.fault == kBeside);
    const int t = static_cast<int>(p.from[3]) + step;
    if (!(second && p.fault == kNoCopy))
      copy_box(to, p.map, static_cast<int>(p.from[0]), static_cast<int>(p.from[1]),
               static_cast<int>(p.from[2]), t, static_cast<int>(p.from[4]), barrier);
    arrive(barrier);
    if (second && p.fault == kArrivedTwice) arrive(barrier);
  };
  stage(0);
  for (int step = 0; step < p.steps; ++step) {
    if (step + 1 < p.steps) stage(step + 1);
    if (p.fault == kStoreUnderWay && step == 0) store();
    if (p.fault == kOverwritten && step == 0 && thread == 0) barriers[0].state = 0;
    if (p.fault != kNotAwaited || step + 1 < p.steps)
      await_phase(barriers + step % kSlots, (step / kSlots + (p.fault == kOtherParity)) % 2);
    for (int i = thread; i < p.bytes; i += kCopyThreads)
      p.y[step * p.bytes + i] = static_cast<char>(slots[step % kSlots * pitch + i]);
    if (p.fault != kSlotInUse) __syncthreads();
  }
}

}  // namespace

void run_copies() {
  const auto r = read<Request>();
  const Storage map(r.bytes);
  CopyFrames p{static_cast<Fault>(r.fault), static_cast<int>(r.steps), static_cast<int>(r.size),
               r.from, {}, nullptr};
  for (const int64_t length : r.box) p.bytes *= static_cast<int>(length);
  int64_t stride[kTensorAxes];
  std::copy(r.stride.begin(), r.stride.end(), stride);
  const auto boxes =
      tensor_boxes(map.at<char>(r.offset), static_cast<int>(r.size), r.box, r.shape, stride);
  if (!takes_tensor(boxes)) fail("no tensor map takes this");
  encode(p.map, boxes);
  Result<char> y(r.steps * p.bytes);
  p.y = y.data.get();
  const int pitch = static_cast<int>(divide_up(p.bytes, kTensorAlignment)) * kTensorAlignment;
  launch(copy_frames, 1, kCopyThreads, kTensorAlignment + kSlots * pitch, nullptr, p);
  y.write();
}

}  // namespace uk::shim
