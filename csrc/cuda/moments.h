// Sums that more than one CUDA operator takes.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace uk::cuda {

// [parts, 2, C] to [2, C].
torch::stable::Tensor sum_moments(const torch::stable::Tensor& partials, void* stream);

// [parts, taps + 1, C] to [C, 1, kt, kh, kw] and [C].
template <class S>
void sum_weight_gradient(const torch::stable::Tensor& partials, torch::stable::Tensor& dw,
                         torch::stable::Tensor& db, void* stream);

}  // namespace uk::cuda
