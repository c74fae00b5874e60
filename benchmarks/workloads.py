"""What is planned: the models' forwards and training steps, as a GPU would get them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import uniformer

from uniformer_kernels.triton.plan import Plan, planning

from .models import loss


@dataclass(frozen=True)
class Workload:
    """A model with its input; ``training`` adds the loss and every gradient."""

    model: str
    shape: tuple[int, ...]
    training: bool
    dtype: torch.dtype = torch.bfloat16
    keywords: Mapping[str, Any] = field(default_factory=dict)  # of ``create_model``

    def __str__(self) -> str:
        pass_ = "training" if self.training else "forward"
        shape = "x".join(map(str, self.shape))
        return f"{self.model} {shape} {pass_} {str(self.dtype).removeprefix('torch.')}"

    def plan(self, architecture: str = "sm_90") -> Plan:
        """The plan of one pass, the model's construction left out."""
        with torch.device("meta"):
            model = uniformer.create_model(self.model, **self.keywords)
            model.to(self.dtype).train(self.training)
            x = torch.empty(self.shape, dtype=self.dtype)
            label = torch.empty(self.shape[0], dtype=torch.int64)
        with planning(architecture) as plan, torch.set_grad_enabled(self.training):
            if self.training:
                loss(model(x), label).backward()
            else:
                model(x)
        return plan


_VIDEO, _LIGHT = (16, 224, 224), (16, 160, 160)
WORKLOADS = [
    Workload("uniformer_video_small", (1, 3, *_VIDEO), training=False),
    Workload("uniformer_video_small", (8, 3, *_VIDEO), training=True),
    Workload("uniformer_video_xxs", (1, 3, *_LIGHT), training=False),
    Workload("uniformer_video_xxs", (8, 3, *_LIGHT), training=True),
    Workload("uniformer_dense_small", (1, 3, 800, 1280), training=False),
    Workload("uniformerv2_b16", (8, 3, 8, 224, 224), training=False),
    Workload("uniformerv2_b16", (8, 3, 8, 224, 224), training=True),
]

# Whose kernels have budgets; the others' are nearly the same ones.
BUDGETED = [
    w for w in WORKLOADS if w.training != w.model.startswith(("uniformerv2", "uniformer_dense"))
]
