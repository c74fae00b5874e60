"""What is measured for the table, and what is to be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from . import cases, memory, models, timing
from .timing import Samples


@dataclass(frozen=True)
class Target:
    """The ratio to the best of `rivals` that is to be reached, and the one hoped for."""

    against: str
    rivals: tuple[str, ...]
    reach: float
    aim: float | None = None


@dataclass(frozen=True)
class Measurement:
    """A race: `build` makes the rivals. The ratio is how many times faster ours is."""

    name: str
    build: Callable[..., Any]
    targets: tuple[Target, ...]
    unit: ClassVar[str] = "ms"
    scale: ClassVar[float] = 1e3
    bound: ClassVar[str] = ""

    def take(self, rounds: int, sample: float) -> dict[str, Samples]:
        return timing.compare(self.build(), rounds=rounds, sample=sample)

    def ratio(self, ours: float, theirs: float) -> float:
        return theirs / ours

    def reached(self, ratio: float, reach: float) -> bool:
        return ratio >= reach


class PeakMemory(Measurement):
    """`build` makes one rival from its name. The ratio is the part of its memory ours needs."""

    unit, scale, bound = "MB", 1e-6, "≤ "

    def take(self, rounds: int, sample: float) -> dict[str, Samples]:
        rivals = (name for target in self.targets for name in target.rivals)
        return memory.compare(self.build, dict.fromkeys((cases.OURS, *rivals)), rounds=rounds)

    def ratio(self, ours: float, theirs: float) -> float:
        return ours / theirs

    def reached(self, ratio: float, reach: float) -> bool:
        return ratio <= reach


def measurements() -> Iterator[Measurement]:
    """Everything, in the order of the table."""
    depthwise = {"k5 8×56×56×64": (8, 15), "k3 8×56×56×64": (8, 18), "k5 8×56×56×64 bf16": (20, 35)}
    last = "PyTorch channels-last", (cases.CHANNELS_LAST,)
    official = "official-style eager", (cases.OFFICIAL,)
    for backward in (True, False):
        for case in cases.DEPTHWISE:
            yield Measurement(
                f"depthwise {case}, {'forward + gradients' if backward else 'forward'}",
                partial(cases.depthwise, case, backward=backward),
                (Target(*last, *(depthwise.get(case, (6, 12)) if backward else (1.2, 2))),),
            )
    for case, goals in (("stage 3", (1.6, 2)), ("stage 3 bf16", (2.5, 3.5))):
        for backward in (False, True):
            yield Measurement(
                f"attention {case}, {'forward + gradients' if backward else 'forward'}",
                partial(cases.attention, case, backward=backward),
                (Target("SDPA", ("SDPA",), *goals),),
            )
    yield Measurement(
        "token_shrink + token_recover 801×224",
        cases.tokens,
        (Target(*official, 4),),
    )
    yield Measurement(
        "V2 global block, 8 frames",
        models.v2_global_block,
        (Target(*official, 5, 5),),
    )
    best = "best of PyTorch", (models.SDPA, *models.COMPILED)
    trained = "best of PyTorch", (models.SDPA, models.COMPILED[0])
    openvino = "OpenVINO", (models.OPENVINO,)
    yield Measurement(
        "UniFormer-S 16×224, forward",
        models.small_forward,
        (Target(*official, 3.5, 5), Target(*best, 1.6, 2.1), Target(*openvino, 1, 1.2)),
    )
    yield Measurement(
        "UniFormer-S 16×224 bf16, forward",
        partial(models.small_forward, torch.bfloat16),
        (Target(*best, 1.7, 2.2), Target(*openvino, 1, 1.2)),
    )
    yield Measurement(
        "UniFormer-S 16×224, training step of two clips",
        models.small_training_step,
        (Target(*official, 5, 7), Target(*trained, 2.2, 2.8)),
    )
    yield Measurement(
        "UniFormer-S 16×224 bf16, training step of two clips",
        partial(models.small_training_step, torch.bfloat16),
        (Target(*trained, 2.5, 3.8),),
    )
    yield Measurement(
        "UniFormer-XXS 16×160, forward",
        models.xxs_forward,
        (Target(*official, 1.8, 2.6),),
    )
    yield Measurement(
        "UniFormer-XXS 16×160, training step of two clips",
        models.xxs_training_step,
        (Target("channels-last eager", (cases.CHANNELS_LAST,), 2.5, 3.2),),
    )
    fused = "official-style code with SDPA", (models.OFFICIAL_SDPA,)
    yield Measurement(
        "UniFormerV2-B/16 16×224 for Something-Something, forward",
        models.v2_forward,
        (Target(*fused, 1.5, 2),),
    )
    own = "our own model", (models.OWN,)
    yield Measurement(
        "official-style UniFormer-S 16×224 accelerated, forward",
        models.accelerated_small_forward,
        (Target(*official, 3.5, 5), Target(*own, 0.9)),
    )
    yield Measurement(
        "official-style UniFormer-S 16×224 accelerated, training step of two clips",
        models.accelerated_small_training_step,
        (Target(*official, 5, 7), Target(*own, 0.9)),
    )
    yield Measurement(
        "X3D-M 16×112 accelerated, training step of two clips",
        models.accelerated_x3d_training_step,
        (Target("channels-last eager", (cases.CHANNELS_LAST,), 2),),
    )
    yield Measurement(
        "dense S hybrid-14 at 800×1280, forward",
        models.dense_forward,
        (Target(*fused, 1.5),),
    )
    yield PeakMemory(
        "dense S hybrid-14 at 800×1280, peak memory",
        models.dense_model,
        (Target(*fused, 0.6),),
    )
