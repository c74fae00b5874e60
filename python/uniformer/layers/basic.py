"""Parameters with the official initialisation."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from uniformer_kernels import joint_attention, joint_attention_with_score
from uniformer_kernels.blocks import Affine, BatchNorm, Called, folded, has_hooks, layer, scaled

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MLP_RATIO = 4
BLOCK_EPS = 1e-6  # of LayerNorm in the blocks; stems have PyTorch's 1e-5


def linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer, weight from a normal distribution (std 0.02, cut at ±2), bias 0."""
    layer = nn.Linear(in_features, out_features)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def classifier(dim: int, num_classes: int) -> nn.Module:
    """A linear layer; nothing for no classes."""
    return linear(dim, num_classes) if num_classes else nn.Identity()


def depthwise(dim: int, kernel: int, ndim: int) -> nn.Module:
    """A depthwise convolution that keeps the size."""
    return CONV[ndim](dim, dim, kernel, padding=kernel // 2, groups=dim)


class Attention(nn.ModuleDict):
    """The two linear layers around an attention.

    Blocks take them out of it, and call it as a whole only where it has hooks.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__({"qkv": linear(dim, 3 * dim), "proj": linear(dim, dim)})
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` to the same."""
        return self.proj(joint_attention(self.qkv(x), self.num_heads))


class ScoredAttention(Attention):
    """An attention that tells how important every token is to the first ``queries``."""

    def __init__(self, dim: int, num_heads: int, queries: int | None) -> None:
        super().__init__(dim, num_heads)
        self.queries = queries

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, N, C]`` to the same and ``[B, N]``."""
        y, score = joint_attention_with_score(self.qkv(x), self.num_heads, queries=self.queries)
        return self.proj(y), score


class Mlp(nn.ModuleDict):
    """The two layers of a feed-forward, linear (``ndim=0``) or pointwise convolutions.

    Blocks take them out of it, and call it as a whole only where it has hooks.
    """

    def __init__(self, dim: int, ratio: int = MLP_RATIO, ndim: int = 0) -> None:
        hidden = ratio * dim
        if ndim:
            layers = CONV[ndim](dim, hidden, 1), CONV[ndim](hidden, dim, 1)
        else:
            layers = linear(dim, hidden), linear(hidden, dim)
        super().__init__(zip(("fc1", "fc2"), layers, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C]``, or ``[B, C, (T,) H, W]`` for convolutions, to the same."""
        return self.fc2(F.gelu(self.fc1(x)))


def layers(network: nn.ModuleDict, ndim: int = 0) -> tuple[Affine | Called, Affine | Called | None]:
    """The two layers of a network as blocks take them: it alone where it has to be called."""
    # Whatever stands in its place, an adapter say, has another forward.
    whole = type(network).forward not in (Attention.forward, ScoredAttention.forward, Mlp.forward)
    if whole or has_hooks(network):
        return Called(network, ndim), None
    first, second = network.children()
    return layer(first, ndim), layer(second, ndim)


class Foldable(nn.Module):
    """A module that can do without its norms by running statistics, or its layer scales."""

    def fold(self) -> None:
        """Make them a part of the layers beside them, where those are plain."""
        raise NotImplementedError


def fold_norm(owner: nn.Module, name: str, module: nn.Module, *, behind: bool = False) -> None:
    """Make the norm ``owner.name`` a part of the linear layer that follows it.

    Or of the convolution that it is ``behind``.
    """
    if getattr(owner, name) is None:
        return
    norm, parameters = layer(getattr(owner, name)), layer(module)
    plain = isinstance(norm, BatchNorm) and isinstance(parameters, Affine)
    if not plain or norm.running_mean is None:
        return
    if behind:
        _replace(module, parameters.scale_output(*norm.scale_shift()))
    else:
        _replace(module, folded(norm, parameters))
    setattr(owner, name, None)


def fold_scale(owner: nn.Module, name: str, network: nn.Module, last: str = "") -> None:
    """Make the layer scale ``owner.name`` a part of the last layer of what it scales."""
    gamma, module = getattr(owner, name), getattr(network, last, None) if last else network
    if gamma is None or module is None or not isinstance(parameters := layer(module), Affine):
        return
    _replace(module, *scaled(gamma, parameters))
    setattr(owner, name, None)


def pointwise(block: nn.Module) -> Iterator[nn.Module]:
    """The linear layers and 1x1(x1) convolutions in a block that kernels compute with."""
    for module in block.modules():
        if isinstance(parameters := layer(module), Affine):
            weight = parameters.weight
            if weight.shape[2:].numel() == 1 and getattr(module, "groups", 1) == 1:
                yield module


def _replace(module: nn.Module, parameters: Affine) -> None:
    weight, bias, _ = parameters
    module.weight = nn.Parameter(weight.view_as(module.weight), requires_grad=False)
    module.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
