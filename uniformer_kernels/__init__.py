"""Operators of UniFormer and UniFormerV2 on tensors, each served by the fastest backend there is.

Activations are channels-last: feature maps ``[B, T, H, W, C]`` (images have ``T = 1``), tokens
``[B, N, C]``.
"""

from .backends import BackendError, explain, use_backend
from .ops import (
    depthwise_conv3d,
    depthwise_conv3d_with_moments,
    feed_forward,
    fold_batch_norm,
    joint_attention,
    joint_attention_with_score,
    layer_norm,
    linear,
    moments,
    patch_embed,
    query_attention,
    token_recover,
    token_shrink,
    window_attention,
)

__all__ = [
    "BackendError",
    "depthwise_conv3d",
    "depthwise_conv3d_with_moments",
    "explain",
    "feed_forward",
    "fold_batch_norm",
    "joint_attention",
    "joint_attention_with_score",
    "layer_norm",
    "linear",
    "moments",
    "patch_embed",
    "query_attention",
    "token_recover",
    "token_shrink",
    "use_backend",
    "window_attention",
]
__version__ = "0.1.0"
