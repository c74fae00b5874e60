"""torch.func: gradients as functions, per-sample gradients, vmap and forward-mode derivatives."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap

import uniformer_kernels as uk
from tests.contract import draw
from tests.ops.calls import CALLS, Call
from tests.surroundings.models import close, gradients_of, input_of, loss_of, model_of
from uniformer_kernels.kernels import kernels

every_operator = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.operator)


def positional(call: Call):
    """The operator and the same in plain PyTorch, and inputs."""
    inputs = call.inputs()

    def run(function, *tensors: Tensor) -> Tensor:
        return function(**dict(zip(inputs, tensors, strict=True)))

    return partial(run, call.kernel), partial(run, call.reference), list(inputs.values())


@every_operator
def test_vmap(call: Call) -> None:
    """Over every input alone, and over all at once: as a loop gives it."""
    function, _, tensors = positional(call)
    indices = range(len(tensors))
    for mapped in ([i] for i in indices):
        several = [
            torch.stack([t, -t, 2 * t], 1) if i in mapped else t for i, t in enumerate(tensors)
        ]
        dims = tuple(1 if i in mapped else None for i in indices)
        got = vmap(function, in_dims=dims)(*several)
        want = [
            function(*(t.select(1, j) if i in mapped else t for i, t in enumerate(several)))
            for j in range(3)
        ]
        close(got, torch.stack(want))


@every_operator
def test_per_sample_gradients(call: Call) -> None:
    function, _, tensors = positional(call)
    gradient = grad(lambda *ts: function(*ts).square().mean(), argnums=tuple(range(len(tensors))))
    first, *rest = tensors
    several = torch.stack([first, 0.5 * first])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch has no batching rule for some of its own
        got = vmap(gradient, in_dims=(0, *(None for _ in rest)))(several, *rest)
    for i, x in enumerate(several):
        for a, b in zip(got, gradient(x, *rest), strict=True):
            close(a[i], b)


def test_vmap_of_token_selection() -> None:
    x, importance, prefix = draw(3, 2, 6, 4), draw(3, 2, 6).abs(), draw(2, 1, 4)
    tokens, index = vmap(lambda x, i: uk.token_shrink(x, i, 3, prefix=prefix))(x, importance)
    delta = draw(2, 1, 4)
    back = vmap(lambda x, i, t: uk.token_recover(x, i, t[:, 1:4], delta))(x, index, tokens)
    for i in range(3):
        want, chosen = uk.token_shrink(x[i], importance[i], 3, prefix=prefix)
        assert torch.equal(index[i], chosen)
        assert torch.equal(tokens[i], want)
        assert torch.equal(back[i], uk.token_recover(x[i], chosen, want[:, 1:4], delta))


@pytest.mark.parametrize("mapped", [True, False])
def test_vmap_of_the_running_mean(mapped: bool) -> None:
    """Values, and per-sample gradients through both results; all arguments mapped, or only two."""
    index = torch.tensor([[[0, 2], [1, 3]]]).expand(3, -1, -1).contiguous()
    shared = index, draw(3, 2, 5, 4), draw(3, 2, 2, 4), draw(3, 2, 1, 4)
    shared = shared if mapped else tuple(t[0] for t in shared)
    own = draw(3, 2, 5), draw(3, 2, 4)

    def recover(importance: Tensor, score: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
        index, x, kept, delta = tokens
        return uk.token_recover_with_importance(x, index, kept, delta, importance, score)

    def loss(importance: Tensor, score: Tensor, *tokens: Tensor) -> Tensor:
        y, updated = recover(importance, score, *tokens)
        return y.square().sum() + updated.square().sum()

    dims = (0, 0, *(0 if mapped else None for _ in shared))
    got = vmap(recover, in_dims=dims)(*own, *shared)
    gradients = vmap(grad(loss, argnums=(0, 1)), in_dims=dims)(*own, *shared)
    for i in range(3):
        one = *(t[i] for t in own), *(t[i] if mapped else t for t in shared)
        for results, want in ((got, recover(*one)), (gradients, grad(loss, argnums=(0, 1))(*one))):
            for a, b in zip(results, want, strict=True):
                close(a[i], b)


def test_vmap_of_an_empty_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="axis of at least 1, got 0"):
        vmap(kernels("cpu").moments, in_dims=(0, None))(draw(0, 5, 3), None)


@pytest.mark.parametrize("kind", ["image", "v2"])
def test_per_sample_gradients_of_a_model(kind: str) -> None:
    model = model_of(kind)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return loss_of(functional_call(model, (parameters, buffers), (x[None],)))

    x = input_of(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(len(x)):
        model.zero_grad()
        loss_of(model(x[i : i + 1])).backward()
        for name, want in gradients_of(model).items():
            close(got[name][i], want, error=1e-4)


@every_operator
def test_forward_mode(call: Call) -> None:
    """By PyTorch: a kernel would lose the tangents without a word."""
    function, plain, tensors = positional(call)
    tangents = tuple(draw(*t.shape, dtype=t.dtype) for t in tensors)
    want, slope = jvp(plain, tuple(tensors), tangents)
    got = jvp(function, tuple(tensors), tangents)
    close(got, (want, slope))
    assert slope.any()
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(tensors, tangents, strict=True)]
        close(forward_ad.unpack_dual(function(*duals)).tangent, slope)


def test_forward_mode_of_a_model() -> None:
    model, x = model_of("light"), input_of("light")
    _, got = jvp(model, (x,), (torch.ones_like(x),))
    with uk.use_backend("reference"):
        _, want = jvp(model, (x,), (torch.ones_like(x),))
    assert want.any()
    close(got, want)


def test_forward_mode_of_a_kernel_is_refused() -> None:
    x = draw(1, 4, 12)
    with (
        uk.use_backend("cpu"),
        pytest.raises(uk.BackendError, match="cpu backend declines: it has no forward-mode"),
    ):
        jvp(lambda qkv: uk.joint_attention(qkv, 2), (x,), (x,))
    with forward_ad.dual_level():
        assert "cpu        declines: it has no forward-mode" in uk.explain("joint_attention", x, 2)


def test_hessian() -> None:
    qkv = draw(1, 3, 6, dtype=torch.float64)

    def energy(qkv: Tensor) -> Tensor:
        return uk.joint_attention(qkv, 1).square().sum()

    got = hessian(energy)(qkv)
    with uk.use_backend("reference"):
        close(got, hessian(energy)(qkv))


def test_second_reverse_derivative_is_refused() -> None:
    """PyTorch's own once_differentiable gives zeros here."""
    x = draw(1, 3, 6)

    def slope(x: Tensor) -> Tensor:
        return grad(lambda x: uk.joint_attention(x, 1).square().sum())(x).square().sum()

    with pytest.raises(RuntimeError, match=r"differentiable once, with use_backend\('reference'\)"):
        grad(slope)(x)
    leaf = x.requires_grad_()
    energy = uk.joint_attention(leaf, 1).square().sum()
    (first,) = torch.autograd.grad(energy, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(first.sum(), leaf)
