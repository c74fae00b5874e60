"""The loss of training with a label for every token."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def token_labeling_loss(
    outputs: tuple[Tensor, Tensor, tuple[int, int, int, int]],
    target: Tensor,
    *,
    cls_weight: float = 1.0,
    dense_weight: float = 1.0,
    ground_truth: bool = False,
) -> Tensor:
    """Soft cross-entropy of the samples and of their tokens, as the official code has it.

    A sample whose tokens were partly swapped with another's has the label of both, by their share
    of the tokens; every token keeps its own, for the model has swapped their logits back.

    Args:
        outputs: what a ``_tl`` model returns in training: logits ``[B, classes]``, logits of the
            tokens ``[B, N, classes]`` and the box of tokens that were swapped.
        target: probabilities, ``[B, classes, 2 + N]``: of the sample by its annotation and by the
            model that labels, then of every token; or ``[B, classes]``, for sample and tokens.
        cls_weight: of the samples' loss.
        dense_weight: of the tokens' loss, which is a mean.
        ground_truth: whether the annotation corrects a sample's label: with a share of 0.5 where
            both have the same first class, of 0.1 where not.

    Returns:
        The loss, a scalar in ``target``'s dtype.

    Raises:
        ValueError: ``target`` does not fit the outputs.
    """
    logits, tokens, (top, left, bottom, right) = outputs
    B, N, classes = tokens.shape
    if target.shape == (B, classes):
        label, labels = target, target.unsqueeze(1).expand(B, N, classes)
    elif target.shape == (B, classes, 2 + N):
        annotation, label, labels = target[..., 0], target[..., 1], target[..., 2:].mT
        if ground_truth:
            agree = label.argmax(1, keepdim=True) == annotation.argmax(1, keepdim=True)
            label = label.lerp(annotation, 0.1 + 0.4 * agree.to(label.dtype))
    else:
        raise ValueError(
            f"token_labeling_loss: target: expected [{B}, {classes}] or "
            f"[{B}, {classes}, {2 + N}], got {list(target.shape)}"
        )
    swapped = (bottom - top) * (right - left) / N
    label = label.lerp(label.flip(0), swapped)
    whole = F.cross_entropy(logits.to(label.dtype), label)
    dense = F.cross_entropy(tokens.flatten(0, 1).to(label.dtype), labels.flatten(0, 1))
    return cls_weight * whole + dense_weight * dense
