"""Activations and their slopes, of float32 values in registers."""

from __future__ import annotations

import triton
import triton.language as tl

_SQRT_HALF = tl.constexpr(0.7071067811865476)
_NORMAL = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)
_LOG2_E = tl.constexpr(1.4426950408889634)
_QUICK = tl.constexpr(1.702)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """``"gelu"``, ``"quick_gelu"``, or ``z`` itself for ``""``."""
    if ACTIVATION == "gelu":
        z = 0.5 * z * (1 + tl.math.erf(z * _SQRT_HALF))
    if ACTIVATION == "quick_gelu":
        z = z / (1 + tl.exp2(z * (-_QUICK * _LOG2_E)))
    return z


@triton.jit
def slope(z, ACTIVATION: tl.constexpr):
    """The activation's derivative at ``z``."""
    if ACTIVATION == "gelu":
        density = tl.exp2(z * z * (-0.5 * _LOG2_E)) * _NORMAL
        z = 0.5 * (1 + tl.math.erf(z * _SQRT_HALF)) + z * density
    if ACTIVATION == "quick_gelu":
        gate = 1 / (1 + tl.exp2(z * (-_QUICK * _LOG2_E)))
        z = gate * (1 + z * (1 - gate) * _QUICK)
    return z
