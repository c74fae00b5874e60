"""The calls that are measured: every operator at the papers' shapes, each with its rivals."""

from __future__ import annotations

from collections.abc import Iterator

from ..case import Case
from . import attention, depthwise, norms, products, tokens

OPERATORS = (
    "depthwise_conv3d",
    "depthwise_conv3d_with_moments",
    "depthwise_linear",
    "depthwise_feed_forward",
    "joint_attention",
    "joint_attention_with_score",
    "window_attention",
    "query_attention",
    "linear",
    "feed_forward",
    "patch_embed",
    "layer_norm",
    "moments",
    "fold_batch_norm",
    "token_shrink",
    "token_recover",
    "token_recover_with_importance",
)


def cases(operator: str | None = None, *, batch: int = 1) -> Iterator[Case]:
    """The cases of an operator, or of all.

    Args:
        operator: its name.
        batch: clips or images of a call.

    Raises:
        ValueError: there is no such operator.
    """
    if operator is not None and operator not in OPERATORS:
        raise ValueError(f"op: expected one of {', '.join(OPERATORS)}, got {operator!r}")
    for family in (depthwise, attention, products, norms, tokens):
        for case in family.cases(batch):
            if operator in (None, case.operator):
                yield case


def find(operator: str, name: str, *, batch: int = 1) -> Case:
    """One case by its names."""
    return next(case for case in cases(operator, batch=batch) if case.name == name)
