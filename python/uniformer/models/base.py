"""What the models share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from uniformer_kernels.blocks import batch_norm, layer, layer_norm

from ..features import FeatureInfo
from ..layers import Stage, smallest_input
from ..layers.basic import BATCH_NORM, classifier
from ..normalisation import MEAN, STD
from ..weights import CheckpointError

DIMS = (64, 128, 320, 512)
"""Channels of the four stages, in most released models."""


IMAGE_INPUT = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
}
"""How images become inputs: ImageNet's normalisation, the centre of a slightly larger image."""

VIDEO_INPUT = {
    "mean": (MEAN,) * 3,
    "std": (STD,) * 3,
    "interpolation": "bilinear",
    "crop_pct": 1.0,
}
"""How clips become inputs."""


class Model(nn.Module):
    """What every model has, under the names that people know from timm.

    ``feature_info`` tells the maps there are, ``out_indices`` those that are returned by default,
    ``num_features`` the channels behind the last of them.
    """

    feature_info: FeatureInfo
    out_indices: tuple[int, ...]
    num_features: int
    in_chans: int
    num_classes = 0
    classifiers: tuple[str, ...] = ()
    input_cfg: Mapping[str, Any] = IMAGE_INPUT

    def data_cfg(self, size: tuple[int, ...]) -> dict[str, Any]:
        """How inputs, usually of ``size``, are made; layers that depend on them and the classes."""
        convs = (key for key, m in self.named_modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
        names = self.classifiers if len(self.classifiers) > 1 else "".join(self.classifiers)
        return {
            "input_size": (self.in_chans, *size),
            **self.input_cfg,
            "num_classes": self.num_classes,
            "classifier": names or None,
            "first_conv": next(convs),
        }

    def feature_indices(self, indices: Sequence[int] | int | None = None) -> tuple[int, ...]:
        """What ``indices`` chooses among the maps: a number the last ones, ``None`` the usual.

        Raises:
            ValueError: there are no such maps.
        """
        if indices is None:
            return self.out_indices
        count = len(self.feature_info)
        wanted = range(-indices, 0) if isinstance(indices, int) else indices
        if not wanted or not all(-count <= index < count for index in wanted):
            raise ValueError(f"indices: expected some of {count} maps, got {indices}")
        return tuple(index % count for index in wanted)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks keep no activations but compute them once more in the backward pass."""
        for stage in self.modules():
            if isinstance(stage, Stage):
                stage.recomputed = len(stage) if enable else 0

    def no_weight_decay(self) -> set[str]:
        """The parameters that the official recipes name as not to decay, besides 1-D ones."""
        return {"pos_embed", "cls_token"}

    def save_pretrained(self, folder: str | PathLike[str], **options: Any) -> Path:
        """As ``uniformer.hub.save_pretrained``."""
        from ..hub import save_pretrained  # which knows the models

        return save_pretrained(self, folder, **options)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """As ``uniformer.hub.push_to_hub``."""
        from ..hub import push_to_hub

        return push_to_hub(self, repository, **options)

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], **options: Any) -> Model:
        """As ``uniformer.hub.from_pretrained``.

        Raises:
            CheckpointError: as there; or the model saved is not of this class.
        """
        from ..hub import from_pretrained

        model = from_pretrained(source, **options)
        if not isinstance(model, cls):
            raise CheckpointError(
                f"from_pretrained: source: expected a {cls.__name__}, got {str(source)!r}: "
                f"a {type(model).__name__}"
            )
        return model


class Classifier(Model):
    """A model with classifiers, the layers ``classifiers``; the first makes the logits."""

    def get_classifier(self) -> nn.Module:
        """The layer that makes the logits; an identity when there are no classes."""
        return self.get_submodule(self.classifiers[0])

    def reset_classifier(self, num_classes: int) -> None:
        """Replace all classifiers by freshly initialised ones; 0 leaves their features."""
        like = next(self.parameters())
        for name in self.classifiers:
            self.set_submodule(name, classifier(self.num_features, num_classes).to(like))
        self.num_classes = num_classes
        if created := getattr(self, "pretrained_cfg", None):
            created["num_classes"] = num_classes
            created["keywords"] = {**created["keywords"], "num_classes": num_classes}


class Backbone(Model):
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
        self.num_features = dims[-1]
        self.feature_info = FeatureInfo(
            {"num_chs": dim, "reduction": 4 * 2**index, "module": f"blocks{index + 1}"}
            for index, dim in enumerate(dims)
        )
        self.out_indices = (0, 1, 2, 3)
        self.smallest = smallest_input(stems)
        self.patch_embed1, self.patch_embed2, self.patch_embed3, self.patch_embed4 = stems
        for name, module in (before_blocks or {}).items():
            self.add_module(name, module)
        for number, (block, dim, depth) in enumerate(zip(blocks, dims, depths, strict=True), 1):
            stage = Stage(*[block(dim, drop_path=next(rates)) for _ in range(depth)])
            self.add_module(f"blocks{number}", stage)
            if stage_norm is not None:
                self.add_module(f"norm{number}", stage_norm(dim))

    def forward_features(self, x: Tensor) -> Tensor:
        """The normalised map behind the last block, channels-last, ``[B, T', H', W', C]``."""
        return self._normalised(self._pick(self._maps(x))[0])

    def forward_intermediates(
        self, x: Tensor, indices: Sequence[int] | int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The features and maps on the way there.

        Args:
            x: as the model takes it.
            indices: the stages whose maps are returned, in this order; a number for the last ones;
                ``None`` for ``out_indices``.

        Returns:
            What ``forward_features`` returns, and contiguous maps ``[B, C, H, W]`` or
            ``[B, C, T, H, W]``, normalised where the stages have norms.

        Raises:
            ValueError: there are no such stages, or ``x`` does not fit.
            TypeError: ``x`` is no floating-point tensor.
        """
        last, maps = self._pick(self._maps(x), self.feature_indices(indices))
        return self._normalised(last), maps

    def _maps(self, x: Tensor) -> Iterator[Tensor]:
        """The maps behind the four stages, ``[B, T', H', W', C]``, one by one."""
        return self._behind_stem(self.patch_embed1(self._channels_last(x)))

    def _behind_stem(self, x: Tensor) -> Iterator[Tensor]:
        """``_maps`` of what the first stem returns."""
        yield (x := self.blocks1(x))
        yield (x := self.blocks2(self.patch_embed2(x)))
        yield (x := self.blocks3(self.patch_embed3(x)))
        yield self.blocks4(self.patch_embed4(x))

    def _pick(
        self, maps: Iterable[Tensor], indices: Collection[int] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """The last of the maps, and those asked for as ``forward_intermediates`` returns them."""
        picked = {}
        for index, x in enumerate(maps):
            if index in indices:
                norm = getattr(self, f"norm{index + 1}", None)
                y = (x if norm is None else layer_norm(x, layer(norm))).movedim(-1, 1)
                picked[index] = (y.squeeze(2) if self.axes == "HW" else y).contiguous()
        return x, [picked[index] for index in indices]

    def _normalised(self, x: Tensor) -> Tensor:
        """The last map as the features."""
        raise NotImplementedError

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


class PooledClassifier(Classifier):
    """The classifier of a backbone: BatchNorm, the mean over positions, a linear head."""

    classifiers = ("head",)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits ``[B, num_classes]`` of what ``forward_features`` returns.

        ``pre_logits`` stops in front of the classifier, at ``[B, num_features]``.
        """
        pooled = features.mean((1, 2, 3))
        return pooled if pre_logits else self.head(pooled)

    def _normalised(self, x: Tensor) -> Tensor:
        return batch_norm(x, layer(self.norm, len(self.axes)))


class UniFormer(PooledClassifier, Backbone):
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
        self.num_classes = num_classes
        self.norm = BATCH_NORM[len(axes)](dims[-1])
        self.head = classifier(dims[-1], num_classes)

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


class DenseBackbone(Backbone):
    """A backbone that returns the maps of its stages behind their norms.

    Args:
        *parts, **keywords: of the backbone.
        out_indices: the stages, from 0 to 3, whose maps are returned, in this order.
        norm_eval: whether BatchNorm goes by its running statistics, and leaves them, in training.

    Raises:
        ValueError: a keyword's value is none of those there are.
    """

    def __init__(
        self,
        *parts: Any,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        norm_eval: bool = False,
        **keywords: Any,
    ) -> None:
        if not out_indices or not set(out_indices) <= {0, 1, 2, 3}:
            raise ValueError(f"out_indices: expected some of 0, 1, 2, 3, got {list(out_indices)}")
        super().__init__(*parts, **keywords)
        self.out_indices, self.norm_eval = tuple(out_indices), norm_eval
        self.train()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The maps of the stages ``out_indices``, a tuple whatever their number.

        Args:
            x: images ``[B, in_chans, H, W]`` of the parameters' dtype.

        Returns:
            For stage ``i``, ``[B, C, H', W']`` with ``H' = H // 2 ** (i + 2)`` behind a patch
            stem, contiguous.

        Raises:
            ValueError: rank or channels do not fit, or a stage's grid would be empty; names the
                smallest size that works.
            TypeError: ``x`` is no floating-point tensor.
        """
        return tuple(self._pick(self._maps(x), self.out_indices)[1])

    def train(self, mode: bool = True) -> DenseBackbone:
        """As for every module; ``norm_eval`` keeps BatchNorm in evaluation."""
        super().train(mode)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def _normalised(self, x: Tensor) -> Tensor:
        return layer_norm(x, layer(self.norm4))
