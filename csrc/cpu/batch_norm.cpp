// Batch normalisation on the CPU: what the kernels need around them.

#include "batch_norm.h"

#include <algorithm>

#include "host.h"
#include "memory.h"
#include "operators.h"

namespace uk {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kRows = 512;  // whose sums are taken in float32; these are added wider

template <class Run>
auto dispatch(ScalarType type, Run run) {
  check(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half,
        "x of float32, bfloat16 or float16");
  return type == ScalarType::Float      ? run(float{})
         : type == ScalarType::BFloat16 ? run(bf16{})
                                        : run(f16{});
}

const float* vector(const Tensor& t, int64_t C) {
  check(t.is_contiguous() && t.numel() == C && t.scalar_type() == ScalarType::Float,
        "center, scale, shift, offset and slope [C], contiguous, of float32");
  return static_cast<const float*>(t.const_data_ptr());
}

Normalisation normalisation(const Tensor& x, const Tensor& center, const Tensor& scale,
                            const Tensor& shift, bool gelu) {
  check(x.dim() == 2 && x.is_contiguous(), "x [N, C], contiguous");
  const int64_t C = x.size(1);
  return {C, vector(center, C), vector(scale, C), vector(shift, C), gelu};
}

void check_gradient(const Tensor& dy, const Tensor& x) {
  check(dy.dim() == 2 && dy.is_contiguous() && dy.size(0) == x.size(0) &&
            dy.size(1) == x.size(1) && dy.scalar_type() == x.scalar_type(),
        "dy [N, C], contiguous, of x's dtype");
}

// Calls run(first row, rows) for all rows; any split gives the same result.
template <class Run>
void by_rows(int64_t N, Run run) {
  torch::stable::parallel_for(0, divide_up(N, kRows), 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      run(part * kRows, std::min(kRows, N - part * kRows));
  });
}

}  // namespace

Tensor scale_shift(const Tensor& x, const Tensor& center, const Tensor& scale, const Tensor& shift,
                   bool gelu) {
  const Normalisation n = normalisation(x, center, scale, shift, gelu);
  Tensor y = allocate(x, {x.size(0), n.C});
  dispatch(x.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    const BatchNormKernels<S>& kernel = UK_KERNELS(batch_norm_kernels, S);
    const S* in = static_cast<const S*>(x.const_data_ptr());
    S* out = static_cast<S*>(y.mutable_data_ptr());
    by_rows(x.size(0), [&](int64_t first, int64_t rows) {
      kernel.run(n, in + first * n.C, rows, out + first * n.C);
    });
  });
  return y;
}

Tensor scale_shift_backward_sums(const Tensor& dy, const Tensor& x, const Tensor& center,
                                 const Tensor& scale, const Tensor& shift, bool gelu) {
  const Normalisation n = normalisation(x, center, scale, shift, gelu);
  check_gradient(dy, x);
  const int64_t parts = divide_up(x.size(0), kRows), each = 2 * n.C;
  Tensor result = allocate(x, {2, n.C}, ScalarType::Float);
  const Tensor sums = allocate(x, {parts, each}, ScalarType::Float);
  float* partial = static_cast<float*>(sums.mutable_data_ptr());
  dispatch(x.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    const BatchNormKernels<S>& kernel = UK_KERNELS(batch_norm_kernels, S);
    const S* in = static_cast<const S*>(x.const_data_ptr());
    const S* gradient = static_cast<const S*>(dy.const_data_ptr());
    by_rows(x.size(0), [&](int64_t first, int64_t rows) {
      float* part = partial + first / kRows * each;
      kernel.sums(n, gradient + first * n.C, in + first * n.C, rows, part);
    });
  });
  float* out = static_cast<float*>(result.mutable_data_ptr());
  for (int64_t c = 0; c < each; ++c) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += partial[part * each + c];
    out[c] = static_cast<float>(sum);
  }
  return result;
}

Tensor scale_shift_backward(const Tensor& dy, const Tensor& x, const Tensor& center,
                            const Tensor& scale, const Tensor& shift, const Tensor& offset,
                            const Tensor& slope, bool gelu) {
  const Normalisation n = normalisation(x, center, scale, shift, gelu);
  check_gradient(dy, x);
  const float *start = vector(offset, n.C), *rise = vector(slope, n.C);
  Tensor dx = allocate(x, {x.size(0), n.C});
  dispatch(x.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    const BatchNormKernels<S>& kernel = UK_KERNELS(batch_norm_kernels, S);
    const S* in = static_cast<const S*>(x.const_data_ptr());
    const S* gradient = static_cast<const S*>(dy.const_data_ptr());
    S* out = static_cast<S*>(dx.mutable_data_ptr());
    by_rows(x.size(0), [&](int64_t first, int64_t rows) {
      const int64_t at = first * n.C;
      kernel.backward(n, gradient + at, in + at, start, rise, rows, out + at);
    });
  });
  return dx;
}

}  // namespace uk
