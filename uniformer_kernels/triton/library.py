"""The schemas of the Triton kernels and where each is implemented: the one place of registration.

Opaque operators of their own, as in ``csrc/library.cpp`` and with the same meaning where the names
are the same. Gradients, fakes and autocast are in ``uniformer_kernels/ops``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

NAMESPACE = "uniformer_kernels_triton"

_SCHEMAS = {  # by the file that implements them
    "attention": (
        "joint_attention(Tensor qkv, int num_heads, float scale) -> (Tensor, Tensor)",
        "joint_attention_backward(Tensor dout, Tensor qkv, Tensor out, Tensor lse, int num_heads, "
        "float scale) -> Tensor",
        # The same with the score between the two results, and with its gradient.
        "joint_attention_with_score(Tensor qkv, int num_heads, int? queries, float scale) -> "
        "(Tensor, Tensor, Tensor)",
        "joint_attention_with_score_backward(Tensor dout, Tensor dscore, Tensor qkv, Tensor out, "
        "Tensor lse, int num_heads, int? queries, float scale) -> Tensor",
    ),
    "batch_norm": (
        "moments(Tensor x, Tensor? shift) -> Tensor",
        "moments_backward(Tensor? dy, Tensor x, Tensor? shift, Tensor dmoments) -> Tensor",
        # The variance and the mean, or a batch's moments less that mean: then its own, and its
        # unbiased variance, are the third result, which backward takes for the mean.
        "fold_batch_norm(Tensor weight, Tensor? bias, Tensor? mean, Tensor statistics, "
        "Tensor? norm_weight, Tensor? norm_bias, int? count, float eps) -> "
        "(Tensor, Tensor, Tensor)",
        # Gradients of weight, statistics, norm_weight and norm_bias.
        "fold_batch_norm_backward(Tensor? dfolded, Tensor? dfolded_bias, Tensor weight, "
        "Tensor? mean, Tensor statistics, Tensor? norm_weight, Tensor? norm_bias, int? count, "
        "float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    ),
    "depthwise_conv": (
        "depthwise_conv3d(Tensor x, Tensor weight, Tensor? bias, bool residual) -> Tensor",
        # And the sums of y - shift and of its square over all but channels, [2, C].
        "depthwise_conv3d_with_moments(Tensor x, Tensor weight, Tensor? bias, bool residual, "
        "Tensor? shift) -> (Tensor, Tensor)",
    ),
    "depthwise_conv_gradient": (
        "depthwise_conv3d_backward(Tensor dy, Tensor x, Tensor weight, bool residual, "
        "bool want_input, bool want_weight) -> (Tensor, Tensor, Tensor)",
    ),
    "feed_forward": (
        "feed_forward(Tensor x, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, "
        "Tensor? fc2_bias, str activation, Tensor? residual) -> Tensor",
        # Gradients of x and of the weights and biases in their order; those not wanted are empty.
        "feed_forward_backward(Tensor dy, Tensor x, Tensor fc1_weight, Tensor? fc1_bias, "
        "Tensor fc2_weight, str activation, bool want_input, bool want_weights) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    ),
    "layer_norm": (
        # And every row's mean and 1 / deviation, float32.
        "layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)",
        # The gradients of x, weight and bias, and the result again, for who did not keep it.
        "layer_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, "
        "Tensor rstd, bool want_input, bool want_weight, bool want_output) -> "
        "(Tensor, Tensor, Tensor, Tensor)",
    ),
    "linear": (
        # And what the activation was applied to, if it is to be saved and there is one.
        "linear(Tensor x, Tensor weight, Tensor? bias, str activation, Tensor? residual, "
        "bool save) -> (Tensor, Tensor)",
        # From the activation's dy: dz of that dtype, activation(z), the sum of dz over the rows.
        "activation_backward(Tensor dy, Tensor? z, str activation, ScalarType dtype, "
        "bool want_input, bool want_hidden, bool want_bias) -> (Tensor, Tensor, Tensor)",
    ),
    "local_block": (
        "depthwise_linear(Tensor x, Tensor dw_weight, Tensor? dw_bias, Tensor weight, "
        "Tensor? bias) -> (Tensor, Tensor)",
        "depthwise_feed_forward(Tensor x, Tensor residual, Tensor dw_weight, Tensor? dw_bias, "
        "Tensor pw_weight, Tensor? pw_bias, Tensor fc1_weight, Tensor? fc1_bias, "
        "Tensor fc2_weight, Tensor? fc2_bias) -> Tensor",
    ),
    "patch_embed": (
        # And where it is normalised, and saved: what was, every row's mean and 1 / deviation.
        "patch_embed(Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, "
        "Tensor? norm_bias, int[] stride, int[] padding, float eps, bool save) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
    ),
    "query_attention": (
        "normalised_pooling(Tensor rows, Tensor tokens, float eps) -> "
        "(Tensor pooled, Tensor lse, Tensor mean, Tensor rstd)",
        "normalised_pooling_backward(Tensor dpooled, Tensor rows, Tensor tokens, Tensor pooled, "
        "Tensor lse, Tensor mean, Tensor rstd, bool want_tokens) -> (Tensor, Tensor)",
    ),
    "token_recover": (
        "token_recover(Tensor x, Tensor index, Tensor kept, Tensor delta) -> Tensor",
        "token_recover_backward(Tensor dy, Tensor index) -> (Tensor, Tensor, Tensor)",
        "token_recover_with_importance(Tensor x, Tensor index, Tensor kept, Tensor delta, "
        "Tensor importance, Tensor score, float trade_off) -> (Tensor, Tensor)",
        "token_recover_with_importance_backward(Tensor dy, Tensor dupdated, Tensor index, "
        "int prefixed, float trade_off) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    ),
    "token_shrink": (
        "token_shrink(Tensor x, Tensor importance, int keep, Tensor? prefix) -> (Tensor, Tensor)",
        "token_shrink_backward(Tensor dtokens, Tensor x, Tensor importance, Tensor index) -> "
        "(Tensor, Tensor)",
    ),
    "window_attention": (
        "window_attention(Tensor qkv, Tensor bias, int num_heads, int columns, int window_size, "
        "float scale) -> (Tensor, Tensor)",
        "window_attention_backward(Tensor dout, Tensor qkv, Tensor bias, Tensor out, Tensor lse, "
        "int num_heads, int columns, int window_size, float scale) -> (Tensor, Tensor)",
    ),
}

_LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def implementation(name: str) -> Callable[..., Any]:
    """The Python function behind an operator; its file is imported when it is first called."""
    return _IMPLEMENTATIONS[name]


def _deferred(module: str, name: str) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        return getattr(import_module(f".{module}", __package__), name)(*args)

    return run


_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {}
for _module, _schemas in _SCHEMAS.items():
    for _schema in _schemas:
        _name = _LIBRARY.define(_schema)
        _IMPLEMENTATIONS[_name] = _deferred(_module, _name)
        for _key in ("CUDA", "CPU"):  # the latter for the interpreter
            _LIBRARY.impl(_name, _IMPLEMENTATIONS[_name], _key)
