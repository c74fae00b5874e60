// Every compiled operator for CUDA, as library.cpp registers it; the meaning is operators.h's.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

namespace uk::cuda {

torch::stable::Tensor depthwise_conv3d(const torch::stable::Tensor& x,
                                       const torch::stable::Tensor& weight,
                                       const std::optional<torch::stable::Tensor>& bias,
                                       bool residual);

torch::stable::Tensor depthwise_conv3d_toeplitz(const torch::stable::Tensor& x,
                                                const torch::stable::Tensor& weight,
                                                const std::optional<torch::stable::Tensor>& bias,
                                                bool residual);

std::tuple<torch::stable::Tensor, torch::stable::Tensor> depthwise_conv3d_with_moments(
    const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
    const std::optional<torch::stable::Tensor>& bias, bool residual,
    const std::optional<torch::stable::Tensor>& shift);

std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor>
depthwise_conv3d_backward(const torch::stable::Tensor& dy, const torch::stable::Tensor& x,
                          const torch::stable::Tensor& weight, bool residual, bool want_input,
                          bool want_weight);

std::tuple<torch::stable::Tensor, torch::stable::Tensor> token_shrink(
    const torch::stable::Tensor& x, const torch::stable::Tensor& importance, int64_t keep,
    const std::optional<torch::stable::Tensor>& prefix);

std::tuple<torch::stable::Tensor, torch::stable::Tensor> token_shrink_backward(
    const torch::stable::Tensor& dtokens, const torch::stable::Tensor& x,
    const torch::stable::Tensor& importance, const torch::stable::Tensor& index);

torch::stable::Tensor token_recover(const torch::stable::Tensor& x,
                                    const torch::stable::Tensor& index,
                                    const torch::stable::Tensor& kept,
                                    const torch::stable::Tensor& delta);

std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor>
token_recover_backward(const torch::stable::Tensor& dy, const torch::stable::Tensor& index);

torch::stable::Tensor moments(const torch::stable::Tensor& x,
                              const std::optional<torch::stable::Tensor>& shift);

torch::stable::Tensor moments_backward(const std::optional<torch::stable::Tensor>& dy,
                                       const torch::stable::Tensor& x,
                                       const std::optional<torch::stable::Tensor>& shift,
                                       const torch::stable::Tensor& dmoments);

}  // namespace uk::cuda
