"""The dense backbones: sizes, outputs, windows, checkpointing, frozen statistics."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import uniformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from uniformer.layers import GlobalBlock, LocalBlock, WindowBlock, recompute

from uniformer_kernels import use_backend

BATCH_NORM = nn.modules.batchnorm._BatchNorm


def small(**keywords: Any) -> nn.Module:
    return uniformer.create_model("uniformer_dense_small", **{"depths": (1, 1, 4, 1), **keywords})


def maps_of(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return model(x)


def same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


# Sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "attention", "parameters", "entries", "giga_macs"),
    [
        ("uniformer_dense_small", "global", 21_033_280, 332, 154.9),
        ("uniformer_dense_small", "hybrid", 21_033_280, 332, 98.8),
        ("uniformer_dense_small", "window", 21_033_280, 332, 80.0),
        ("uniformer_dense_base", "hybrid", 49_264_576, 688, 229.5),
    ],
)
def test_parameters_and_macs(
    name: str, attention: str, parameters: int, entries: int, giga_macs: float
) -> None:
    with torch.device("meta"):
        model = uniformer.create_model(name, attention=attention).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == entries
    with use_backend("reference"), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 800, 1280, device="meta"))
    # The official window block projects the padding as well: 56 x 84 positions for 50 x 80.
    windows = sum(block.window_size is not None for block in model.blocks3)
    padding = windows * (56 * 84 - 50 * 80) * 4 * 320**2
    assert round(counter.get_total_flops() / 2e9 + padding / 1e9, 1) == giga_macs


@pytest.mark.parametrize("size", [(64, 96), (33, 100), (32, 32)])
@pytest.mark.parametrize("attention", ["global", "window", "hybrid"])
def test_maps_of_any_size(size: tuple[int, int], attention: str) -> None:
    model = small(attention=attention, window_size=3).eval()
    maps = maps_of(model, torch.randn(2, 3, *size))
    assert isinstance(maps, tuple)
    for index, (y, dim) in enumerate(zip(maps, (64, 128, 320, 512), strict=True)):
        assert y.shape == (2, dim, *(n >> (index + 2) for n in size))
        assert y.is_contiguous()
        norm = model.get_submodule(f"norm{index + 1}")
        assert norm.eps == 1e-6
        torch.testing.assert_close(y.mean(1), torch.zeros_like(y[:, 0]), rtol=0, atol=1e-5)
    with use_backend("reference"):
        for y, want in zip(maps, maps_of(model, torch.randn(0, 3, *size)), strict=True):
            assert want.shape == (0, *y.shape[1:])


def test_out_indices() -> None:
    x = torch.randn(1, 3, 64, 64)
    model = small().eval()
    expected = maps_of(model, x)
    for indices in ([3], (0, 2), [2, 0]):
        other = small(out_indices=indices).eval()
        other.load_state_dict(model.state_dict())
        assert same(maps_of(other, x), tuple(expected[i] for i in indices))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"out_indices": [4]}, r"out_indices: expected some of 0, 1, 2, 3, got \[4\]"),
        ({"out_indices": [-1]}, r"out_indices: .*got \[-1\]"),
        ({"out_indices": []}, r"out_indices: .*got \[\]"),
        ({"attention": "local"}, r"attention: .*'hybrid', got 'local'"),
        ({"window_size": 0}, r"window_size: expected at least 1, got 0"),
        ({"checkpoint_blocks": (0, 0, 5, 0)}, r"checkpoint_blocks: .*to 1, 1, 4, 1, got \[0, 0, 5"),
        ({"checkpoint_blocks": (0, -1, 0, 0)}, r"checkpoint_blocks: .*got \[0, -1, 0, 0\]"),
        ({"checkpoint_blocks": (0, 0, 2)}, r"checkpoint_blocks: .*four.*got \[0, 0, 2\]"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate: expected 0 <= rate < 1, got 1.0"),
    ],
    ids=str,
)
def test_refuses_what_is_not_there(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**keywords)


def test_a_size_that_cannot_work() -> None:
    with pytest.raises(ValueError, match=r"\[B, 3, H >= 32, W >= 32\], got \[1, 3, 31, 64\]"):
        small()(torch.randn(1, 3, 31, 64))


# Windows -----------------------------------------------------------------------------------------


def window_sizes(model: nn.Module) -> list[int | None]:
    return [block.window_size for block in model.blocks3]


def test_which_blocks_attend_where() -> None:
    with torch.device("meta"):
        model = uniformer.create_model("uniformer_dense_base", attention="hybrid", window_size=32)
    assert window_sizes(model) == 5 * [32, 32, 32, None]
    assert {block.window_size for block in model.blocks4} == {None}
    model.set_attention("window")
    assert window_sizes(model) == 20 * [14]
    model.set_attention("global")
    assert window_sizes(model) == 20 * [None]
    with pytest.raises(ValueError, match="attention: expected"):
        model.set_attention("none")
    assert window_sizes(model) == 20 * [None]


def test_one_window_of_the_grid_s_size_is_global() -> None:
    model = small(attention="global").double().eval()
    x = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    expected = maps_of(model, x)
    model.set_attention("window", 14)
    for y, want in zip(maps_of(model, x), expected, strict=True):
        torch.testing.assert_close(y, want, rtol=1e-9, atol=1e-9)
    # One larger window sees padding.
    model.set_attention("window", 15)
    assert (maps_of(model, x)[2] - expected[2]).norm() > 1e-6 * expected[2].norm()


def test_weights_do_not_depend_on_the_window_size() -> None:
    trained = small(attention="hybrid", window_size=4)
    x = torch.randn(2, 3, 112, 144)
    sum(y.square().mean() for y in trained(x)).backward()
    trained.eval()
    trained.set_attention("window", 7)
    other = small(attention="window", window_size=7).eval()
    other.load_state_dict(trained.state_dict(), strict=True)
    assert same(maps_of(other, x), maps_of(trained, x))


def test_window_block_is_the_global_block_of_every_window() -> None:
    """Without padding, of windows cut out; the position embedding sees beyond them."""
    block = WindowBlock(64, head_dim=32, ndim=2, window_size=4).double()
    nn.init.normal_(block.attn.qkv.bias)
    nn.init.zeros_(block.pos_embed.weight)
    x = torch.randn(2, 1, 8, 12, 64, dtype=torch.float64)
    got = block(x)
    block.window_size = None
    for top in (0, 4):
        for left in (0, 4, 8):
            window = (slice(None), slice(None), slice(top, top + 4), slice(left, left + 4))
            torch.testing.assert_close(got[window], block(x[window].contiguous()))


def test_drop_path_loses_whole_images() -> None:
    """Not windows: the draw is behind their reunion."""
    block = WindowBlock(32, head_dim=32, ndim=2, window_size=2, drop_path=0.5)
    nn.init.zeros_(block.pos_embed.weight)
    nn.init.zeros_(block.pos_embed.bias)
    nn.init.ones_(block.attn.proj.bias)
    nn.init.zeros_(block.mlp.fc2.weight)
    x = torch.randn(64, 1, 4, 4, 32)
    with torch.no_grad():
        changed = (block(x) - x).abs().amax(-1) > 1e-3
    lost = ~changed.flatten(1).any(1)
    assert torch.equal(changed.flatten(1).all(1), ~lost)
    assert 16 < lost.sum() < 48


# Checkpointing and frozen statistics -------------------------------------------------------------


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_checkpointing_changes_nothing(drop_path_rate: float) -> None:
    """Outputs, gradients, running statistics and their counters, bit by bit."""
    plain = small(attention="hybrid", window_size=3, drop_path_rate=drop_path_rate)
    saving = small(
        attention="hybrid",
        window_size=3,
        drop_path_rate=drop_path_rate,
        checkpoint_blocks=(1, 1, 3, 0),
    )
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 96)
    results = []
    for model in (plain, saving):
        torch.manual_seed(5)
        leaf = x.clone().requires_grad_()
        maps = model(leaf)
        sum(y.square().mean() for y in maps).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append([*maps, leaf.grad, *gradients.values(), *model.buffers()])
    assert same(*map(tuple, results))
    counters = [m.num_batches_tracked for m in saving.modules() if isinstance(m, BATCH_NORM)]
    assert counters
    assert all(counter == 1 for counter in counters)


def test_checkpointing_keeps_less() -> None:
    def kept(count: int) -> int:
        model = small(depths=(1, 1, 6, 1), checkpoint_blocks=(0, 0, count, 0))
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            maps = model(torch.randn(2, 3, 128, 128))
        total = sum(seen.values())
        sum(y.mean() for y in maps).backward()
        return total

    assert kept(6) < kept(3) < kept(0)


def test_recompute_outside_of_training() -> None:
    block = LocalBlock(8, ndim=2)
    x = torch.randn(2, 1, 4, 4, 8)
    with torch.no_grad():
        block.eval()
        assert torch.equal(recompute(block, x), block(x))
    # A frozen block still passes gradients on, and its statistics stay.
    before = copy.deepcopy(dict(block.named_buffers()))
    leaf = x.clone().requires_grad_()
    recompute(block, leaf).square().sum().backward()
    assert leaf.grad.any()
    assert all(torch.equal(value, before[name]) for name, value in block.named_buffers())


def test_norm_eval_freezes_the_statistics_only() -> None:
    model = small(norm_eval=True)
    norms = [m for m in model.modules() if isinstance(m, BATCH_NORM)]
    assert model.training
    assert not any(norm.training for norm in norms)
    assert model.train() is model
    assert not any(norm.training for norm in norms)
    before = copy.deepcopy(dict(model.named_buffers()))
    x = torch.randn(2, 3, 64, 64)
    trained = model(x)
    sum(y.square().mean() for y in trained).backward()
    assert all(norm.weight.grad is not None and norm.weight.grad.any() for norm in norms)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert model.eval() is model
    for got, want in zip(trained, maps_of(model, x), strict=True):
        torch.testing.assert_close(got, want)
    assert all(norm.training for norm in small().modules() if isinstance(norm, BATCH_NORM))


def test_drop_path_rises_evenly_over_all_blocks() -> None:
    model = uniformer.create_model("uniformer_dense_small", drop_path_rate=0.2)
    rates = [m.drop_path for m in model.modules() if isinstance(m, (LocalBlock, GlobalBlock))]
    assert rates == pytest.approx(torch.linspace(0, 0.2, 18).tolist())
