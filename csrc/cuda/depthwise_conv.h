// Depthwise 3-D convolution on a GPU: what the host and the kernels agree on.
#pragma once

#include <cstdint>

#include "../common/depthwise_conv_plan.h"
#include "../cpu/storage.h"
#include "tensor_map.h"

namespace uk::cuda {

// A map [B, T, H, W, C] with any strides, in elements.
template <class S>
struct Map {
  const S* data;
  int64_t stride[5];
  bool vectors;  // whether channels may be copied 16 bytes at once
  TensorMap boxes;  // of the plan's frames, where TMA stages them
};

template <class S>
bool has_vectors(const Map<S>& map, int64_t C) {
  constexpr int64_t kLength = kVector / sizeof(S);
  bool aligned = map.stride[4] == 1 && C % kLength == 0 &&
                 reinterpret_cast<uintptr_t>(map.data) % kVector == 0;
  for (int axis = 0; axis < 4; ++axis) aligned = aligned && map.stride[axis] % kLength == 0;
  return aligned;
}

template <class S>
struct Forward {
  DepthwiseSizes sizes;
  DepthwisePlan plan;
  Map<S> x;
  const S* weight;
  int64_t weight_stride[4];  // of the channel and of the kernel's axes
  const S* bias;             // null: none
  int64_t bias_stride;
  const float* shift;  // null: zeros
  S* y;                // contiguous
  float* partials;     // [parts, 2, C] sums of y - shift and of its square; null: not wanted
  bool flip, residual;
};

template <class S>
struct WeightGradient {
  DepthwiseSizes sizes;
  DepthwisePlan plan;
  Map<S> dy, x;
  float* partials;  // [parts, taps + 1, C], the bias's gradient behind the weight's
};

// Start what the plan asks for. Compiled once per storage type.
template <class S>
void start(const Forward<S>& p, void* stream);
template <class S>
void start(const WeightGradient<S>& p, void* stream);
// Whether what was compiled for the current device has TMA.
template <class S>
bool has_tma();

template <class S>
bool describe(Map<S>& map, const DepthwiseSizes& s, const Axes& box) {
  if (!map.vectors || !has_tma<S>()) return false;
  const TensorBoxes boxes =
      tensor_boxes(map.data, sizeof(S), box, {s.B, s.T, s.H, s.W, s.C}, map.stride);
  return takes_tensor(boxes) && encode(map.boxes, boxes);
}

// Plans of calls that have sizes and maps.
template <class S>
void make_plan(Forward<S>& p, int shared_limit, By by) {
  const DepthwiseSizes& s = p.sizes;
  if (by == By::products && !p.x.vectors) by = By::tiles;
  p.plan = choose_forward(s, sizeof(S), shared_limit, by);
  if (p.plan.tma && !describe(p.x, s, box_of(p.plan, s.kh, s.kh, sizeof(S))))
    p.plan = choose_forward(s, sizeof(S), shared_limit, By::tiles);
}
template <class S>
void make_plan(WeightGradient<S>& p, int shared_limit, By by) {
  const DepthwiseSizes& s = p.sizes;
  if (by == By::products && !(p.x.vectors && p.dy.vectors)) by = By::tiles;
  p.plan = choose_weight_gradient(s, sizeof(S), shared_limit, by);
  if (p.plan.tma && !(describe(p.x, s, box_of(p.plan, s.kh, s.kh, sizeof(S))) &&
                      describe(p.dy, s, box_of(p.plan, s.kh, 1, sizeof(S)))))
    p.plan = choose_weight_gradient(s, sizeof(S), shared_limit, By::tiles);
}

}  // namespace uk::cuda
