"""How calls are divided among blocks: all of it once, nothing beside, within every GPU's limits."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uniformer_kernels import _extension
from uniformer_kernels.ops.tokens import _MAX_TOKENS

_introspect = pytest.importorskip("uniformer_kernels._introspect")

ARCHITECTURES = [80, 86, 89, 90, 100, 103, 120]
REGISTERS = 65536  # of a multiprocessor, so of a block
odd = st.sampled_from([1, 3, 5, 7])
sizes = st.one_of(st.integers(1, 20), st.integers(1, 3000))
shapes = st.tuples(st.integers(1, 64), st.integers(1, 64), sizes, sizes, sizes)
every_plan = given(
    shape=shapes,
    kernel=st.one_of(st.tuples(odd, odd, odd), st.builds(lambda t, k: (t, k, k), odd, odd)),
    size=st.sampled_from([2, 4]),
    architecture=st.sampled_from(ARCHITECTURES),
    gradient=st.booleans(),
)
many = settings(max_examples=500)


def plan(shape, kernel, size, architecture, gradient) -> dict[str, int]:
    return _introspect.depthwise_conv_plan(shape, kernel, size, architecture, gradient)


def covers(blocks: int, step: int, size: int) -> bool:
    """Whether blocks side by side have every position once, and none of them is empty."""
    return (blocks - 1) * step < size <= blocks * step


@many
@every_plan
def test_blocks_cover_everything_once(shape, kernel, size, architecture, gradient) -> None:
    B, T, H, W, C = shape
    p = plan(shape, kernel, size, architecture, gradient)
    if not p["tiled"]:
        return
    assert covers(p["down"], p["tiles_down"] * p["rows"], H)
    assert covers(p["across"], p["tiles_across"] * p["columns"], W)
    assert covers(p["chunks"], p["frames"], T)
    assert covers(p["channel_blocks"], p["channels"], C)
    positions = B * p["down"] * p["across"] * p["chunks"]
    if gradient:  # block `part` has positions part, part + parts, ...
        assert 1 <= p["parts"] <= positions
        assert p["grid"] == p["parts"] * p["channel_blocks"]
    else:
        assert p["parts"] == positions
        assert p["grid"] == positions * p["channel_blocks"]
    assert p["threads"] == kernel[0] * p["tiles_down"] * p["tiles_across"] * p["channels"] // 2


@many
@every_plan
def test_what_is_staged_has_room(shape, kernel, size, architecture, gradient) -> None:
    """The frames under way and in use, each with its halo, and what else lies in shared memory."""
    p = plan(shape, kernel, size, architecture, gradient)
    if not p["tiled"]:
        return
    kt, kh, kw = kernel
    assert kh == kw
    rows, columns = p["tiles_down"] * p["rows"], p["tiles_across"] * p["columns"]
    window = (rows + kh - 1) * (columns + kw - 1) * p["channels"] * size
    inner = rows * columns * p["channels"] * size
    weights = kt * kh * kw * p["channels"] * 4
    used = 2 * window + (kt + 1) * inner if gradient else 3 * window + weights
    assert used <= p["shared"]
    # Vectors of 16 bytes: positions begin at them, and the threads share them out evenly.
    assert p["channels"] * size % 16 == 0
    assert p["threads"] % (p["channels"] * size // 16) == 0


@many
@every_plan
@example((64, 64, 3000, 3000, 3000), (3, 3, 3), 4, 80, False)
@example((1, 64, 1, 1, 3000), (7, 5, 5), 4, 86, True)
@example((1, 1, 1, 1, 1), (7, 7, 7), 2, 90, True)
def test_limits(shape, kernel, size, architecture, gradient) -> None:
    p = plan(shape, kernel, size, architecture, gradient)
    assert (
        0 < p["shared_limit"] <= {80: 163, 90: 227, 100: 227, 103: 227}.get(architecture, 99) * 1024
    )
    assert 0 <= p["shared"] <= p["shared_limit"]
    assert 1 <= p["threads"] <= 1024
    assert 1 <= p["grid"] < 2**31
    if p["tiled"]:
        assert p["threads"] * 168 <= REGISTERS  # what tests/cuda/budgets.json allows a thread
        assert kernel[1] == kernel[2] <= 5


@many
@every_plan
def test_sums_have_an_order_of_their_own(shape, kernel, size, architecture, gradient) -> None:
    """The same on every GPU whose shared memory suffices."""
    p, other = (plan(shape, kernel, size, a, gradient) for a in (architecture, 90))
    if p["tiled"]:
        assert {k: p[k] for k in p if k != "shared_limit"} == {
            k: other[k] for k in other if k != "shared_limit"
        }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(
    ("grid", "C"),
    [
        ((8, 56, 56), 64),
        ((8, 28, 28), 128),
        ((8, 14, 14), 320),
        ((8, 7, 7), 512),
        ((8, 40, 40), 56),
        ((8, 20, 20), 112),
        ((8, 10, 10), 224),
        ((8, 5, 5), 448),
    ],
    ids=str,
)
def test_the_models_have_tiles(grid, C, gradient, size, architecture) -> None:
    """On every GPU, and few of a block's channels are none of the map's."""
    for kernel in ((3, 3, 3), (5, 5, 5), (1, 3, 3), (1, 5, 5), (3, 1, 1)):
        p = plan((16, *grid, C), kernel, size, architecture, gradient)
        assert p["tiled"]
        assert p["channels"] * p["channel_blocks"] <= C * 8 / 7


every_product = given(
    shape=shapes, frames=st.sampled_from([1, 5]), architecture=st.sampled_from(ARCHITECTURES)
)


def plan_products(shape, frames, architecture, *, gradient) -> dict[str, int]:
    """What both have in common holds of it."""
    B, T, H, W, C = shape
    p = _introspect.depthwise_conv_plan(
        shape, (frames, 5, 5), 2, architecture, gradient=gradient, by=_introspect.By.products
    )
    if not p["toeplitz"]:  # another kernel serves
        assert not gradient
        assert p["shared_limit"] < 112 * 1024 or B * T * H * W * C > 2**31
        return p
    assert covers(p["down"], 4 * p["tiles_down"], H)
    assert covers(p["across"], 4 * p["tiles_across"], W)
    assert covers(p["chunks"], p["frames"], T)
    assert covers(p["channel_blocks"], p["channels"], C)
    assert p["grid"] == p["parts"] * p["channel_blocks"]
    assert p["threads"] == 512  # with 128 registers each
    return p


@many
@every_product
@example((64, 64, 3000, 3000, 3000), 5, 80)
def test_matrix_products(shape, frames, architecture) -> None:
    B, T, *_ = shape
    p = plan_products(shape, frames, architecture, gradient=False)
    if not p["toeplitz"]:
        return
    assert p["channels"] == p["threads"] // 32
    assert p["parts"] == B * p["down"] * p["across"] * p["chunks"]
    staged = min(T, p["frames"] + frames - 1) * (4 * p["tiles_down"] + 4)
    staged *= (4 * p["tiles_across"] + 4) * p["channels"] * 2
    results, moments = 2 * 8 * 16 * p["channels"] * 2, 2 * p["threads"] * 4
    assert staged + results + moments <= p["shared"] <= 112 * 1024
    assert p["shared"] <= p["shared_limit"]


@many
@every_product
@example((1, 64, 3000, 3000, 8), 5, 86)  # the most that one row of tiles takes
def test_weight_gradients_as_matrix_products(shape, frames, architecture) -> None:
    B, T, _, W, _ = shape
    p = plan_products(shape, frames, architecture, gradient=True)
    assert p["channels"] == p["threads"] // 64  # two warps each
    positions = B * p["down"] * p["across"] * p["chunks"]
    assert 1 <= p["parts"] <= min(positions, 256)
    assert p["tiles_across"] % 2 == 0  # pairs
    assert 4 * (p["tiles_across"] - 1) < -(-W // p["across"]) + 8  # and no more than one is empty
    # Words of two numbers: their columns and those around them.
    inner = (4 * p["tiles_down"] + 4) * (2 * p["tiles_across"] + 4) * 4
    outer = 4 * p["tiles_down"] * 2 * p["tiles_across"] * 4
    frames_of_x = min(T, p["frames"] + frames - 1)
    staged = p["channels"] * (frames_of_x * inner + p["frames"] * outer)
    assert max(staged, p["channels"] * 16 * 64 * 4) <= p["shared"] <= p["shared_limit"]


@many
@every_plan
def test_boxes_of_tma(shape, kernel, size, architecture, gradient) -> None:
    """The same blocks and the same room as when threads stage the frames, and the barriers'."""
    threads = plan(shape, kernel, size, architecture, gradient)
    p = _introspect.depthwise_conv_plan(
        shape, kernel, size, architecture, gradient, _introspect.By.tma
    )
    boxes = p.pop("box", None), p.pop("outer_box", None)
    if not p["tma"]:
        assert p == threads
        assert not p["tiled"] or threads["shared"] + 24 > threads["shared_limit"]
        return
    barriers = 8 * (2 if gradient else 3)
    assert p == threads | {"tma": True, "shared": threads["shared"] + barriers}
    assert p["shared"] <= p["shared_limit"]
    assert threads["shared"] % 8 == 0  # where barriers begin
    for box, K in zip(boxes, (kernel[1], 1), strict=True):
        channels, columns, rows, *one = box
        assert one == [1, 1]
        assert channels >= p["channels"]
        assert channels * size == (64 if kernel[1] == 5 else 128)  # the pitch of threads' staging
        assert columns >= p["tiles_across"] * p["columns"] + K - 1
        assert rows == p["tiles_down"] * p["rows"] + K - 1
        assert max(box) <= 256
        assert channels * columns * rows * size < 2**20  # what a barrier counts
        assert channels * columns * (2 * p["rows"] + K - 1) * size % 128 == 0  # slots


positive = st.one_of(st.integers(1, 5), st.integers(1, 3000))


@st.composite
def maps(draw) -> tuple[list[int], list[int], int]:
    """Shape, strides in elements and their size: dense, a part of a larger map, or anything."""
    size, shape = draw(st.sampled_from([2, 4])), [draw(positive) for _ in range(5)]
    kind = draw(st.sampled_from(["dense", "part", "swapped", "any"]))
    if kind == "any":
        return shape, [draw(st.integers(0, 2**42)) for _ in range(4)] + [1], size
    strides, room = [1], shape[4]
    if kind == "part":
        room += draw(st.integers(0, 64))
    for length in shape[:0:-1]:
        strides.insert(0, strides[0] * (room if len(strides) == 1 else length))
    if kind == "swapped":
        i, j = draw(st.sampled_from([(0, 1), (1, 2), (2, 3)]))
        strides[i], strides[j] = strides[j], strides[i]
    return shape, strides, size


@many
@given(map_=maps(), base=st.sampled_from([2**40, 2**40 + 8, 2**40 + 16]))
@example(([1, 8, 56, 56, 64], [0, 56 * 56 * 64, 56 * 64, 64, 1], 2), 2**40)  # one sample
def test_maps_that_tma_takes(map_, base) -> None:
    """All the driver asks for; dense maps of whole vectors have it."""
    shape, strides, size = map_
    m = _introspect.tensor_boxes(base, size, [64 // size, 18, 12, 1, 1], shape, strides)
    assert m["extent"] == shape[::-1]
    inner_first = [s * size for s in strides[3::-1]]
    for found, want, length in zip(m["stride"], inner_first, shape[3::-1], strict=True):
        assert found == want or length == 1  # of which there is no other
    steps = [16, *m["stride"]]
    right = (
        base % 16 == 0
        and all(0 < s < 2**40 for s in m["stride"])
        and all(outer % inner == 0 for inner, outer in pairwise(steps))
    )
    assert m["fits"] == right
    dense = [prod(shape[i + 1 :]) for i in range(5)]
    if strides == dense and base % 16 == 0 and shape[4] * size % 16 == 0 and dense[0] < 2**38:
        assert m["fits"]


@pytest.mark.parametrize("axis", range(5))
def test_maps_that_are_too_long_for_tma(axis) -> None:
    shape = [2] * 4 + [64]
    for length, fits in ((2**31 - 1, True), (2**31, False), (0, False)):
        long = [*shape[:axis], length, *shape[axis + 1 :]]
        m = _introspect.tensor_boxes(0, 2, [64, 3, 3, 1, 1], long, [2**9, 2**8, 2**7, 2**6, 1])
        assert m["fits"] == fits


@many
@given(N=st.integers(0, 8192), C=st.integers(1, 3000))
@example(8192, 64)
def test_tokens(N, C) -> None:
    p = _introspect.token_select_plan(N, C)
    assert p["most_tokens"] == _MAX_TOKENS < 2**16  # which one number counts two of
    assert covers(p["slices"], p["channels"], C)
    assert covers(p["token_blocks"], p["tokens"], N) or N == p["token_blocks"] == 0
    for kernel in ("shrink", "shrink_backward", "importance_gradient", "recover_backward"):
        assert 4 * N < p[kernel] <= 99 * 1024  # what the smallest of the GPUs has
        assert p[kernel] % 4 == 0


def test_the_manifest_names_the_architectures() -> None:
    manifest = _extension.manifest()
    assert bool(manifest["nvcc"]) == bool(manifest["cuda_architectures"])
