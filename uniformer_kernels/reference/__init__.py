"""Every operator in plain PyTorch: what the kernels mean, at any dtype, differentiable."""

from .attention import joint_attention
from .depthwise_conv import depthwise_conv3d
from .linear import feed_forward, linear
from .patch_embed import patch_embed

__all__ = ["depthwise_conv3d", "feed_forward", "joint_attention", "linear", "patch_embed"]
