"""What is measured for the table, and what is to be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from uniformer_kernels.bench import timing
from uniformer_kernels.bench.timing import Samples

from . import agreement, memory, models, operators


@dataclass(frozen=True)
class Target:
    """The ratio to the best of `rivals` that is to be reached, and the one hoped for.

    `ours` is another way of running ours than just calling it.
    """

    against: str
    rivals: tuple[str, ...]
    reach: float
    aim: float | None = None
    ours: str = agreement.OURS


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
        return memory.compare(self.build, dict.fromkeys((agreement.OURS, *rivals)), rounds=rounds)

    def ratio(self, ours: float, theirs: float) -> float:
        return ours / theirs

    def reached(self, ratio: float, reach: float) -> bool:
        return ratio <= reach


DEPTHWISE = [  # name in the table, case, dtype, what its gradients are to reach
    ("k5 8×56×56×64", "S stage 1, k5 8×56×56×64", torch.float32, (8, 15)),
    ("k3 8×56×56×64", "S stage 1, k3 8×56×56×64", torch.float32, (8, 18)),
    ("k5 8×28×28×128", "S stage 2, k5 8×28×28×128", torch.float32, (6, 12)),
    ("k3 8×14×14×320", "S stage 3, k3 8×14×14×320", torch.float32, (6, 12)),
    ("k5 8×56×56×64 bf16", "S stage 1, k5 8×56×56×64", torch.bfloat16, (20, 35)),
]


def _race(
    operator: str, case: str, rival: str, dtype: torch.dtype, backward: bool
) -> Callable[[], agreement.Rivals]:
    return partial(operators.race, operator, case, (rival,), dtype=dtype, backward=backward)


def measurements() -> Iterator[Measurement]:
    """Everything, in the order of the table."""
    last = "PyTorch channels-last", (agreement.CHANNELS_LAST,)
    official = "official-style eager", (agreement.OFFICIAL,)
    for backward in (True, False):
        for name, case, dtype, goals in DEPTHWISE:
            yield Measurement(
                f"depthwise {name}, {'forward + gradients' if backward else 'forward'}",
                _race("depthwise_conv3d", case, "channels-last", dtype, backward),
                (Target(*last, *(goals if backward else (1.2, 2))),),
            )
    for name, dtype, goals in (
        ("stage 3", torch.float32, (1.6, 2)),
        ("stage 3 bf16", torch.bfloat16, (2.5, 3.5)),
    ):
        for backward in (False, True):
            yield Measurement(
                f"attention {name}, {'forward + gradients' if backward else 'forward'}",
                _race("joint_attention", "S stage 3, 1568 × 5 × 64", "SDPA", dtype, backward),
                (Target("SDPA", ("SDPA",), *goals),),
            )
    yield Measurement(
        "token_shrink + token_recover 801×224",
        models.tokens,
        (Target(*official, 4),),
    )
    yield Measurement(
        "V2 global block, 8 frames",
        models.v2_global_block,
        (Target(*official, 5, 5),),
    )
    ready = {"ours": models.PREPARED}
    best = "best of PyTorch", (models.SDPA, *models.COMPILED)
    trained = "best of PyTorch", (models.SDPA, models.COMPILED[0])
    openvino = "OpenVINO", (models.OPENVINO,)
    onnxruntime = "ONNX Runtime", (models.ONNXRUNTIME,)
    yield Measurement(
        "UniFormer-S 16×224, forward",
        models.small_forward,
        (
            Target(*official, 3.5, 5),
            Target(*best, 1.6, 2.1),
            Target(*openvino, 1, 1.2),
            Target(*onnxruntime, 1),
            Target(*best, 1.6, 2.1, **ready),
            Target(*openvino, 1, 1.2, **ready),
        ),
    )
    yield Measurement(
        "UniFormer-S 16×224 bf16, forward",
        partial(models.small_forward, torch.bfloat16),
        (
            Target(*best, 1.7, 2.2),
            Target(*openvino, 1, 1.2),
            Target(*best, 1.7, 2.2, **ready),
            Target(*openvino, 1, 1.2, **ready),
        ),
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
        (
            Target(*official, 1.8, 2.6),
            Target(*onnxruntime, 1),
            Target(*official, 1.8, 2.6, **ready),
        ),
    )
    yield Measurement(
        "UniFormer-XXS 16×160, training step of two clips",
        models.xxs_training_step,
        (Target("channels-last eager", (agreement.CHANNELS_LAST,), 2.5, 3.2),),
    )
    fused = "official-style code with SDPA", (models.OFFICIAL_SDPA,)
    yield Measurement(
        "UniFormerV2-B/16 16×224 for Something-Something, forward",
        models.v2_forward,
        (Target(*fused, 1.5, 2), Target(*fused, 1.5, 2, **ready)),
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
        (Target("channels-last eager", (agreement.CHANNELS_LAST,), 2),),
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
