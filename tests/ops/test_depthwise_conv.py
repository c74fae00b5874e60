"""Depthwise convolution: every kernel size, every edge of every axis, NaN, and bad input."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.contract import DTYPES, check, draw, evaluate
from uniformer_kernels import depthwise_conv3d, depthwise_conv3d_with_moments, reference
from uniformer_kernels.triton import INTERPRETED

KERNELS = [
    (1, 1, 1),
    (3, 3, 3),
    (5, 5, 5),
    (7, 7, 7),
    (3, 1, 1),
    (5, 1, 1),
    (1, 3, 3),
    (1, 5, 5),
    (1, 7, 7),
    (1, 1, 7),
    (1, 7, 1),
    (7, 3, 1),
    (3, 5, 7),
]
# The interpreter takes seconds a call: float16 where it is a path of its own, and in one call.
MOST = [torch.float32] if INTERPRETED else DTYPES
SHAPES = [  # B, T, H, W, C
    (1, 1, 1, 1, 1),
    (1, 1, 1, 1, 17),
    (2, 1, 7, 9, 3),  # an image
    (1, 2, 2, 2, 16),  # smaller than the kernel
    (3, 5, 1, 1, 16),
    (1, 1, 1, 40, 17),
    (1, 1, 33, 1, 8),
    (2, 3, 5, 7, 1),
    (1, 4, 14, 14, 56),
    (2, 2, 7, 7, 64),
    (1, 3, 9, 11, 130),
]


def hold(shape, kernel, dtype=torch.float32, *, bias=True, residual=False, **options) -> None:
    """Check one call against the contract."""
    *positions, C = shape
    inputs = {
        "x": draw(*shape, dtype=dtype),
        "weight": draw(C, 1, *kernel, dtype=dtype),
        "bias": draw(C, dtype=dtype) if bias else None,
    }
    check(
        partial(depthwise_conv3d, residual=residual),
        partial(reference.depthwise_conv3d, residual=residual),
        inputs,
        reduction=max(torch.Size(positions).numel(), torch.Size(kernel).numel()),
        **options,
    )


@pytest.mark.parametrize("dtype", MOST, ids=str)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_every_kernel_size(kernel, dtype, backend) -> None:
    hold((2, 3, 4, 7, 19), kernel, dtype)


@pytest.mark.parametrize("dtype", MOST, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_edge_shapes(shape, dtype, backend) -> None:
    hold(shape, (3, 3, 3), dtype)
    if not INTERPRETED:  # which takes seconds for each
        hold(shape, (5, 5, 5), dtype)


@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 3, 3), (1, 5, 5), (5, 5, 5), (1, 1, 7)], ids=str)
def test_every_width(kernel, backend) -> None:
    """Column tiles of any size leave every possible remainder."""
    for W in (1, 2, 5) if INTERPRETED else range(1, 41):
        hold((1, 2, 3, W, 5), kernel)


@pytest.mark.parametrize("C", [*range(1, 36), 48, 63, 64, 65, 127, 128, 130, 320])
def test_every_number_of_channels(C) -> None:
    hold((1, 2, 3, 5, C), (3, 3, 3))


def test_many_samples_frames_and_rows() -> None:
    """Sums over tasks: the weight gradient collects every position of every sample."""
    hold((5, 9, 17, 8, 33), (3, 3, 3))
    hold((3, 2, 61, 4, 16), (5, 5, 5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("bias", "residual"), list(product([False, True], repeat=2)))
def test_bias_and_residual(bias, residual, dtype, backend) -> None:
    hold((2, 3, 5, 6, 18), (3, 3, 3), dtype, bias=bias, residual=residual)
    hold((1, 3, 5, 6, 18), (1, 1, 1), dtype, bias=bias, residual=residual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_definition(dtype, backend) -> None:
    """The sum written out, so that kernel and reference cannot be wrong together."""
    x, weight, bias = draw(1, 2, 4, 3, 2), draw(2, 1, 3, 5, 1), draw(2)
    want = torch.zeros(1, 2, 4, 3, 2, dtype=torch.float64)
    for t, h, w, dt, dh in product(range(2), range(4), range(3), range(3), range(5)):
        st_, sh = t + dt - 1, h + dh - 2
        if 0 <= st_ < 2 and 0 <= sh < 4:
            want[0, t, h, w] += x[0, st_, sh, w].double() * weight[:, 0, dt, dh, 0].double()
    want += bias.double() + x.double()
    got = depthwise_conv3d(x.to(dtype), weight.to(dtype), bias.to(dtype), residual=True)
    tolerance = 30 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=max(tolerance, 1e-5))


def test_output_is_channels_last() -> None:
    x = draw(2, 17, 3, 5, 6).movedim(1, -1)
    assert not x.is_contiguous()
    assert depthwise_conv3d(x, draw(17, 1, 3, 3, 3)).is_contiguous()


# Tiles of the Triton kernels


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize(
    ("kernel", "tile"),
    [
        ((3, 3, 3), {"ROWS": 2, "COLUMNS": 5, "BLOCK_C": 16, "SLOTS": 4}),
        ((5, 5, 5), {"ROWS": 2, "COLUMNS": 3, "BLOCK_C": 16, "SLOTS": 8}),
        ((3, 1, 1), {"ROWS": 8, "COLUMNS": 2, "BLOCK_C": 16, "SLOTS": 8}),
        ((1, 3, 5), {"ROWS": 1, "COLUMNS": 1, "BLOCK_C": 16, "SLOTS": 32}),
    ],
    ids=str,
)
def test_tiles(kernel, tile, backend) -> None:
    """Several tiles, blocks of channels, programs and groups along every axis."""
    from uniformer_kernels.triton import depthwise_conv, depthwise_conv_gradient

    gradient = depthwise_conv_gradient.OPTIONS.trying(**tile)
    with depthwise_conv.OPTIONS.trying(**tile), gradient:
        hold((2, 2, 5, 9, 18), kernel)


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
def test_wide_offsets(backend, monkeypatch) -> None:
    """The kernels for maps of more than 2³¹ elements, and weights copied for large ones."""
    from uniformer_kernels.triton import depthwise_conv, depthwise_conv_gradient

    for module in (depthwise_conv, depthwise_conv_gradient):
        monkeypatch.setattr(module, "wide", lambda *_: True)
    monkeypatch.setattr(depthwise_conv, "_PACKED", 0)
    hold((2, 3, 4, 5, 18), (3, 3, 3))
    hold((2, 3, 4, 5, 17), (3, 3, 1))


# With moments


def both(y: Tensor, moments: Tensor) -> Tensor:
    """One tensor, so that every gradient flows through both results."""
    return torch.cat([y.flatten().to(moments.dtype), moments.flatten() / y[..., 0].numel()])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5, 6, 17), (1, 2, 9, 11, 40), (0, 2, 3, 3, 4)], ids=str)
@pytest.mark.parametrize(("shifted", "residual"), [(False, False), (True, True)])
def test_moments(shifted, residual, shape, dtype, backend) -> None:
    C = shape[-1]
    shift = draw(C).to(torch.promote_types(dtype, torch.float32)) if shifted else None
    inputs = {"x": draw(*shape, dtype=dtype), "weight": draw(C, 1, 3, 3, 3, dtype=dtype) / 4}
    inputs["bias"] = draw(C, dtype=dtype)
    y, moments = depthwise_conv3d_with_moments(**inputs, residual=residual, shift=shift)
    assert torch.equal(y, depthwise_conv3d(**inputs, residual=residual))
    exact = reference.moments(y.double(), shift=None if shift is None else shift.double())
    assert moments.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(moments.double(), exact, rtol=1e-5, atol=1e-3)

    def of(operator, shift):
        return lambda **t: both(*operator(**t, residual=residual, shift=shift))

    wide = None if shift is None else shift.double()
    leaves = {k: t.requires_grad_() for k, t in inputs.items()}
    doubles = {k: t.detach().double().requires_grad_() for k, t in inputs.items()}
    dout = draw(y.numel() + 2 * C)
    got = of(depthwise_conv3d_with_moments, shift)(**leaves)
    got = torch.autograd.grad(got, list(leaves.values()), dout.to(got.dtype))
    want = of(reference.depthwise_conv3d_with_moments, wide)(**doubles)
    want = torch.autograd.grad(want, list(doubles.values()), dout.double())
    tolerance = 8 * torch.finfo(dtype).eps
    for a, b in zip(got, want, strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=0, atol=max(tolerance, 1e-5) * scale)


def test_moments_gradcheck(backend) -> None:
    shift = draw(3, dtype=torch.float64)
    leaves = [draw(2, 2, 3, 4, 3), draw(3, 1, 3, 3, 1), draw(3)]
    leaves = [t.double().requires_grad_() for t in leaves]
    assert torch.autograd.gradcheck(
        lambda *t: depthwise_conv3d_with_moments(*t, residual=True, shift=shift), leaves
    )


def test_moments_shift_is_a_constant(backend) -> None:
    shift = draw(3).requires_grad_()
    x = draw(1, 2, 3, 4, 3).requires_grad_()
    y, moments = depthwise_conv3d_with_moments(x, draw(3, 1, 3, 3, 3), shift=shift)
    assert torch.autograd.grad(moments.sum() + y.sum(), shift, allow_unused=True) == (None,)


def test_moments_of_fake_tensors(backend) -> None:
    with FakeTensorMode() as mode:
        x, weight = (mode.from_tensor(t) for t in (draw(2, 3, 5, 6, 8), draw(8, 1, 3, 3, 3)))
        y, moments = depthwise_conv3d_with_moments(x.half(), weight.half())
    assert (y.shape, y.dtype) == (x.shape, torch.float16)
    assert (moments.shape, moments.dtype) == ((2, 8), torch.float32)


def test_moments_compile_without_a_graph_break() -> None:
    x, weight = draw(2, 3, 5, 6, 8).requires_grad_(), draw(8, 1, 3, 3, 3).requires_grad_()
    torch.compiler.reset()
    compiled = torch.compile(depthwise_conv3d_with_moments, fullgraph=True, backend="aot_eager")
    got, want = both(*compiled(x, weight)), both(*depthwise_conv3d_with_moments(x, weight))
    torch.testing.assert_close(got, want)
    dout = draw(*got.shape)
    for a, b in zip(
        torch.autograd.grad(got, (x, weight), dout),
        torch.autograd.grad(want, (x, weight), dout),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_moments_under_autocast(backend) -> None:
    """The stream stays float32, and so the moments are those of the float32 sum."""
    x, weight = draw(2, 3, 5, 6, 8), draw(8, 1, 3, 3, 3)
    with torch.autocast("cpu", dtype=torch.float16):
        y, moments = depthwise_conv3d_with_moments(x, weight, residual=True)
    assert y.dtype == torch.float32
    torch.testing.assert_close(moments, reference.moments(y))


@pytest.mark.parametrize(
    ("shift", "error", "message"),
    [
        (draw(5), ValueError, r"shift: expected \[4\], got \[5\]"),
        (draw(4, dtype=torch.float64), TypeError, "shift: expected torch.float32, got .*float64"),
    ],
    ids=["size", "dtype"],
)
def test_moments_refuse_a_shift_that_does_not_fit(shift, error, message, backend) -> None:
    with pytest.raises(error, match=f"depthwise_conv3d_with_moments: {message}"):
        depthwise_conv3d_with_moments(draw(1, 2, 3, 3, 4), draw(4, 1, 3, 3, 3), shift=shift)


# Layouts


def channels_first(t: Tensor) -> Tensor:
    return t.movedim(-1, 1).contiguous().movedim(1, -1)


def every_other(t: Tensor) -> Tensor:
    room = draw(*(2 * size + 1 for size in t.shape), dtype=t.dtype)
    return room[tuple(slice(1, None, 2) for _ in t.shape)].copy_(t)


def part_of_more_channels(t: Tensor) -> Tensor:
    room = draw(*t.shape[:-1], t.shape[-1] + 5, dtype=t.dtype)
    return room[..., 3:-2].copy_(t)


def flipped_storage(t: Tensor) -> Tensor:
    return t.permute(*reversed(range(t.dim()))).contiguous().permute(*reversed(range(t.dim())))


def expanded(t: Tensor) -> Tensor:
    """Every sample, frame and row the same memory, as the gradient of a mean is."""
    return t[:1, :1, :1].expand(t.shape)


LAYOUTS = [channels_first, every_other, part_of_more_channels, flipped_storage, expanded]


@pytest.mark.parametrize("dtype", MOST, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_layouts(layout, dtype, backend) -> None:
    inputs = {"x": layout(draw(2, 3, 5, 6, 17, dtype=dtype)), "weight": draw(17, 1, 3, 3, 3)}
    inputs["weight"] = inputs["weight"].to(dtype)
    for upstream in (torch.randn_like, lambda y: layout(draw(*y.shape, dtype=y.dtype))):
        check(
            depthwise_conv3d, reference.depthwise_conv3d, inputs, reduction=180, upstream=upstream
        )


def test_weight_layouts(backend) -> None:
    x, weight = draw(2, 3, 5, 6, 17), draw(17, 1, 3, 3, 5)
    for other in (
        weight.to(memory_format=torch.channels_last_3d),
        flipped_storage(weight),
        weight.permute(0, 1, 3, 2, 4),
        draw(3, 3, 5).expand(17, 1, 3, 3, 5),
    ):
        inputs = {"x": x, "weight": other, "bias": draw(17, 2)[:, 1]}
        check(depthwise_conv3d, reference.depthwise_conv3d, inputs, reduction=180)


sizes = st.integers(1, 9)
odd = st.sampled_from([1, 3, 5, 7])


@given(
    shape=st.tuples(st.integers(1, 3), sizes, sizes, st.integers(1, 19), st.integers(1, 37)),
    kernel=st.tuples(odd, odd, odd),
    order=st.permutations(range(5)),
    steps=st.tuples(*[st.integers(1, 3)] * 5),
    offset=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    residual=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_shape_and_strides(
    shape, kernel, order, steps, offset, dtype, bias, residual, seed
) -> None:
    torch.manual_seed(seed)

    def laid_out(t: Tensor) -> Tensor:
        """The same values with the axes stored in ``order``, each with a step and an offset."""
        room = draw(*(t.shape[a] * steps[a] + offset for a in order), dtype=t.dtype)
        room = room.permute(*(order.index(a) for a in range(5)))
        view = room[tuple(slice(offset, None, step) for step in steps)]
        return view.copy_(t)

    *positions, C = shape
    inputs = {
        "x": laid_out(draw(*shape, dtype=dtype)),
        "weight": draw(C, 1, *kernel, dtype=dtype),
        "bias": draw(C, dtype=dtype) if bias else None,
    }
    check(
        partial(depthwise_conv3d, residual=residual),
        partial(reference.depthwise_conv3d, residual=residual),
        inputs,
        reduction=max(torch.Size(positions).numel(), torch.Size(kernel).numel()),
        upstream=lambda y: laid_out(draw(*y.shape, dtype=y.dtype)),
    )


# Numbers that are none


def reached(at: Tensor, kernel) -> Tensor:
    """Where an output's window, or an input gradient's, meets a marked position."""
    mark = at.movedim(-1, 1).float()
    return F.max_pool3d(mark, kernel, 1, [k // 2 for k in kernel]).movedim(1, -1).bool()


@pytest.mark.parametrize("dtype", MOST, ids=str)
@pytest.mark.parametrize(
    "kernel", [(3, 3, 3), (1, 1, 7), (3, 1, 1), *([] if INTERPRETED else [(5, 5, 5)])], ids=str
)
@pytest.mark.parametrize("place", [0, 0.5, 1])
@pytest.mark.parametrize(
    "value", [float("nan"), *([] if INTERPRETED else [float("inf"), -float("inf")])]
)
def test_spreads_as_far_as_the_kernel_reaches(value, place, kernel, dtype, backend) -> None:
    """To the window around it in its own channel, and no sample, channel or row further."""
    # Only the compiled kernels have tiles, and are quick.
    shape = (3, 6, 10, 17, 35) if backend == "cpu" else (2, 5, 6, 9, 5)
    at = tuple(int((size - 1) * place) for size in shape)
    marked = torch.zeros(shape, dtype=torch.bool)
    marked[at] = True
    spread = reached(marked, kernel)
    ok = {"x": draw(*shape, dtype=dtype), "weight": draw(shape[-1], 1, *kernel, dtype=dtype)}
    dy = draw(*shape, dtype=dtype)
    bad_x = ok | {"x": ok["x"].masked_fill(marked, value)}
    bad_dy = dy.masked_fill(marked, value)

    got = evaluate(depthwise_conv3d, bad_x, upstream=lambda _: dy)
    assert torch.equal(~got["output"].isfinite(), spread)
    if value == value:  # one infinite term: the sum has its sign, nothing else of it matters
        plain = reference.depthwise_conv3d(**{name: t.float() for name, t in bad_x.items()})
        assert torch.equal(got["output"][spread], plain[spread].to(dtype))
    assert got["x"].isfinite().all()
    channels = (~got["weight"].isfinite()).flatten(1).any(1)
    assert channels.nonzero().flatten().tolist() == [at[-1]]

    got = evaluate(depthwise_conv3d, ok, upstream=lambda _: bad_dy)
    assert torch.equal(~got["x"].isfinite(), spread)
    channels = (~got["weight"].isfinite()).flatten(1).any(1)
    assert channels.nonzero().flatten().tolist() == [at[-1]]


def test_zero_weights_do_not_hide_a_nan(backend) -> None:
    x = draw(1, 3, 3, 3, 4)
    x[0, 1, 1, 1, 2] = float("inf")
    y = depthwise_conv3d(x, torch.zeros(4, 1, 3, 3, 3))
    assert y[..., 2].isnan().all()
    assert not y[..., [0, 1, 3]].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bits", [0x7FFF, -1, 0x7F81, 0x7C01, 0x7FC0])
def test_any_nan_stays_one(bits, dtype, backend) -> None:
    """Rounding to 16 bits must not carry a NaN's payload over into the sign or to infinity."""
    x = torch.full((1, 1, 1, 37, 2), bits, dtype=torch.int16).view(dtype)
    if not x.isnan().all():
        pytest.skip("a number in this dtype")
    assert depthwise_conv3d(x, torch.ones(2, 1, 1, 1, 1, dtype=dtype)).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_at_both_ends_of_the_range(dtype) -> None:
    """Subnormals, ties to even and overflow to infinity, as converting from float64 does."""
    info = torch.finfo(dtype)
    ulp = info.eps
    values = [1.0, 1 + ulp, 1 + 3 * ulp, info.tiny, info.tiny * ulp, 3 * info.tiny * ulp, info.max]
    x = torch.tensor(values * 5, dtype=dtype)[None, None, None, :, None]
    for factor in (1.0, 1 + ulp, 0.5, 0.75, -2.0):
        weight = torch.full((1, 1, 1, 1, 1), factor, dtype=dtype)
        want = (x.double() * weight.double()).to(dtype)
        assert torch.equal(depthwise_conv3d(x, weight), want)


# The compiled operators by themselves


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_first])
def test_opcheck(layout, residual) -> None:
    ops = torch.ops.uniformer_kernels
    x, dy = layout(draw(2, 3, 5, 6, 17)), layout(draw(2, 3, 5, 6, 17))
    weight, bias = draw(17, 1, 3, 3, 5), draw(17)
    torch.library.opcheck(ops.depthwise_conv3d.default, (x, weight, bias, residual))
    torch.library.opcheck(ops.depthwise_conv3d.default, (x, weight, None, residual))
    for want_input, want_weight in product([False, True], repeat=2):
        arguments = (dy, x, weight, residual, want_input, want_weight)
        # The others take two tensors without elements for one, both being nowhere.
        tests = ["test_autograd_registration", "test_aot_dispatch_dynamic"]
        tests += ["test_schema", "test_faketensor"] if want_weight else []
        torch.library.opcheck(ops.depthwise_conv3d_backward.default, arguments, test_utils=tests)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 5, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_any_number_of_threads(dtype, kernel) -> None:
    inputs = {"x": draw(3, 4, 14, 15, 40, dtype=dtype), "weight": draw(40, 1, *kernel, dtype=dtype)}
    inputs["bias"] = draw(40, dtype=dtype)
    dy = draw(3, 4, 14, 15, 40, dtype=dtype)
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(evaluate(depthwise_conv3d, inputs, upstream=lambda _: dy))
    for other in results[1:]:
        for name, result in results[0].items():
            assert torch.equal(result, other[name]), name


def test_same_bits_in_any_layout() -> None:
    """Strides decide how memory is read, never the order of a sum."""
    x, weight, bias = draw(2, 3, 5, 6, 17), draw(17, 1, 5, 5, 5), draw(17)
    want = depthwise_conv3d(x, weight, bias)
    for layout in (channels_first, every_other, part_of_more_channels, flipped_storage):
        assert torch.equal(depthwise_conv3d(layout(x), weight, bias), want)


# Bad input


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x": (3, 5, 6, 4)}, r"x: expected \[B, T, H, W, C\], got \[3, 5, 6, 4\]"),
        ({"weight": (4, 3, 3, 3)}, r"weight: expected .*got \[4, 3, 3, 3\]"),
        ({"weight": (5, 1, 3, 3, 3)}, r"weight: expected \[4, 1, .*got \[5, 1, 3, 3, 3\]"),
        ({"weight": (4, 4, 3, 3, 3)}, r"weight: expected \[4, 1, .*got \[4, 4, 3, 3, 3\]"),
        ({"weight": (4, 1, 3, 2, 3)}, r"weight: expected .*odd.*got .*3, 2, 3"),
        ({"weight": (4, 1, 3, 3, 0)}, r"weight: expected .*odd.*got .*3, 3, 0"),
        ({"weight": (4, 1, 9, 3, 3)}, r"weight: expected .*7.*got .*9, 3, 3"),
        ({"bias": (5,)}, r"bias: expected \[4\], got \[5\]"),
        ({"bias": (1, 4)}, r"bias: expected \[4\], got \[1, 4\]"),
    ],
    ids=str,
)
def test_refuses_sizes_that_do_not_fit(shapes, message, backend) -> None:
    shapes = {"x": (2, 3, 5, 6, 4), "weight": (4, 1, 3, 3, 3), "bias": (4,)} | shapes
    with pytest.raises(ValueError, match=f"depthwise_conv3d: {message}"):
        depthwise_conv3d(**{name: draw(*shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("axis", range(1, 5))
def test_an_empty_axis_is_empty_or_an_error(axis, backend) -> None:
    """PyTorch refuses all but an empty batch; nothing at all is right too."""
    shape = [2, 3, 5, 6, 4]
    shape[axis] = 0
    inputs = {"x": draw(*shape), "weight": draw(shape[-1], 1, 3, 3, 3)}
    try:
        results = evaluate(depthwise_conv3d, inputs)
    except (ValueError, RuntimeError):
        return
    assert results["output"].shape == torch.Size(shape)
    assert not results["weight"].any()


def test_too_little_memory_is_an_error() -> None:
    """The rows packed for one channel are sixteen times the map here; the process lives on."""
    code = """
import resource, torch, uniformer_kernels as uk
x = torch.zeros(1).expand(1, 1, 1, 2**26, 1)
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
try:
    uk.depthwise_conv3d(x, torch.zeros(1, 1, 1, 7, 1))
except RuntimeError:
    print(uk.depthwise_conv3d(torch.ones(1, 1, 2, 2, 3), torch.ones(3, 1, 1, 3, 3)).sum().item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "48.0\n", done.stderr
