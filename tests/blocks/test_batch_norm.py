"""``BatchNorm.of`` and ``batch_norm`` against the modules they stand for."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.library import opcheck

from tests.contract import check, draw, within
from uniformer_kernels import scale_shift
from uniformer_kernels.blocks import Affine, BatchNorm, batch_norm, local_block
from uniformer_kernels.blocks.norms import near_mean, norm_then
from uniformer_kernels.triton import INTERPRETED

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
    ours, exact = copy.deepcopy(theirs), copy.deepcopy(theirs).double()
    for training in (True, True, True, False, True):
        theirs.train(training), ours.train(training), exact.train(training)
        exact.load_state_dict(ours.state_dict())
        x = (torch.randn(2, 5, 3, 2, 4) * 3 + 1).to(dtype)
        expected = theirs(x)
        got = batch_norm(x.movedim(1, -1).contiguous(), BatchNorm.of(ours)).movedim(-1, 1)
        within("output", got, [expected], exact(x.double()), reduction=48)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    if theirs.num_batches_tracked is not None:
        assert ours.num_batches_tracked == 4


def plain(x: torch.Tensor, weight, bias, *, mean, variance, eps: float, gelu: bool) -> torch.Tensor:
    y = F.batch_norm(
        x.movedim(-1, 1),
        None if variance is None else mean.to(x.dtype),
        None if variance is None else variance.to(x.dtype),
        weight,
        bias,
        training=variance is None,
        eps=eps,
    ).movedim(1, -1)
    return F.gelu(y) if gelu else y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gelu", [False, True], ids=["linear", "gelu"])
@pytest.mark.parametrize("running", [False, True], ids=["batch", "running"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (7, 2, 1, 56), (1100, 28), (2, 300)], ids=str)
def test_one_pass(shape, running: bool, gelu: bool, dtype: torch.dtype) -> None:
    """Values and every gradient, with the activation behind the norm and without."""
    C = shape[-1]
    options = {"mean": draw(C), "variance": draw(C).square() + 0.5 if running else None}
    options |= {"eps": 1e-3, "gelu": gelu}
    inputs = {"x": draw(*shape, dtype=dtype) + 0.5}
    inputs |= {"weight": draw(C, dtype=dtype), "bias": draw(C, dtype=dtype)}

    def run(x, weight, bias, *, mean, variance, eps, gelu):
        mean = near_mean(x) if variance is None else mean
        return scale_shift.batch_norm(x, weight, bias, mean, variance, eps, gelu=gelu)[0]

    check(partial(run, **options), partial(plain, **options), inputs, reduction=max(shape[:-1]) * 8)


def test_one_pass_is_repeatable_on_any_number_of_threads() -> None:
    x, dy = draw(5000, 28), draw(5000, 28)
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        leaves = [x.clone().requires_grad_(), draw(28) * 0 + 2, draw(28) * 0]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        y, found = scale_shift.batch_norm(*leaves, torch.zeros(28), None, 1e-5, gelu=True)
        results.append([y, found, *torch.autograd.grad(y, leaves, dy)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_one_bad_number_spoils_its_channel_only(value: float) -> None:
    x = draw(40, 30)
    x[7, 20] = value
    y, _ = scale_shift.batch_norm(x, None, None, torch.zeros(30), None, 1e-5, gelu=True)
    assert y[:, 20].isnan().all()
    assert y.isfinite().sum() == 40 * 29


def test_one_pass_opcheck() -> None:
    operators, rows, vectors = torch.ops.uniformer_kernels, draw(9, 20), draw(5, 20).unbind()
    center, scale, shift, offset, slope = (v.contiguous() for v in vectors)
    opcheck(operators.scale_shift, (rows, center, scale, shift, True))
    opcheck(operators.scale_shift_backward_sums, (rows, rows, center, scale, shift, True))
    opcheck(operators.scale_shift_backward, (rows, rows, center, scale, shift, offset, slope, True))
    for bad in (rows.double(), rows.t(), rows[:, :5]):
        with pytest.raises(RuntimeError, match="expected"):
            operators.scale_shift(bad, center, scale, shift, False)


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


def test_a_folded_weight_is_rounded_once() -> None:
    module = nn.BatchNorm1d(64).eval()
    nn.init.uniform_(module.running_var, 0.5, 2)
    nn.init.normal_(module.running_mean)
    layer = Affine(torch.randn(32, 64), torch.randn(32))
    half = Affine(layer.weight.bfloat16(), layer.bias.bfloat16())
    _, folded = norm_then(draw(1, 64), BatchNorm.of(module), half)
    assert folded.weight.dtype == folded.bias.dtype == torch.bfloat16
    weight, bias = (t.double() for t in half[:2])
    scale = (module.running_var.double() + module.eps).rsqrt()
    exact = weight * scale, bias - weight @ (scale * module.running_mean.double())
    for got, expected in zip(folded[:2], exact, strict=True):
        error = (got.double() - expected).abs()
        assert (error <= 2**-8 * expected.abs() + 1e-5).all()


@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_folded_steps_and_evaluation_are_the_modules(
    options: dict, dtype: torch.dtype, backend: str
) -> None:
    """Results, gradients and running statistics."""
    theirs = nn.BatchNorm3d(5, **options, dtype=dtype)
    if theirs.affine:
        nn.init.normal_(theirs.weight), nn.init.normal_(theirs.bias)
    ours, layer = copy.deepcopy(theirs), nn.Linear(5, 4, dtype=dtype)
    double = dtype == torch.float64
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if double else {"rtol": 1e-4, "atol": 1e-4}
    for training in (True, True, False, True):
        theirs.train(training), ours.train(training)
        x = (draw(2, 3, 2, 4, 5) * 3 + 1).to(dtype).requires_grad_()
        expected = layer(theirs(x.movedim(-1, 1)).movedim(1, -1))
        y, folded = norm_then(x, BatchNorm.of(ours), Affine.of(layer))
        got = nn.functional.linear(y, *folded[:2])
        torch.testing.assert_close(got, expected, **tolerance)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), **tolerance)
        dy = draw(*got.shape).to(dtype)
        for a, b in zip(
            torch.autograd.grad(got, [x, *layer.parameters(), *ours.parameters()], dy),
            torch.autograd.grad(expected, [x, *layer.parameters(), *theirs.parameters()], dy),
            strict=True,
        ):
            torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("compiler", ["aot_eager", *([] if INTERPRETED else ["inductor"])])
def test_folded_step_compiles_without_a_graph_break(compiler: str, backend: str) -> None:
    """Gradients are those before the running statistics move, which they do all the same."""
    theirs, layer, x = nn.BatchNorm3d(64), nn.Linear(64, 4), draw(2, 3, 2, 4, 64) * 3 + 1
    ours = copy.deepcopy(theirs)

    def step(x: torch.Tensor, module: nn.Module) -> torch.Tensor:
        norm = BatchNorm.of(module)
        y, folded = norm_then(x, norm, Affine.of(layer))
        return nn.functional.linear(y, *folded[:2])

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    results = []
    for run, module in ((compiled, ours), (step, theirs)):
        leaf = x.clone().requires_grad_()
        y = run(leaf, module)
        leaves = [leaf, *layer.parameters(), *module.parameters()]
        results.append([y, *torch.autograd.grad(y.square().mean(), leaves)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("mean", [0, 100, 10_000])
def test_a_large_mean_does_not_hide_the_variance(mean: float) -> None:
    """At the first step, when the running mean is far away; as exact as PyTorch's own norm."""
    x = torch.randn(2, 3, 6, 7, 8) + mean
    norm, layer = nn.BatchNorm3d(8), nn.Linear(8, 5)
    y, folded = norm_then(x, BatchNorm.of(norm), Affine.of(layer))
    got = F.linear(y.double(), *(t.double() for t in folded[:2]))

    def plain(dtype: torch.dtype) -> torch.Tensor:
        module = copy.deepcopy(layer).to(dtype)
        return module(nn.BatchNorm3d(8).to(dtype)(x.to(dtype).movedim(-1, 1)).movedim(1, -1))

    exact = plain(torch.float64)
    error, allowed = (got - exact).abs().max(), (plain(torch.float32) - exact).abs().max()
    assert error <= 2 * allowed + 1e-6
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * x.double().var((0, 1, 2, 3)).float())


def test_the_dpe_may_move_the_mean_of_a_local_block() -> None:
    """Its statistics are those behind the convolution, whatever that adds."""
    x = torch.randn(2, 3, 6, 7, 8)
    modules = nn.Conv3d(8, 8, 3, padding=1, groups=8), nn.BatchNorm3d(8), nn.Conv3d(8, 8, 1)
    dpe, norm, pw = modules
    nn.init.constant_(dpe.bias, 5000.0)
    layers = {"pw1": pw, "pw2": pw, "fc1": pw, "fc2": pw, "dw": dpe, "dpe": dpe}
    local_block(
        x,
        norm1=BatchNorm.of(norm),
        norm2=BatchNorm.of(nn.BatchNorm3d(8)),
        **{name: Affine.of(module) for name, module in layers.items()},
    )
    seen = dpe.double()(x.double().movedim(-1, 1)).movedim(1, -1) + x
    want = 0.9 + 0.1 * seen.var((0, 1, 2, 3))
    torch.testing.assert_close(norm.running_var.double(), want, rtol=1e-4, atol=1e-6)
