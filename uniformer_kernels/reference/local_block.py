"""Both halves of a local block whose norms are folded, by the operators they are made of."""

from torch import Tensor

from .depthwise_conv import depthwise_conv3d
from .linear import feed_forward, linear


def depthwise_linear(
    x: Tensor, dw_weight: Tensor, dw_bias: Tensor | None, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``y = x + DW(x)`` and ``y weightᵀ + bias``."""
    y = depthwise_conv3d(x, dw_weight, dw_bias, residual=True)
    return y, linear(y, weight, bias)


def depthwise_feed_forward(
    x: Tensor,
    residual: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
) -> Tensor:
    """``r = residual + PW(DW(x))`` and ``r + fc2(gelu(fc1(r)))``."""
    y = depthwise_conv3d(x, dw_weight, dw_bias)
    r = linear(y, pw_weight, pw_bias, residual=residual)
    layers = fc1_weight, fc1_bias, fc2_weight, fc2_bias
    return feed_forward(r.to(x.dtype), *layers, residual=r)
