"""Attention inside windows, on copies of the windows of the padded grid."""

from torch import Tensor

from .attention import joint_attention


def window_attention(
    qkv: Tensor,
    bias: Tensor | None,
    num_heads: int,
    window_size: int,
    *,
    scale: float | None = None,
) -> Tensor:
    """``joint_attention`` of every window of ``[B, T, H, W, 3C]``, filled up with ``bias``."""
    B, T, H, W, packed = qkv.shape
    p = window_size
    down, across = -(-H // p), -(-W // p)
    bias = qkv.new_zeros(packed) if bias is None else bias
    filled = bias.expand(B, T, down * p, across * p, packed).clone()
    filled[:, :, :H, :W] = qkv
    windows = filled.reshape(B * T, down, p, across, p, packed).transpose(2, 3)
    y = joint_attention(windows.reshape(-1, p * p, packed), num_heads, scale=scale)
    y = y.reshape(B * T, down, across, p, p, packed // 3).transpose(2, 3)
    return y.reshape(B, T, down * p, across * p, packed // 3)[:, :, :H, :W].contiguous()
