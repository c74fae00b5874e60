// Every compiled operator, as library.cpp registers it.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace uk {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// What more than one device has, each in a namespace of its own.
namespace signatures {

using depthwise_conv3d = Tensor(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                bool residual);
using depthwise_conv3d_with_moments = std::tuple<Tensor, Tensor>(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, bool residual,
    const OptionalTensor& shift);
using depthwise_conv3d_backward = std::tuple<Tensor, Tensor, Tensor>(
    const Tensor& dy, const Tensor& x, const Tensor& weight, bool residual, bool want_input,
    bool want_weight);
using token_shrink = std::tuple<Tensor, Tensor>(const Tensor& x, const Tensor& importance,
                                                int64_t keep, const OptionalTensor& prefix);
using token_shrink_backward = std::tuple<Tensor, Tensor>(const Tensor& dtokens, const Tensor& x,
                                                         const Tensor& importance,
                                                         const Tensor& index);
using token_recover = Tensor(const Tensor& x, const Tensor& index, const Tensor& kept,
                             const Tensor& delta);
using token_recover_backward = std::tuple<Tensor, Tensor, Tensor>(const Tensor& dy,
                                                                  const Tensor& index);
using token_recover_with_importance = std::tuple<Tensor, Tensor>(
    const Tensor& x, const Tensor& index, const Tensor& kept, const Tensor& delta,
    const Tensor& importance, const Tensor& score, double trade_off);
using token_recover_with_importance_backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(
    const Tensor& dy, const Tensor& dupdated, const Tensor& index, int64_t prefixed,
    double trade_off);
using moments = Tensor(const Tensor& x, const OptionalTensor& shift);
using moments_backward = Tensor(const OptionalTensor& dy, const Tensor& x,
                                const OptionalTensor& shift, const Tensor& dmoments);

}  // namespace signatures

// On a processor.
signatures::depthwise_conv3d depthwise_conv3d;
signatures::depthwise_conv3d_backward depthwise_conv3d_backward;
signatures::token_shrink token_shrink;
signatures::token_shrink_backward token_shrink_backward;
signatures::token_recover token_recover;
signatures::token_recover_backward token_recover_backward;
signatures::token_recover_with_importance token_recover_with_importance;
signatures::token_recover_with_importance_backward token_recover_with_importance_backward;
signatures::moments moments;
signatures::moments_backward moments_backward;

std::tuple<Tensor, Tensor> joint_attention(const Tensor& qkv, int64_t num_heads, double scale);

Tensor joint_attention_backward(const Tensor& dout, const Tensor& qkv, const Tensor& out,
                                const Tensor& lse, int64_t num_heads, double scale);

std::tuple<Tensor, Tensor, Tensor> joint_attention_with_score(const Tensor& qkv, int64_t num_heads,
                                                              std::optional<int64_t> queries,
                                                              double scale);

Tensor joint_attention_with_score_backward(const Tensor& dout, const Tensor& dscore,
                                           const Tensor& qkv, const Tensor& out, const Tensor& lse,
                                           int64_t num_heads, std::optional<int64_t> queries,
                                           double scale);

std::tuple<Tensor, Tensor> window_attention(const Tensor& qkv, const Tensor& bias,
                                            int64_t num_heads, int64_t columns,
                                            int64_t window_size, double scale);

std::tuple<Tensor, Tensor> window_attention_backward(const Tensor& dout, const Tensor& qkv,
                                                     const Tensor& bias, const Tensor& out,
                                                     const Tensor& lse, int64_t num_heads,
                                                     int64_t columns, int64_t window_size,
                                                     double scale);

// Whether bfloat16_linear and bfloat16_feed_forward take float32, too.
bool multiplies_float32();

// A weight as the tiles take it, so that the products need not lay it out at every call.
Tensor bfloat16_pack(const Tensor& weight, const OptionalTensor& bias);

Tensor bfloat16_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                       const std::string& activation, const OptionalTensor& residual,
                       const OptionalTensor& packed);

Tensor bfloat16_feed_forward(const Tensor& x, const Tensor& fc1_weight,
                             const OptionalTensor& fc1_bias, const Tensor& fc2_weight,
                             const OptionalTensor& fc2_bias, const std::string& activation,
                             const OptionalTensor& residual, const OptionalTensor& fc1_packed,
                             const OptionalTensor& fc2_packed);

// r + fc2(gelu(fc1(r))) of r = residual + pw(x), all of one dtype.
Tensor bfloat16_pointwise_feed_forward(
    const Tensor& x, const Tensor& residual, const Tensor& pw_weight, const OptionalTensor& pw_bias,
    const Tensor& fc1_weight, const OptionalTensor& fc1_bias, const Tensor& fc2_weight,
    const OptionalTensor& fc2_bias, const OptionalTensor& pw_packed,
    const OptionalTensor& fc1_packed, const OptionalTensor& fc2_packed);

void activation_backward_(Tensor& z, Tensor& dhidden, bool quick);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> split_feed_forward_backward(
    const Tensor& dy, const Tensor& x, const Tensor& fc1_weight, const OptionalTensor& fc1_bias,
    const Tensor& fc2_weight, bool quick, bool want_input);

std::tuple<Tensor, Tensor> weight_gradient(const Tensor& dy, const Tensor& x);

std::tuple<Tensor, Tensor, Tensor, Tensor> normalised_pooling(const Tensor& rows,
                                                              const Tensor& tokens, double eps);

std::tuple<Tensor, Tensor> normalised_pooling_backward(const Tensor& dpooled, const Tensor& rows,
                                                       const Tensor& tokens, const Tensor& pooled,
                                                       const Tensor& lse, const Tensor& mean,
                                                       const Tensor& rstd, bool want_tokens);

std::tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor& x, const OptionalTensor& weight,
                                              const OptionalTensor& bias, double eps);

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_norm_backward(
    const Tensor& dy, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
    const Tensor& mean, const Tensor& rstd, bool want_input, bool want_weight, bool want_output);

Tensor scale_shift(const Tensor& x, const Tensor& center, const Tensor& scale, const Tensor& shift,
                   bool gelu);

Tensor scale_shift_backward_sums(const Tensor& dy, const Tensor& x, const Tensor& center,
                                 const Tensor& scale, const Tensor& shift, bool gelu);

Tensor scale_shift_backward(const Tensor& dy, const Tensor& x, const Tensor& center,
                            const Tensor& scale, const Tensor& shift, const Tensor& offset,
                            const Tensor& slope, bool gelu);

// On a GPU; as matrix products on tensor cores, or with frames staged by TMA, where kernel, dtype,
// layout and GPU allow it.
namespace cuda {

signatures::depthwise_conv3d depthwise_conv3d, depthwise_conv3d_toeplitz, depthwise_conv3d_tma;
signatures::depthwise_conv3d_with_moments depthwise_conv3d_with_moments,
    depthwise_conv3d_toeplitz_with_moments, depthwise_conv3d_tma_with_moments;
signatures::depthwise_conv3d_backward depthwise_conv3d_backward, depthwise_conv3d_toeplitz_backward,
    depthwise_conv3d_tma_backward;
signatures::token_shrink token_shrink;
signatures::token_shrink_backward token_shrink_backward;
signatures::token_recover token_recover;
signatures::token_recover_backward token_recover_backward;
signatures::token_recover_with_importance token_recover_with_importance;
signatures::token_recover_with_importance_backward token_recover_with_importance_backward;
signatures::moments moments;
signatures::moments_backward moments_backward;

}  // namespace cuda

}  // namespace uk
