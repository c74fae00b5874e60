// The operators' schemas and where each runs: the one place of registration.
//
// Gradients, fakes and autocast are Python's (uniformer_kernels/ops): they need no kernel.

#include <torch/csrc/stable/library.h>

#include "operators.h"

STABLE_TORCH_LIBRARY(uniformer_kernels, m) {
  m.def("depthwise_conv3d(Tensor x, Tensor weight, Tensor? bias, bool residual) -> Tensor");
  // And the sums of y - shift and of its square over all but channels, [2, C].
  m.def(
      "depthwise_conv3d_with_moments(Tensor x, Tensor weight, Tensor? bias, bool residual, "
      "Tensor? shift) -> (Tensor, Tensor)");
  // Gradients of x, weight and bias; those not wanted are empty.
  m.def(
      "depthwise_conv3d_backward(Tensor dy, Tensor x, Tensor weight, bool residual, "
      "bool want_input, bool want_weight) -> (Tensor, Tensor, Tensor)");
  // The same as matrix products on tensor cores, where kernel, dtype and layout allow it.
  m.def("depthwise_conv3d_toeplitz(Tensor x, Tensor weight, Tensor? bias, bool residual) -> Tensor");
  m.def(
      "depthwise_conv3d_toeplitz_with_moments(Tensor x, Tensor weight, Tensor? bias, bool residual, "
      "Tensor? shift) -> (Tensor, Tensor)");
  m.def(
      "depthwise_conv3d_toeplitz_backward(Tensor dy, Tensor x, Tensor weight, bool residual, "
      "bool want_input, bool want_weight) -> (Tensor, Tensor, Tensor)");
  // The same with frames staged by TMA, Hopper's tensor copies, where layout and GPU allow it.
  m.def("depthwise_conv3d_tma(Tensor x, Tensor weight, Tensor? bias, bool residual) -> Tensor");
  m.def(
      "depthwise_conv3d_tma_with_moments(Tensor x, Tensor weight, Tensor? bias, bool residual, "
      "Tensor? shift) -> (Tensor, Tensor)");
  m.def(
      "depthwise_conv3d_tma_backward(Tensor dy, Tensor x, Tensor weight, bool residual, "
      "bool want_input, bool want_weight) -> (Tensor, Tensor, Tensor)");
  // Attention [B, N, C], and log2 of the sums of exp2 of the scaled scores, [B, num_heads, N].
  m.def("joint_attention(Tensor qkv, int num_heads, float scale) -> (Tensor, Tensor)");
  m.def(
      "joint_attention_backward(Tensor dout, Tensor qkv, Tensor out, Tensor lse, int num_heads, "
      "float scale) -> Tensor");
  // And how much attention every token gets from the first query, the only number of them here.
  m.def(
      "joint_attention_with_score(Tensor qkv, int num_heads, int? queries, float scale) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "joint_attention_with_score_backward(Tensor dout, Tensor dscore, Tensor qkv, Tensor out, "
      "Tensor lse, int num_heads, int? queries, float scale) -> Tensor");
  // The same inside windows of a grid with so many columns; gradients of qkv and bias.
  m.def(
      "window_attention(Tensor qkv, Tensor bias, int num_heads, int columns, int window_size, "
      "float scale) -> (Tensor, Tensor)");
  m.def(
      "window_attention_backward(Tensor dout, Tensor qkv, Tensor bias, Tensor out, Tensor lse, "
      "int num_heads, int columns, int window_size, float scale) -> (Tensor, Tensor)");
  // [B, P + keep + 1, C] and the kept tokens' index [B, keep]; gradients of x and importance.
  m.def(
      "token_shrink(Tensor x, Tensor importance, int keep, Tensor? prefix) -> (Tensor, Tensor)");
  m.def(
      "token_shrink_backward(Tensor dtokens, Tensor x, Tensor importance, Tensor index) -> "
      "(Tensor, Tensor)");
  m.def("token_recover(Tensor x, Tensor index, Tensor kept, Tensor delta) -> Tensor");
  // Gradients of x, kept and delta.
  m.def("token_recover_backward(Tensor dy, Tensor index) -> (Tensor, Tensor, Tensor)");
  // And the running mean of the importance; gradients of importance and score behind the others.
  m.def(
      "token_recover_with_importance(Tensor x, Tensor index, Tensor kept, Tensor delta, "
      "Tensor importance, Tensor score, float trade_off) -> (Tensor, Tensor)");
  m.def(
      "token_recover_with_importance_backward(Tensor dy, Tensor dupdated, Tensor index, "
      "int prefixed, float trade_off) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  // The sums of x - shift and of its square over the rows, [2, C]; what they give to x, on top of dy.
  m.def("moments(Tensor x, Tensor? shift) -> Tensor");
  m.def("moments_backward(Tensor? dy, Tensor x, Tensor? shift, Tensor dmoments) -> Tensor");
  // LayerNorm over the last axis, and of every row its mean and 1 / deviation; gradients of x, weight
  // and bias, and the result again, those not wanted empty.
  m.def(
      "layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "layer_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, "
      "Tensor rstd, bool want_input, bool want_weight, bool want_output) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  // softmax(rows y') y of tokens y less their means, over their deviations; log2 of the softmax's
  // denominators, those means and 1 / deviations.  Gradients of rows and, or empty, tokens.
  m.def(
      "normalised_pooling(Tensor rows, Tensor tokens, float eps) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "normalised_pooling_backward(Tensor dpooled, Tensor rows, Tensor tokens, Tensor pooled, "
      "Tensor lse, Tensor mean, Tensor rstd, bool want_tokens) -> (Tensor, Tensor)");
  // y = scale (x - center) + shift of every channel, or GELU of that; y's gradient in front of the
  // GELU, its sums and those of it times x - center, [2, C]; and, from that gradient,
  // dx = scale dz + offset + slope (x - center).
  m.def("scale_shift(Tensor x, Tensor center, Tensor scale, Tensor shift, bool gelu) -> Tensor");
  m.def(
      "scale_shift_backward_sums(Tensor dy, Tensor x, Tensor center, Tensor scale, Tensor shift, "
      "bool gelu) -> Tensor");
  m.def(
      "scale_shift_backward(Tensor dy, Tensor x, Tensor center, Tensor scale, Tensor shift, "
      "Tensor offset, Tensor slope, bool gelu) -> Tensor");
  // Whether the three operators behind it take matrices of float32, too.
  m.def("multiplies_float32() -> bool");
  // A layer as they multiply by it; what is packed for another processor is packed again.
  m.def("bfloat16_pack(Tensor weight, Tensor? bias) -> Tensor");
  // [residual +] activation(x weight' + bias) of matrices of bfloat16; the activation is "gelu",
  // "quick_gelu" or, between no two layers, "".  The result has the residual's dtype.
  m.def(
      "bfloat16_linear(Tensor x, Tensor weight, Tensor? bias, str activation, Tensor? residual, "
      "Tensor? packed=None) -> Tensor");
  m.def(
      "bfloat16_feed_forward(Tensor x, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, "
      "Tensor? fc2_bias, str activation, Tensor? residual, Tensor? fc1_packed=None, "
      "Tensor? fc2_packed=None) -> Tensor");
  // r + fc2(gelu(fc1(r))) of r = residual + pw(x), which is never a tensor; all of one dtype.
  m.def(
      "bfloat16_pointwise_feed_forward(Tensor x, Tensor residual, Tensor pw_weight, "
      "Tensor? pw_bias, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, Tensor? fc2_bias, "
      "Tensor? pw_packed=None, Tensor? fc1_packed=None, Tensor? fc2_packed=None) -> Tensor");
  // In place: the activation of z, and the gradient of z from that of it.
  m.def("activation_backward_(Tensor(a!) z, Tensor(b!) dhidden, bool quick) -> ()");
  // The gradients of x, the weights and biases of a feed-forward network of float32, where
  // multiplies_float32.  They hold where those of the weights have no NaN.
  m.def(
      "split_feed_forward_backward(Tensor dy, Tensor x, Tensor fc1_weight, Tensor? fc1_bias, "
      "Tensor fc2_weight, bool quick, bool want_input) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  // Of a linear layer, dy' x and the sums of dy, in float32.
  m.def("weight_gradient(Tensor dy, Tensor x) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(uniformer_kernels, CompositeExplicitAutograd, m) {
  m.impl("multiplies_float32", TORCH_BOX(&uk::multiplies_float32));
}

STABLE_TORCH_LIBRARY_IMPL(uniformer_kernels, CPU, m) {
  m.impl("depthwise_conv3d", TORCH_BOX(&uk::depthwise_conv3d));
  m.impl("depthwise_conv3d_backward", TORCH_BOX(&uk::depthwise_conv3d_backward));
  m.impl("joint_attention", TORCH_BOX(&uk::joint_attention));
  m.impl("joint_attention_backward", TORCH_BOX(&uk::joint_attention_backward));
  m.impl("joint_attention_with_score", TORCH_BOX(&uk::joint_attention_with_score));
  m.impl("joint_attention_with_score_backward",
         TORCH_BOX(&uk::joint_attention_with_score_backward));
  m.impl("window_attention", TORCH_BOX(&uk::window_attention));
  m.impl("window_attention_backward", TORCH_BOX(&uk::window_attention_backward));
  m.impl("token_shrink", TORCH_BOX(&uk::token_shrink));
  m.impl("token_shrink_backward", TORCH_BOX(&uk::token_shrink_backward));
  m.impl("token_recover", TORCH_BOX(&uk::token_recover));
  m.impl("token_recover_backward", TORCH_BOX(&uk::token_recover_backward));
  m.impl("token_recover_with_importance", TORCH_BOX(&uk::token_recover_with_importance));
  m.impl("token_recover_with_importance_backward",
         TORCH_BOX(&uk::token_recover_with_importance_backward));
  m.impl("moments", TORCH_BOX(&uk::moments));
  m.impl("moments_backward", TORCH_BOX(&uk::moments_backward));
  m.impl("layer_norm", TORCH_BOX(&uk::layer_norm));
  m.impl("layer_norm_backward", TORCH_BOX(&uk::layer_norm_backward));
  m.impl("normalised_pooling", TORCH_BOX(&uk::normalised_pooling));
  m.impl("normalised_pooling_backward", TORCH_BOX(&uk::normalised_pooling_backward));
  m.impl("bfloat16_pack", TORCH_BOX(&uk::bfloat16_pack));
  m.impl("scale_shift", TORCH_BOX(&uk::scale_shift));
  m.impl("scale_shift_backward_sums", TORCH_BOX(&uk::scale_shift_backward_sums));
  m.impl("scale_shift_backward", TORCH_BOX(&uk::scale_shift_backward));
  m.impl("bfloat16_linear", TORCH_BOX(&uk::bfloat16_linear));
  m.impl("bfloat16_feed_forward", TORCH_BOX(&uk::bfloat16_feed_forward));
  m.impl("bfloat16_pointwise_feed_forward", TORCH_BOX(&uk::bfloat16_pointwise_feed_forward));
  m.impl("activation_backward_", TORCH_BOX(&uk::activation_backward_));
  m.impl("split_feed_forward_backward", TORCH_BOX(&uk::split_feed_forward_backward));
  m.impl("weight_gradient", TORCH_BOX(&uk::weight_gradient));
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(uniformer_kernels, CUDA, m) {
  m.impl("depthwise_conv3d", TORCH_BOX(&uk::cuda::depthwise_conv3d));
  m.impl("depthwise_conv3d_with_moments", TORCH_BOX(&uk::cuda::depthwise_conv3d_with_moments));
  m.impl("depthwise_conv3d_backward", TORCH_BOX(&uk::cuda::depthwise_conv3d_backward));
  m.impl("depthwise_conv3d_toeplitz", TORCH_BOX(&uk::cuda::depthwise_conv3d_toeplitz));
  m.impl("depthwise_conv3d_toeplitz_with_moments",
         TORCH_BOX(&uk::cuda::depthwise_conv3d_toeplitz_with_moments));
  m.impl("depthwise_conv3d_toeplitz_backward",
         TORCH_BOX(&uk::cuda::depthwise_conv3d_toeplitz_backward));
  m.impl("depthwise_conv3d_tma", TORCH_BOX(&uk::cuda::depthwise_conv3d_tma));
  m.impl("depthwise_conv3d_tma_with_moments",
         TORCH_BOX(&uk::cuda::depthwise_conv3d_tma_with_moments));
  m.impl("depthwise_conv3d_tma_backward", TORCH_BOX(&uk::cuda::depthwise_conv3d_tma_backward));
  m.impl("token_shrink", TORCH_BOX(&uk::cuda::token_shrink));
  m.impl("token_shrink_backward", TORCH_BOX(&uk::cuda::token_shrink_backward));
  m.impl("token_recover", TORCH_BOX(&uk::cuda::token_recover));
  m.impl("token_recover_backward", TORCH_BOX(&uk::cuda::token_recover_backward));
  m.impl("token_recover_with_importance", TORCH_BOX(&uk::cuda::token_recover_with_importance));
  m.impl("token_recover_with_importance_backward",
         TORCH_BOX(&uk::cuda::token_recover_with_importance_backward));
  m.impl("moments", TORCH_BOX(&uk::cuda::moments));
  m.impl("moments_backward", TORCH_BOX(&uk::cuda::moments_backward));
}
#endif
