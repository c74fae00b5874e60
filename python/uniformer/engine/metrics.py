"""How good classifications are: top-1, top-5, and what is taken for what."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from .files import replacing

LARGEST_LABELLED = 40  # classes whose names still fit at a plot's axes


class Accuracy:
    """Counts right answers and confusions over batches, and over processes.

    Args:
        num_classes: K.

    ``confusion`` is int64 ``[K, K]``: of class i (row), how many were taken for j.
    """

    def __init__(self, num_classes: int) -> None:
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.among_five = torch.zeros((), dtype=torch.int64)

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Count a batch; of equal scores the first class's is the larger one.

        Args:
            scores: ``[B, K]``, logits or probabilities.
            labels: ``[B]``.

        Raises:
            ValueError: the shapes are others, a label is not in ``[0, K)``, or a score is NaN.
        """
        scores, labels = scores.detach().float().cpu(), labels.cpu()
        K = len(self.confusion)
        if scores.shape != (len(labels), K):
            raise ValueError(
                f"Accuracy: scores: expected [{len(labels)}, {K}], got {list(scores.shape)}"
            )
        if not len(labels):
            return
        if not 0 <= int(labels.min()) <= int(labels.max()) < K:
            raise ValueError(
                f"Accuracy: labels: expected 0 <= label < {K}, "
                f"got {int(labels.min())} to {int(labels.max())}"
            )
        if scores.isnan().any():
            raise ValueError("Accuracy: scores: expected numbers, got NaN")
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, :5]
        self.among_five += (best == labels[:, None]).any(1).sum()
        pairs = labels * K + best[:, 0]
        self.confusion += torch.bincount(pairs, minlength=K * K).view(K, K)

    def reduce(self) -> None:
        """Add up the counts of all processes, if there are several."""
        if dist.is_initialized():
            for count in (self.confusion, self.among_five):
                dist.all_reduce(count)

    @property
    def count(self) -> int:
        """How many were classified."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Percentage whose class has the highest score; 0 of none."""
        return 100 * int(self.confusion.trace()) / max(self.count, 1)

    @property
    def top5(self) -> float:
        """Percentage whose class is among the five highest scores."""
        return 100 * int(self.among_five) / max(self.count, 1)

    @property
    def mean_class(self) -> float:
        """The mean over the classes that occur of the percentage right."""
        of = self.confusion.sum(1)
        occurs = of > 0
        right = self.confusion.diagonal()[occurs] / of[occurs]
        return 100 * float(right.mean()) if len(right) else 0.0

    def summary(self) -> dict[str, float | int]:
        """The figures by name, as logs have them."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "mean_class": self.mean_class,
            "videos": self.count,
        }


def write_confusion(
    folder: str | Path, confusion: Tensor, class_names: Sequence[str] | None = None
) -> None:
    """Write ``confusion.json``, ``.csv`` and, if matplotlib is there, ``.png`` into a folder.

    Args:
        folder: an existing one.
        confusion: ``[K, K]``, rows are the true classes.
        class_names: K of them; numbers if None.
    """
    folder, rows = Path(folder), confusion.tolist()
    names = list(class_names or map(str, range(len(rows))))
    with replacing(folder / "confusion.json") as path, path.open("w") as file:
        json.dump({"classes": names, "confusion": rows}, file)
    # Names of folders need not be UTF-8; Python has those bytes as surrogates.
    with (
        replacing(folder / "confusion.csv") as path,
        path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *names])
        writer.writerows([name, *row] for name, row in zip(names, rows, strict=True))
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    side = 3 + 0.22 * min(len(rows), LARGEST_LABELLED)
    figure = Figure((side + 1, side), layout="constrained")
    axes = figure.subplots()
    share = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    image = axes.imshow(
        100 * share.numpy(), cmap="viridis", vmin=0, vmax=100, interpolation="nearest"
    )
    axes.set(xlabel="predicted", ylabel="true")
    if len(rows) <= LARGEST_LABELLED:
        shown = [name.encode("utf-8", "replace").decode() for name in names]
        axes.set_xticks(range(len(rows)), shown, rotation=90)
        axes.set_yticks(range(len(rows)), shown)
    figure.colorbar(image, label="% of the true class")
    with replacing(folder / "confusion.png") as path:
        FigureCanvasAgg(figure).print_png(path)
