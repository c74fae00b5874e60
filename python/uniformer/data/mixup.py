"""Mixup and cutmix: a batch's clips mixed with one another, and their labels likewise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Mixup:
    """Mix every clip of a batch with that at its place from the end, by one share for all.

    Mixup (Zhang et al. 2018) adds up clips weighted ``λ`` and ``1 - λ`` with
    ``λ ~ Beta(mixup, mixup)``. Cutmix (Yun et al. 2019) takes a box of the other clip, the same in
    all frames, over ``1 - λ`` of the picture, with ``λ ~ Beta(cutmix, cutmix)``, then corrected for
    what of the box is outside. Labels become probabilities, smoothed, ``1 - s + s / K`` on and
    ``s / K`` off, and mixed by ``λ``.

    Args:
        num_classes: K.
        mixup: α of mixup's λ; 0 for cutmix alone.
        cutmix: α of cutmix's λ; 0 for mixup alone.
        probability: that a batch is mixed at all.
        switch: that a mixed batch is cut, where there are both.
        smoothing: s.

    Raises:
        ValueError: a number is out of its range.
    """

    num_classes: int
    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {self.num_classes}")
        for name in ("mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        for name in ("probability", "switch", "smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)}")

    def __call__(
        self, clips: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            clips: ``[B, 3, T, H, W]``; not changed.
            labels: int64 ``[B]``.
            generator: source of randomness, a CPU one; PyTorch's default if None.

        Returns:
            The mixed clips, and probabilities ``[B, num_classes]`` in float32.

        Raises:
            ValueError: a label is not in ``[0, num_classes)``.
        """
        targets = self.smooth(labels)
        share, cut = self._draw(generator)
        if share == 1:
            return clips, targets
        if cut:
            H, W = clips.shape[-2:]
            top, bottom, left, right = _box(H, W, share, generator)
            box = (..., slice(top, bottom), slice(left, right))
            mixed = clips.clone()
            mixed[box] = clips.flip(0)[box]
            clips, share = mixed, 1 - (bottom - top) * (right - left) / (H * W)
        else:
            clips = share * clips + (1 - share) * clips.flip(0)
        return clips, share * targets + (1 - share) * targets.flip(0)

    def smooth(self, labels: Tensor) -> Tensor:
        """Smoothed probabilities, float32 ``[B, num_classes]``, of labels that are not mixed."""
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(
                f"labels: expected 0 <= label < {self.num_classes}, "
                f"got {int(labels.min())} to {int(labels.max())}"
            )
        on = F.one_hot(labels, self.num_classes).float()
        return on * (1 - self.smoothing) + self.smoothing / self.num_classes

    def _draw(self, generator: torch.Generator | None) -> tuple[float, bool]:
        """λ, and whether it is cutmix's."""
        mixes, switches = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        cut = self.cutmix > 0 and (self.mixup == 0 or switches < self.switch)
        alpha = self.cutmix if cut else self.mixup
        if alpha == 0 or mixes >= self.probability:
            return 1.0, False
        return _beta(alpha, generator), cut


def _beta(alpha: float, generator: torch.Generator | None) -> float:
    """One draw from ``Beta(alpha, alpha)``; torch's own takes no generator."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return np.random.default_rng(seed).beta(alpha, alpha)


def _box(
    H: int, W: int, share: float, generator: torch.Generator | None
) -> tuple[int, int, int, int]:
    """A box over ``1 - share`` of the picture around a random place, clipped to the picture."""
    side = math.sqrt(1 - share)
    height, width = int(H * side), int(W * side)
    y, x = (int(torch.randint(n, (), generator=generator)) for n in (H, W))
    return (
        max(y - height // 2, 0),
        min(y + height // 2, H),
        max(x - width // 2, 0),
        min(x + width // 2, W),
    )
