"""Depthwise convolutions, of whatever model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..backends import needs_grad
from ..ops import depthwise_conv3d
from . import structure as s
from .family import Family
from .swap import Swapped

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class DepthwiseForward(Swapped):
    _accelerated_as = "depthwise_conv3d"

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if not s.is_map(x, self) or is_traceable_wrapper_subclass(weight) or _onednn(x, self):
            return super().forward(x)
        weight = weight if weight.dim() == 5 else weight.unsqueeze(2)
        y = s.channels_first(depthwise_conv3d(s.channels_last(x), weight, self.bias), x.dim())
        # As PyTorch's: whoever takes a view of the result relies on its layout.
        return y if x.is_contiguous(memory_format=_CHANNELS_LAST[x.dim()]) else y.contiguous()


def _onednn(x: Tensor, conv: nn.Module) -> bool:
    """Whether PyTorch's own kernel is as fast: in two dimensions and without gradients it is."""
    plain = x.dim() == 4 and x.device.type == "cpu" and x.dtype == torch.float32
    return plain and not needs_grad(x, conv.weight, conv.bias)


def _is_depthwise(m: nn.Module) -> bool:
    return isinstance(m, (nn.Conv2d, nn.Conv3d)) and 1 < m.groups == m.in_channels


# A convolution says all about itself in its attributes: nothing is to be compared.
FAMILIES = [Family("depthwise", _is_depthwise, s.depthwise(), DepthwiseForward, None)]
