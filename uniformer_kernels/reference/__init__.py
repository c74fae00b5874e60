"""Every operator in plain PyTorch: what the kernels mean, at any dtype, differentiable."""

from .attention import joint_attention, joint_attention_with_score
from .batch_norm import fold_batch_norm, moments
from .depthwise_conv import depthwise_conv3d, depthwise_conv3d_with_moments
from .layer_norm import layer_norm
from .linear import feed_forward, linear
from .local_block import depthwise_feed_forward, depthwise_linear
from .patch_embed import patch_embed
from .query_attention import query_attention
from .tokens import token_recover, token_recover_with_importance, token_shrink
from .window_attention import window_attention

__all__ = [
    "depthwise_conv3d",
    "depthwise_conv3d_with_moments",
    "depthwise_feed_forward",
    "depthwise_linear",
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
    "token_recover_with_importance",
    "token_shrink",
    "window_attention",
]
