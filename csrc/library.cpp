// The operators' schemas and where each runs: the one place of registration.
//
// Gradients, fakes and autocast are Python's (uniformer_kernels/ops): they need no kernel.

#include <torch/csrc/stable/library.h>

#include "operators.h"

STABLE_TORCH_LIBRARY(uniformer_kernels, m) {
  m.def("depthwise_conv3d(Tensor x, Tensor weight, Tensor? bias, bool residual) -> Tensor");
  // Gradients of x, weight and bias; those not wanted are empty.
  m.def(
      "depthwise_conv3d_backward(Tensor dy, Tensor x, Tensor weight, bool residual, "
      "bool want_input, bool want_weight) -> (Tensor, Tensor, Tensor)");
  // Attention [B, N, C], and log2 of the sums of exp2 of the scaled scores, [B, num_heads, N].
  m.def("joint_attention(Tensor qkv, int num_heads, float scale) -> (Tensor, Tensor)");
  m.def(
      "joint_attention_backward(Tensor dout, Tensor qkv, Tensor out, Tensor lse, int num_heads, "
      "float scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(uniformer_kernels, CPU, m) {
  m.impl("depthwise_conv3d", TORCH_BOX(&uk::depthwise_conv3d));
  m.impl("depthwise_conv3d_backward", TORCH_BOX(&uk::depthwise_conv3d_backward));
  m.impl("joint_attention", TORCH_BOX(&uk::joint_attention));
  m.impl("joint_attention_backward", TORCH_BOX(&uk::joint_attention_backward));
}
