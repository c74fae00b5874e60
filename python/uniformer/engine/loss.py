"""The loss of a classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_loss(outputs: Tensor | Sequence[Tensor], targets: Tensor) -> Tensor:
    """Cross-entropy with probabilities, the mean over the batch; of several heads their mean.

    Args:
        outputs: logits ``[B, K]``, or those of several heads, as the lightweight models return them
            in training.
        targets: probabilities ``[B, K]``.

    Returns:
        A scalar, at least float32.
    """
    heads = [outputs] if isinstance(outputs, Tensor) else outputs
    wide = torch.promote_types(heads[0].dtype, torch.float32)
    losses = [F.cross_entropy(logits.to(wide), targets.to(wide)) for logits in heads]
    return torch.stack(losses).mean()
