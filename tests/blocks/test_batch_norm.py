"""``BatchNorm.of`` and ``batch_norm`` against the modules they stand for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from uniformer_kernels.blocks import Affine, BatchNorm, batch_norm

NORMS = {
    "default": {},
    "cumulative": {"momentum": None},
    "still": {"momentum": 0.0},
    "not affine": {"affine": False},
    "untracked": {"track_running_stats": False},
}


@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_steps_and_evaluation_are_the_modules(options: dict, dtype: torch.dtype) -> None:
    theirs = nn.BatchNorm3d(5, **options, dtype=dtype)
    ours = copy.deepcopy(theirs)
    for training in (True, True, True, False, True):
        theirs.train(training), ours.train(training)
        x = (torch.randn(2, 5, 3, 2, 4) * 3 + 1).to(dtype)
        expected = theirs(x)
        got = batch_norm(x.movedim(1, -1).contiguous(), BatchNorm.of(ours)).movedim(-1, 1)
        # Sums may be taken in another order.
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    if theirs.num_batches_tracked is not None:
        assert ours.num_batches_tracked == 4


def test_statistics_stay_in_the_modules_buffers() -> None:
    module = nn.BatchNorm3d(4)
    mean = module.running_mean
    batch_norm(torch.randn(2, 1, 3, 3, 4) + 5, BatchNorm.of(module))
    assert module.running_mean is mean
    assert (mean > 0.2).all()


def test_statistics_no_longer_tracked_stay_as_they_are() -> None:
    theirs = nn.BatchNorm3d(4)
    theirs.track_running_stats = False
    ours = copy.deepcopy(theirs)
    x = torch.randn(2, 4, 1, 3, 3) + 5
    for training in (True, False):
        theirs.train(training), ours.train(training)
        got = batch_norm(x.movedim(1, -1), BatchNorm.of(ours)).movedim(-1, 1)
        torch.testing.assert_close(got, theirs(x))
    torch.testing.assert_close(ours.state_dict(), nn.BatchNorm3d(4).state_dict())


def test_the_result_keeps_the_layout() -> None:
    x = torch.randn(2, 3, 4, 5, 6, requires_grad=True)
    y = batch_norm(x, BatchNorm.of(nn.BatchNorm3d(6)))
    y.sum().backward()
    assert y.is_contiguous()
    assert x.grad.is_contiguous()


def test_one_value_per_channel_is_an_error_in_training_only() -> None:
    x, module = torch.randn(1, 1, 1, 1, 4), nn.BatchNorm3d(4)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm(x, BatchNorm.of(module))
    batch_norm(x, BatchNorm.of(module.eval()))


def test_a_synchronised_norm_is_refused_where_it_would_synchronise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = nn.SyncBatchNorm(4)
    assert BatchNorm.of(module).training
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert not BatchNorm.of(module.eval()).training
    with pytest.raises(NotImplementedError, match="SyncBatchNorm"):
        BatchNorm.of(module.train())


def test_a_folded_weight_is_rounded_once() -> None:
    module = nn.BatchNorm1d(64).eval()
    nn.init.uniform_(module.running_var, 0.5, 2)
    nn.init.normal_(module.running_mean)
    layer = Affine(torch.randn(32, 64), torch.randn(32))
    half = Affine(layer.weight.bfloat16(), layer.bias.bfloat16())
    scale, shift = BatchNorm.of(module).scale_shift()
    folded = half.scale_input(scale, shift)
    assert folded.weight.dtype == folded.bias.dtype == torch.bfloat16
    weight, bias = (t.double() for t in half)
    exact = weight * scale.double(), bias + weight @ shift.double()
    for got, expected in zip(folded, exact, strict=True):
        error = (got.double() - expected).abs()
        assert (error <= 2**-8 * expected.abs() + 1e-5).all()
