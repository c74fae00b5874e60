"""Grad-CAM: which places of a stage's map speak for a class (Selvaraju et al., ICCV 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (1, 2, 3, 4)


def grad_cam(
    model: nn.Module, clip: Tensor, classes: Sequence[int] | None = None, *, stage: int = 4
) -> Tensor:
    """How much every place of clips speaks for a class, as in the papers' Figure 9::

        w_c = mean over places of d logit / d A_c
        cam = max(0, sum_c w_c A_c)

    ``A`` is the output of a stage's last block, channels c; of UniFormerV2 the patch tokens of its
    image transformer's last layer, or of that a quarter of the depth earlier for every stage less.

    Args:
        model: a classifier of ``create_model``; is run in evaluation, and left as it was.
        clip: as the model takes it, ``[B, 3, T, H, W]`` or ``[B, 3, H, W]``.
        classes: one for each sample; by default the one with the highest logit.
        stage: whose map, from 1 to 4: earlier ones are finer, and say less of classes.

    Returns:
        float32 ``[B, T, H, W]`` or ``[B, H, W]``, of the input's size, the highest value of every
        sample 1; all 0 where nothing speaks for the class.

    Raises:
        ValueError: there is no such stage or class.
    """
    if stage not in STAGES:
        raise ValueError(f"stage: expected 1 to 4, got {stage}")
    block, found = _last_block(model, stage), []
    handle = block.register_forward_hook(lambda *call: found.append(_first(call[-1])))
    training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            # With an input that needs gradients frozen models have them, too.
            logits = model(clip.detach().requires_grad_())
    finally:
        handle.remove()
        model.train(training)
    B, K = logits.shape
    chosen = logits.argmax(1) if classes is None else torch.tensor(classes, device=clip.device)
    if chosen.shape != (B,) or not bool(((chosen >= 0) & (chosen < K)).all()):
        raise ValueError(f"classes: expected {B} from 0 to {K - 1}, got {classes}")
    (activations,) = found
    total = logits.gather(1, chosen[:, None]).sum()
    (gradients,) = torch.autograd.grad(total, activations)

    maps, weights = _on_grid(model, activations.detach()), _on_grid(model, gradients)
    cam = (maps * weights.mean((1, 2, 3), keepdim=True)).sum(-1, dtype=torch.float32).relu()
    size = clip.shape[2:] if clip.dim() == 5 else (1, *clip.shape[2:])
    cam = F.interpolate(cam[:, None], size, mode="trilinear", align_corners=False)[:, 0]
    highest = cam.amax((1, 2, 3), keepdim=True)
    cam = cam / torch.where(highest > 0, highest, 1)
    return cam if clip.dim() == 5 else cam[:, 0]


def _first(output: Any) -> Tensor:
    """The map among what a block returns; an hourglass block's score token comes behind it."""
    return output[0] if isinstance(output, tuple) else output


def _last_block(model: nn.Module, stage: int) -> nn.Module:
    transformer = getattr(model, "transformer", None)
    if transformer is None:
        return model.get_submodule(f"blocks{stage}")[-1]
    depth = len(transformer.resblocks)
    return transformer.resblocks[max(depth * stage // 4, 1) - 1]


def _on_grid(model: nn.Module, x: Tensor) -> Tensor:
    """``[B, T, H, W, C]`` of what a block returns; UniFormerV2's class tokens are left out."""
    if x.dim() == 5:
        return x
    return x[:, :, 1:].unflatten(2, model.transformer.grid)
