"""The learning rate."""

from __future__ import annotations

import math


def learning_rate(
    epoch: float, *, epochs: float, warmup_epochs: float, lr: float, warmup_lr: float, min_lr: float
) -> float:
    """A linear rise from ``warmup_lr`` to ``lr``, then half a cosine down to ``min_lr``.

    Args:
        epoch: how far the training is, from 0 to ``epochs``; moves on with every step.
        epochs, warmup_epochs: length of the whole and of the rise.
        lr, warmup_lr, min_lr: the highest rate, the first and the last.
    """
    if epoch < warmup_epochs:
        return warmup_lr + (lr - warmup_lr) * epoch / warmup_epochs
    if epochs == warmup_epochs:
        return lr
    done = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * done))
