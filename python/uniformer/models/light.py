"""The lightweight models: hourglass blocks in stages 3 and 4."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from uniformer_kernels.blocks import layer, layer_norm, pool_importance

from ..layers import ConvStem, HourglassBlock, LocalBlock, PatchStem, Stage
from ..layers.basic import BATCH_NORM, BLOCK_EPS, classifier, linear
from ..registry import register
from .base import VIDEO_INPUT, Backbone, DenseBackbone, PooledClassifier
from .video import single_pathway

_XXS: dict[str, Any] = {"dims": (56, 112, 224, 448), "depths": (2, 5, 8, 2), "head_dim": 28}
_XS: dict[str, Any] = {"dims": (64, 128, 256, 512), "depths": (3, 5, 9, 3), "head_dim": 32}


class LightBackbone(Backbone):
    """Local blocks in stages 1 and 2, hourglass blocks in 3 and 4 (TPAMI 2023, section 3.4).

    A score token walks along through stages 3 and 4. Its attention makes the importance of the
    tokens, which goes from block to block, and from stage 3 to 4 by average pooling. The first
    hourglass block keeps every token, for there is no importance yet to choose by.

    Args:
        axes: names of the input's axes behind the channels, ``"HW"`` or ``"THW"``.
        layer_scale: what the layer scales of all blocks start from, ``None`` for none.
        stage_norm: makes ``norm1`` to ``norm4`` from their stage's channels, ``None`` for none.
        dims: channels of the four stages.
        depths: blocks of the four stages.
        head_dim: channels of an attention head. It leaves no trace in a checkpoint.
        keep: the part of the tokens the hourglass blocks keep, rounded down.
        score: ``"token"``, or ``"mean"`` for the paper's ablation without a score token: the
            importance is the mean of all rows of the attention. The token itself stays, as the
            second classifier's, and so do all weights.
        running_mean: whether a block's importance is averaged with the one before, as equals; the
            other ablation is without.
        in_chans: channels of the input.
        drop_path_rate: stochastic depth of the last block; it rises evenly from 0 at the first.

    Raises:
        ValueError: ``keep`` is not in ``(0, 1]``, ``drop_path_rate`` not in ``[0, 1)``, or
            ``score`` none of the values there are.
    """

    def __init__(
        self,
        axes: str,
        layer_scale: float | None = None,
        stage_norm: Callable[[int], nn.Module] | None = None,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        head_dim: int,
        keep: float = 0.5,
        score: str = "token",
        running_mean: bool = True,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
    ) -> None:
        if not 0 < keep <= 1:
            raise ValueError(f"keep: expected 0 < keep <= 1, got {keep}")
        if score not in ("token", "mean"):
            raise ValueError(f"score: expected 'token' or 'mean', got {score!r}")
        common = {"ndim": len(axes), "mlp_ratio": 3, "layer_scale": layer_scale}
        time_strides, patch = ((), (2, 2)) if axes == "HW" else ((1, 2), (1, 2, 2))
        super().__init__(
            [
                ConvStem(in_chans, dims[0] // 2, dims[0], temporal_strides=time_strides),
                *(PatchStem(*sizes, kernel=patch, stride=patch) for sizes in pairwise(dims)),
            ],
            partial(LocalBlock, **common),
            partial(
                HourglassBlock,
                head_dim=head_dim,
                keep=keep,
                score=score,
                running_mean=running_mean,
                **common,
            ),
            dims=dims,
            depths=depths,
            axes=axes,
            in_chans=in_chans,
            drop_path_rate=drop_path_rate,
            stage_norm=stage_norm,
            before_blocks={"cls_upsample": linear(dims[2], dims[3])},
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims[2]))

    def _maps(self, x: Tensor) -> Iterator[Tensor]:
        return (y for y, _ in self._stages(x))

    def _stages(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The maps behind the four stages, and the score token behind those that have one."""
        x = self.blocks1(self.patch_embed1(self._channels_last(x)))
        yield x, None
        x = self.blocks2(self.patch_embed2(x))
        yield x, None

        x = self.patch_embed3(x)
        score_token = self.cls_token.to(x.dtype).expand(x.shape[0], -1, -1)
        x, score_token, importance = _through(self.blocks3, x, score_token, None)
        yield x, score_token

        importance = pool_importance(importance, x.shape[1:4])
        score_token = self.cls_upsample(score_token).to(x.dtype)
        x = self.patch_embed4(x)
        x, score_token, _ = _through(self.blocks4, x, score_token, importance)
        yield x, score_token


def _through(
    stage: Stage, x: Tensor, score_token: Tensor, importance: Tensor | None
) -> tuple[Tensor, Tensor, Any]:
    state = x, score_token, importance
    for block in stage.calls():
        state = block(*state)
    return state


class LightUniFormer(PooledClassifier, LightBackbone):
    """A backbone with two classifiers: of the mean over positions and of the score token.

    Args:
        axes: names of the input's axes behind the channels, ``"HW"`` or ``"THW"``.
        layer_scale: what the layer scales of all blocks start from, ``None`` for none.
        num_classes: outputs of both heads; 0 leaves their features.
        **keywords: of the backbone.
    """

    classifiers = ("head", "head_cls")

    def __init__(
        self, axes: str, layer_scale: float | None = None, *, num_classes: int, **keywords: Any
    ) -> None:
        super().__init__(axes, layer_scale, **keywords)
        dim, self.num_classes = self.num_features, num_classes
        self.norm = BATCH_NORM[len(axes)](dim)
        self.norm_cls = nn.LayerNorm(dim)
        self.head = classifier(dim, num_classes)
        self.head_cls = classifier(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Classify.

        Args:
            x: images ``[B, in_chans, H, W]`` or clips ``[B, in_chans, T, H, W]``, of the
                parameters' dtype.

        Returns:
            Logits ``[B, num_classes]``; in training a pair, the other ones being the score
            token's. Both have the same targets, the official loss is the mean of theirs.

        Raises:
            ValueError: rank or channels do not fit, or a stage's grid would be empty; names the
                smallest size that works.
            TypeError: ``x`` is no floating-point tensor.
        """
        *_, (last, score_token) = self._stages(x)
        logits = self.forward_head(self._normalised(last))
        if not self.training:
            return logits
        return logits, self.head_cls(layer_norm(score_token[:, 0], layer(self.norm_cls)))


@register(uniformer_xxs=_XXS, uniformer_xs=_XS)
class ImageLightUniFormer(LightUniFormer):
    """The lightweight UniFormer on images ``[B, in_chans, H, W]`` (TPAMI 2023, table 2)."""

    def __init__(self, *, num_classes: int = 1000, **keywords: Any) -> None:
        super().__init__("HW", num_classes=num_classes, **keywords)


@register(uniformer_video_xxs=_XXS, uniformer_video_xs=_XS)
class VideoLightUniFormer(LightUniFormer):
    """The lightweight UniFormer on clips ``[B, in_chans, T, H, W]``; ``T' = ceil(T / 2)``.

    Args:
        layer_scale_init: what the layer scales of all blocks start from, ``None`` for none.
        num_classes: outputs of both heads; 0 leaves their features.
        **keywords: of the backbone.
    """

    input_cfg = VIDEO_INPUT

    def __init__(
        self, *, layer_scale_init: float | None = None, num_classes: int = 400, **keywords: Any
    ) -> None:
        super().__init__("THW", layer_scale_init, num_classes=num_classes, **keywords)

    def _channels_last(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        return super()._channels_last(single_pathway(x, "VideoLightUniFormer"))


@register(uniformer_dense_xxs=_XXS, uniformer_dense_xs=_XS)
class DenseLightUniFormer(DenseBackbone, LightBackbone):
    """The lightweight UniFormer as a backbone for images ``[B, in_chans, H, W]`` of any size.

    Args:
        **keywords: ``out_indices`` and ``norm_eval``, and those of the light backbone.

    Raises:
        ValueError: a keyword's value is none of those there are.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__("HW", None, partial(nn.LayerNorm, eps=BLOCK_EPS), **keywords)
