"""A strided convolution and the LayerNorm after it, as PyTorch computes them."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def patch_embed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0, 0),
    eps: float = 1e-5,
) -> Tensor:
    """``layer_norm(conv3d(x))`` from ``[B, T, H, W, C]`` to ``[B, T', H', W', C']``."""
    y = F.conv3d(x.movedim(-1, 1), weight, bias, stride=tuple(stride), padding=tuple(padding))
    y = y.movedim(1, -1)
    return y if norm_weight is None else F.layer_norm(y, y.shape[-1:], norm_weight, norm_bias, eps)
