"""Layers as blocks apply them: by kernels on their parameters, or by calling their modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as hooked

from .. import ops
from .parameters import Affine, BatchNorm, LayerNorm

# What a module computes with, by its ``forward``.
_PARAMETERS: dict[Callable[..., Any], type[Affine | LayerNorm | BatchNorm]] = {
    nn.Linear.forward: Affine,
    nn.Conv2d.forward: Affine,
    nn.Conv3d.forward: Affine,
    nn.LayerNorm.forward: LayerNorm,
    nn.BatchNorm3d.forward: BatchNorm,  # the norms of fewer axes have the same
    nn.SyncBatchNorm.forward: BatchNorm,
}


class Called:
    """A layer, or a whole network, that computes for itself.

    Args:
        function: mostly a module.
        ndim: axes it expects behind the channels: 2 or 3 for what takes ``[B, C, (T,) H, W]``; 0
            for what takes channels-last tensors as blocks have them.
        scale: ``[C_out]``, what its output is multiplied by.
    """

    def __init__(
        self, function: Callable[..., Any], ndim: int = 0, scale: Tensor | None = None
    ) -> None:
        self.function, self.ndim, self.scale = function, ndim, scale

    def __call__(self, x: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """``[..., C]`` to ``[..., C_out]``; two axes behind the channels leave out ``T = 1``."""
        if self.ndim:
            x = x.movedim(-1, 1)
            y = self.function(x.squeeze(2) if self.ndim == 2 else x)
            y = (y.unsqueeze(2) if self.ndim == 2 else y).movedim(1, -1)
        else:
            y = self.function(x)
        y = y if self.scale is None else y * self.scale
        return y if residual is None else residual + y

    def scale_output(self, scale: Tensor) -> Called:
        """The layer whose output is scaled, per channel."""
        return Called(self.function, self.ndim, scale)


Layer = Affine | Called


def layer(module: nn.Module, ndim: int = 0) -> Affine | LayerNorm | BatchNorm | Called:
    """What a block takes for a module: its parameters, which the kernels compute with.

    Or the module itself, to be called with ``ndim`` axes behind the channels: one with hooks, which
    shall fire, or with a ``forward`` of its own, such as an adapter.
    """
    parameters = _PARAMETERS.get(type(module).forward)
    if parameters is None or has_hooks(module) or not _is_plain(module):
        return Called(module, ndim)
    return parameters.of(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its ``forward``, or another one than its class's."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or _has_global_hooks()
    )


def _has_global_hooks() -> bool:
    """Whether every module that is called has a hook.

    A ``ModuleTracker`` asks which module runs, and nothing else: ``FlopCounterMode`` has one, and
    counts what runs without it.
    """
    if not hooked._has_any_global_hook():
        return False
    from torch.utils.module_tracker import ModuleTracker

    return any(
        not isinstance(getattr(hook, "__self__", None), ModuleTracker)
        for hooks in (
            hooked._global_forward_pre_hooks,
            hooked._global_forward_hooks,
            hooked._global_backward_pre_hooks,
            hooked._global_backward_hooks,
        )
        for hook in hooks.values()
    )


def _is_plain(module: nn.Module) -> bool:
    """Whether a LayerNorm has its parameters, and a convolution pads with zeros, without holes."""
    if isinstance(module, nn.LayerNorm):  # to operators, no weight is no norm
        return module.weight is not None and module.bias is not None
    return not isinstance(module, (nn.Conv2d, nn.Conv3d)) or (
        module.padding_mode == "zeros" and all(step == 1 for step in module.dilation)
    )


def layer_norm(x: Tensor, norm: LayerNorm | Called | None) -> Tensor:
    """LayerNorm over the last axis of ``[..., C]``; no norm changes nothing."""
    if isinstance(norm, LayerNorm):
        return ops.layer_norm(x, norm.weight, norm.bias, eps=norm.eps)
    return x if norm is None else norm(x)


def linear(
    x: Tensor,
    layer: Layer,
    *,
    norm: LayerNorm | Called | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``[residual +] activation(layer(norm(x)))`` of a linear layer or a 1x1(x1) convolution."""
    if isinstance(layer, Affine):
        x, options = _norm_inside(x, norm)
        options |= {"activation": activation, "residual": residual}
        weight, bias, packed = layer.as_linear()
        return ops.linear(x, weight, bias, packed=packed, **options)
    x = layer_norm(x, norm)
    if activation is None:
        return layer(x, residual=residual)
    y = _ACTIVATIONS[activation](layer(x))
    return y if residual is None else residual + y


def _norm_inside(x: Tensor, norm: LayerNorm | Called | None) -> tuple[Tensor, dict[str, Any]]:
    """For operators that normalise for themselves: a norm that is called is done in front."""
    if isinstance(norm, LayerNorm):
        return x, {"norm_weight": norm.weight, "norm_bias": norm.bias, "eps": norm.eps}
    return layer_norm(x, norm), {}


def depthwise_conv3d(x: Tensor, layer: Layer, *, residual: bool = False) -> Tensor:
    """``layer(x) [+ x]`` of a depthwise convolution."""
    if isinstance(layer, Affine):
        weight, bias, _ = layer.as_conv3d()
        return ops.depthwise_conv3d(x, weight, bias, residual=residual)
    return layer(x, residual=x if residual else None)


def feed_forward(
    x: Tensor,
    fc1: Layer,
    fc2: Layer | None = None,
    *,
    norm: LayerNorm | Called | None = None,
    activation: str = "gelu",
    residual: Tensor | None = None,
) -> Tensor:
    """``[residual +] fc2(activation(fc1(norm(x))))``; ``fc1`` alone is the whole network."""
    if fc2 is None:
        return fc1(layer_norm(x, norm), residual=residual)
    if isinstance(fc1, Affine) and isinstance(fc2, Affine):
        x, options = _norm_inside(x, norm)
        options |= {"activation": activation, "residual": residual}
        fc1, fc2 = fc1.as_linear(), fc2.as_linear()
        options["packed"] = fc1.packed, fc2.packed
        return ops.feed_forward(x, *fc1[:2], *fc2[:2], **options)
    hidden = linear(x, fc1, norm=norm, activation=activation)
    return linear(hidden, fc2, residual=residual)


def attention(
    x: Tensor,
    qkv: Layer,
    proj: Layer | None = None,
    *,
    norm: LayerNorm | Called | None = None,
    num_heads: int,
    residual: Tensor | None = None,
) -> Tensor:
    """``[residual +] proj(Attention(qkv(norm(x))))``; ``qkv`` alone is the whole of it."""
    if proj is None:
        return qkv(layer_norm(x, norm), residual=residual)
    y = ops.joint_attention(linear(x, qkv, norm=norm), num_heads)
    return linear(y, proj, residual=residual)


def scaled(gamma: Tensor | None, *layers: Layer | None) -> list[Layer]:
    """The layers there are, the output of the last one times ``gamma``, any ``[C]`` view."""
    *first, last = (layer for layer in layers if layer is not None)
    return [*first, last if gamma is None else last.scale_output(gamma.flatten())]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * (1.702 * x).sigmoid()


_ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": _quick_gelu}
