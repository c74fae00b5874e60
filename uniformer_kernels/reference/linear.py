"""Matrix products with their neighbours, one PyTorch call each."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .layer_norm import layer_norm


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``[residual +] activation([layer_norm](x) weightᵀ + bias)``."""
    if norm_weight is not None:
        x = layer_norm(x, norm_weight, norm_bias, eps=eps).to(weight.dtype)
    y = F.linear(x, weight, bias)
    if activation == "gelu":
        y = F.gelu(y)
    elif activation == "quick_gelu":
        y = y * torch.sigmoid(1.702 * y)
    return y if residual is None else residual + y


def feed_forward(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str = "gelu",
    residual: Tensor | None = None,
) -> Tensor:
    """``[residual +] fc2(activation(fc1([layer_norm](x))))``."""
    hidden = linear(
        x,
        fc1_weight,
        fc1_bias,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        eps=eps,
        activation=activation,
    )
    return linear(hidden, fc2_weight, fc2_bias, residual=residual)
