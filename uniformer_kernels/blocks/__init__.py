"""Blocks: functions of tensors, activations and parameters in, activations out.

Activations are channels-last, ``[B, T, H, W, C]`` (images have ``T = 1``); parameters come in the
shapes and under the semantics of the official modules, as the tuples of ``parameters``.
"""

from .divided_block import divided_block
from .global_block import global_block
from .hourglass_block import hourglass_block, pool_importance
from .layers import Called, has_hooks, layer, layer_norm, scaled
from .local_block import local_block
from .norms import batch_norm, folded
from .packing import pack
from .parameters import Affine, BatchNorm, LayerNorm
from .stems import conv_stem, patch_stem
from .v2 import TemporalMHRA, frame_tokens, global_uniblock, local_uniblock, video_memory
from .window_block import window_block

__all__ = [
    "Affine",
    "BatchNorm",
    "Called",
    "LayerNorm",
    "TemporalMHRA",
    "batch_norm",
    "conv_stem",
    "divided_block",
    "folded",
    "frame_tokens",
    "global_block",
    "global_uniblock",
    "has_hooks",
    "hourglass_block",
    "layer",
    "layer_norm",
    "local_block",
    "local_uniblock",
    "pack",
    "patch_stem",
    "pool_importance",
    "scaled",
    "video_memory",
    "window_block",
]
