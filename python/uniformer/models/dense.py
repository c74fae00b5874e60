"""UniFormer as a backbone for dense prediction: detection, segmentation, pose."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from ..layers import LocalBlock, PatchStem, WindowBlock
from ..layers.basic import BLOCK_EPS
from ..registry import register
from .base import DIMS, DenseBackbone


@register(
    uniformer_dense_small={"depths": (3, 4, 8, 3)},
    uniformer_dense_base={"depths": (5, 8, 20, 7)},
)
class DenseUniFormer(DenseBackbone):
    """UniFormer on images ``[B, in_chans, H, W]``, for the maps of its stages (TPAMI 2023, 3.4).

    Args:
        depths: blocks of the four stages: two local, two global ones.
        head_dim: channels of an attention head. It leaves no trace in a checkpoint.
        attention, window_size: of stage 3, see ``set_attention``.
        out_indices: the stages, from 0 to 3, whose maps are returned, in this order.
        norm_eval: whether BatchNorm goes by its running statistics, and leaves them, in training.
        checkpoint_blocks: of every stage, how many first blocks keep no activations but compute
            them once more in the backward pass.
        in_chans: channels of the input.
        drop_path_rate: stochastic depth of the last block; it rises evenly from 0 at the first.

    Raises:
        ValueError: a keyword's value is none of those there are.
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        head_dim: int = 64,
        attention: str = "global",
        window_size: int = 14,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        norm_eval: bool = False,
        checkpoint_blocks: Sequence[int] = (0, 0, 0, 0),
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
    ) -> None:
        if len(checkpoint_blocks) != 4 or any(
            not 0 <= count <= depth for count, depth in zip(checkpoint_blocks, depths, strict=True)
        ):
            raise ValueError(
                f"checkpoint_blocks: expected four numbers up to {', '.join(map(str, depths))}, "
                f"got {list(checkpoint_blocks)}"
            )
        sizes = zip((in_chans, *DIMS[:3]), DIMS, (4, 2, 2, 2), strict=True)
        super().__init__(
            [PatchStem(a, b, kernel=(p, p), stride=(p, p)) for a, b, p in sizes],
            partial(LocalBlock, ndim=2),
            partial(WindowBlock, head_dim=head_dim, ndim=2),
            dims=DIMS,
            depths=depths,
            axes="HW",
            in_chans=in_chans,
            drop_path_rate=drop_path_rate,
            stage_norm=partial(nn.LayerNorm, eps=BLOCK_EPS),
            out_indices=out_indices,
            norm_eval=norm_eval,
        )
        for number, count in enumerate(checkpoint_blocks, 1):
            self.get_submodule(f"blocks{number}").recomputed = count
        self.set_attention(attention, window_size)

    def set_attention(self, attention: str, window_size: int = 14) -> None:
        """Choose how far the tokens of stage 3 see; no weight depends on it.

        Args:
            attention: ``"global"``, over the whole grid; ``"window"``, inside windows; or
                ``"hybrid"``, every fourth block global and the others inside windows.
            window_size: height and width of a window; may exceed the grid's.

        Raises:
            ValueError: a value is none of those there are.
        """
        if attention not in ("global", "window", "hybrid"):
            raise ValueError(
                f"attention: expected 'global', 'window' or 'hybrid', got {attention!r}"
            )
        if window_size < 1:
            raise ValueError(f"window_size: expected at least 1, got {window_size}")
        for number, block in enumerate(self.blocks3, 1):
            everywhere = attention == "global" or (attention == "hybrid" and number % 4 == 0)
            block.window_size = None if everywhere else window_size
