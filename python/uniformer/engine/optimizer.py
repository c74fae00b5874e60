"""What is optimised, and how its average is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .settings import Settings


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters that learn, in two groups: those that decay, and those that do not.

    Biases, the parameters of norms and all others with one axis do not decay, nor do those that the
    model's ``no_weight_decay()`` names in full.
    """
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parameter.dim() > 1 and name not in spared].append(parameter)
    still, decaying = groups
    both = (decaying, weight_decay), (still, 0.0)
    return [{"params": params, "weight_decay": decay} for params, decay in both if params]


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW, all of its arithmetic in one kernel."""
    return torch.optim.AdamW(
        param_groups(model, settings.weight_decay),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of ``model`` that ``update_parameters`` moves: ``decay · copy + (1 - decay) · new``.

    Running statistics are averaged as well; what counts is copied.
    """

    @torch.no_grad()
    def move(averages: Sequence[Tensor], values: Sequence[Tensor], _: Tensor | int) -> None:
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)

    averaged = AveragedModel(model, multi_avg_fn=move, use_buffers=True)
    return averaged.requires_grad_(False)


def clip_gradients(model: nn.Module, most: float | None) -> Tensor | None:
    """The gradients' norm, to which they are cut down; None where nothing is."""
    if most is None:
        return None
    norm = nn.utils.clip_grad_norm_(model.parameters(), most)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded gradients
