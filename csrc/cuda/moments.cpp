// Sums over the rows of a matrix on a GPU, and their gradients.

#include "moments.h"

#include <algorithm>

#include "host.h"
#include "sums.h"

namespace uk::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

constexpr int64_t kRows = 512, kMostParts = 256;

void check_sums(const Tensor& x, const Tensor& t, int64_t rows, const char* what) {
  expect(t.is_contiguous() && t.numel() == rows * x.size(1) &&
             t.scalar_type() == ScalarType::Float,
         what);
}

const float* sums_of(const std::optional<Tensor>& t) {
  return t ? static_cast<const float*>(t->const_data_ptr()) : nullptr;
}

}  // namespace

Tensor sum_moments(const Tensor& partials, void* stream) {
  const int64_t parts = partials.size(0), C = partials.size(2);
  Tensor sums = torch::stable::new_empty(partials, {2, C});
  const SumParts<float> p{static_cast<const float*>(partials.const_data_ptr()), parts, 2, C,
                          static_cast<float*>(sums.mutable_data_ptr()), 1, C, nullptr};
  start(p, stream);
  return sums;
}

template <class S>
void sum_weight_gradient(const Tensor& partials, Tensor& dw, Tensor& db, void* stream) {
  const int64_t parts = partials.size(0), rows = partials.size(1), C = partials.size(2);
  const SumParts<S> p{static_cast<const float*>(partials.const_data_ptr()), parts, rows, C,
                      static_cast<S*>(dw.mutable_data_ptr()), rows - 1, 1,
                      static_cast<S*>(db.mutable_data_ptr())};
  start(p, stream);
}
template void sum_weight_gradient<float>(const Tensor&, Tensor&, Tensor&, void*);
template void sum_weight_gradient<bf16>(const Tensor&, Tensor&, Tensor&, void*);
template void sum_weight_gradient<f16>(const Tensor&, Tensor&, Tensor&, void*);

Tensor moments(const Tensor& x, const std::optional<Tensor>& shift) {
  expect(x.dim() == 2 && x.is_contiguous(), "x [N, C], contiguous");
  if (shift) check_sums(x, *shift, 1, "shift [C], contiguous, of float32");
  const OnDevice device(x);
  const int64_t N = x.size(0), C = x.size(1);
  const int64_t parts = std::clamp<int64_t>((N + kRows - 1) / kRows, 1, kMostParts);
  Tensor partials = torch::stable::new_empty(x, {parts, 2, C}, ScalarType::Float);
  dispatch(x.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    const Moments<S> p{static_cast<const S*>(x.const_data_ptr()), sums_of(shift), N, C, parts,
                       static_cast<float*>(partials.mutable_data_ptr())};
    start(p, device.stream());
  });
  return sum_moments(partials, device.stream());
}

Tensor moments_backward(const std::optional<Tensor>& dy, const Tensor& x,
                        const std::optional<Tensor>& shift, const Tensor& dmoments) {
  expect(x.dim() == 2 && x.is_contiguous(), "x [N, C], contiguous");
  expect(!dy || (dy->is_contiguous() && dy->numel() == x.numel() &&
                 dy->scalar_type() == x.scalar_type()),
         "dy [N, C], contiguous, of x's dtype");
  check_sums(x, dmoments, 2, "dmoments [2, C], contiguous, of float32");
  if (shift) check_sums(x, *shift, 1, "shift [C], contiguous, of float32");
  const OnDevice device(x);
  const int64_t N = x.size(0), C = x.size(1);
  Tensor dx = torch::stable::new_empty(x, {N, C});
  dispatch(x.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    const MomentsBackward<S> p{dy ? static_cast<const S*>(dy->const_data_ptr()) : nullptr,
                               static_cast<const S*>(x.const_data_ptr()), sums_of(shift),
                               static_cast<const float*>(dmoments.const_data_ptr()), N, C,
                               static_cast<S*>(dx.mutable_data_ptr())};
    start(p, device.stream());
  });
  return dx;
}

}  // namespace uk::cuda
