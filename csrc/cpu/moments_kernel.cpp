// Sums over the rows of a matrix, and what their gradients give to every row.

#include "moments.h"
#include "channels.h"

namespace uk::UK_ISA {
namespace {

template <class S>
void run(const S* x, const typename accumulator<S>::type* shift, int64_t rows, int64_t C,
         typename accumulator<S>::type* sums) {
  using A = typename accumulator<S>::type;
  channels<A>(C, [&](int64_t c, int64_t count) {
    const vec<A> s = shift ? load_part<A>(shift + c, count) : vec<A>{};
    vec<A> sum[2] = {}, squares[2] = {};  // two, so that an addition need not wait for the last one
    for (int64_t i = 0; i < rows; ++i) {
      const vec<A> d = load_part<A>(x + i * C + c, count) - s;
      sum[i & 1] += d, squares[i & 1] += d * d;
    }
    store_part<A>(sums + c, sum[0] + sum[1], count);
    store_part<A>(sums + C + c, squares[0] + squares[1], count);
  });
}

template <class S>
void backward(const S* dy, const S* x, const typename accumulator<S>::type* shift,
              const typename accumulator<S>::type* dmoments, int64_t rows, int64_t C, S* dx) {
  using A = typename accumulator<S>::type;
  for (int64_t i = 0; i < rows; ++i, x += C, dx += C, dy += dy ? C : 0)
    channels<A>(C, [&](int64_t c, int64_t count) {
      const vec<A> s = shift ? load_part<A>(shift + c, count) : vec<A>{};
      const vec<A> slope = load_part<A>(dmoments + C + c, count);
      const vec<A> d = load_part<A>(x + c, count) - s;
      const vec<A> own = dy ? load_part<A>(dy + c, count) : vec<A>{};
      store_part<A>(dx + c, own + load_part<A>(dmoments + c, count) + (slope + slope) * d, count);
    });
}

}  // namespace

template <class S>
const MomentsKernels<S>& moments_kernels() {
  static const MomentsKernels<S> kernels = {run<S>, backward<S>};
  return kernels;
}

template const MomentsKernels<float>& moments_kernels<float>();
template const MomentsKernels<double>& moments_kernels<double>();
template const MomentsKernels<bf16>& moments_kernels<bf16>();
template const MomentsKernels<f16>& moments_kernels<f16>();

}  // namespace uk::UK_ISA
