"""What blocks take in place of modules: the tensors and numbers of a layer, by name."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .packing import packed_form
from .synchronise import synchronised_group


class Affine(NamedTuple):
    """A convolution or a linear layer; the weight has the shape its module gives it.

    A linear one may come with what ``pack_linear`` made of both.
    """

    weight: Tensor
    bias: Tensor | None
    packed: Tensor | None = None

    @classmethod
    def of(cls, module: nn.Module) -> Affine:
        """The parameters of an ``nn.Linear``, ``nn.Conv2d`` or ``nn.Conv3d``."""
        return cls(module.weight, module.bias, packed_form(module))

    def as_linear(self) -> Affine:
        """A linear layer or a 1x1(x1) convolution with its weight as ``[out, in]``."""
        return Affine(self.weight.flatten(1), self.bias, self.packed)

    def as_conv3d(self) -> Affine:
        """A convolution with its weight as ``[out, in, kt, kh, kw]``: a 2-D one has ``kt = 1``."""
        weight = self.weight
        return Affine(weight.unsqueeze(2) if weight.dim() == 4 else weight, self.bias)

    def scale_output(self, scale: Tensor, shift: Tensor | float = 0.0) -> Affine:
        """The layer that computes ``scale * layer(x) + shift`` (per output channel)."""
        weight = scale.reshape(-1, *[1] * (self.weight.dim() - 1)) * self.weight
        bias = shift if self.bias is None else scale * self.bias + shift
        return self._cast(weight, bias if isinstance(bias, Tensor) else None)

    def _cast(self, weight: Tensor, bias: Tensor | None) -> Affine:
        """Scaled in the wider of two dtypes, kept in the layer's."""
        dtype = self.weight.dtype
        return Affine(weight.to(dtype), None if bias is None else bias.to(dtype))


class LayerNorm(NamedTuple):
    """A LayerNorm over the channels."""

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, module: nn.LayerNorm) -> LayerNorm:
        """The parameters of an ``nn.LayerNorm``."""
        return cls(module.weight, module.bias, module.eps)


class BatchNorm(NamedTuple):
    """One call of a BatchNorm over the channels.

    ``training`` says that the statistics are the batch's; the running ones, where there are any,
    are then updated in place, ``running += momentum * (batch - running)``. With a ``group`` of
    processes the batch is that of all of them.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    eps: float
    momentum: float
    training: bool
    group: Any = None

    @classmethod
    def of(cls, module: nn.modules.batchnorm._BatchNorm) -> BatchNorm:
        """What a BatchNorm module does in its next call, which this counts as it would."""
        momentum = module.momentum
        updates = module.training and module.track_running_stats
        if updates and module.num_batches_tracked is not None:
            module.num_batches_tracked.add_(1)
            if momentum is None:  # a cumulative average
                momentum = 1.0 / float(module.num_batches_tracked)
        tracked = updates or not module.training
        return cls(
            module.weight,
            module.bias,
            module.running_mean if tracked else None,
            module.running_var if tracked else None,
            module.eps,
            momentum or 0.0,
            module.training or module.running_mean is None,
            synchronised_group(module) if isinstance(module, nn.SyncBatchNorm) else None,
        )

    def scale_shift(self) -> tuple[Tensor, Tensor]:
        """The norm by its running statistics, as ``scale * x + shift``; at least float32."""
        var = self.running_var
        scale = (var.to(torch.promote_types(var.dtype, torch.float32)) + self.eps).rsqrt()
        if self.weight is not None:
            scale = self.weight * scale
        shift = -self.running_mean * scale
        return scale, shift if self.bias is None else self.bias + shift

    def count(self, x: Tensor) -> int:
        """The values per channel that are behind the statistics of ``[..., C]``.

        Raises:
            ValueError: one value per channel.
        """
        count = math.prod(x.shape[:-1])
        if self.group is not None:  # of all processes, as if each had as many
            return max(count, 1) * self.group.size()
        if count == 1:
            raise ValueError(
                "Expected more than 1 value per channel when training, "
                f"got input size {list(x.shape)}"
            )
        return count

    def update(self, statistics: Tensor) -> None:
        """Move any running statistics towards a batch's mean and unbiased variance."""
        if self.running_mean is None:
            return
        running = [self.running_mean, self.running_var]
        with torch.no_grad():
            # One launch on a GPU.
            torch._foreach_lerp_(running, list(statistics.to(running[0].dtype)), self.momentum)
