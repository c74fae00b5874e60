// Depthwise 3-D convolution on a GPU: what the kernels need around them.

#include "depthwise_conv.h"

#include "../operators.h"
#include "host.h"
#include "moments.h"

namespace uk::cuda {
namespace {

using torch::headeronly::ScalarType;

template <class S>
Map<S> map_of(const Tensor& x) {
  Map<S> map{static_cast<const S*>(x.const_data_ptr()), {}, false, {}};
  for (int i = 0; i < 5; ++i) map.stride[i] = x.stride(i);
  map.vectors = has_vectors(map, x.size(4));
  return map;
}

DepthwiseSizes sizes_of(const Tensor& x, const Tensor& weight) {
  return {x.size(0),
          x.size(1),
          x.size(2),
          x.size(3),
          x.size(4),
          static_cast<int>(weight.size(2)),
          static_cast<int>(weight.size(3)),
          static_cast<int>(weight.size(4))};
}

void check_call(const Tensor& x, const Tensor& weight) {
  expect(x.dim() == 5, "x [B, T, H, W, C]");
  expect(weight.dim() == 5 && weight.size(0) == x.size(4) && weight.size(1) == 1,
         "weight [C, 1, kt, kh, kw] with C of x");
  for (int axis = 2; axis < 5; ++axis)
    expect(weight.size(axis) % 2 == 1 && weight.size(axis) <= 7, "odd kernel sizes up to 7");
  for (int axis = 1; axis < 5; ++axis) expect(x.size(axis) < kLongestAxis, "axes below 2^30");
  expect(weight.scalar_type() == x.scalar_type(), "weight of x's dtype");
  expect(weight.get_device() == x.get_device(), "weight on x's device");
}

void check_channels(const Tensor& x, const Tensor& t, ScalarType type, const char* what) {
  expect(t.dim() == 1 && t.size(0) == x.size(4) && t.scalar_type() == type &&
             t.get_device() == x.get_device(),
         what);
}

template <class S>
Forward<S> forward_of(const OnDevice& device, const Tensor& x, const Tensor& weight, Tensor& y,
                      By by) {
  Forward<S> p{};
  p.sizes = sizes_of(x, weight);
  p.x = map_of<S>(x);
  make_plan(p, device.shared_limit(), by);
  p.weight = static_cast<const S*>(weight.const_data_ptr());
  const int axes[] = {0, 2, 3, 4};
  for (int i = 0; i < 4; ++i) p.weight_stride[i] = weight.stride(axes[i]);
  p.y = static_cast<S*>(y.mutable_data_ptr());
  return p;
}

template <class S>
void set_bias(Forward<S>& p, const OptionalTensor& bias) {
  if (!bias) return;
  p.bias = static_cast<const S*>(bias->const_data_ptr());
  p.bias_stride = bias->stride(0);
}

Tensor convolve(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, bool residual,
                By by) {
  check_call(x, weight);
  if (bias) check_channels(x, *bias, x.scalar_type(), "bias [C] of x's dtype, on its device");
  const OnDevice device(x);
  Tensor y = torch::stable::new_empty(x, x.sizes());
  if (y.numel() == 0) return y;
  dispatch(x.scalar_type(), [&](auto storage) {
    auto p = forward_of<decltype(storage)>(device, x, weight, y, by);
    set_bias(p, bias);
    p.residual = residual;
    start(p, device.stream());
  });
  return y;
}

std::tuple<Tensor, Tensor> convolve_with_moments(const Tensor& x, const Tensor& weight,
                                                 const OptionalTensor& bias, bool residual,
                                                 const OptionalTensor& shift, By by) {
  check_call(x, weight);
  if (bias) check_channels(x, *bias, x.scalar_type(), "bias [C] of x's dtype, on its device");
  if (shift) {
    check_channels(x, *shift, ScalarType::Float, "shift [C] of float32, on x's device");
    expect(shift->is_contiguous(), "shift, contiguous");
  }
  const int64_t C = x.size(4);
  const OnDevice device(x);
  Tensor y = torch::stable::new_empty(x, x.sizes());
  if (y.numel() == 0) return {y, torch::stable::new_zeros(x, {2, C}, ScalarType::Float)};
  return dispatch(x.scalar_type(), [&](auto storage) -> std::tuple<Tensor, Tensor> {
    auto p = forward_of<decltype(storage)>(device, x, weight, y, by);
    set_bias(p, bias);
    p.residual = residual;
    if (!p.plan.tiled) {
      start(p, device.stream());
      return {y, moments(torch::stable::view(y, {y.numel() / C, C}), shift)};
    }
    Tensor partials = torch::stable::new_empty(x, {p.plan.parts, 2, C}, ScalarType::Float);
    p.shift = shift ? static_cast<const float*>(shift->const_data_ptr()) : nullptr;
    p.partials = static_cast<float*>(partials.mutable_data_ptr());
    start(p, device.stream());
    return {y, sum_moments(partials, device.stream())};
  });
}

template <class S>
void differentiate_weight(const OnDevice& device, const Tensor& dy, const Tensor& x,
                          const Tensor& weight, Tensor& dw, Tensor& db, By by) {
  WeightGradient<S> p{};
  p.sizes = sizes_of(x, weight);
  p.dy = map_of<S>(dy);
  p.x = map_of<S>(x);
  make_plan(p, device.shared_limit(), by);
  Tensor partials = torch::stable::new_empty(
      x, {p.plan.parts, p.sizes.taps() + 1, x.size(4)}, ScalarType::Float);
  p.partials = static_cast<float*>(partials.mutable_data_ptr());
  start(p, device.stream());
  sum_weight_gradient<S>(partials, dw, db, device.stream());
}

std::tuple<Tensor, Tensor, Tensor> differentiate(const Tensor& dy, const Tensor& x,
                                                 const Tensor& weight, bool residual,
                                                 bool want_input, bool want_weight, By by) {
  check_call(x, weight);
  expect(dy.dim() == 5 && dy.scalar_type() == x.scalar_type() && dy.get_device() == x.get_device(),
         "dy like x");
  for (int axis = 0; axis < 5; ++axis) expect(dy.size(axis) == x.size(axis), "dy like x");
  const OnDevice device(x);
  Tensor dx = want_input ? torch::stable::new_empty(x, x.sizes()) : torch::stable::new_empty(x, {0});
  Tensor dw = torch::stable::new_zeros(weight, {0});
  Tensor db = torch::stable::new_zeros(weight, {0});
  if (want_weight) {
    dw = torch::stable::new_zeros(weight, weight.sizes());
    db = torch::stable::new_zeros(weight, {weight.size(0)});
  }
  if (x.numel() == 0) return {dx, dw, db};
  dispatch(x.scalar_type(), [&](auto storage) {
    using S = decltype(storage);
    if (want_input) {
      auto p = forward_of<S>(device, dy, weight, dx, by);
      p.flip = true;
      p.residual = residual;
      start(p, device.stream());
    }
    if (want_weight) differentiate_weight<S>(device, dy, x, weight, dw, db, by);
  });
  return {dx, dw, db};
}

}  // namespace

Tensor depthwise_conv3d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                        bool residual) {
  return convolve(x, weight, bias, residual, By::tiles);
}
Tensor depthwise_conv3d_toeplitz(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                 bool residual) {
  return convolve(x, weight, bias, residual, By::products);
}
Tensor depthwise_conv3d_tma(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                            bool residual) {
  return convolve(x, weight, bias, residual, By::tma);
}

std::tuple<Tensor, Tensor> depthwise_conv3d_with_moments(const Tensor& x, const Tensor& weight,
                                                         const OptionalTensor& bias, bool residual,
                                                         const OptionalTensor& shift) {
  return convolve_with_moments(x, weight, bias, residual, shift, By::tiles);
}
std::tuple<Tensor, Tensor> depthwise_conv3d_toeplitz_with_moments(const Tensor& x,
                                                                  const Tensor& weight,
                                                                  const OptionalTensor& bias,
                                                                  bool residual,
                                                                  const OptionalTensor& shift) {
  return convolve_with_moments(x, weight, bias, residual, shift, By::products);
}
std::tuple<Tensor, Tensor> depthwise_conv3d_tma_with_moments(const Tensor& x, const Tensor& weight,
                                                             const OptionalTensor& bias,
                                                             bool residual,
                                                             const OptionalTensor& shift) {
  return convolve_with_moments(x, weight, bias, residual, shift, By::tma);
}

std::tuple<Tensor, Tensor, Tensor> depthwise_conv3d_backward(const Tensor& dy, const Tensor& x,
                                                             const Tensor& weight, bool residual,
                                                             bool want_input, bool want_weight) {
  return differentiate(dy, x, weight, residual, want_input, want_weight, By::tiles);
}
std::tuple<Tensor, Tensor, Tensor> depthwise_conv3d_toeplitz_backward(
    const Tensor& dy, const Tensor& x, const Tensor& weight, bool residual, bool want_input,
    bool want_weight) {
  return differentiate(dy, x, weight, residual, want_input, want_weight, By::products);
}
std::tuple<Tensor, Tensor, Tensor> depthwise_conv3d_tma_backward(const Tensor& dy, const Tensor& x,
                                                                 const Tensor& weight,
                                                                 bool residual, bool want_input,
                                                                 bool want_weight) {
  return differentiate(dy, x, weight, residual, want_input, want_weight, By::tma);
}

}  // namespace uk::cuda
