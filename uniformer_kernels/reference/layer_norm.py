"""LayerNorm over the channels, PyTorch's own."""

import torch.nn.functional as F
from torch import Tensor


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """``weight (x - mean) / sqrt(variance + eps) + bias`` over the last axis."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
