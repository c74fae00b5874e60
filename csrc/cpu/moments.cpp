// Sums over the rows of a matrix on the CPU, and their gradients.

#include "moments.h"

#include <algorithm>

#include "host.h"
#include "memory.h"
#include "operators.h"

namespace uk {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kRows = 512;  // whose sums are taken in storage's accumulator; these are added wider

template <class F>
void dispatch(ScalarType type, F run) {
  switch (type) {
    case ScalarType::Float: return run(float{});
    case ScalarType::Double: return run(double{});
    case ScalarType::BFloat16: return run(bf16{});
    case ScalarType::Half: return run(f16{});
    default: check(false, "x of float32, float64, bfloat16 or float16");
  }
}

ScalarType wide(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check_sums(const Tensor& x, const Tensor& t, int64_t rows, const char* what) {
  check(t.is_contiguous() && t.numel() == rows * x.size(1) && t.scalar_type() == wide(x.scalar_type()),
        what);
}

}  // namespace

Tensor moments(const Tensor& x, const std::optional<Tensor>& shift) {
  check(x.dim() == 2 && x.is_contiguous(), "x [N, C], contiguous");
  if (shift) check_sums(x, *shift, 1, "shift [C], contiguous, of float32 (float64 for float64)");
  const int64_t N = x.size(0), C = x.size(1), parts = divide_up(N, kRows);
  Tensor result = allocate(x, {2, C}, wide(x.scalar_type()));
  dispatch(x.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    using A = typename accumulator<S>::type;
    const MomentsKernels<S>& kernel = UK_KERNELS(moments_kernels, S);
    const Tensor sums = allocate(result, {parts, 2, C});
    const S* in = static_cast<const S*>(x.const_data_ptr());
    const A* s = shift ? static_cast<const A*>(shift->const_data_ptr()) : nullptr;
    A* partial = static_cast<A*>(sums.mutable_data_ptr());
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part)
        kernel.run(in + part * kRows * C, s, std::min(kRows, N - part * kRows), C,
                   partial + part * 2 * C);
    });
    A* out = static_cast<A*>(result.mutable_data_ptr());
    for (int64_t c = 0; c < 2 * C; ++c) {
      double sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += partial[part * 2 * C + c];
      out[c] = static_cast<A>(sum);
    }
  });
  return result;
}

Tensor moments_backward(const std::optional<Tensor>& dy, const Tensor& x,
                        const std::optional<Tensor>& shift, const Tensor& dmoments) {
  check(x.dim() == 2 && x.is_contiguous(), "x [N, C], contiguous");
  check(!dy || (dy->is_contiguous() && dy->numel() == x.numel() &&
                dy->scalar_type() == x.scalar_type()),
        "dy [N, C], contiguous, of x's dtype");
  check_sums(x, dmoments, 2, "dmoments [2, C], contiguous, of float32 (float64 for float64)");
  if (shift) check_sums(x, *shift, 1, "shift [C], contiguous, of float32 (float64 for float64)");
  const int64_t N = x.size(0), C = x.size(1);
  Tensor dx = allocate(x, {N, C});
  dispatch(x.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    using A = typename accumulator<S>::type;
    const MomentsKernels<S>& kernel = UK_KERNELS(moments_kernels, S);
    const S* gradient = dy ? static_cast<const S*>(dy->const_data_ptr()) : nullptr;
    const S* in = static_cast<const S*>(x.const_data_ptr());
    const A* s = shift ? static_cast<const A*>(shift->const_data_ptr()) : nullptr;
    const A* d = static_cast<const A*>(dmoments.const_data_ptr());
    S* out = static_cast<S*>(dx.mutable_data_ptr());
    torch::stable::parallel_for(0, divide_up(N, kRows), 1, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kRows, rows = std::min(end * kRows, N) - first;
      kernel.backward(gradient ? gradient + first * C : nullptr, in + first * C, s, d, rows, C, out + first * C);
    });
  });
  return dx;
}

}  // namespace uk
