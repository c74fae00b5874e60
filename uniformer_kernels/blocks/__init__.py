"""Blocks: functions of tensors, activations and parameters in, activations out.

Activations are channels-last, ``[B, T, H, W, C]`` (images have ``T = 1``); parameters come in the
shapes and under the semantics of the official modules, as the tuples of ``parameters``.
"""

from .divided_block import divided_block
from .global_block import global_block
from .local_block import local_block
from .norms import batch_norm, layer_norm
from .parameters import Affine, BatchNorm, LayerNorm
from .stems import conv_stem, patch_stem

__all__ = [
    "Affine",
    "BatchNorm",
    "LayerNorm",
    "batch_norm",
    "conv_stem",
    "divided_block",
    "global_block",
    "layer_norm",
    "local_block",
    "patch_stem",
]
