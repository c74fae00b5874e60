"""What a module is recognised by: the layers it holds, under which names, of which shapes.

Every check is a function of a module that returns what does not fit, or ``None``.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor, nn

from ..checks import FLOATS
from .swap import original_class

Check = Callable[[nn.Module], str | None]

LARGEST_KERNEL = 7  # of the operator, along each axis
_BATCH_NORMS = (nn.BatchNorm3d.forward, nn.SyncBatchNorm.forward)
_OURS = tuple(f"{__package__.partition('.')[0]}.{name}." for name in ("blocks", "ops"))
_FORWARDS = {nn.Linear: "a linear layer", nn.Conv2d: "a Conv2d", nn.Conv3d: "a Conv3d"}


def part(module: nn.Module, path: str) -> Any:
    """What is at ``a.b`` inside a module; ``None`` where there is nothing."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def has(module: nn.Module, *paths: str) -> bool:
    """Whether there are modules at all the paths."""
    return all(isinstance(part(module, path), nn.Module) for path in paths)


def mismatch(module: nn.Module, checks: Mapping[str, Check]) -> str | None:
    """The first part, by its path, that does not fit."""
    for path, check in checks.items():
        inner = part(module, path)
        reason = f"expected a module, got {inner!r}" if inner is None else check(inner)
        if reason is not None:
            return f"{path}: {reason}"
    return None


def forward_of(module: nn.Module) -> Callable[..., Any]:
    """The forward of the module's own class."""
    return inspect.unwrap(original_class(module).forward)


def code_of(module: nn.Module) -> CodeType | None:
    """The code of the module's own forward, where it is written in Python."""
    return getattr(forward_of(module), "__code__", None)


def stores_globals(module: nn.Module) -> bool:
    """Whether a forward leaves something behind in its Python module."""
    code = code_of(module)
    return code is not None and any(
        step.opname == "STORE_GLOBAL" for step in dis.get_instructions(code)
    )


def calls_blocks(module: nn.Module) -> bool:
    """Whether a class calls block functions or operators by itself."""
    mro = original_class(module).__mro__
    for function in (f for cls in mro for f in vars(cls).values() if isinstance(f, FunctionType)):
        used = (function.__globals__.get(name) for name in function.__code__.co_names)
        if any((getattr(value, "__module__", None) or "").startswith(_OURS) for value in used):
            return True
    return False


def linear(in_features: int, out_features: int) -> Check:
    def check(m: nn.Module) -> str | None:
        return _own_forward(m, nn.Linear) or _differs(
            {"weight": (tuple(m.weight.shape), (out_features, in_features))}
        )

    return check


def pointwise(in_channels: int, out_channels: int) -> Check:
    """A 1x1(x1) convolution."""

    def check(m: nn.Module) -> str | None:
        return _own_forward(m, nn.Conv2d, nn.Conv3d) or _differs(
            {
                "in_channels": (m.in_channels, in_channels),
                "out_channels": (m.out_channels, out_channels),
                "kernel": (m.kernel_size, _each(m, 1)),
                "groups": (m.groups, 1),
                "stride": (m.stride, _each(m, 1)),
                "padding": (m.padding, _each(m, 0)),
            }
        )

    return check


def depthwise(channels: int | None = None) -> Check:
    """A convolution that the depthwise operator computes."""

    def check(m: nn.Module) -> str | None:
        if reason := _own_forward(m, nn.Conv2d, nn.Conv3d):
            return reason
        same = tuple(k // 2 for k in m.kernel_size)
        if any(k % 2 == 0 or k > LARGEST_KERNEL for k in m.kernel_size):
            return f"kernel: expected odd sizes up to {LARGEST_KERNEL}, got {m.kernel_size}"
        if m.weight.dtype not in FLOATS:
            return f"dtype: no operator for {m.weight.dtype}"
        return _differs(
            {
                "in_channels": (m.in_channels, channels or m.in_channels),
                "out_channels": (m.out_channels, m.in_channels),
                "groups": (m.groups, m.in_channels),
                "stride": (m.stride, _each(m, 1)),
                "dilation": (m.dilation, _each(m, 1)),
                "padding": (same if m.padding == "same" else m.padding, same),
                "padding_mode": (m.padding_mode, "zeros"),
            }
        )

    return check


def batch_norm(channels: int) -> Check:
    def check(m: nn.Module) -> str | None:
        if getattr(original_class(m), "forward", None) not in _BATCH_NORMS:
            return f"expected a BatchNorm, got {name_of(m)}"
        return _differs({"num_features": (m.num_features, channels)})

    return check


def layer_norm(channels: int) -> Check:
    """A LayerNorm over the channels, or one of its subclasses."""

    def check(m: nn.Module) -> str | None:
        if not isinstance(m, nn.LayerNorm):
            return f"expected a LayerNorm, got {name_of(m)}"
        if m.weight is None or m.bias is None:
            return "expected weight and bias"
        return _differs({"normalized_shape": (m.normalized_shape, (channels,))})

    return check


def drop_path(block: nn.Module) -> str | None:
    """The block's stochastic depth, if there is any, is the usual one."""
    m = part(block, "drop_path")
    if m is None or isinstance(m, nn.Identity):
        return None
    if not isinstance(getattr(m, "drop_prob", m), (float, int, type(None))):
        return f"drop_path: expected an nn.Identity or a drop_prob, got {name_of(m)}"
    if not getattr(m, "scale_by_keep", True):
        return "drop_path: does not scale what it keeps"
    return None


def gammas(block: nn.Module, channels: int) -> str | None:
    """The block's layer scales, if there are any, have one number a channel."""
    for name in ("gamma_1", "gamma_2"):
        gamma = getattr(block, name, None)
        if gamma is not None and (not isinstance(gamma, Tensor) or gamma.numel() != channels):
            return f"{name}: expected {channels} elements"
    return None


def drop_path_rate(block: nn.Module) -> float:
    """The probability that the next call loses a branch."""
    m = block._modules.get("drop_path")
    if m is None or not m.training:
        return 0.0
    return getattr(m, "drop_prob", None) or 0.0


def channels_of(m: nn.Module) -> int:
    """Channels of a convolution; 0 for what is none."""
    return m.in_channels if isinstance(m, (nn.Conv2d, nn.Conv3d)) else 0


def name_of(m: object) -> str:
    return type(m).__name__


def channels_last(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` or ``[B, C, T, H, W]`` as a view ``[B, T, H, W, C]``."""
    return (x if x.dim() == 5 else x.unsqueeze(2)).movedim(1, -1)


def channels_first(x: Tensor, ndim: int) -> Tensor:
    """The way back, to ``ndim`` axes: in memory channels stay last."""
    x = x.movedim(-1, 1)
    return x if ndim == 5 else x.squeeze(2)


def is_map(x: object, conv: nn.Module) -> bool:
    """Whether ``x`` is a batch of maps with as many axes as a convolution takes."""
    return isinstance(x, Tensor) and x.dim() == conv.weight.dim() and x.is_floating_point()


def _own_forward(m: nn.Module, *classes: type[nn.Module]) -> str | None:
    """Whether the module computes what its class of PyTorch's does."""
    cls = next((c for c in classes if isinstance(m, c)), None)
    if cls is None:
        return f"expected {' or '.join(_FORWARDS[c] for c in classes)}, got {name_of(m)}"
    own = original_class(m)
    for name in ("forward", "_conv_forward"):
        if getattr(own, name, None) is not getattr(cls, name, None):
            return f"{own.__name__} has a {name} of its own"
    return f"{own.__name__} has a forward of its own" if "forward" in m.__dict__ else None


def _differs(facts: Mapping[str, tuple[Any, Any]]) -> str | None:
    for name, (came, expected) in facts.items():
        if came != expected:
            return f"{name}: expected {expected}, got {came}"
    return None


def _each(conv: nn.Module, value: int) -> tuple[int, ...]:
    return (value,) * len(conv.kernel_size)


def head_scale(attn: nn.Module, channels: int) -> str | None:
    """The attention has heads that fit, and divides scores by the root of their channels."""
    heads = getattr(attn, "num_heads", None)
    if not isinstance(heads, int) or heads < 1 or channels % heads:
        return f"num_heads: expected a divisor of {channels}, got {heads}"
    scale, usual = getattr(attn, "scale", None), (channels // heads) ** -0.5
    if scale is not None and not (isinstance(scale, float) and abs(scale - usual) < 1e-9 * usual):
        return f"scale: expected {usual}, got {scale}"
    return None


def act(mlp: nn.Module) -> str | None:
    """The activation, where it is a module, is the exact GELU."""
    m = part(mlp, "act")
    if m is None or (isinstance(m, nn.GELU) and m.approximate == "none"):
        return None
    return f"act: expected the exact GELU, got {m!r}"


def shapes(sizes: Sequence[int], *, like: nn.Module) -> list[int]:
    """``[B, C, T, H, W]`` cut to what a convolution takes."""
    batch, channels, *grid = sizes
    return [batch, channels, *grid[-len(like.kernel_size) :]]


def is_floating(module: nn.Module) -> str | None:
    """Every parameter has a dtype there are operators for."""
    for name, p in module.named_parameters():
        if p.dtype not in FLOATS:
            return f"{name}: no operator for {p.dtype}"
    return None
