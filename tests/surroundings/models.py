"""Small models, one of every kind, of which no parameter or statistic is where it starts."""

from __future__ import annotations

from typing import Any

import torch
import uniformer
from torch import Tensor, nn
from uniformer.layers import Stage

_NARROW = {"dims": (8, 16, 24, 32), "head_dim": 8, "num_classes": 7}
_LIGHT = {**_NARROW, "depths": (1, 1, 2, 1)}
_KINDS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "image": ("uniformer_small", {**_NARROW, "depths": (1, 1, 1, 1)}, (3, 64, 64)),
    "video": ("uniformer_video_small", {"depths": (1, 1, 1, 1), "num_classes": 7}, (3, 4, 32, 32)),
    "light": ("uniformer_xxs", _LIGHT, (3, 64, 64)),
    "light video": ("uniformer_video_xxs", _LIGHT, (3, 4, 64, 64)),
    "dense": (
        "uniformer_dense_small",
        {"depths": (1, 1, 1, 1), "attention": "window", "window_size": 3},
        (3, 64, 96),
    ),
    "v2": (
        "uniformerv2_b16",
        {
            "dim": 32,
            "depth": 2,
            "num_heads": 2,
            "patch_size": 8,
            "resolution": 32,
            "num_frames": 4,
            "num_classes": 7,
            "dropout": 0.0,
        },
        (3, 4, 32, 32),
    ),
}
KINDS = tuple(_KINDS)


def model_of(kind: str, **keywords: Any) -> nn.Module:
    """In evaluation."""
    name, usual, _ = _KINDS[kind]
    model = uniformer.create_model(name, **{**usual, **keywords})
    for p in model.parameters():
        if p.dim() == 1 or not p.any():
            nn.init.normal_(p, std=0.1)
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def input_of(kind: str, batch: int = 2) -> Tensor:
    return torch.randn(batch, *_KINDS[kind][2])


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return [block for stage in model.modules() if isinstance(stage, Stage) for block in stage]


def outputs(result: Any) -> list[Tensor]:
    """What a model returns, as a list whatever its form."""
    return [result] if isinstance(result, Tensor) else list(result)


def loss_of(result: Any) -> Tensor:
    """A number in which every output counts, and counts differently."""
    ys = outputs(result)
    return sum(
        (y * torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape)).sum() for y in ys
    ) / len(ys)


def gradients_of(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in model.named_parameters()}


def same_gradients(model: nn.Module, other: nn.Module) -> None:
    """Also those that are nothing but rounding, as of a bias in front of a norm."""
    got, want = gradients_of(model), gradients_of(other)
    largest = max(g.abs().max().item() for g in want.values() if g is not None)
    for name, gradient in got.items():
        assert (gradient is None) == (want[name] is None), name
        if gradient is not None:
            bound = 1e-4 * want[name].abs().max().item() + 1e-6 * largest
            torch.testing.assert_close(gradient, want[name], rtol=0, atol=bound)


def close(got: Any, want: Any, *, error: float = 1e-5) -> None:
    """Every output differs by a small part of its largest number."""
    for a, b in zip(outputs(got), outputs(want), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        bound = error * b.abs().max().item()
        torch.testing.assert_close(a, b, rtol=0, atol=bound + 1e-12)
