"""What the models share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from uniformer_kernels.blocks import BatchNorm, batch_norm

from ..layers import Stage, smallest_input
from ..layers.basic import BATCH_NORM, linear

DIMS = (64, 128, 320, 512)
"""Channels of the four stages, in most released models."""


class Backbone(nn.Module):
    """Four stages of a stem and blocks.

    Args:
        stems: four modules, ``[B, T, H, W, C]`` to the grid of their stage.
        local_block: makes a block of stages 1 and 2 from channels and ``drop_path``.
        global_block: makes a block of stages 3 and 4.
        dims: channels of the four stages.
        depths: blocks of the four stages.
        axes: names of the input's axes behind the channels, ``"HW"`` or ``"THW"``.
        in_chans: channels of the input.
        drop_path_rate: stochastic depth of the last block; it rises evenly from 0 at the first.
        stage_norm: makes ``norm1`` to ``norm4`` from their stage's channels; there are none
            without it.
        before_blocks: modules that the official order has between the stems and the blocks.

    Raises:
        ValueError: ``drop_path_rate`` is not in ``[0, 1)``.
    """

    def __init__(
        self,
        stems: Sequence[nn.Module],
        local_block: Callable[..., nn.Module],
        global_block: Callable[..., nn.Module],
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        axes: str,
        in_chans: int,
        drop_path_rate: float,
        stage_norm: Callable[[int], nn.Module] | None = None,
        before_blocks: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate: expected 0 <= rate < 1, got {drop_path_rate}")
        last = sum(depths) - 1
        rates = (drop_path_rate * index / last for index in range(last + 1))
        blocks = (local_block, local_block, global_block, global_block)

        self.axes, self.in_chans = axes, in_chans
        self.smallest = smallest_input(stems)
        self.patch_embed1, self.patch_embed2, self.patch_embed3, self.patch_embed4 = stems
        for name, module in (before_blocks or {}).items():
            self.add_module(name, module)
        for number, (block, dim, depth) in enumerate(zip(blocks, dims, depths, strict=True), 1):
            stage = Stage(*[block(dim, drop_path=next(rates)) for _ in range(depth)])
            self.add_module(f"blocks{number}", stage)
            if stage_norm is not None:
                self.add_module(f"norm{number}", stage_norm(dim))

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


class UniFormer(Backbone):
    """A backbone; then BatchNorm, the mean over positions, a linear head.

    Args:
        stems, local_block, global_block: what a backbone is made of.
        depths: blocks of the four stages.
        axes: names of the input's axes behind the channels, ``"HW"`` or ``"THW"``.
        in_chans: channels of the input.
        num_classes: outputs of the head; 0 leaves the pooled features.
        drop_path_rate: stochastic depth of the last block; it rises evenly from 0 at the first.
        dims: channels of the four stages.

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
        dims: Sequence[int] = DIMS,
    ) -> None:
        super().__init__(
            stems,
            local_block,
            global_block,
            dims=dims,
            depths=depths,
            axes=axes,
            in_chans=in_chans,
            drop_path_rate=drop_path_rate,
        )
        self.norm = BATCH_NORM[len(axes)](dims[-1])
        self.head = linear(dims[-1], num_classes) if num_classes else nn.Identity()

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
        """The normalised map behind the last block, channels-last, ``[B, T', H', W', C]``."""
        return self._behind_stem(self.patch_embed1(self._channels_last(x)))

    def forward_head(self, features: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` of what ``forward_features`` returns."""
        return self.head(features.mean((1, 2, 3)))

    def _behind_stem(self, x: Tensor) -> Tensor:
        """``forward_features`` of what the first stem returns."""
        x = self.blocks1(x)
        x = self.blocks2(self.patch_embed2(x))
        x = self.blocks3(self.patch_embed3(x))
        x = self.blocks4(self.patch_embed4(x))
        return batch_norm(x, BatchNorm.of(self.norm))
