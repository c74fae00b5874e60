"""Matrix products with their neighbours, one PyTorch call each."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``[residual +] activation(x weightᵀ + bias)``."""
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
    activation: str = "gelu",
    residual: Tensor | None = None,
) -> Tensor:
    """``[residual +] fc2(activation(fc1(x)))``."""
    hidden = linear(x, fc1_weight, fc1_bias, activation=activation)
    return linear(hidden, fc2_weight, fc2_bias, residual=residual)
