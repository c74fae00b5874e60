"""What is swapped, what is not, and what the report says about it."""

from __future__ import annotations

import types
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import uniformer
from torch import Tensor, nn

from uniformer_kernels import accelerate, depthwise_conv3d, restore
from uniformer_kernels.accelerate import Report

from .models import light, official, v2


def becomes(report: Report) -> dict[str, str | None]:
    return {row.name: row.becomes for row in report.rows}


def reason(module: nn.Module) -> str:
    """Why the module, the only one there is, was left."""
    report = accelerate(nn.ModuleDict({"only": module}))
    (row,) = (row for row in report.rows if row.name == "only")
    assert row.becomes is None
    assert row in report.left
    return row.reason


def test_the_official_video_model() -> None:
    stems = {f"patch_embed{number}": "patch_stem" for number in range(1, 5)}
    local = dict.fromkeys(("blocks1.0", "blocks2.0"), "local_block")
    joint = dict.fromkeys(("blocks3.0", "blocks3.1", "blocks4.0"), "global_block")
    assert becomes(accelerate(official.UniFormer())) == {**stems, **local, **joint}


def test_the_lightweight_model() -> None:
    found = becomes(accelerate(light.UniFormerLight()))
    assert found["patch_embed1"] == "conv_stem"
    hourglasses = [name for name, function in found.items() if function == "hourglass_block"]
    assert hourglasses == ["blocks3.0", "blocks3.1", "blocks3.2", "blocks4.0"]


def test_uniformer_v2() -> None:
    assert becomes(accelerate(v2.Transformer())) == {
        "resblocks.0": "local_uniblock",
        "resblocks.1": "local_uniblock",
        "dpe.0": "depthwise_conv3d",
        "dpe.1": "depthwise_conv3d",
        "dec.0": "global_uniblock",
        "dec.1": "global_uniblock",
    }


def test_a_model_itself_may_be_a_block() -> None:
    assert becomes(accelerate(official.WindowSABlock(16))) == {"(model)": "window_block"}


def test_options() -> None:
    parts = {"blocks1.0.pos_embed", "blocks1.0.attn", "blocks2.0.pos_embed", "blocks2.0.attn"}
    tokens = {"blocks3.0", "blocks3.1", "blocks4.0"}
    parts |= {f"{name}.pos_embed" for name in tokens}
    attention = {f"{name}.attn" for name in tokens}
    model = official.UniFormer()
    assert set(becomes(accelerate(model, blocks=False, attention=False))) == parts
    restore(model)
    assert set(becomes(accelerate(model, blocks=False, depthwise=False))) == attention
    restore(model)
    assert set(becomes(accelerate(model, blocks=False))) == parts | attention
    assert accelerate(model, attention=False, depthwise=False)
    restore(model)
    assert not accelerate(model, blocks=False, attention=False, depthwise=False)
    assert all("forward" not in m.__dict__ for m in model.modules())


def test_what_was_swapped_before_is_left_and_said() -> None:
    model = official.UniFormer()
    first = accelerate(model)
    classes = [type(m) for m in model.modules()]
    second = accelerate(model)
    assert first
    assert not second
    assert classes == [type(m) for m in model.modules()]
    assert {row.name for row in second.before} == {row.name for row in first.swapped}
    assert str(second).splitlines()[-1] == "nothing to swap, 9 swapped before"
    assert not becomes(second).keys() ^ becomes(first).keys()


def test_a_model_with_nothing_to_swap_says_so() -> None:
    report = accelerate(nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU(), nn.Linear(8, 8)))
    assert not report
    assert report.rows == ()
    assert str(report) == "nothing to swap"


def test_the_table() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 3, groups=8))
    assert str(accelerate(model)).splitlines() == [
        "module  class   becomes",
        "0       Conv2d  depthwise_conv3d",
        "1       Conv2d  -                 padding: expected (1, 1), got (0, 0)",
        "1 swapped (1 depthwise_conv3d), 1 left as they are",
    ]


class OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class OwnPadding(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(F.pad(x, (1, -1)), weight, bias)


class Named(nn.Conv2d):
    """A subclass that changes nothing."""


@pytest.mark.parametrize(
    ("conv", "expected"),
    [
        (nn.Conv3d(8, 8, 3, stride=(1, 2, 2), padding=1, groups=8), "stride: expected (1, 1, 1)"),
        (nn.Conv2d(8, 8, 2, padding=1, groups=8), "kernel: expected odd sizes"),
        (nn.Conv2d(8, 8, 9, padding=4, groups=8), "kernel: expected odd sizes up to 7"),
        (nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8), "dilation: expected (1, 1)"),
        (nn.Conv2d(8, 8, 3, padding="valid", groups=8), "padding: expected (1, 1), got valid"),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8, padding_mode="reflect"), "padding_mode"),
        (nn.Conv2d(8, 16, 3, padding=1, groups=8), "out_channels: expected 8, got 16"),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8, dtype=torch.complex64), "torch.complex64"),
        (OwnForward(8, 8, 3, padding=1, groups=8), "OwnForward has a forward of its own"),
        (OwnPadding(8, 8, 3, padding=1, groups=8), "OwnPadding has a _conv_forward of its own"),
    ],
    ids=lambda value: None if isinstance(value, nn.Module) else value,
)
def test_depthwise_convolutions_the_operator_does_not_serve(conv: nn.Module, expected: str) -> None:
    assert expected in reason(conv)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 8, 7, padding=3, groups=8),
        nn.Conv3d(8, 8, (5, 1, 1), padding=(2, 0, 0), groups=8, bias=False),
        nn.Conv3d(8, 8, (1, 3, 5), padding="same", groups=8),
        Named(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, dtype=torch.bfloat16),
    ],
)
def test_depthwise_convolutions_the_operator_serves(conv: nn.Module) -> None:
    assert becomes(accelerate(conv)) == {"(model)": "depthwise_conv3d"}


def test_other_convolutions_have_no_row() -> None:
    convs = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=4)
    assert accelerate(nn.Sequential(*convs, nn.Conv2d(1, 1, 3, padding=1))).rows == ()


class Masked(official.SABlock):
    """The same parts, another forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.001


class PostNorm(official.CBlock):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        x = x + self.norm1(self.conv2(self.attn(self.conv1(x))))
        return x + self.mlp(self.norm2(x))


class Tanh(official.Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def changed(block: nn.Module, change: Callable[[nn.Module], object]) -> nn.Module:
    change(block)
    return block


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (Masked(16), "computes something else: 0.001 off"),
        (PostNorm(16), "computes something else"),
        (changed(official.SABlock(16), lambda b: setattr(b, "mlp", Tanh(16))), "something else"),
        (official.SABlock(16, act=nn.SiLU), "mlp: act: expected the exact GELU, got SiLU()"),
        (changed(official.SABlock(16), lambda b: setattr(b.attn, "scale", 1.0)), "attn: scale"),
        (
            changed(official.CBlock(16), lambda b: setattr(b, "norm1", nn.GroupNorm(1, 16))),
            "norm1: expected a BatchNorm, got GroupNorm",
        ),
        (
            changed(official.CBlock(16), lambda b: setattr(b, "conv1", nn.Conv3d(16, 16, 1, 2))),
            "conv1: stride: expected (1, 1, 1), got (2, 2, 2)",
        ),
        (
            changed(official.SABlock(16), lambda b: setattr(b, "drop_path", nn.Dropout(0.1))),
            "drop_path: expected an nn.Identity or a drop_prob, got Dropout",
        ),
        (
            changed(official.CBlock(16), lambda b: setattr(b, "forward", b.forward)),
            "its forward was replaced",
        ),
        (
            changed(official.SplitSABlock(16), lambda b: setattr(b, "gamma_1", torch.ones(16))),
            "gamma_1, gamma_2: divided blocks have no layer scale",
        ),
        (official.PatchEmbed(8, 16, (4, 4), padding="valid"), "proj: expected no groups"),
        (official.CBlock(16).to(torch.float8_e5m2), "no operator for torch.float8_e5m2"),
        (
            changed(v2.ResidualAttentionBlock(16, 2), lambda b: setattr(b.attn, "dropout", 0.1)),
            "attn: expected no dropout and no mask",
        ),
        (
            changed(light.EvoSABlock(16, 2, 0.5), lambda b: setattr(b, "gamma_3", b.norm1.weight)),
            "gamma_3: hourglass blocks have two layer scales",
        ),
    ],
    ids=lambda value: None if isinstance(value, nn.Module) else value,
)
def test_blocks_that_only_look_alike(block: nn.Module, expected: str) -> None:
    assert expected in reason(block)


def test_what_is_inside_a_block_that_is_left_is_served() -> None:
    report = accelerate(nn.Sequential(official.SABlock(16), Masked(16)))
    found = becomes(report)
    assert found["1"] is None
    assert found["1.attn"] == "joint_attention"
    assert found["1.pos_embed"] == "depthwise_conv3d"


def test_attention_of_other_models_is_left() -> None:
    assert accelerate(nn.Sequential(official.Attention(16, 2))).rows == ()


def test_attention_that_leaves_something_behind_is_left() -> None:
    report = accelerate(light.UniFormerLight(), blocks=False, depthwise=False)
    assert {row.reason for row in report.rows} == {
        "its forward leaves something in global variables"
    }


@pytest.mark.parametrize("name", ["uniformer_video_xxs", "uniformerv2_b16"])
def test_models_of_this_library_are_fast_already(name: str) -> None:
    with torch.device("meta"):
        model = uniformer.create_model(name)
    report = accelerate(model)
    assert not report
    assert {row.reason for row in report.left} == {"its class calls this library already"}
    assert str(report).startswith("module")


def test_subclasses_of_this_librarys_blocks_are_fast_already() -> None:
    class Named(uniformer.layers.LocalBlock):
        """Nothing of its own."""

    assert reason(Named(16, ndim=3)) == "its class calls this library already"


def test_a_convolution_beside_a_call_of_ours_is_left() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(8, 8, 3, padding=1, groups=8)

        def forward(self, x: Tensor) -> Tensor:
            return depthwise_conv3d(x, self.conv.weight)

    report = accelerate(nn.Sequential(Mixed()))
    assert [row.reason for row in report.rows] == ["its class calls this library already"]


def test_models_without_data_are_recognised() -> None:
    with torch.device("meta"):
        model = official.UniFormer()
        assert len(accelerate(model).swapped) == 9
    model.to_empty(device="cpu")
    assert model.eval()(torch.zeros(1, 3, 2, 32, 32)).shape == (1, 5)


def test_recognition_leaves_everything_as_it_was() -> None:
    model = light.UniFormerLight()
    light.global_attn, light.token_indices = "before", "too"
    for block in model.blocks1:
        block.register_forward_hook(lambda *_: pytest.fail("a hook has run"))
    state = {key: t.clone() for key, t in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    random = torch.get_rng_state()
    accelerate(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert (light.global_attn, light.token_indices) == ("before", "too")
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(t, state[key]) for key, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_modules_alike_are_tried_once() -> None:
    calls = []

    class Counted(official.SABlock):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(self)
            return super().forward(x)

    report = accelerate(nn.Sequential(*(Counted(16, rate=r) for r in (0.1, 0.2, 0.3)), Counted(24)))
    assert len(report.swapped) == 4
    assert len(calls) == 2


def test_modules_that_differ_in_a_list_are_tried_each() -> None:
    class Scaled(official.SABlock):
        def __init__(self, *scales: float) -> None:
            super().__init__(16)
            self.scales = list(scales)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scales[0]

    found = becomes(accelerate(nn.Sequential(Scaled(1), Scaled(2))))
    assert (found["0"], found["1"]) == ("global_block", None)


def test_shared_modules_are_swapped_once() -> None:
    block = official.CBlock(16)
    model = nn.Sequential(nn.Sequential(block), nn.Sequential(block))
    assert len(accelerate(model).swapped) == 1
    restore(model)
    assert type(block) is official.CBlock


def test_modules_that_are_not_initialised_are_left() -> None:
    lazy = official.SABlock(16)
    lazy.mlp.fc1 = nn.LazyLinear(32)
    assert reason(lazy) == "its parameters are not initialised yet"


@pytest.mark.parametrize("function", [accelerate, restore])
def test_something_else_than_a_module(function: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got dict"):
        function({})


def test_restoring_what_was_never_accelerated() -> None:
    model = official.UniFormer()
    classes = [type(m) for m in model.modules()]
    restore(model)
    assert classes == [type(m) for m in model.modules()]


def test_the_function_is_the_packages_attribute() -> None:
    import uniformer_kernels

    assert isinstance(uniformer_kernels.accelerate, types.FunctionType)
