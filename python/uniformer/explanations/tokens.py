"""Which tokens the hourglass blocks of a lightweight model let take part."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from uniformer_kernels import token_shrink

from ..layers import HourglassBlock


class KeptTokens(NamedTuple):
    """What one hourglass block kept.

    Args:
        block: its name in the model.
        kept: bool ``[B, T, H, W]``.
        importance: ``[B, T, H, W]``, by which it chose; ``None`` for the first block, which has
            none yet and keeps every token.
    """

    block: str
    kept: Tensor
    importance: Tensor | None


@torch.no_grad()
def kept_tokens(model: nn.Module, clip: Tensor) -> list[KeptTokens]:
    """Which tokens take part in the attention, block after block (TPAMI 2023, section 3.4).

    Args:
        model: a lightweight model of ``create_model``; is run in evaluation, and left as it was.
        clip: as the model takes it.

    Raises:
        ValueError: the model has no hourglass blocks.
    """
    blocks = {
        name: block for name, block in model.named_modules() if isinstance(block, HourglassBlock)
    }
    if not blocks:
        raise ValueError(
            f"model: expected a lightweight one, with hourglass blocks, got {type(model).__name__}"
        )
    seen: list[KeptTokens] = []

    def look(name: str, block: HourglassBlock, inputs: tuple[Any, ...]) -> None:
        x, _, importance = inputs
        grid = x.shape[:-1]
        seen.append(
            KeptTokens(
                name,
                _kept(importance, block.keep, x).view(grid),
                None if importance is None else importance.view(grid),
            )
        )

    handles = [
        block.register_forward_pre_hook(lambda block, inputs, name=name: look(name, block, inputs))
        for name, block in blocks.items()
    ]
    training = model.training
    model.eval()
    try:
        model(clip)
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    return seen


def _kept(importance: Tensor | None, keep: float, x: Tensor) -> Tensor:
    """bool ``[B, N]``, chosen by the operator that the block itself uses."""
    B, N = x.shape[0], x.shape[1:4].numel()
    count = int(N * keep)
    if importance is None or count == N:
        return torch.ones(B, N, dtype=torch.bool, device=x.device)
    _, index = token_shrink(x.flatten(1, 3), importance, count)
    return torch.zeros(B, N, dtype=torch.bool, device=x.device).scatter(1, index, True)
