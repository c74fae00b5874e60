"""Weights in every dialect: names, inflation, what is dropped and what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import uniformer
from torch import Tensor, nn
from uniformer.weights import CheckpointError, load_checkpoint

State = dict[str, Tensor]

TINY = {"depths": (1, 1, 1, 1), "num_classes": 5}
TINY_DENSE = {"depths": (1, 1, 1, 1)}
TINY_V2 = {
    "dim": 64,
    "depth": 2,
    "num_heads": 2,
    "resolution": 32,
    "num_frames": 2,
    "return_layers": (1,),
    "num_classes": 5,
}


def build(name: str, **keywords: object) -> nn.Module:
    """A small model whose every weight and buffer is random."""
    tiny = TINY_DENSE if "dense" in name else TINY_V2 if "v2" in name else TINY
    model = uniformer.create_model(name, **{**tiny, **keywords})
    model.load_state_dict(
        {k: torch.randn(v.shape) if v.dim() else v + 7 for k, v in model.state_dict().items()}
    )
    return model


def snapshot(model: nn.Module) -> State:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def renamed(state: State, **starts: str) -> State:
    """With the starts of keys replaced; ``__`` stands for a point."""
    for start, other in starts.items():
        start, other = start.replace("__", "."), other.replace("__", ".")
        state = {
            other + key.removeprefix(start) if key.startswith(start) else key: value
            for key, value in state.items()
        }
    return state


def mmaction2_v1(state: State) -> State:
    return renamed(prefixed(state, "backbone."), backbone__head__="cls_head__fc_cls__")


def mmaction2_v2(state: State) -> State:
    return renamed(
        prefixed(state, "backbone."),
        backbone__transformer__proj__0__="backbone__transformer__norm__",
        backbone__transformer__proj__2__="cls_head__fc_cls__",
    )


def detector(state: State) -> State:
    return prefixed(state, "backbone.") | {
        "neck.lateral_convs.0.conv.weight": torch.zeros(2, 2, 1, 1),
        "roi_head.bbox_head.fc_cls.weight": torch.zeros(3, 4),
    }


DIALECTS: dict[str, tuple[str, str, Callable[[State], State]]] = {
    "official": ("uniformer_video_small", "official", dict),
    "official image": ("uniformer_small", "official", dict),
    "official light": ("uniformer_video_xxs", "official", dict),
    "official V2": ("uniformerv2_b16", "official V2", lambda s: prefixed(s, "backbone.")),
    "bare V2": ("uniformerv2_b16", "official V2", dict),
    "mmaction2 V1": ("uniformer_video_small", "mmaction2 V1", mmaction2_v1),
    "mmaction2 V2": ("uniformerv2_b16", "mmaction2 V2", mmaction2_v2),
    "detector": ("uniformer_dense_small", "OpenMMLab dense", detector),
    "light detector": ("uniformer_dense_xxs", "OpenMMLab dense", detector),
}


@pytest.mark.parametrize("case", DIALECTS)
@pytest.mark.parametrize("wrap", ["bare", "state_dict", "module"])
def test_round_trip(tmp_path: Path, case: str, wrap: str) -> None:
    name, dialect, write = DIALECTS[case]
    trained, model = build(name), build(name)
    state = write(trained.state_dict())
    wrapped = {"bare": state, "state_dict": {"state_dict": state}, "module": None}[wrap]
    torch.save(wrapped or prefixed(state, "module."), tmp_path / "weights.pth")
    report = load_checkpoint(model, tmp_path / "weights.pth")
    assert same(model.state_dict(), trained.state_dict())
    assert report.dialect == dialect
    assert set(report.taken) == set(model.state_dict())
    assert (report.inflated, report.missing) == ((), ())
    assert report.dropped == tuple(key for key in state if key.startswith(("neck.", "roi_")))


def test_mmaction2_takes_the_backbone_alone_without_the_head(tmp_path: Path) -> None:
    trained, model = build("uniformer_video_small"), build("uniformer_video_small")
    state = prefixed(trained.state_dict(), "backbone.")
    del state["backbone.head.weight"], state["backbone.head.bias"]
    torch.save(state, tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match=r"missing     head\.weight float \[5, 512\]"):
        load_checkpoint(model, tmp_path / "backbone.pth")
    report = load_checkpoint(model, tmp_path / "backbone.pth", head="drop")
    assert report.missing == ("head.weight", "head.bias")
    assert torch.equal(model.norm.weight, trained.norm.weight)


@pytest.mark.parametrize(
    ("name", "image_name", "stem"),
    [
        ("uniformer_video_small", "uniformer_small", "patch_embed1.proj.weight"),
        ("uniformer_video_xxs", "uniformer_xxs", "patch_embed1.proj.0.weight"),
    ],
)
@pytest.mark.parametrize("inflation", [None, "average", "centre"])
def test_image_weights_are_inflated(
    tmp_path: Path, name: str, image_name: str, stem: str, inflation: str | None
) -> None:
    image, video = build(image_name), build(name)
    torch.save({"model": image.state_dict()}, tmp_path / "in1k.pth")
    report = load_checkpoint(video, tmp_path / "in1k.pth", inflation=inflation)
    came, now = image.state_dict(), video.state_dict()
    for key, frames in (
        (stem, 3),
        ("blocks1.0.pos_embed.weight", 3),
        ("blocks3.0.pos_embed.weight", 3),
        ("blocks1.0.attn.weight", 5),
        ("blocks1.0.conv1.weight", 1),
        ("patch_embed2.proj.weight", 1),
    ):
        assert key in report.inflated
        assert now[key].shape[2] == frames
        if inflation == "centre":
            assert torch.equal(now[key][:, :, frames // 2], came[key])
            assert now[key].count_nonzero() == came[key].count_nonzero()
        else:
            assert torch.equal(now[key], (came[key] / frames).unsqueeze(2).expand_as(now[key]))
    same_shape = [key for key in came if now[key].shape == came[key].shape]
    assert all(torch.equal(now[key], came[key]) for key in same_shape)
    assert set(report.inflated) | set(same_shape) == set(now)
    assert report.inflation == (inflation or "average")


def test_a_still_clip_of_inflated_weights_is_its_image(tmp_path: Path) -> None:
    image, video = build("uniformer_small").eval(), build("uniformer_video_small").eval()
    torch.save(image.state_dict(), tmp_path / "in1k.pth")
    load_checkpoint(video, tmp_path / "in1k.pth")
    x = torch.rand(2, 3, 8, 8)
    clip = x.unsqueeze(2).expand(-1, -1, 5, -1, -1)
    frames = video.patch_embed1.proj(clip)
    # The middle one, away from the padding in time.
    torch.testing.assert_close(frames[:, :, 1], image.patch_embed1.proj(x), rtol=1e-4, atol=1e-5)


def test_image_weights_leave_what_works_in_time(tmp_path: Path) -> None:
    image, video = build("uniformer_small"), build("uniformer_video_small", attention="divided")
    before = snapshot(video)
    torch.save(image.state_dict(), tmp_path / "in1k.pth")
    report = load_checkpoint(video, tmp_path / "in1k.pth")
    assert set(report.missing) == {key for key in before if ".t_norm." in key or ".t_attn." in key}
    assert all(torch.equal(video.state_dict()[key], before[key]) for key in report.missing)
    image, video = build("uniformer_xxs"), build("uniformer_video_xxs", layer_scale_init=0.1)
    torch.save(image.state_dict(), tmp_path / "light.pth")
    report = load_checkpoint(video, tmp_path / "light.pth")
    assert len(report.missing) == 8
    assert all(".gamma_" in key for key in report.missing)


def test_another_class_count_drops_the_head_when_asked(tmp_path: Path) -> None:
    for image_name, name in (
        ("uniformer_small", "uniformer_video_small"),
        ("uniformer_xxs", "uniformer_video_xxs"),
    ):
        image, video = build(image_name, num_classes=7), build(name)
        before, path = snapshot(video), tmp_path / "in1k.pth"
        torch.save(image.state_dict(), path)
        with pytest.raises(CheckpointError, match=r"(?s)head\.weight.*head='drop'"):
            load_checkpoint(video, path)
        assert same(video.state_dict(), before)
        report = load_checkpoint(video, path, head="drop")
        assert report.dropped == report.missing
        assert set(report.dropped) == {key for key in before if key.startswith("head")}
        assert all(torch.equal(video.state_dict()[key], before[key]) for key in report.missing)
        assert torch.equal(video.norm.weight, image.norm.weight)


@pytest.mark.parametrize(
    ("name", "dense_name"),
    [("uniformer_small", "uniformer_dense_small"), ("uniformer_xxs", "uniformer_dense_xxs")],
)
def test_classification_weights_in_a_dense_model(
    tmp_path: Path, name: str, dense_name: str
) -> None:
    image, dense = build(name), build(dense_name)
    before, came = snapshot(dense), image.state_dict()
    torch.save({"model": came}, tmp_path / "in1k.pth")
    report = load_checkpoint(dense, tmp_path / "in1k.pth")
    own_norms = {f"norm{n}.{kind}" for n in (1, 2, 3, 4) for kind in ("weight", "bias")}
    assert set(report.missing) == own_norms
    assert set(report.dropped) == {k for k in came if k.startswith(("norm.", "norm_cls.", "head"))}
    for key, value in dense.state_dict().items():
        assert torch.equal(value, (before if key in own_norms else came)[key]), key


def clip_visual(state: State, dim: int = 64) -> State:
    """What CLIP has of a UniFormerV2's weights, its first kernel one of images."""
    shared = ("class_embedding", "positional_embedding", "conv1.", "ln_pre.", "transformer.resb")
    clip = {k: v for k, v in state.items() if k.startswith(shared) and "lmhra" not in k}
    clip["conv1.weight"] = clip["conv1.weight"].sum(2)
    norm = {"ln_post.weight": torch.ones(dim), "ln_post.bias": torch.zeros(dim)}
    return clip | norm | {"proj": torch.zeros(dim, 8)}


def whole_clip(visual: State) -> State:
    return prefixed(visual, "visual.") | {
        "positional_embedding": torch.zeros(77, 8),
        "transformer.resblocks.0.attn.in_proj_weight": torch.zeros(24, 8),
        "token_embedding.weight": torch.zeros(100, 8),
        "logit_scale": torch.tensor(4.6),
    }


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("downsample", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_clip(tmp_path: Path, whole: bool, downsample: bool, half: bool) -> None:
    visual = clip_visual(build("uniformerv2_b16").state_dict())
    if half:
        visual = {key: value.half() for key, value in visual.items()}
    model = build("uniformerv2_b16", temporal_downsample=downsample)
    before, state = snapshot(model), whole_clip(visual) if whole else visual
    torch.save(state, tmp_path / "vit.pth")
    report = load_checkpoint(model, tmp_path / "vit.pth")

    assert (report.dialect, report.inflated) == ("CLIP", ("conv1.weight",))
    assert len(report.dropped) == (7 if whole else 3)
    kernel = model.conv1.weight
    assert torch.equal(kernel[:, :, 1 if downsample else 0], visual["conv1.weight"].float())
    assert kernel.count_nonzero() == visual["conv1.weight"].count_nonzero()
    for key, value in model.state_dict().items():
        if key in report.missing:
            assert torch.equal(value, before[key]), key
            assert key not in visual
        elif key != "conv1.weight":
            assert torch.equal(value, visual[key].float()), key
    assert "transformer.balance" in report.missing
    assert "transformer.resblocks.0.lmhra1.pos_embed.0.weight" in report.missing


def test_clip_of_another_size_is_refused(tmp_path: Path) -> None:
    torch.save(clip_visual(build("uniformerv2_b16").state_dict()), tmp_path / "vit.pth")
    model = build("uniformerv2_b16", resolution=64)
    before = snapshot(model)
    with pytest.raises(
        CheckpointError, match=r"positional_embedding: expected float \[17, 64\], got float \[5,"
    ):
        load_checkpoint(model, tmp_path / "vit.pth")
    assert same(model.state_dict(), before)
    with pytest.raises(CheckpointError, match=r"unexpected  class_embedding"):
        load_checkpoint(build("uniformer_video_small"), tmp_path / "vit.pth")


def test_a_frozen_v2_leaves_the_balance(tmp_path: Path) -> None:
    free, frozen = build("uniformerv2_b16"), build("uniformerv2_b16", frozen=True)
    torch.save(prefixed(free.state_dict(), "backbone."), tmp_path / "free.pth")
    torch.save(prefixed(frozen.state_dict(), "backbone."), tmp_path / "frozen.pth")
    with pytest.raises(CheckpointError, match=r"missing     transformer\.balance"):
        load_checkpoint(free, tmp_path / "frozen.pth")
    report = load_checkpoint(frozen, tmp_path / "free.pth")
    assert report.dropped == ("backbone.transformer.balance",)


def test_only_image_weights_are_inflated(tmp_path: Path) -> None:
    trained, model = build("uniformer_video_small"), build("uniformer_video_small")
    state, before = trained.state_dict(), snapshot(model)
    state["patch_embed1.proj.weight"] = state["patch_embed1.proj.weight"][:, :, 1]
    torch.save(state, tmp_path / "mixed.pth")
    with pytest.raises(CheckpointError, match=r"different   patch_embed1\.proj\.weight"):
        load_checkpoint(model, tmp_path / "mixed.pth")
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("name", "other", "problem"),
    [
        ("uniformer_small", "uniformer_base_ls", "unexpected  blocks3.0.gamma_1"),
        ("uniformer_small", "uniformer_small_tl", "unexpected  aux_head.weight"),
        ("uniformer_small_tl", "uniformer_small", "missing     aux_head.weight"),
        ("uniformer_small", "uniformer_video_small", "different   patch_embed1.proj.weight"),
        ("uniformer_xxs", "uniformer_xs", "different   cls_token"),
        ("uniformer_video_small", "uniformerv2_b16", "unexpected  backbone.class_embedding"),
        ("uniformerv2_b16", "uniformer_video_small", "missing     class_embedding"),
        ("uniformer_dense_small", "uniformer_dense_xxs", "unexpected  cls_token"),
    ],
)
def test_another_models_weights(tmp_path: Path, name: str, other: str, problem: str) -> None:
    model, state = build(name), build(other).state_dict()
    before = snapshot(model)
    torch.save(prefixed(state, "backbone.") if "v2" in other else state, tmp_path / "other.pth")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(model, tmp_path / "other.pth")
    assert f"\n  {problem}" in str(error.value)
    assert same(model.state_dict(), before)


def test_one_weight_under_two_names(tmp_path: Path) -> None:
    state = mmaction2_v1(build("uniformer_video_small").state_dict())
    torch.save(state | {"norm.weight": torch.zeros(512)}, tmp_path / "twice.pth")
    with pytest.raises(CheckpointError, match=r"one weight norm\.weight in the mmaction2 V1"):
        load_checkpoint(build("uniformer_video_small"), tmp_path / "twice.pth")


def test_the_report_is_readable(tmp_path: Path) -> None:
    torch.save(build("uniformer_small", num_classes=7).state_dict(), tmp_path / "in1k.pth")
    video = build("uniformer_video_small")
    lines = str(load_checkpoint(video, tmp_path / "in1k.pth", head="drop")).splitlines()
    taken = len(video.state_dict()) - 2
    assert lines == [
        f"{tmp_path / 'in1k.pth'}: official weights",
        f"  taken    {taken}, 18 of them inflated (average)",
        "  dropped  2: head.weight, head.bias",
        "  missing  2: head.weight, head.bias",
    ]


@pytest.mark.parametrize("keywords", [{"head": "keep"}, {"inflation": "center"}])
def test_a_keyword_of_another_value(tmp_path: Path, keywords: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match="expected one of"):
        load_checkpoint(build("uniformer_small"), tmp_path / "weights.pth", **keywords)
