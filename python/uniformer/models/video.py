"""UniFormer for video clips."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from ..layers import DividedBlock, GlobalBlock, LocalBlock, PatchStem
from ..registry import register
from .base import DIMS, VIDEO_INPUT, UniFormer


@register(
    uniformer_video_small={"depths": (3, 4, 8, 3)},
    uniformer_video_base={"depths": (5, 8, 20, 7)},
)
class VideoUniFormer(UniFormer):
    """UniFormer on clips ``[B, in_chans, T, H, W]`` (ICLR 2022, section 3).

    Time is halved once, by the first stem: ``T' = ceil(T / 2)``. Nothing but the layers' shapes
    depends on the size, so one model takes any number of frames.

    Args:
        depths: blocks of the four stages: two local, two global ones.
        head_dim: channels of an attention head. It leaves no trace in a checkpoint.
        attention: ``"joint"`` over space and time, or ``"divided"`` into the two.
        temporal_patch: whether the stems of stages 2 to 4 reach over three frames.
        in_chans: channels of the input.
        num_classes: outputs of the head; 0 leaves the pooled features.
        drop_path_rate: stochastic depth of the last block; it rises evenly from 0 at the first.

    Raises:
        ValueError: ``attention`` or ``drop_path_rate`` is none of the values there are.
    """

    input_cfg = VIDEO_INPUT

    def __init__(
        self,
        *,
        depths: Sequence[int],
        head_dim: int = 64,
        attention: str = "joint",
        temporal_patch: bool = False,
        in_chans: int = 3,
        num_classes: int = 400,
        drop_path_rate: float = 0.0,
    ) -> None:
        if attention not in ("joint", "divided"):
            raise ValueError(f"attention: expected 'joint' or 'divided', got {attention!r}")
        block = partial(GlobalBlock, ndim=3) if attention == "joint" else DividedBlock
        reach = 3 if temporal_patch else 1

        def stem(dim_in: int, dim: int) -> nn.Module:
            kernel, padding = (reach, 2, 2), (reach // 2, 0, 0)
            return PatchStem(dim_in, dim, kernel=kernel, stride=(1, 2, 2), padding=padding)

        first = PatchStem(in_chans, DIMS[0], kernel=(3, 4, 4), stride=(2, 4, 4), padding=(1, 0, 0))
        super().__init__(
            [first, *(stem(*dims) for dims in pairwise(DIMS))],
            partial(LocalBlock, ndim=3),
            partial(block, head_dim=head_dim),
            depths=depths,
            axes="THW",
            in_chans=in_chans,
            num_classes=num_classes,
            drop_path_rate=drop_path_rate,
        )

    def _channels_last(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        return super()._channels_last(single_pathway(x, "VideoUniFormer"))


def single_pathway(x: Tensor | Sequence[Tensor], model: str) -> Tensor:
    """The clip in a list of one pathway; anything else as it is."""
    if not isinstance(x, (list, tuple)):
        return x
    if len(x) != 1:
        raise ValueError(f"{model}: x: expected one pathway, got {len(x)}")
    return x[0]
