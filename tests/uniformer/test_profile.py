"""What blocks are said to cost is what they cost, and nothing is lost between them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import uniformer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner
from uniformer import cli
from uniformer.layers import GlobalBlock, LocalBlock, PatchStem
from uniformer.profiling import PATHS, REST, Cost, Row, instruments, profile_blocks, total

from uniformer_kernels import use_backend

PATCH = {"kernel": (2, 2), "stride": (2, 2)}
MAP = (1, 1, 4, 6, 8)


class Plain(nn.Module):
    """A model without blocks: everything is in the rest."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def costs(model: nn.Module, x: Tensor, **options: Any) -> dict[str, Row]:
    return {row.name: row for row in profile_blocks(model, x, rounds=1, **options)}


def serving(path: str) -> AbstractContextManager:
    return use_backend("reference") if path == "eager" else nullcontext()


def rest_of(function: Callable[[Tensor], Any], x: Tensor) -> tuple[int, int]:
    """Bytes and launches of a function, which are the same on both paths."""
    row = costs(Plain(function), x)[REST]
    eager, kernels = (row.costs[path] for path in PATHS)
    assert (eager.bytes, eager.launches) == (kernels.bytes, kernels.launches)
    return eager.bytes, eager.launches


@pytest.mark.parametrize(
    ("function", "bytes_", "launches"),
    [
        (lambda x: x + x, 3 * 60, 1),
        (lambda x: x.t().reshape(15), 2 * 60, 1),
        (lambda x: x[0] + x[0].expand(3, 5), (5 + 5 + 15) * 4, 1),
        (lambda x: x.detach().transpose(0, 1).unsqueeze(0), 0, 0),
        (lambda x: torch.empty_like(x), 0, 0),
        (lambda x: torch.empty_like(x).copy_(x), 2 * 60, 1),
        (lambda x: torch.empty_like(x).fill_(2), 60, 1),
        (lambda x: x.clone().add_(x), 2 * 60 + 3 * 60, 2),
        (lambda x: torch.cat([x, x[:1]]), (15 + 5 + 20) * 4, 1),
        (lambda x: x.double(), 60 + 120, 1),
        (lambda x: x.max(dim=1), 60 + 3 * (4 + 8), 1),
        (lambda x: x.clone().split(1), 2 * 60, 1),
    ],
)
def test_bytes_and_launches_of_operators(
    function: Callable[[Tensor], Any], bytes_: int, launches: int
) -> None:
    assert rest_of(function, torch.ones(3, 5)) == (bytes_, launches)


def test_a_stem_costs_its_convolution_and_its_norm() -> None:
    stem, x = PatchStem(8, 16, **PATCH), torch.randn(MAP)
    row = costs(nn.Sequential(stem), x)["0"]
    out, positions = 2 * 3 * 16, 2 * 3
    convolution = x.numel() + stem.proj.weight.numel() + 16 + out
    norm = out + 2 * 16 + out + 2 * positions
    assert row.kind == "PatchStem"
    assert row.costs["eager"].bytes == 4 * (convolution + norm)
    assert row.costs["eager"].launches == 2


class Count(TorchDispatchMode):
    """All operators that make tensors other than views and empty ones, or change some."""

    calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        tensors = [r for r in torch.utils._pytree.tree_leaves(results) if isinstance(r, Tensor)]
        view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        empty = "empty" in str(func) or "_unsafe_view" in str(func)
        self.calls += (bool(tensors) or func._schema.is_mutable) and not view and not empty
        return results


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("name", "size"), [("uniformer_video_xxs", (4, 32, 32)), ("uniformer_dense_small", (32, 64))]
)
def test_the_rows_add_up_to_the_model(name: str, size: tuple[int, ...], train: bool) -> None:
    model, x = uniformer.create_model(name), torch.randn(2, 3, *size)
    rows = profile_blocks(model, x, train=train, rounds=1)
    blocks = [key for key in dict(model.named_modules()) if key.split(".")[-1].isdigit()]
    blocks = [key for key in blocks if key.count(".") == 1 and key.startswith("blocks")]
    names = [row.name for row in rows]
    assert sorted(names) == sorted([*blocks, *(f"patch_embed{n}" for n in "1234"), REST])
    assert names[:2] == ["patch_embed1", "blocks1.0"]
    assert names[-2:] == [blocks[-1], REST]

    for path in PATHS:
        model.zero_grad()
        with serving(path), torch.set_grad_enabled(train), Count() as count:
            outputs = model(x)
            if train:
                torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
        whole = total(rows).costs[path]
        assert whole.launches == sum(row.costs[path].launches for row in rows)
        # The gradients that start backward are made before a pass in profiling.
        assert whole.launches == count.calls - train * len(outputs)


def test_blocks_that_are_watched_stay_fused() -> None:
    for block in (GlobalBlock(64, head_dim=32, ndim=2), LocalBlock(64, ndim=2)):
        x = torch.randn(1, 1, 6, 6, 64)
        row = costs(nn.Sequential(block), x)["0"]
        for path in PATHS:
            with serving(path), torch.no_grad(), Count() as count:
                block(x)
            assert row.costs[path].launches == count.calls
        assert row.ratio("launches") > 1
        assert row.ratio("bytes") > 1
        assert not block._forward_hooks
        assert not block._forward_pre_hooks


def test_a_block_is_charged_for_its_backward() -> None:
    model = nn.Sequential(PatchStem(8, 16, **PATCH), LocalBlock(16, ndim=2))
    forward, both = (costs(model, torch.randn(MAP), train=train) for train in (False, True))
    for name in ("0", "1"):
        for path in PATHS:
            assert both[name].costs[path].launches > 1.5 * forward[name].costs[path].launches
            assert both[name].costs[path].bytes > 1.5 * forward[name].costs[path].bytes
    assert all(cost.launches == 0 for cost in both[REST].costs.values())


class Late(torch.autograd.Function):
    """Takes its time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: Any, seconds: Any) -> Tensor:
        ctx.clock = clock
        clock.now += next(seconds)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        ctx.clock.now += 1000
        return gradient, None, None


class LateBlock(LocalBlock):
    def __init__(self, clock: Any, *seconds: float) -> None:
        super().__init__(4, ndim=2)
        self.clock, self.seconds = clock, iter(seconds)

    def forward(self, x: Tensor) -> Tensor:
        return Late.apply(x + self.pos_embed.bias, self.clock, self.seconds)


@pytest.mark.parametrize("train", [False, True])
def test_times_are_medians_by_block(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(instruments, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    # Each path counts once and is timed three times, by turns: eager has the 1, 7 and 3.
    first = LateBlock(clock, *[50] * (3 if train else 2), 1, 20, 7, 90, 3, 30)
    second = LateBlock(clock, *[5] * 9)
    between = Plain(lambda x: Late.apply(x, clock, iter([2.0])))
    progress = []
    rows = profile_blocks(
        nn.Sequential(first, between, second),
        torch.randn(1, 1, 2, 2, 4),
        train=train,
        rounds=3,
        advance=lambda *done: progress.append(done),
    )
    backward = 1000 * train
    assert [(row.name, row.kind) for row in rows] == [
        ("0", "LateBlock"),
        ("2", "LateBlock"),
        (REST, ""),
    ]
    assert [row.costs["eager"].seconds for row in rows] == [
        3 + backward,
        5 + backward,
        2 + backward,
    ]
    assert rows[0].costs["kernels"].seconds == 30 + backward
    assert total(rows).costs["eager"].seconds == 10 + 3 * backward
    assert rows[0].ratio("seconds") == (3 + backward) / (30 + backward)
    assert progress == [(done, 8) for done in range(1, 9)]


def test_launches_are_those_behind_a_mark() -> None:
    events = [
        (5.0, "cudaMemcpyAsync"),
        (1.0, "cudaLaunchKernel"),
        (2.0, "uniformer.profiling: blocks1.0"),
        (3.0, "aten::add"),
        (4.0, "cuLaunchKernelEx"),
        (6.0, "uniformer.profiling: the rest"),
        (7.0, "cudaDeviceSynchronize"),
        (8.0, "cudaLaunchKernelExC"),
    ]
    assert instruments.launches_by_label(events) == {"blocks1.0": 2, REST: 2}


def test_a_ratio_of_nothing_is_none() -> None:
    assert Row("a", "", {"eager": Cost(1, 2, 3), "kernels": Cost(2)}).ratio("bytes") is None


def test_bfloat16_is_the_models_or_autocasts() -> None:
    model, x = uniformer.create_model("uniformer_xxs"), torch.randn(2, 3, 32, 32)
    assert costs(model, x, dtype=torch.bfloat16, train=True)["blocks1.0"].costs["kernels"].bytes
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    costs(model, x, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_bad_input() -> None:
    model = uniformer.create_model("uniformer_xxs")
    with pytest.raises(ValueError, match="rounds: expected at least 1, got 0"):
        profile_blocks(model, torch.randn(1, 3, 32, 32), rounds=0)
    with pytest.raises(ValueError, match=r"x: expected \[B, 3, H >= 29"):
        profile_blocks(model, torch.randn(1, 3, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# The command --------------------------------------------------------------------------------------


def test_the_command_prints_draws_and_writes(tmp_path: Path) -> None:
    typed = ["profile", "uniformer_video_xxs", "--input", "2x32×32", "--batch", "2", "--train"]
    typed += ["--dtype", "bfloat16", "--rounds", "1", "--device", "cpu", "--out", str(tmp_path)]
    ended = CliRunner().invoke(cli.app, typed)
    assert ended.exit_code == 0, ended.output
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads((tmp_path / "profile.json").read_text())
    assert figures["input"] == [2, 3, 2, 32, 32]
    assert (figures["dtype"], figures["pass"]) == ("bfloat16", "forward and backward")
    *blocks, rest, whole = figures["blocks"]
    assert [block["name"] for block in blocks][:3] == ["patch_embed1", "blocks1.0", "blocks1.1"]
    assert (rest["name"], whole["name"]) == (REST, "sum")
    for path in PATHS:
        parts = [block["costs"][path]["bytes"] for block in [*blocks, rest]]
        assert whole["costs"][path]["bytes"] == sum(parts)
        (line,) = (line for line in ended.output.splitlines() if line.strip().startswith("sum"))
        assert f"{whole['costs'][path]['launches']:,}" in line
    assert all(block["name"] in ended.output for block in blocks)  # no column is cut


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["uniformer_tiny"], "no model 'uniformer_tiny'"),
        (["uniformer_xxs", "--input", "224"], "input: expected sizes like 16x224x224, got '224'"),
        (["uniformer_xxs", "--input", "8x8"], r"expected \[B, 3, H >= 29, W >= 29\], got"),
        (["uniformer_xxs", "--input", "2x32x32"], r"expected \[B, 3, .*got \[1, 3, 2, 32, 32\]"),
        (["uniformer_xxs", "--dtype", "int8"], "dtype: expected float32 or .*got 'int8'"),
        (["uniformer_xxs", "--device", "abacus"], "device: expected auto, cpu, .*got 'abacus'"),
        (["uniformer_xxs", "--keyword", "depth"], "keyword: expected name=value, got 'depth'"),
    ],
)
def test_the_command_ends_with_a_message(
    typed: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    typed = ["uniformer", "profile", "--device", "cpu", "--out", str(out), *typed]
    monkeypatch.setattr(sys, "argv", typed)
    with pytest.raises(SystemExit, match=f"uniformer: .*{message}"):
        cli.main()
    assert not out.exists()


@pytest.mark.gpu
@pytest.mark.parametrize("train", [False, True])
def test_on_a_gpu(train: bool) -> None:
    model = nn.Sequential(PatchStem(8, 64, **PATCH), LocalBlock(64, ndim=2)).cuda()
    x = torch.randn(2, 1, 32, 32, 8, device="cuda")
    rows = costs(model, x, dtype=torch.bfloat16, train=train)
    for path in PATHS:
        assert all(rows[name].costs[path].seconds > 0 for name in ("0", "1"))
        assert rows["0"].costs[path].launches >= 2
    assert rows["1"].ratio("launches") > 1
    with use_backend("reference"), torch.no_grad():
        model.eval()(x.to(next(model.parameters()).dtype))
