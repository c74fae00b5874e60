"""Operators of UniFormer and UniFormerV2 on tensors, each served by the fastest backend there is.

Activations are channels-last: feature maps ``[B, T, H, W, C]`` (images have ``T = 1``), tokens
``[B, N, C]``.
"""

from .accelerate import accelerate, patch, restore
from .backends import BackendError, explain, use_backend
from .decompositions import decompositions
from .ops import (
    depthwise_conv3d,
    depthwise_conv3d_with_moments,
    depthwise_feed_forward,
    depthwise_linear,
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
    token_recover_with_importance,
    token_shrink,
    window_attention,
)

from . import flops  # isort: skip # noqa: F401 tells PyTorch's counter about the kernels

__all__ = [
    "BackendError",
    "accelerate",
    "decompositions",
    "depthwise_conv3d",
    "depthwise_conv3d_with_moments",
    "depthwise_feed_forward",
    "depthwise_linear",
    "explain",
    "feed_forward",
    "fold_batch_norm",
    "joint_attention",
    "joint_attention_with_score",
    "layer_norm",
    "linear",
    "moments",
    "patch",
    "patch_embed",
    "query_attention",
    "restore",
    "token_recover",
    "token_recover_with_importance",
    "token_shrink",
    "use_backend",
    "window_attention",
]
__version__ = "0.1.0"
