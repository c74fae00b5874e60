"""Patch stems: every stem of the models, edges that are cut off, and what does not fit."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from importlib import import_module

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.contract import DTYPES, check, draw
from uniformer_kernels import patch_embed, reference
from uniformer_kernels.kernels import kernels

STEMS = {  # kernel, stride, padding
    "video": ((3, 4, 4), (2, 4, 4), (1, 0, 0)),
    "image": ((1, 4, 4), (1, 4, 4), (0, 0, 0)),
    "later": ((1, 2, 2), (1, 2, 2), (0, 0, 0)),
    "overlapping in time": ((3, 2, 2), (1, 2, 2), (1, 0, 0)),
    "convolutional": ((1, 3, 3), (1, 2, 2), (0, 1, 1)),
    "sparse": ((1, 1, 1), (2, 3, 2), (0, 0, 0)),
}


def hold(shape, C_out, stem, dtype=torch.float32, *, bias=True, norm=True, layout=None) -> None:
    """Check one call against the contract."""
    kernel, stride, padding = stem
    x = draw(*shape, dtype=dtype)
    inputs = {
        "x": layout(x) if layout else x,
        "weight": draw(C_out, shape[-1], *kernel, dtype=dtype),
        "bias": draw(C_out, dtype=dtype) if bias else None,
        "norm_weight": draw(C_out, dtype=dtype) if norm else None,
        "norm_bias": draw(C_out, dtype=dtype) if norm else None,
    }
    options = {"stride": stride, "padding": padding, "eps": 1e-5}
    check(
        partial(patch_embed, **options),
        partial(reference.patch_embed, **options),
        inputs,
        reduction=max(x.numel(), torch.Size(kernel).numel() * shape[-1]),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("stem", STEMS)
def test_every_stem(stem, norm, dtype, backend) -> None:
    hold((2, 4, 8, 12, 3), 10, STEMS[stem], dtype, norm=norm)
    hold((1, 5, 7, 9, 6), 16, STEMS[stem], dtype, norm=norm, bias=False)  # edges cut off


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("most", [8, 256], ids=["normalised behind", "normalised inside"])
@pytest.mark.parametrize("C", [3, 6])
def test_several_blocks(C, most, dtype, backend, monkeypatch) -> None:
    """Of positions and taps; LayerNorm in the product's program, and in its own."""
    tiles = nullcontext()
    if backend == "triton":
        module = import_module("uniformer_kernels.triton.patch_embed")
        monkeypatch.setattr(module, "_MAX_FUSED", most)
        tiles = module.PATCH_EMBED.trying(BLOCK_M=16, BLOCK_K=16)
    with tiles:
        for stem in ("video", "later"):
            hold((1, 4, 8, 12, C), 20, STEMS[stem], dtype)


@pytest.mark.parametrize("stem", STEMS)
def test_offsets_of_64_bits(stem, backend, monkeypatch) -> None:
    if backend == "triton":
        module = import_module("uniformer_kernels.triton.patch_embed")
        monkeypatch.setattr(module, "wide", lambda *_: True)
    hold((2, 4, 8, 12, 3), 10, STEMS[stem])


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 16])
def test_frames_of_the_video_stem(frames, backend) -> None:
    """``ceil(T / 2)``, as the official model gives."""
    y = patch_embed(
        draw(1, frames, 4, 4, 3), draw(8, 3, 3, 4, 4), None, stride=(2, 4, 4), padding=(1, 0, 0)
    )
    assert y.shape == (1, (frames + 1) // 2, 1, 1, 8)
    hold((1, frames, 4, 4, 3), 8, STEMS["video"])


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.movedim(-1, 1).contiguous().movedim(1, -1),
        lambda x: x.flip(3),
        lambda x: x[..., :1].expand(x.shape),
        lambda x: draw(*x.shape[:-1], 2 * x.shape[-1])[..., 1::2],
    ],
    ids=["channels first", "flipped", "grey", "every other channel"],
)
@pytest.mark.parametrize("stem", STEMS)
def test_layouts(stem, layout, backend) -> None:
    hold((2, 4, 8, 12, 3), 10, STEMS[stem], layout=layout)


def test_output_is_channels_last() -> None:
    """Whatever the layout of the clip, as the blocks want it."""
    clip = draw(2, 3, 4, 8, 8).movedim(1, -1)
    for norm in (None, torch.ones(10)):
        y = patch_embed(
            clip, draw(10, 3, 3, 4, 4), draw(10), norm, stride=(2, 4, 4), padding=(1, 0, 0)
        )
        assert y.is_contiguous()


axis = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2))


@given(
    B=st.integers(1, 3),
    C=st.integers(1, 7),
    C_out=st.integers(2, 19),
    axes=st.tuples(axis, axis, axis),
    order=st.permutations(range(5)),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_shape_and_strides(B, C, C_out, axes, order, dtype, bias, seed) -> None:
    assume(all(size + 2 * padding >= kernel for size, kernel, _, padding in axes))
    torch.manual_seed(seed)
    sizes, *stem = zip(*axes, strict=True)
    back = [order.index(a) for a in range(5)]
    # LayerNorm may divide by any spread however small: its errors are then no kernel's.
    hold(
        (B, *sizes, C),
        C_out,
        stem,
        dtype,
        bias=bias,
        norm=False,
        layout=lambda x: x.permute(*order).contiguous().permute(*back),
    )


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 1e-1])
def test_eps_reaches_the_norm(eps, backend) -> None:
    x, weight = draw(1, 1, 2, 2, 3) * 1e-3, draw(10, 3, 1, 2, 2)
    got = patch_embed(x, weight, None, torch.ones(10), None, stride=(1, 2, 2), eps=eps)
    y = torch.einsum("bthwc,octhw->bo", x.double(), weight.double())
    want = (y - y.mean()) / (y.var(correction=0) + eps).sqrt()
    torch.testing.assert_close(got.flatten().double(), want.flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stem", ["video", "convolutional"])
def test_nan_spreads_over_its_patches_only(stem, backend) -> None:
    kernel, stride, padding = STEMS[stem]
    x = torch.zeros(2, 6, 12, 12, 3)
    x[1, 3, 6, 7, 1] = 1
    options = {"stride": stride, "padding": padding}
    touched = patch_embed(x, torch.ones(10, 3, *kernel), None, **options) != 0
    bad = patch_embed(x.masked_fill(x == 1, torch.nan), draw(10, 3, *kernel), None, **options)
    assert 0 < touched.sum() < touched.numel()
    assert torch.equal(bad.isnan(), touched)


def test_opcheck(backend) -> None:
    """The Triton kernel's, as PyTorch's serve the other backends."""
    if backend == "triton":
        operator = kernels(backend).patch_embed.default
        x, weight = draw(2, 3, 8, 9, 3), draw(10, 3, 3, 4, 4)
        for norm, save in ((draw(10), True), (draw(10), False), (None, True)):
            arguments = (x, weight, None, norm, None, [2, 4, 4], [1, 0, 0], 1e-5, save)
            torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": (4, 8, 8, 3)}, r"x: expected \[B, T, H, W, C\], got \[4, 8, 8, 3\]"),
        ({"x": (2, 4, 3, 8, 3)}, r"x: expected H of at least 4 .*got 3"),
        ({"x": (2, 4, 8, 1, 3)}, r"x: expected W of at least 4 .*got 1"),
        ({"weight": (10, 4, 3, 4, 4)}, r"weight: expected \[C_out, 3, .*got \[10, 4, 3, 4, 4\]"),
        ({"weight": (10, 3, 4, 4)}, r"weight: expected \[C_out, 3, .*got \[10, 3, 4, 4\]"),
        ({"bias": (9,)}, r"bias: expected \[10\], got \[9\]"),
        ({"norm_weight": (3,)}, r"norm_weight: expected \[10\], got \[3\]"),
        ({"norm_bias": (10, 1)}, r"norm_bias: expected \[10\], got \[10, 1\]"),
        ({"stride": (0, 4, 4)}, r"stride: expected .*positive.*got \(0, 4, 4\)"),
        ({"stride": (4, 4)}, r"stride: expected three .*got \(4, 4\)"),
        ({"padding": (1, 0)}, r"padding: expected three .*got \(1, 0\)"),
        ({"padding": (-1, 0, 0)}, r"padding: expected .*got \(-1, 0, 0\)"),
    ],
    ids=str,
)
def test_refuses_sizes_that_do_not_fit(changed, message, backend) -> None:
    options = {"stride": (2, 4, 4), "padding": (1, 0, 0)}
    options |= {k: v for k, v in changed.items() if k in options}
    shapes = {"x": (2, 4, 8, 8, 3), "weight": (10, 3, 3, 4, 4), "bias": (10,)}
    shapes |= {"norm_weight": (10,), "norm_bias": (10,)}
    shapes |= {k: v for k, v in changed.items() if k in shapes}
    with pytest.raises(ValueError, match=f"patch_embed: {message}"):
        patch_embed(**{name: draw(*shape) for name, shape in shapes.items()}, **options)
