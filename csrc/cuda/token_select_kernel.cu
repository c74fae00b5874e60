// Compiled once per storage type, UK_STORAGE.

#include "launch.cuh"
#include "token_select_kernel.cuh"

namespace uk::cuda {
namespace {

constexpr int kLength = kVector / sizeof(UK_STORAGE);

template <class Arguments>
void launch_either(void (*vectors)(Arguments), void (*numbers)(Arguments), int64_t grid, int shared,
                   void* stream, const Arguments& p) {
  launch(p.sizes.vectors ? vectors : numbers, grid, kTokenThreads, shared, stream, p);
}

}  // namespace

template <>
void start(const Shrink<UK_STORAGE>& p, void* stream) {
  launch_either(shrink<UK_STORAGE, kLength>, shrink<UK_STORAGE, 1>, p.sizes.B * slices(p.sizes.C),
                choosing_bytes(p.sizes.N), stream, p);
}
template <>
void start(const ShrinkBackward<UK_STORAGE>& p, void* stream) {
  launch_either(shrink_backward<UK_STORAGE, kLength>, shrink_backward<UK_STORAGE, 1>,
                p.sizes.B * token_blocks(p.sizes.N), marking_bytes(p.sizes.N), stream, p);
  launch(importance_gradient<UK_STORAGE>, p.sizes.B, kTokenThreads, marking_bytes(p.sizes.N),
         stream, p);
}
template <>
void start(const Recover<UK_STORAGE>& p, void* stream) {
  launch_either(recover<UK_STORAGE, kLength>, recover<UK_STORAGE, 1>,
                p.sizes.B * token_blocks(p.sizes.N), marking_bytes(kTokens), stream, p);
}
template <>
void start(const RecoverBackward<UK_STORAGE>& p, void* stream) {
  launch_either(recover_backward<UK_STORAGE, kLength>, recover_backward<UK_STORAGE, 1>,
                p.sizes.B * slices(p.sizes.C), adding_bytes(p.sizes.N), stream, p);
}

}  // namespace uk::cuda
