// What choosing tokens and putting them back share: rows of a sequence, dtypes and checks.
#pragma once

#include <cstring>

#include "host.h"

namespace uk {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The type weights and sums are kept in, and the importance comes in.
template <class H>
struct wide {
  using type = float;
  using bits = uint32_t;
};
template <>
struct wide<double> {
  using type = double;
  using bits = uint64_t;
};

// A sequence [B, N, C] with adjacent channels.
template <class H>
struct Rows {
  H* data;
  int64_t sample_stride, row_stride;
  explicit Rows(const Tensor& t)
      : data(static_cast<H*>(const_cast<void*>(t.const_data_ptr()))),
        sample_stride(t.stride(0)),
        row_stride(t.stride(1)) {}
  H* operator()(int64_t b, int64_t n) const { return data + b * sample_stride + n * row_stride; }
};

template <class H>
void copy_row(H* to, const H* from, int64_t C) {
  std::memcpy(static_cast<void*>(to), from, C * sizeof(H));
}

// Calls function(H()) with the arithmetic type H of a dtype.
template <class Function>
void dispatch(ScalarType dtype, const Function& function) {
  switch (dtype) {
    case ScalarType::Float:
      return function(float());
    case ScalarType::Double:
      return function(double());
    case ScalarType::BFloat16:
      return function(c10::BFloat16());
    case ScalarType::Half:
      return function(c10::Half());
    default:
      check(false, "a floating dtype");
  }
}

void check_rows(const Tensor& t, int64_t B, int64_t C, ScalarType dtype, const char* what) {
  check(t.dim() == 3 && t.size(0) == B && t.size(2) == C && t.scalar_type() == dtype &&
            (C == 1 || t.numel() == 0 || t.stride(2) == 1),
        what);
}

ScalarType wide_of(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check_numbers(const Tensor& t, const Tensor& x, int64_t length, const char* what) {
  check(t.dim() == 2 && t.size(0) == x.size(0) && t.size(1) == length &&
            t.scalar_type() == wide_of(x) && (length == 1 || t.numel() == 0 || t.stride(1) == 1),
        what);
}

void check_index(const Tensor& index, int64_t B, int64_t N) {
  check(index.dim() == 2 && index.size(0) == B && index.is_contiguous() &&
            index.scalar_type() == ScalarType::Long,
        "index [B, K], contiguous, int64");
  const int64_t* at = static_cast<const int64_t*>(index.const_data_ptr());
  const int64_t K = index.size(1);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t k = 0, before = -1; k < K; before = *at++, ++k)
      check(before < *at && *at < N, "index ascending from 0 to N - 1");
}

}  // namespace
}  // namespace uk
