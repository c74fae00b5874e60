"""Models small enough to be built, run and exported in no time, and videos for them."""

from __future__ import annotations

from pathlib import Path

import torch
import uniformer
from torch import nn
from uniformer.data.scene import scene_frames, write_video

LIGHT = {"dims": (8, 16, 16, 16), "depths": (1, 1, 2, 1), "head_dim": 8}
V2 = {"dim": 32, "depth": 2, "num_heads": 2, "resolution": 32, "num_frames": 4}


def light(**keywords: object) -> nn.Module:
    """A lightweight video model, with norms as if they had seen something."""
    return stirred(uniformer.create_model("uniformer_video_xxs", **LIGHT, **keywords))


def stirred(model: nn.Module) -> nn.Module:
    """The model with other running statistics, and zero parameters filled."""
    for name, value in model.named_parameters():
        if not value.any():
            nn.init.normal_(value, std=0.3 if "head" in name else 0.05)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def video(path: Path, *, seconds: float = 1, width: int = 48, height: int = 40) -> Path:
    """A video file; 30 frames a second."""
    return write_video(path, scene_frames(seconds=seconds, width=width, height=height))


def clip(*shape: int) -> torch.Tensor:
    """Noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))
