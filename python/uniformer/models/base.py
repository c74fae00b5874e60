"""What image and video models share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from uniformer_kernels.blocks import BatchNorm, batch_norm

from ..layers import smallest_input
from ..layers.basic import BATCH_NORM, linear

DIMS = (64, 128, 320, 512)
"""Channels of the four stages, in every released model."""


class UniFormer(nn.Module):
    """Four stages of a stem and blocks; then BatchNorm, the mean over positions, a linear head.

    Args:
        stems: four modules, ``[B, T, H, W, C]`` to the grid of their stage.
        local_block: makes a block of stages 1 and 2 from channels and ``drop_path``.
        global_block: makes a block of stages 3 and 4.
        depths: blocks of the four stages.
        axes: names of the input's axes behind the channels, ``"HW"`` or ``"THW"``.
        in_chans: channels of the input.
        num_classes: outputs of the head; 0 leaves the pooled features.
        drop_path_rate: stochastic depth of the last block; it rises evenly from 0 at the first.

    Raises:
        ValueError: ``drop_path_rate`` is not in ``[0, 1)``.
    """

    def __init__(
        self,
        stems: Sequence[nn.Module],
        local_block: Callable[..., nn.Module],
        global_block: Callable[..., nn.Module],
        *,
        depths: Sequence[int],
        axes: str,
        in_chans: int,
        num_classes: int,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate: expected 0 <= rate < 1, got {drop_path_rate}")
        last = sum(depths) - 1
        rates = (drop_path_rate * index / last for index in range(last + 1))

        def stage(block: Callable[..., nn.Module], dim: int, depth: int) -> nn.Sequential:
            return nn.Sequential(*[block(dim, drop_path=next(rates)) for _ in range(depth)])

        self.axes, self.in_chans = axes, in_chans
        self.smallest = smallest_input(stems)
        self.patch_embed1, self.patch_embed2, self.patch_embed3, self.patch_embed4 = stems
        self.blocks1 = stage(local_block, DIMS[0], depths[0])
        self.blocks2 = stage(local_block, DIMS[1], depths[1])
        self.blocks3 = stage(global_block, DIMS[2], depths[2])
        self.blocks4 = stage(global_block, DIMS[3], depths[3])
        self.norm = BATCH_NORM[len(axes)](DIMS[3])
        self.head = linear(DIMS[3], num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Classify.

        Args:
            x: images ``[B, in_chans, H, W]`` or clips ``[B, in_chans, T, H, W]``, of the
                parameters' dtype.

        Returns:
            Logits ``[B, num_classes]``.

        Raises:
            ValueError: rank or channels do not fit, or a stage's grid would be empty; names the
                smallest size that works.
            TypeError: ``x`` is no floating-point tensor.
        """
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The normalised map behind the last block, channels-last, ``[B, T', H', W', 512]``."""
        x = self._channels_last(x)
        x = self.blocks1(self.patch_embed1(x))
        x = self.blocks2(self.patch_embed2(x))
        x = self.blocks3(self.patch_embed3(x))
        x = self.blocks4(self.patch_embed4(x))
        return batch_norm(x, BatchNorm.of(self.norm))

    def forward_head(self, features: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` of what ``forward_features`` returns."""
        return self.head(features.mean((1, 2, 3)))

    def _channels_last(self, x: Tensor) -> Tensor:
        """The checked input as a view ``[B, T, H, W, C]``."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            came = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"{type(self).__name__}: x: expected a floating-point tensor, got {came}"
            )
        fits = (
            x.dim() == 2 + len(self.axes)
            and x.shape[1] == self.in_chans
            and all(n >= least for n, least in zip(x.shape[2:], self.smallest, strict=True))
        )
        if not fits:
            sizes = (f"{a} >= {n}" for a, n in zip(self.axes, self.smallest, strict=True))
            raise ValueError(
                f"{type(self).__name__}: x: expected [B, {self.in_chans}, {', '.join(sizes)}], "
                f"got {list(x.shape)}"
            )
        return (x if x.dim() == 5 else x.unsqueeze(2)).movedim(1, -1)
