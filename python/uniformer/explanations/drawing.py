"""Explanations as pictures over the frames they explain."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from ..data.scene import write_video
from ..engine.files import replacing
from ..normalisation import MEAN, STD
from .tokens import KeptTokens

COLUMNS = 8
"""Frames in a strip at most, evenly chosen."""


def to_frames(clip: Tensor) -> np.ndarray:
    """What a model saw, ``[3, T, H, W]``, as pictures, uint8 RGB ``[T, H, W, 3]``."""
    pixels = (clip.float().cpu() * STD + MEAN) * 255
    return pixels.round().clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()


def overlay(frames: np.ndarray, heat: Tensor) -> np.ndarray:
    """Frames uint8 ``[T, H, W, 3]`` under heat ``[T, H, W]`` from 0 to 1, the hotter the denser."""
    hot = heat.cpu().numpy()
    colours = 255 * np.asarray(colormaps["turbo"](hot))[..., :3]
    opacity = 0.15 + 0.5 * hot[..., None]
    return (frames * (1 - opacity) + colours * opacity).round().astype(np.uint8)


def draw_heat(path: str | os.PathLike, frames: np.ndarray, heat: Tensor, title: str) -> None:
    """Write a strip of frames, and below each the same with its heat, as PNG."""
    chosen = _columns(len(frames))
    rows = [("input", frames[chosen]), ("Grad-CAM", overlay(frames, heat)[chosen])]
    _strip(path, rows, [f"frame {index}" for index in chosen], title)


def draw_tokens(
    path: str | os.PathLike, frames: np.ndarray, tokens: Sequence[KeptTokens], title: str
) -> None:
    """Write a strip of frames, and below it for every block what it kept, as PNG.

    Dropped tokens are dark; those kept are coloured by their rank in importance. Of several
    samples it is the first's.
    """
    chosen = _columns(len(frames))
    rows = [("input", frames[chosen])]
    for entry in tokens:
        kept = _nearest(entry.kept[0].float(), frames)[..., None].numpy()
        shown = frames
        if entry.importance is not None:
            rank = entry.importance[0].flatten().argsort().argsort().float()
            share = (rank / max(len(rank) - 1, 1)).view(entry.importance[0].shape)
            shown = overlay(frames, _nearest(share, frames))
        picture = (shown * (0.25 + 0.75 * kept)).astype(np.uint8)
        rows.append((f"{entry.block}\n{entry.kept[0].float().mean():.0%}", picture[chosen]))
    _strip(path, rows, [f"frame {index}" for index in chosen], title)


def write_heat(path: str | os.PathLike, frames: np.ndarray, heat: Tensor, *, fps: int) -> None:
    """Write input and heat side by side as a video, H.264 in MP4."""
    both = np.concatenate([frames, overlay(frames, heat)], 2)
    both = np.pad(both, ((0, 0), (0, both.shape[1] % 2), (0, 0), (0, 0)), mode="edge")
    with replacing(path) as unfinished:
        write_video(unfinished, iter(both), fps=fps)


def _columns(count: int) -> list[int]:
    return np.linspace(0, count - 1, min(count, COLUMNS)).round().astype(int).tolist()


def _nearest(values: Tensor, frames: np.ndarray) -> Tensor:
    """``[t, h, w]`` on the frames' grid ``[T, H, W]``: a token stands for a box of pixels."""
    values = values.cpu()[None, None]
    return F.interpolate(values, torch.Size(frames.shape[:3]), mode="nearest")[0, 0]


def _strip(
    path: str | os.PathLike,
    rows: Sequence[tuple[str, np.ndarray]],
    columns: Sequence[str],
    title: str,
) -> None:
    width, height = 1.5 * len(columns) + 0.7, 1.5 * len(rows) + 0.7  # inches
    figure = Figure(figsize=(width, height), dpi=100)
    figure.suptitle(title, size=11)
    edges = {"left": 0.6 / width, "right": 1 - 0.1 / width, "top": 1 - 0.6 / height}
    grid = figure.subplots(
        len(rows),
        len(columns),
        squeeze=False,
        gridspec_kw={**edges, "bottom": 0.1 / height, "wspace": 0.05, "hspace": 0.05},
    )
    for axes_row, (label, pictures) in zip(grid, rows, strict=True):
        axes_row[0].set_ylabel(label, size=8)
        for axes, picture in zip(axes_row, pictures, strict=True):
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(False)
    for axes, label in zip(grid[0], columns, strict=True):
        axes.set_title(label, size=8)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png")
