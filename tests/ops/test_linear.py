"""Matrix products with GELU and residual: shapes of any rank, and what does not fit."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.contract import DTYPES, Function, check, draw, evaluate
from uniformer_kernels import (
    BackendError,
    bfloat16,
    feed_forward,
    linear,
    onednn,
    patch_embed,
    reference,
)
from uniformer_kernels.kernels import kernels

SHAPES = [  # of x, and C_out
    ((1,), 1),
    ((17,), 3),
    ((5, 1), 1),
    ((2, 3, 16), 33),
    ((2, 3, 5, 7, 11), 13),
    ((49, 64), 256),
    ((1, 130), 512),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "C_out"), SHAPES, ids=str)
@pytest.mark.parametrize("activation", [None, "gelu", "quick_gelu"])
def test_linear(shape, C_out, activation, dtype, backend) -> None:
    inputs = {"x": draw(*shape, dtype=dtype), "weight": draw(C_out, shape[-1], dtype=dtype)}
    inputs |= {"bias": draw(C_out, dtype=dtype)}
    inputs |= {"residual": draw(*shape[:-1], C_out, dtype=dtype)}
    reduction = max(C_out, torch.Size(shape).numel())
    for chosen in (("x", "weight"), ("x", "weight", "bias"), ("x", "weight", "residual"), inputs):
        check(
            partial(linear, activation=activation),
            partial(reference.linear, activation=activation),
            {name: inputs[name] for name in chosen},
            reduction=reduction,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_feed_forward(activation, biases, dtype, backend) -> None:
    inputs = {
        "x": draw(2, 3, 4, 5, 24, dtype=dtype),
        "fc1_weight": draw(96, 24, dtype=dtype),
        "fc1_bias": draw(96, dtype=dtype) if biases else None,
        "fc2_weight": draw(24, 96, dtype=dtype),
        "fc2_bias": draw(24, dtype=dtype) if biases else None,
        "residual": draw(2, 3, 4, 5, 24, dtype=dtype) if biases else None,
    }
    check(
        partial(feed_forward, activation=activation),
        partial(reference.feed_forward, activation=activation),
        inputs,
        reduction=120,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(130, 20, 5), (12, 516, 8), (3, 7, 130)], ids=str)
def test_wide_feed_forward(sizes, dtype, backend) -> None:
    """Whose hidden activations one program could not hold, with every choice of gradients."""
    C, hidden, C_out = sizes
    inputs = {
        "x": draw(11, C, dtype=dtype),
        "fc1_weight": draw(hidden, C, dtype=dtype) * C**-0.5,
        "fc1_bias": draw(hidden, dtype=dtype),
        "fc2_weight": draw(C_out, hidden, dtype=dtype),
        "fc2_bias": draw(C_out, dtype=dtype),
        "residual": draw(11, C_out, dtype=dtype),
    }
    for needs in (None, *([name] for name in inputs), ["fc1_bias", "fc2_bias"]):
        check(feed_forward, reference.feed_forward, inputs, reduction=C * hidden, needs=needs)


@pytest.mark.parametrize("hidden", [383, 385, 800])
def test_hidden_activations_in_chunks(hidden, backend) -> None:
    """As float32's are on AMX, with enough rows to go there; an infinity in any chunk stays one."""
    inputs = {
        "x": draw(45, 20),
        "fc1_weight": draw(hidden, 20) * 20**-0.5,
        "fc1_bias": draw(hidden),
        "fc2_weight": draw(70, hidden) * hidden**-0.5,
        "fc2_bias": draw(70),
    }
    for residual in (None, draw(45, 70)):
        given = inputs | {"residual": residual}
        check(feed_forward, reference.feed_forward, given, reduction=20 * hidden)
        for column in (0, hidden // 2, hidden - 1):
            bad = given["fc2_weight"].clone()
            bad[33, column] = float("inf")
            got, want = (
                f(**given | {"fc2_weight": bad}) for f in (feed_forward, reference.feed_forward)
            )
            assert not want[:, 33].isfinite().any()
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, equal_nan=True)


NORMALISED = {
    "linear": {"weight": (33, 70)},
    "narrow feed_forward": {"fc1_weight": (40, 70), "fc2_weight": (24, 40)},
    "wide feed_forward": {"fc1_weight": (516, 70), "fc2_weight": (24, 516)},
}


def _behind_a_norm(name: str) -> tuple[tuple[Function, Function], dict[str, torch.Tensor]]:
    """An operator and its reference, and its layers."""
    layers = {key: draw(*shape) * shape[1] ** -0.5 for key, shape in NORMALISED[name].items()}
    if name == "linear":
        return (linear, reference.linear), layers
    no_biases = {"fc1_bias": None, "fc2_bias": None}
    return tuple(partial(f, **no_biases) for f in (feed_forward, reference.feed_forward)), layers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NORMALISED)
def test_normalises_first(name, dtype, backend) -> None:
    """Rows off zero, with every choice of gradients; a norm may be wider than what it is of."""
    functions, layers = _behind_a_norm(name)
    function, plain = (partial(f, activation="quick_gelu", eps=0.5) for f in functions)
    for wide in {dtype, torch.float32} if dtype.itemsize == 2 else {dtype}:
        inputs = {"x": draw(2, 19, 70) + 3, **layers}
        inputs = {key: t.to(dtype) for key, t in inputs.items()}
        inputs |= {key: draw(70, dtype=wide) for key in ("norm_weight", "norm_bias")}
        for needs in (None, *([key] for key in inputs), ["norm_weight", "norm_bias"]):
            check(function, plain, inputs, reduction=70 * 516, needs=needs)


@pytest.mark.parametrize("name", NORMALISED)
def test_keeps_no_normalised_rows(name, backend) -> None:
    """But what it was given, and two numbers a row; Triton's wide networks keep hidden channels."""
    if backend == "reference":  # PyTorch differentiates it
        return
    (function, _), layers = _behind_a_norm(name)
    given = {"x": draw(200, 70), **layers, "norm_weight": draw(70), "norm_bias": draw(70)}
    given = {key: t.requires_grad_() for key, t in given.items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        function(**given)
    own = {t.data_ptr() for t in given.values()}
    sizes = {t.numel() for t in kept if t.data_ptr() not in own and t.numel() > 0}
    hidden = {200 * 516} if backend == "triton" and name.startswith("wide") else set()
    assert sizes == {200} | hidden


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gemm", [True, False])
def test_linear_in_several_blocks(gemm, dtype, backend, monkeypatch) -> None:
    """Of rows, output and input channels; the gradients' programs go through several, too."""
    tiles = nullcontext()
    if backend == "triton":
        module = import_module("uniformer_kernels.triton.linear")
        monkeypatch.setattr(module, "_PROGRAMS", 2)
        tiles = module.LINEAR.trying(gemm=gemm, BLOCK_M=16, BLOCK_N=16)
    inputs = {
        "x": draw(77, 70, dtype=dtype),
        "weight": draw(33, 70, dtype=dtype) * 70**-0.5,
        "bias": draw(33, dtype=dtype),
        "residual": draw(77, 33, dtype=dtype),
    }
    with tiles:
        for activation in (None, "gelu", "quick_gelu"):
            check(
                partial(linear, activation=activation),
                partial(reference.linear, activation=activation),
                inputs,
                reduction=77,
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [(24, 24), (12, 56), (56, 12)], ids=str)
def test_narrow_feed_forward_in_several_blocks(channels, dtype, backend, monkeypatch) -> None:
    """Of rows and hidden channels, two programs sharing the gradients."""
    tiles = [nullcontext()] * 3
    if backend == "triton":
        module = import_module("uniformer_kernels.triton.feed_forward")
        monkeypatch.setattr(module, "_PROGRAMS", 6)
        tunables = (module.FORWARD, module.BACKWARD_INPUT, module.BACKWARD_WEIGHTS)
        tiles = [tunable.trying(BLOCK_M=16, BLOCK_H=16) for tunable in tunables]
    C, C_out = channels
    inputs = {
        "x": draw(75, C, dtype=dtype),
        "fc1_weight": draw(40, C, dtype=dtype) * C**-0.5,
        "fc1_bias": draw(40, dtype=dtype),
        "fc2_weight": draw(C_out, 40, dtype=dtype),
        "fc2_bias": draw(C_out, dtype=dtype),
        "residual": draw(75, C_out, dtype=dtype),
    }
    with tiles[0], tiles[1], tiles[2]:
        check(feed_forward, reference.feed_forward, inputs, reduction=75 * 40)


@pytest.mark.parametrize("sizes", [(300, 1024, 64), (70, 1100, 300), (33, 40, 12)], ids=str)
@pytest.mark.parametrize("residual", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_in_several_groups(sizes, dtype, residual, backend) -> None:
    """Of rows, input and output channels, what is added being of any dtype."""
    rows, C, C_out = sizes
    inputs = {
        "x": draw(rows, C, dtype=dtype),
        "weight": draw(C_out, C, dtype=dtype) * C**-0.5,
        "bias": draw(C_out, dtype=dtype),
        "residual": draw(rows, C_out, dtype=residual),
    }
    for activation in (None, "gelu", "quick_gelu"):
        check(
            partial(linear, activation=activation),
            partial(reference.linear, activation=activation),
            inputs,
            reduction=max(sizes),
        )
    layers = {
        "fc1_weight": inputs["weight"],
        "fc1_bias": inputs["bias"],
        "fc2_weight": draw(9, C_out, dtype=dtype) * C_out**-0.5,
        "fc2_bias": None,
    }
    inputs = {"x": inputs["x"], **layers, "residual": draw(rows, 9, dtype=residual)}
    check(feed_forward, reference.feed_forward, inputs, reduction=C * C_out)


@given(
    batch=st.lists(st.integers(1, 6), max_size=3),
    C_in=st.integers(1, 40),
    C_out=st.integers(1, 40),
    transposed=st.booleans(),
    steps=st.tuples(*[st.integers(1, 3)] * 2),
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from([None, "gelu", "quick_gelu"]),
    seed=st.integers(0, 2**32),
)
def test_any_shape_and_strides(
    batch, C_in, C_out, transposed, steps, dtype, activation, seed
) -> None:
    torch.manual_seed(seed)
    weight = draw(C_in, C_out, dtype=dtype).t() if transposed else draw(C_out, C_in, dtype=dtype)
    inputs = {
        "x": draw(*batch, C_in * steps[0], dtype=dtype)[..., :: steps[0]],
        "weight": weight,
        "bias": draw(C_out * steps[1], dtype=dtype)[:: steps[1]],
        "residual": draw(C_out, *batch, dtype=dtype).movedim(0, -1),
    }
    check(
        partial(linear, activation=activation),
        partial(reference.linear, activation=activation),
        inputs,
        reduction=max(C_in, C_out, torch.Size(batch).numel()),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("step", [(0, 1), (1, 0), (3, 1), (1, 3), (2, 2), (16, 2)], ids=str)
def test_overlapping_memory(step, dtype, backend) -> None:
    """Expanded and sliding views: as ``x``, as ``weight``, and as a strided bias."""
    view = draw(100, dtype=dtype).as_strided((5, 8), step)
    other = draw(7, 8, dtype=dtype)
    for inputs in (
        {"x": view, "weight": other},
        {"x": other, "weight": view, "bias": view[:, 0]},
    ):
        check(linear, reference.linear, inputs, reduction=12)
        with torch.no_grad():  # inference takes another way
            torch.testing.assert_close(linear(**inputs), reference.linear(**inputs))


def test_gelu_is_the_exact_one(backend) -> None:
    """The tanh approximation is off by 5e-4 here."""
    x = torch.linspace(-6, 6, 1001)[:, None]
    want = F.gelu(x.double())
    got = linear(x, torch.ones(1, 1), torch.zeros(1), activation="gelu")
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-6)


def test_quick_gelu(backend) -> None:
    """In inference, in training, and inside the feed-forward."""
    x, weight, bias, back = draw(7, 12), draw(20, 12), draw(20), draw(12, 20)
    hidden = F.linear(x.double(), weight.double(), bias.double())
    want = hidden * torch.sigmoid(1.702 * hidden)
    for leaf in (x, x.clone().requires_grad_()):
        got = linear(leaf, weight, bias, activation="quick_gelu")
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
        y = feed_forward(leaf, weight, bias, back, None, activation="quick_gelu")
        torch.testing.assert_close(y.double(), want @ back.double().t(), rtol=1e-4, atol=1e-4)


def test_residual_may_be_wider(backend) -> None:
    x, weight, residual = draw(5, 8), draw(6, 8), draw(5, 6)
    got = linear(x.bfloat16(), weight.bfloat16(), residual=residual)
    assert got.dtype == torch.float32
    product = F.linear(x.bfloat16(), weight.bfloat16())
    torch.testing.assert_close(got, product.float() + residual, rtol=2e-2, atol=2e-2)
    x, weight = draw(5, 8), draw(6, 8)
    before = residual.double()
    got = linear(x, weight, residual=before)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, F.linear(x, weight).double() + before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("C", [8, 130])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_wide_residual_of_a_narrow_branch(activation, C, dtype, backend) -> None:
    """As under autocast: the sum is float32, every gradient has its tensor's dtype."""
    x, residual = draw(5, C, dtype=dtype), draw(5, C)
    weight, bias = draw(C, C, dtype=dtype) * C**-0.5, draw(C, dtype=dtype)
    for function, plain, layers in (
        (linear, reference.linear, {"weight": weight, "bias": bias}),
        (
            feed_forward,
            reference.feed_forward,
            {
                **{"fc1_weight": weight, "fc1_bias": bias},
                **{"fc2_weight": weight.clone(), "fc2_bias": bias.clone()},
            },
        ),
    ):
        inputs = {"x": x, **layers, "residual": residual}
        function = partial(function, activation=activation)
        check(function, partial(plain, activation=activation), inputs, reduction=C)
        results = evaluate(function, inputs)
        assert results.pop("output").dtype == torch.float32
        assert all(gradient.dtype == inputs[name].dtype for name, gradient in results.items())


def test_nothing_given_is_written_to(backend) -> None:
    """Inference may add in place, but to its own memory only."""
    x, weight, bias, residual = draw(5, 8), draw(8, 8), draw(8), draw(5, 8)
    copies = [t.clone() for t in (x, weight, bias, residual)]
    y = linear(x, weight, bias, residual=residual)
    assert y.data_ptr() not in {t.data_ptr() for t in (x, weight, bias, residual)}
    for given_, copy in zip((x, weight, bias, residual), copies, strict=True):
        assert torch.equal(given_, copy)


def test_opcheck(backend) -> None:
    """The Triton kernels', as PyTorch's serve the other backends."""
    if backend != "triton":
        return
    ops = kernels(backend)
    x, weight, bias, back, dy = draw(7, 12), draw(20, 12), draw(20), draw(12, 20), draw(7, 20)
    for activation, residual, save in (("gelu", dy, True), ("", None, False)):
        arguments = (x, weight, bias, activation, residual, save)
        torch.library.opcheck(ops.linear.default, arguments)
    for z, activation, *wanted in ((dy, "gelu", True, True, True), (None, "", True, False, False)):
        arguments = (dy, z, activation, torch.float16, *wanted)
        torch.library.opcheck(ops.activation_backward.default, arguments)
    arguments = (x, weight, bias, back, None, "gelu", x)
    torch.library.opcheck(ops.feed_forward.default, arguments)
    for wanted in ((True, False), (False, True)):
        arguments = (x, x, weight, bias, back, "gelu", *wanted)
        torch.library.opcheck(ops.feed_forward_backward.default, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (37, 19, 23), (33, 400, 65)], ids=str)
def test_infinities_are_pytorchs(sizes, value, dtype, backend) -> None:
    """Also times numbers that are exact in bfloat16, and zeros."""
    rows, C, C_out = sizes
    x, weight = draw(rows, C, dtype=dtype), draw(C_out, C, dtype=dtype)
    bad_x, bad_weight = x.clone(), weight.clone()
    bad_x[rows // 2, C // 2] = bad_weight[C_out // 2, C // 3] = value
    for left, right in (
        (bad_x, weight),
        (bad_x, weight.round()),
        (x, bad_weight),
        (bad_x, bad_weight),
    ):
        got, want = linear(left, right), reference.linear(left, right)
        finite = want.isfinite()
        assert torch.equal(got[~finite].nan_to_num(), want[~finite].nan_to_num())
        tolerance = 1e-4 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(got[finite], want[finite], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("times", [1, 4])
def test_every_magnitude_of_float32(times, backend) -> None:
    """Up to the largest number, which bfloat16 would round to infinity; in few rows and in many."""
    most = torch.finfo(torch.float32).max
    x = torch.tensor([most, -most, 3.39e38, 3.3895e38, 2.0**127, 1e20, 1.0, 1e-20, 1e-30, 0.0])
    x = x.repeat(times)
    for factor in (1.0, -1.0, 0.5, 2.0**-60):
        got = linear(x[:, None], torch.tensor([[factor]]))[:, 0]
        torch.testing.assert_close(got, x * factor, rtol=1e-6, atol=2.0**-126)
    bits = torch.tensor([0x7FFFFFFF, 0x7F800001, 0x7FC00000, -1], dtype=torch.int32).repeat(10)
    assert linear(bits.view(torch.float32)[:, None], torch.ones(3, 1)).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_for_any_rows_and_threads(dtype) -> None:
    """Of the kernels that multiply by bfloat16: oneDNN promises no such thing."""
    if not bfloat16.multiplies(dtype):
        pytest.skip("float32 goes to oneDNN here")
    x, weight, back = (draw(*s, dtype=dtype) for s in ((700, 200), (300, 200), (70, 300)))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((linear(x, weight), feed_forward(x, weight, None, back, None)))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))
    few = linear(x[100:155], weight), feed_forward(x[100:155], weight, None, back, None)
    assert all(torch.equal(a, b[100:155]) for a, b in zip(few, results[0], strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_spreads_over_its_row_only(value, backend) -> None:
    x, weight, bias = draw(37, 19), draw(23, 19), draw(23)
    x[11, 7] = value
    bad = ~linear(x, weight, bias).isfinite()
    assert bad[11].all()
    assert bad.sum() == 23


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x": ()}, r"x: expected \[\.\.\., C\], got"),
        ({"x": (2, 3, 9)}, r"weight: expected \[C_out, 9\], got \[6, 8\]"),
        ({"weight": (8,)}, r"weight: expected \[C_out, 8\], got \[8\]"),
        ({"weight": (6, 8, 1)}, r"weight: expected \[C_out, 8\], got \[6, 8, 1\]"),
        ({"bias": (8,)}, r"bias: expected \[6\], got \[8\]"),
        ({"residual": (2, 3, 8)}, r"residual: expected \[2, 3, 6\], got \[2, 3, 8\]"),
        ({"residual": (6,)}, r"residual: expected \[2, 3, 6\], got \[6\]"),
    ],
    ids=str,
)
def test_refuses_sizes_that_do_not_fit(shapes, message, backend) -> None:
    fitting = {"x": (2, 3, 8), "weight": (6, 8), "bias": (6,), "residual": (2, 3, 6)}
    with pytest.raises(ValueError, match=f"linear: {message}"):
        linear(**{name: draw(*shape) for name, shape in (fitting | shapes).items()})


def test_refuses_an_unknown_activation(backend) -> None:
    with pytest.raises(ValueError, match=r"linear: activation: expected 'gelu'.*got 'relu'"):
        linear(draw(2, 3), draw(4, 3), activation="relu")
    with pytest.raises(ValueError, match=r"feed_forward: activation: .*'quick_gelu', got None"):
        feed_forward(draw(2, 3), draw(4, 3), None, draw(3, 4), None, activation=None)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("fc1_weight", (16, 7), r"fc1_weight: expected \[C_out, 8\], got \[16, 7\]"),
        ("fc1_bias", (8,), r"fc1_bias: expected \[16\], got \[8\]"),
        ("fc2_weight", (8, 15), r"fc2_weight: expected \[C_out, 16\], got \[8, 15\]"),
        ("fc2_bias", (16,), r"fc2_bias: expected \[8\], got \[16\]"),
        ("residual", (2, 9), r"residual: expected \[2, 8\], got \[2, 9\]"),
    ],
)
def test_feed_forward_refuses_sizes_that_do_not_fit(name, shape, message, backend) -> None:
    inputs = {"x": (2, 8), "fc1_weight": (16, 8), "fc1_bias": (16,), "fc2_weight": (8, 16)}
    inputs |= {"fc2_bias": (8,), "residual": (2, 8)} | {name: shape}
    with pytest.raises(ValueError, match=f"feed_forward: {message}"):
        feed_forward(**{key: draw(*size) for key, size in inputs.items()})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", [True, False])
def test_feed_forward_in_parts(residual, dtype, backend, monkeypatch) -> None:
    """The cpu backend holds part of the hidden activations at a time, in both passes."""
    monkeypatch.setattr(onednn, "_HIDDEN", 4 * 16 + 5)
    shapes = {"x": (3, 7, 8), "fc1_weight": (16, 8), "fc1_bias": (16,), "fc2_weight": (8, 16)}
    shapes |= {"fc2_bias": (8,)} | ({"residual": (3, 7, 8)} if residual else {})
    inputs = {name: draw(*shape, dtype=dtype) for name, shape in shapes.items()}
    check(feed_forward, reference.feed_forward, inputs, reduction=24)
    got = feed_forward(**inputs)
    assert got.is_contiguous()


def test_no_channels(backend) -> None:
    """Layers without outputs, or without hidden channels, as PyTorch computes them."""
    if backend == "triton":  # the reference then serves them
        with pytest.raises(BackendError, match=r"linear: .* a layer has no channels"):
            linear(draw(3, 8), draw(0, 8), draw(0))
        return
    x, empty = draw(3, 8), draw(0, 8)
    inputs = {"x": x, "weight": empty, "bias": draw(0)}
    check(linear, reference.linear, inputs, reduction=8)
    inputs = {"x": x, "fc1_weight": empty, "fc1_bias": draw(0), "fc2_weight": draw(5, 0)}
    check(feed_forward, reference.feed_forward, inputs | {"fc2_bias": draw(5)}, reduction=8)


@pytest.mark.parametrize("operator", ["linear", "feed_forward", "patch_embed"])
def test_a_norms_bias_alone_is_an_error(operator: str) -> None:
    x, matrix = draw(1, 1, 2, 2, 8), draw(8, 8)
    calls: dict[str, Function] = {
        "linear": partial(linear, x, matrix),
        "feed_forward": partial(feed_forward, x, matrix, None, matrix, None),
        "patch_embed": partial(patch_embed, x, matrix.view(8, 8, 1, 1, 1), None, stride=(1, 1, 1)),
    }
    with pytest.raises(ValueError, match="norm_bias: expected norm_weight with it, got None"):
        calls[operator](norm_bias=draw(8))


def test_the_cpus_kernels_refuse_layers_without_inputs() -> None:
    """As an error: sizes are divided by, and a process would end there."""
    ops, x = kernels("cpu"), draw(40, 8, dtype=torch.bfloat16)
    empty, back = x.new_empty(0, 8), x.new_empty(8, 0)
    with pytest.raises(RuntimeError, match="with inputs"):
        ops.bfloat16_feed_forward(x, empty, None, back, None, "gelu", None)
    with pytest.raises(RuntimeError, match="with inputs"):
        ops.bfloat16_linear(back.repeat(5, 1), back, None, "", None)
    y = feed_forward(x, empty, None, back, bias := draw(8, dtype=torch.bfloat16))
    assert torch.equal(y, bias.expand(40, 8))
