"""Batch statistics, and batch normalisation folded into a linear layer."""

import torch
from torch import Tensor


def moments(x: Tensor, *, shift: Tensor | None = None) -> Tensor:
    """Every channel's sums of ``x - shift`` and of its square, ``[2, C]``."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = (x if shift is None else x - shift).flatten(0, -2)
    return torch.stack([x.sum(0), x.square().sum(0)])


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor | None,
    statistics: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    count: int | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``weight (scale x + shift) + bias`` as one layer; a batch's mean and unbiased variance."""
    statistics = statistics.to(torch.promote_types(statistics.dtype, torch.float32))
    centre = 0.0 if mean is None else mean.detach()
    var, found = statistics, None
    if count is not None:
        distance, square = statistics / count
        var = (square - distance.square()).clamp(min=0)
        centre = distance + centre
        found = torch.stack([centre, var * (count / (count - 1))]).detach()
    scale = (var + eps).rsqrt()
    if norm_weight is not None:
        scale = norm_weight * scale
    shift = -centre * scale if norm_bias is None else norm_bias - centre * scale
    # Not weight @ shift: autocast would compute that in half precision.
    folded_bias = (weight * shift).sum(1)
    folded_bias = folded_bias if bias is None else bias + folded_bias
    return (weight * scale).to(weight.dtype), folded_bias.to(weight.dtype), found
