"""UniFormerV2 for video clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from uniformer_kernels.blocks import frame_tokens, layer

from ..features import FeatureInfo
from ..layers import VideoTransformer
from ..layers.v2 import FUSIONS, LOCAL_MHRA
from ..registry import register
from .base import VIDEO_INPUT, Classifier
from .video import single_pathway

_LARGE = {"dim": 1024, "depth": 24, "num_heads": 16, "patch_size": 14}


@register(
    uniformerv2_b16={"dim": 768, "depth": 12, "num_heads": 12, "patch_size": 16},
    uniformerv2_l14=_LARGE,
    uniformerv2_l14_336={**_LARGE, "resolution": 336},
)
class UniFormerV2(Classifier):
    """UniFormerV2 on clips ``[B, in_chans, T, H, W]`` (arXiv 2211.09552, section 3).

    An image transformer runs over every frame, temporal aggregators between its layers; a token of
    the video gathers from the outputs of ``return_layers`` and is mixed with the class tokens.
    Aggregators and global blocks start as nothing: at first the logits are those of half the mean
    class token. The parameters have the names and shapes of the official ones.

    Args:
        dim: channels.
        depth: layers of the image transformer.
        num_heads: heads of every attention. It leaves no trace in a checkpoint.
        patch_size: side of a patch.
        resolution: height and width of a frame, a multiple of ``patch_size``.
        num_frames: frames of the input clip.
        temporal_downsample: whether the first convolution halves time; ``num_frames`` is even.
        local_mhra: temporal aggregators of a layer: ``"none"``, ``"single"`` (before the attention)
            or ``"double"`` (also behind it).
        dw_reduction: factor by which the aggregators have fewer channels than the layer.
        return_layers: layers, rising from 0, with a global block behind them; the last four by
            default.
        fusion: how the video token goes through the global blocks. ``"sequential"``: from one to
            the next, as in every released model. The others of the paper's ablation are
            **experimental**: they are built from its description alone, no code or weights of them
            exist, and their extra parameters have names of our own. Every global block has its own
            query in them, and ``"parallel"`` projects all results to one; ``"hierarchical_kv"``
            appends the token before to the memory; ``"hierarchical_q"`` adds it to the query.
        frozen: whether the image transformer, aggregators included, learns nothing, and the video
            token alone is classified. BatchNorm's running statistics move all the same.
        in_chans: channels of the input.
        num_classes: outputs of the head; 0 leaves the normalised features.
        dropout: rate in front of the classifier and inside the global blocks.
        backbone_drop_path_rate: stochastic depth of the last layer; it rises evenly from 0.
        drop_path_rate: the same for the global blocks.

    Raises:
        ValueError: a keyword's value is none of those there are.
    """

    classifiers = ("transformer.proj.2",)
    input_cfg = VIDEO_INPUT

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        patch_size: int,
        resolution: int = 224,
        num_frames: int = 8,
        temporal_downsample: bool = False,
        local_mhra: str = "double",
        dw_reduction: float = 1.5,
        return_layers: Sequence[int] | None = None,
        fusion: str = "sequential",
        frozen: bool = False,
        in_chans: int = 3,
        num_classes: int = 400,
        dropout: float = 0.5,
        backbone_drop_path_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if return_layers is None:
            return_layers = range(max(depth - 4, 0), depth)
        gathered = sorted(set(return_layers) & set(range(depth)))
        for name, value, fits, wanted in (
            ("local_mhra", local_mhra, local_mhra in LOCAL_MHRA, _any_of(LOCAL_MHRA)),
            ("fusion", fusion, fusion in FUSIONS, _any_of(FUSIONS)),
            (
                "return_layers",
                list(return_layers),
                gathered and gathered == list(return_layers),
                f"rising numbers from 0 to {depth - 1}, at least one",
            ),
            (
                "num_frames",
                num_frames,
                num_frames > 0 and not (temporal_downsample and num_frames % 2),
                "an even number of frames" if temporal_downsample else "at least 1 frame",
            ),
            (
                "resolution",
                resolution,
                resolution > 0 and resolution % patch_size == 0,
                f"a multiple of the patch size {patch_size}",
            ),
            ("dw_reduction", dw_reduction, 0 < dw_reduction <= dim, f"0 < factor <= {dim}"),
            ("dropout", dropout, 0 <= dropout < 1, "0 <= rate < 1"),
            (
                "backbone_drop_path_rate",
                backbone_drop_path_rate,
                0 <= backbone_drop_path_rate < 1,
                "0 <= rate < 1",
            ),
            ("drop_path_rate", drop_path_rate, 0 <= drop_path_rate < 1, "0 <= rate < 1"),
        ):
            if not fits:
                raise ValueError(f"{name}: expected {wanted}, got {value!r}")

        self.clip_shape = (in_chans, num_frames, resolution, resolution)
        self.num_features, self.num_classes, self.out_indices = (
            dim,
            num_classes,
            tuple(return_layers),
        )
        self.in_chans = in_chans
        self.feature_info = FeatureInfo(
            {"num_chs": dim, "reduction": patch_size, "module": f"transformer.resblocks.{index}"}
            for index in range(depth)
        )
        side = resolution // patch_size
        reach, step = (3, 2) if temporal_downsample else (1, 1)
        self.class_embedding = nn.Parameter(dim**-0.5 * torch.randn(dim))
        self.positional_embedding = nn.Parameter(dim**-0.5 * torch.randn(1 + side**2, dim))
        kernel = (reach, patch_size, patch_size)
        self.patch_stride, self.patch_padding = (step, patch_size, patch_size), (reach // 2, 0, 0)
        self.conv1 = nn.Conv3d(
            in_chans, dim, kernel, self.patch_stride, self.patch_padding, bias=False
        )
        self.ln_pre = nn.LayerNorm(dim)
        self.transformer = VideoTransformer(
            dim,
            depth=depth,
            num_heads=num_heads,
            grid=(side, side),
            return_layers=return_layers,
            fusion=fusion,
            balanced=not frozen,
            local_mhra=local_mhra,
            dw_reduction=dw_reduction,
            num_classes=num_classes,
            dropout=dropout,
            backbone_drop_path_rate=backbone_drop_path_rate,
            drop_path_rate=drop_path_rate,
        )
        if frozen:
            for part in (self.conv1, self.ln_pre, self.transformer.resblocks):
                part.requires_grad_(False)
            self.class_embedding.requires_grad_(False)
            self.positional_embedding.requires_grad_(False)

    def data_cfg(self, size: tuple[int, ...]) -> dict[str, Any]:
        """As of every model; the size is the only one that fits."""
        return super().data_cfg(self.clip_shape[1:])

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """Classify.

        Args:
            x: clips ``[B, in_chans, num_frames, resolution, resolution]`` of the parameters'
                dtype, or the one-element list of pathways PySlowFast passes.

        Returns:
            Logits ``[B, num_classes]``.

        Raises:
            ValueError: the shape is not that of the model's clips.
            TypeError: ``x`` is no floating-point tensor.
        """
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """The video's token, mixed with the mean class token, ``[B, dim]``."""
        return self.transformer(self._tokens(x))[0]

    def forward_intermediates(
        self, x: Tensor | Sequence[Tensor], indices: Sequence[int] | int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The features and maps on the way there.

        Args:
            x: as the model takes it.
            indices: the layers of the image transformer whose maps are returned, in this order; a
                number for the last ones; ``None`` for ``return_layers``.

        Returns:
            What ``forward_features`` returns, and the layers' patch tokens as contiguous maps
            ``[B, dim, T, H, W]``.

        Raises:
            ValueError, TypeError: there are no such layers, or ``x`` does not fit.
        """
        indices = self.feature_indices(indices)
        features, outputs = self.transformer(self._tokens(x), indices)
        grid = self.transformer.grid
        maps = [outputs[index][:, :, 1:].unflatten(2, grid).movedim(-1, 1) for index in indices]
        return features, [y.contiguous() for y in maps]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits ``[B, num_classes]`` of what ``forward_features`` returns.

        ``pre_logits`` stops in front of the classifier, at ``[B, dim]``.
        """
        proj = self.transformer.proj
        return proj[:2](features) if pre_logits else proj(features)

    def _tokens(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """The tokens of the frames, ``[B, T, 1 + HW, dim]``."""
        return frame_tokens(
            self._channels_last(x),
            proj=layer(self.conv1, 3),
            stride=self.patch_stride,
            padding=self.patch_padding,
            class_embedding=self.class_embedding,
            positional_embedding=self.positional_embedding,
            norm=layer(self.ln_pre),
        )

    def _channels_last(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """The checked input as a view ``[B, T, H, W, C]``."""
        x = single_pathway(x, "UniFormerV2")
        if not isinstance(x, Tensor) or not x.is_floating_point():
            came = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"UniFormerV2: x: expected a floating-point tensor, got {came}")
        if x.dim() != 5 or x.shape[1:] != self.clip_shape:
            chans, frames, resolution, _ = self.clip_shape
            raise ValueError(
                f"UniFormerV2: x: expected [B, {chans}, {frames}, {resolution}, {resolution}] "
                f"(in_chans={chans}, num_frames={frames}, resolution={resolution}), "
                f"got {list(x.shape)}"
            )
        return x.movedim(1, -1)


def _any_of(values: Sequence[str]) -> str:
    return " or ".join(map(repr, values))
