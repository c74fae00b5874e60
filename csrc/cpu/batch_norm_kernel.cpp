// Batch normalisation with the activation behind it, and the gradients of both in two passes.

#include "batch_norm.h"
#include "activation.h"
#include "channels.h"

namespace uk::UK_ISA {
namespace {

struct Identity {
  [[gnu::always_inline]] static vec<float> value(vec<float> x) { return x; }
  [[gnu::always_inline]] static Curve both(vec<float> x) { return {x, vec<float>{} + 1.f}; }
};

// Calls visit(activation).
template <class S, class Visit>
UK_INLINE void with(const Normalisation& n, Visit visit) {
  if (!n.gelu) return visit(Identity());
  with_activation<S>(false, visit);
}

// A channel vector's constants.
struct Channel {
  vec<float> center, scale, shift;

  UK_INLINE Channel of(const Normalisation& n, int64_t c, int64_t count) {
    return {load_part<float>(n.center + c, count), load_part<float>(n.scale + c, count),
            load_part<float>(n.shift + c, count)};
  }
};

template <class S>
void run(const Normalisation& n, const S* x, int64_t rows, S* y) {
  with<S>(n, [&](const auto& activation) {
    for (int64_t i = 0; i < rows; ++i, x += n.C, y += n.C)
      channels<float>(n.C, [&](int64_t c, int64_t count) {
        const Channel k = Channel::of(n, c, count);
        const vec<float> d = load_part<float>(x + c, count) - k.center;
        store_part<float>(y + c, activation.value(d * k.scale + k.shift), count);
      });
  });
}

template <class S>
void sums(const Normalisation& n, const S* dy, const S* x, int64_t rows, float* out) {
  with<S>(n, [&](const auto& activation) {
    channels<float>(n.C, [&](int64_t c, int64_t count) {
      const Channel k = Channel::of(n, c, count);
      vec<float> sum{}, product{};
      for (int64_t i = 0; i < rows; ++i) {
        const vec<float> d = load_part<float>(x + i * n.C + c, count) - k.center;
        const vec<float> slope = activation.both(d * k.scale + k.shift).slope;
        const vec<float> dz = load_part<float>(dy + i * n.C + c, count) * slope;
        sum += dz, product += dz * d;
      }
      store_part<float>(out + c, sum, count);
      store_part<float>(out + n.C + c, product, count);
    });
  });
}

template <class S>
void backward(const Normalisation& n, const S* dy, const S* x, const float* offset,
              const float* slope, int64_t rows, S* dx) {
  with<S>(n, [&](const auto& activation) {
    for (int64_t i = 0; i < rows; ++i, x += n.C, dy += n.C, dx += n.C)
      channels<float>(n.C, [&](int64_t c, int64_t count) {
        const Channel k = Channel::of(n, c, count);
        const vec<float> d = load_part<float>(x + c, count) - k.center;
        const vec<float> dz = load_part<float>(dy + c, count) *
                              activation.both(d * k.scale + k.shift).slope;
        const vec<float> rest =
            load_part<float>(offset + c, count) + load_part<float>(slope + c, count) * d;
        store_part<float>(dx + c, dz * k.scale + rest, count);
      });
  });
}

}  // namespace

template <class S>
const BatchNormKernels<S>& batch_norm_kernels() {
  static const BatchNormKernels<S> kernels = {run<S>, sums<S>, backward<S>};
  return kernels;
}

template const BatchNormKernels<float>& batch_norm_kernels<float>();
template const BatchNormKernels<bf16>& batch_norm_kernels<bf16>();
template const BatchNormKernels<f16>& batch_norm_kernels<f16>();

}  // namespace uk::UK_ISA
