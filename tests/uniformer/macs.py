"""Multiply-accumulates of a model, counted as those of the official one are."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from uniformer.layers.v2 import TemporalAggregator

from uniformer_kernels import use_backend


def official_macs(model: nn.Module, x: Tensor) -> int:
    """Those of products and convolutions, without what the class tokens add.

    In UniFormerV2 they go along through the temporal aggregators, so that nothing is copied; the
    official code leaves them out there. ``x`` is one clip, of the meta device.
    """
    with use_backend("reference"), FlopCounterMode(display=False) as counter:
        model(x)
    along = 0
    for module in model.modules():
        if isinstance(module, TemporalAggregator):
            frames = model.clip_shape[1] // model.conv1.stride[0]
            along += frames * sum(layer.weight.numel() for layer in module.pos_embed[1:])
    return counter.get_total_flops() // 2 - along
