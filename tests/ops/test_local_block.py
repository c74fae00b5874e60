"""Both halves of a local block at inference: shapes, tiles, dtypes, launches, and bad input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import uniformer_kernels as uk
from tests.contract import DTYPES, Function, check, draw
from uniformer_kernels import depthwise_feed_forward, depthwise_linear, onednn, reference
from uniformer_kernels.triton import INTERPRETED

# The interpreter takes seconds a call: float16 where it is a path of its own, and in one call.
MOST = [torch.float32] if INTERPRETED else DTYPES
KERNELS = [(3, 3, 3), (1, 3, 3), (5, 5, 5), (1, 5, 5)]
SHAPES = [  # B, T, H, W, C
    (1, 1, 1, 1, 1),
    (2, 1, 7, 9, 3),  # an image
    (1, 2, 2, 2, 16),  # smaller than the kernel
    (2, 3, 5, 1, 7),
    (1, 1, 1, 40, 17),
    (1, 2, 6, 7, 56),
    (2, 2, 5, 9, 64),
    (1, 2, 3, 5, 128),
]


def first_half(shape, kernel, C_out: int | None = None, dtype=torch.float32) -> dict[str, Tensor]:
    C = shape[-1]
    C_out = C_out or C
    return {
        "x": draw(*shape, dtype=dtype),
        "dw_weight": _scaled(C, 1, *kernel, dtype=dtype),
        "dw_bias": draw(C, dtype=dtype),
        "weight": _scaled(C_out, C, dtype=dtype),
        "bias": draw(C_out, dtype=dtype),
    }


def second_half(shape, kernel, hidden: int | None = None, dtype=torch.float32) -> dict[str, Tensor]:
    C = shape[-1]
    hidden = hidden or 2 * C + 1
    return {
        "x": draw(*shape, dtype=dtype),
        "residual": draw(*shape, dtype=dtype),
        "dw_weight": _scaled(C, 1, *kernel, dtype=dtype),
        "dw_bias": draw(C, dtype=dtype),
        "pw_weight": _scaled(C, C, dtype=dtype),
        "pw_bias": draw(C, dtype=dtype),
        "fc1_weight": _scaled(hidden, C, dtype=dtype),
        "fc1_bias": draw(hidden, dtype=dtype),
        "fc2_weight": _scaled(C, hidden, dtype=dtype),
        "fc2_bias": draw(C, dtype=dtype),
    }


def _scaled(*shape: int, dtype: torch.dtype) -> Tensor:
    """A weight that keeps unit normal numbers about one."""
    return draw(*shape, dtype=dtype) / torch.Size(shape[1:]).numel() ** 0.5


def result(index: int, function: Callable[..., tuple[Tensor, ...]]) -> Function:
    return lambda **tensors: function(**tensors)[index]


def hold(inputs: dict[str, Tensor | None]) -> None:
    """Check one call of the operator the inputs are those of against the contract."""
    *_, C = inputs["x"].shape
    taps = inputs["dw_weight"][0].numel()
    if "residual" in inputs:
        reduction = taps + 2 * C + inputs["fc1_weight"].shape[0]
        functions = [(depthwise_feed_forward, reference.depthwise_feed_forward)]
    else:
        reduction = taps + C
        pair = depthwise_linear, reference.depthwise_linear
        functions = [tuple(result(i, function) for function in pair) for i in range(2)]
    for function, plain in functions:
        check(function, plain, inputs, reduction=reduction, needs=())


@pytest.mark.parametrize("dtype", MOST, ids=str)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_every_kernel_size(kernel, dtype, backend) -> None:
    hold(first_half((2, 2, 5, 6, 19), kernel, 11, dtype))
    hold(second_half((2, 2, 5, 6, 19), kernel, 33, dtype))


@pytest.mark.parametrize("dtype", MOST, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_edge_shapes(shape, dtype, backend) -> None:
    hold(first_half(shape, (3, 3, 3), dtype=dtype))
    hold(second_half(shape, (1, 3, 3), dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype, backend) -> None:
    hold(first_half((1, 2, 4, 5, 24), (1, 3, 3), dtype=dtype))
    hold(second_half((1, 2, 4, 5, 24), (1, 3, 3), dtype=dtype))


@pytest.mark.parametrize("C_out", [1, 8, 70])
def test_another_number_of_channels(C_out, backend) -> None:
    hold(first_half((1, 1, 4, 5, 20), (1, 3, 3), C_out))


@pytest.mark.parametrize("hidden", [1, 24, 130])
def test_every_hidden_width(hidden, backend) -> None:
    hold(second_half((1, 1, 4, 5, 20), (1, 3, 3), hidden))


def test_without_biases(backend) -> None:
    for inputs in (first_half((1, 2, 3, 4, 6), (1, 3, 3)), second_half((1, 2, 3, 4, 6), (1, 3, 3))):
        hold(inputs | {name: None for name in inputs if name.endswith("bias")})


def test_padding_meets_zeros_alone(backend) -> None:
    """A border sees nothing of what biases would make of a padded map."""
    inputs = first_half((1, 1, 3, 3, 4), (1, 3, 3)) | {"dw_weight": torch.ones(4, 1, 1, 3, 3)}
    y, z = depthwise_linear(**inputs | {"x": torch.ones(1, 1, 3, 3, 4)})
    want = torch.tensor([[4.0, 6, 4], [6, 9, 6], [4, 6, 4]])[..., None] + 1 + inputs["dw_bias"]
    torch.testing.assert_close(y[0, 0], want)
    torch.testing.assert_close(z, y @ inputs["weight"].T + inputs["bias"])


@pytest.mark.parametrize("which", ["x", "residual", "dw_weight", "fc1_weight", "fc2_weight"])
def test_any_layout(which, backend) -> None:
    """Channels in front, as convolutions elsewhere keep them."""
    for inputs in (first_half((2, 2, 4, 5, 6), (1, 3, 3)), second_half((2, 2, 4, 5, 6), (1, 3, 3))):
        if which in inputs:
            t = inputs[which]
            turned = t.movedim(-1, 0).contiguous().movedim(0, -1)
            assert not turned.is_contiguous()
            hold(inputs | {which: turned})


def test_no_samples(backend) -> None:
    shape = 0, 2, 3, 3, 4
    y, z = depthwise_linear(**first_half(shape, (3, 3, 3), 5))
    assert y.shape == shape
    assert z.shape == (*shape[:-1], 5)
    assert depthwise_feed_forward(**second_half(shape, (5, 5, 5))).shape == shape


def test_residual_may_be_wider(backend) -> None:
    inputs = second_half((1, 1, 4, 5, 6), (1, 3, 3), dtype=torch.float16)
    inputs["residual"] = draw(1, 1, 4, 5, 6)
    y = depthwise_feed_forward(**inputs)
    assert y.dtype == torch.float32
    exact = reference.depthwise_feed_forward(**{k: t.double() for k, t in inputs.items()})
    torch.testing.assert_close(y.double(), exact, rtol=5e-3, atol=5e-3)


def test_operators_in_a_row_are_the_block(backend) -> None:
    """The same numbers as from the operators they replace."""
    one, two = first_half((1, 2, 5, 6, 12), (3, 3, 3)), second_half((1, 2, 5, 6, 12), (1, 5, 5))
    y, z = depthwise_linear(**one)
    got = depthwise_feed_forward(z, y, *list(two.values())[2:])
    x = uk.depthwise_conv3d(one["x"], one["dw_weight"], one["dw_bias"], residual=True)
    u = uk.depthwise_conv3d(
        uk.linear(x, one["weight"], one["bias"]), two["dw_weight"], two["dw_bias"]
    )
    x = uk.linear(u, two["pw_weight"], two["pw_bias"], residual=x)
    want = uk.feed_forward(x, *list(two.values())[6:], residual=x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


# Parts of the rows on a CPU


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parts_of_the_rows(dtype, monkeypatch) -> None:
    """The last one is shorter; each has its own rows of the residual."""
    monkeypatch.setattr(onednn, "_HIDDEN", 13 * 7)
    with uk.use_backend("cpu"):
        hold(second_half((2, 2, 5, 3, 6), (1, 3, 3), 13, dtype))


# Tiles of the Triton kernels


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize(
    "tile",
    [
        {"ROWS": 4, "COLUMNS": 8, "SLOTS": 4, "BLOCK_K": 32},
        {"ROWS": 4, "COLUMNS": 4, "SLOTS": 2, "BLOCK_K": 16},
        {"ROWS": 1, "COLUMNS": 4, "SLOTS": 8, "BLOCK_K": 32},
        {"ROWS": 2, "COLUMNS": 1, "SLOTS": 16, "BLOCK_K": 16},
    ],
    ids=str,
)
def test_tiles(tile, backend) -> None:
    """Several tiles and programs along every axis, several parts of both kinds of channels."""
    from uniformer_kernels.triton import local_block

    with local_block.LINEAR.trying(**tile):
        hold(first_half((2, 2, 5, 9, 20), (1, 3, 3), 24))
    with local_block.FEED_FORWARD.trying(**tile, BLOCK_H=16):
        hold(second_half((2, 2, 5, 9, 20), (1, 3, 5), 40))


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
def test_wide_offsets(backend, monkeypatch) -> None:
    """The kernels for maps of more than 2³¹ elements, and weights copied for large ones."""
    from uniformer_kernels.triton import local_block

    monkeypatch.setattr(local_block, "wide", lambda *_: True)
    monkeypatch.setattr(local_block, "_PACKED", 0)
    hold(first_half((2, 3, 4, 5, 18), (3, 3, 3)))
    hold(second_half((2, 3, 4, 5, 17), (3, 3, 1)))


@pytest.mark.parametrize("C", [56, 64, 112, 128])
def test_each_is_one_kernel(C) -> None:
    """With taps that lie behind one another, as a prepared model keeps them."""
    pytest.importorskip("triton")
    from uniformer_kernels.triton.plan import planning

    def planned(operator, inputs: dict[str, Tensor]) -> None:
        taps = inputs["dw_weight"].movedim(0, -1).contiguous().movedim(-1, 0)
        metas = {k: t.to("meta") for k, t in (inputs | {"dw_weight": taps}).items()}
        maps = {k: torch.empty(16, 8, 56, 56, C, device="meta") for k in metas if "_" not in k}
        with planning() as plan:
            operator(**metas | {k: t for k, t in maps.items() if k in ("x", "residual")})
        assert len(plan.launches) == plan.count == 1, plan.operators

    planned(depthwise_linear, first_half((1, 1, 1, 1, C), (3, 3, 3)))
    planned(depthwise_feed_forward, second_half((1, 1, 1, 1, C), (5, 5, 5), 4 * C))


@pytest.mark.parametrize(("C", "kernel"), [(8, (1, 7, 7)), (129, (1, 3, 3)), (136, (3, 3, 3))])
def test_too_large_for_one_kernel(C, kernel, backend) -> None:
    hold(first_half((1, 2, 3, 4, C), kernel, 130))
    hold(second_half((1, 2, 3, 4, C), kernel, 2 * C))


@pytest.mark.parametrize("half", [first_half, second_half])
def test_too_large_for_one_kernel_is_several(half) -> None:
    """Of ours and cuBLAS's, not PyTorch's convolutions."""
    pytest.importorskip("triton")
    from uniformer_kernels.triton.plan import planning

    operator = depthwise_linear if half is first_half else depthwise_feed_forward
    metas = {k: t.to("meta") for k, t in half((1, 2, 7, 7, 320), (5, 5, 5)).items()}
    with planning() as plan:
        operator(**metas)
    names = {"addmm", "mm"}
    assert names >= plan.operators.keys(), plan.operators
    assert any(call == "depthwise_conv3d" for call, _ in plan.calls)


# Who serves, and bad input


@pytest.mark.parametrize("half", [first_half, second_half])
def test_only_the_reference_records_gradients(half) -> None:
    operator = depthwise_linear if half is first_half else depthwise_feed_forward
    inputs = half((1, 2, 3, 4, 6), (1, 3, 3))
    for name in inputs:
        leaf = inputs[name].clone().requires_grad_()
        some = inputs | {name: leaf}
        for backend in ("cpu", "triton"):
            with (
                uk.use_backend(backend),
                pytest.raises(
                    uk.BackendError, match=rf"{operator.__name__}: the {backend} .*no gradients"
                ),
            ):
                operator(**some)
        y = operator(**some)  # chosen by itself
        total = y.sum() if isinstance(y, Tensor) else sum(t.sum() for t in y)
        (gradient,) = torch.autograd.grad(total, leaf)
        assert gradient.any()
        with torch.no_grad(), uk.use_backend("cpu"):
            operator(**some)


def test_triton_declines_nothing_else() -> None:
    with uk.use_backend("triton"), pytest.raises(uk.BackendError, match="a layer has no channels"):
        depthwise_linear(**first_half((1, 1, 2, 2, 0), (1, 3, 3), 4))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("x", (1, 3, 4, 6), "B, T, H, W, C"),
        ("dw_weight", (6, 3, 3, 3), "6, 1, kt, kh, kw"),
        ("dw_weight", (5, 1, 3, 3, 3), "6, 1, kt, kh, kw"),
        ("dw_weight", (6, 1, 3, 2, 3), r"odd kernel sizes up to 7, got \[3, 2, 3\]"),
        ("dw_bias", (5,), "6"),
        ("weight", (6, 5), "C_out, 6"),
        ("bias", (5,), "6"),
    ],
)
def test_first_half_refuses(name, shape, expected) -> None:
    inputs = first_half((1, 2, 3, 4, 6), (3, 3, 3)) | {name: draw(*shape)}
    with pytest.raises(ValueError, match=rf"^depthwise_linear: {name}: expected \[?{expected}"):
        depthwise_linear(**inputs)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("x", (1, 3, 4, 6), "B, T, H, W, C"),
        ("residual", (1, 2, 3, 4, 5), "1, 2, 3, 4, 6"),
        ("dw_weight", (6, 1, 3, 9, 3), r"odd kernel sizes up to 7, got \[3, 9, 3\]"),
        ("dw_bias", (5,), "6"),
        ("pw_weight", (5, 6), "6, 6"),
        ("pw_bias", (5,), "6"),
        ("fc1_weight", (13, 5), "C_out, 6"),
        ("fc1_bias", (6,), "13"),
        ("fc2_weight", (6, 12), "6, 13"),
        ("fc2_bias", (13,), "6"),
    ],
)
def test_second_half_refuses(name, shape, expected) -> None:
    inputs = second_half((1, 2, 3, 4, 6), (3, 3, 3), 13) | {name: draw(*shape)}
    with pytest.raises(
        ValueError, match=rf"^depthwise_feed_forward: {name}: expected \[?{expected}"
    ):
        depthwise_feed_forward(**inputs)
