// Compiled once per storage type, UK_STORAGE.

#include "depthwise_conv_launch.cuh"
#include "launch.cuh"

namespace uk::cuda {
namespace {

struct Launch {
  void* stream;

  template <class Arguments>
  void operator()(void (*kernel)(Arguments), const Arguments& p) const {
    launch(kernel, p.plan.grid, p.plan.threads, p.plan.shared, stream, p);
  }
};

}  // namespace

template <>
void start(const Forward<UK_STORAGE>& p, void* stream) {
  start_with(Launch{stream}, p);
}
template <>
void start(const WeightGradient<UK_STORAGE>& p, void* stream) {
  start_with(Launch{stream}, p);
}

template <>
bool has_tma<UK_STORAGE>() {
  return architecture_of(general_forward_kernel<UK_STORAGE>) >= 90;
}

}  // namespace uk::cuda
