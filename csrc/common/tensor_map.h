// What the tensor copies of Hopper (TMA) are told of a map [B, T, H, W, C], and whether they take
// it.  Free of torch and CUDA.
#pragma once

#include <array>
#include <cstdint>

#include "plan.h"

namespace uk::cuda {

constexpr int kTensorAxes = 5;
constexpr int kTensorAlignment = 128;       // bytes, of a box in shared memory
constexpr int64_t kLongestBox = 256;        // elements along an axis
constexpr int64_t kWidestStride = int64_t{1} << 40;
constexpr int64_t kLongestExtent = int64_t{1} << 31;  // coordinates are signed, of 32 bits

using Axes = std::array<int64_t, kTensorAxes>;

// Axes from the inside out: C, W, H, T, B.
struct TensorBoxes {
  const void* base;
  int size;  // of an element
  Axes box, extent;
  std::array<int64_t, kTensorAxes - 1> stride;  // in bytes; channels are neighbours
};

// Shape and strides, in elements, from the outside in.
inline TensorBoxes tensor_boxes(const void* base, int size, const Axes& box, const Axes& shape,
                                const int64_t (&stride)[kTensorAxes]) {
  TensorBoxes m{base, size, box, {}, {}};
  for (int i = 0; i < kTensorAxes; ++i) m.extent[i] = shape[kTensorAxes - 1 - i];
  int64_t inner = kVector;
  for (int i = 0; i + 1 < kTensorAxes; ++i) {  // that of an axis of one element may be anything
    m.stride[i] = m.extent[i + 1] == 1 ? inner : stride[kTensorAxes - 2 - i] * size;
    inner = m.stride[i];
  }
  return m;
}

inline bool takes_tensor(const TensorBoxes& m) {
  bool fits =
      reinterpret_cast<uintptr_t>(m.base) % kVector == 0 && m.box[0] * m.size % kVector == 0;
  for (int i = 0; i < kTensorAxes; ++i)
    fits = fits && 0 < m.extent[i] && m.extent[i] < kLongestExtent && 0 < m.box[i] &&
           m.box[i] <= kLongestBox;
  int64_t inner = kVector;
  for (const int64_t stride : m.stride) {
    fits = fits && 0 < stride && stride < kWidestStride && stride % inner == 0;
    if (fits) inner = stride;
  }
  return fits;
}

}  // namespace uk::cuda
