// Every compiled operator, as library.cpp registers it.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace uk {

torch::stable::Tensor depthwise_conv3d(const torch::stable::Tensor& x,
                                       const torch::stable::Tensor& weight,
                                       const std::optional<torch::stable::Tensor>& bias,
                                       bool residual);

std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor>
depthwise_conv3d_backward(const torch::stable::Tensor& dy, const torch::stable::Tensor& x,
                          const torch::stable::Tensor& weight, bool residual, bool want_input,
                          bool want_weight);

std::tuple<torch::stable::Tensor, torch::stable::Tensor> joint_attention(
    const torch::stable::Tensor& qkv, int64_t num_heads, double scale);

torch::stable::Tensor joint_attention_backward(const torch::stable::Tensor& dout,
                                               const torch::stable::Tensor& qkv,
                                               const torch::stable::Tensor& out,
                                               const torch::stable::Tensor& lse, int64_t num_heads,
                                               double scale);

std::tuple<torch::stable::Tensor, torch::stable::Tensor> window_attention(
    const torch::stable::Tensor& qkv, const torch::stable::Tensor& bias, int64_t num_heads,
    int64_t columns, int64_t window_size, double scale);

std::tuple<torch::stable::Tensor, torch::stable::Tensor> window_attention_backward(
    const torch::stable::Tensor& dout, const torch::stable::Tensor& qkv,
    const torch::stable::Tensor& bias, const torch::stable::Tensor& out,
    const torch::stable::Tensor& lse, int64_t num_heads, int64_t columns, int64_t window_size,
    double scale);

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

// Whether bfloat16_linear and bfloat16_feed_forward take float32, too.
bool multiplies_float32();

torch::stable::Tensor bfloat16_linear(const torch::stable::Tensor& x,
                                      const torch::stable::Tensor& weight,
                                      const std::optional<torch::stable::Tensor>& bias,
                                      const std::string& activation,
                                      const std::optional<torch::stable::Tensor>& residual);

torch::stable::Tensor bfloat16_feed_forward(const torch::stable::Tensor& x,
                                            const torch::stable::Tensor& fc1_weight,
                                            const std::optional<torch::stable::Tensor>& fc1_bias,
                                            const torch::stable::Tensor& fc2_weight,
                                            const std::optional<torch::stable::Tensor>& fc2_bias,
                                            const std::string& activation,
                                            const std::optional<torch::stable::Tensor>& residual);

void activation_backward_(torch::stable::Tensor& z, torch::stable::Tensor& dhidden, bool quick);

std::tuple<torch::stable::Tensor, torch::stable::Tensor> weight_gradient(
    const torch::stable::Tensor& dy, const torch::stable::Tensor& x);

torch::stable::Tensor moments(const torch::stable::Tensor& x,
                              const std::optional<torch::stable::Tensor>& shift);

torch::stable::Tensor moments_backward(const std::optional<torch::stable::Tensor>& dy,
                                       const torch::stable::Tensor& x,
                                       const std::optional<torch::stable::Tensor>& shift,
                                       const torch::stable::Tensor& dmoments);

}  // namespace uk
