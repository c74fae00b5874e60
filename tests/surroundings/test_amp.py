"""Automatic mixed precision and activation checkpointing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.surroundings.models import (
    KINDS,
    blocks_of,
    close,
    gradients_of,
    input_of,
    loss_of,
    model_of,
    outputs,
)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_trains(kind: str) -> None:
    """As PyTorch's rules have it: bfloat16 logits, float32 gradients and parameters."""
    model = model_of(kind).train()
    wide = copy.deepcopy(model)
    x = input_of(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)

    assert {t.dtype for t in outputs(y)} == {torch.bfloat16}

    scaler.scale(_loss(y)).backward()
    scaler.unscale_(optimizer)
    _loss(wide(x)).backward()
    exact = gradients_of(wide)
    for name, gradient in gradients_of(model).items():
        if exact[name] is None:
            assert gradient is None
            continue
        assert gradient.dtype == torch.float32
    got = torch.cat([g.flatten() for g in gradients_of(model).values() if g is not None])
    all_exact = torch.cat([g.flatten() for g in exact.values() if g is not None])
    assert torch.cosine_similarity(got, all_exact, 0) > 0.98
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 1024.0
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.detach(), before[name] - 0.1 * p.grad)


def test_a_step_with_infinite_gradients_is_skipped() -> None:
    model = model_of("image").train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(input_of("image"))
    scaler.scale(_loss(y) * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])


def _loss(y: Tensor | tuple[Tensor, ...]) -> Tensor:
    return loss_of([t.float() for t in outputs(y)])


@pytest.mark.parametrize("kind", ["image", "light", "v2"])
def test_checkpointed_blocks_have_the_same_gradients(kind: str) -> None:
    """Ours, which leaves running statistics alone, and PyTorch's around every block."""
    plain = model_of(kind).train()
    ours, theirs = copy.deepcopy(plain), copy.deepcopy(plain)
    ours.set_grad_checkpointing()
    for block in blocks_of(theirs):
        _checkpoint(block)
    x = input_of(kind)
    for model in (plain, ours, theirs):
        loss_of(model(x)).backward()
    want = gradients_of(plain)
    for model in (ours, theirs):
        for name, gradient in gradients_of(model).items():
            if want[name] is not None:
                close(gradient, want[name], error=1e-6)
    for got, buffer in zip(ours.buffers(), plain.buffers(), strict=True):
        assert torch.equal(got, buffer)


def _checkpoint(block: nn.Module) -> None:
    forward = block.forward
    block.forward = lambda *args: checkpoint(forward, *args, use_reentrant=False)
