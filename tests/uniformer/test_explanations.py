"""Where models look: Grad-CAM against its closed form, kept tokens against what blocks return."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import uniformer
from PIL import Image
from torch import Tensor, nn
from uniformer.explanations import grad_cam, kept_tokens
from uniformer.explanations.drawing import draw_heat, draw_tokens, overlay, to_frames, write_heat

from . import tiny

IMAGES = uniformer.create_model("uniformer_small", depths=(1, 1, 1, 1), num_classes=2)


def closed_form(model: nn.Module, clip: Tensor, classes: list[int]) -> Tensor:
    """Behind the last block come BatchNorm, a mean and a linear head: gradients are constants."""
    found = []
    last = model.blocks4[-1]
    handle = last.register_forward_hook(lambda *call: found.append(call[-1]))
    with torch.no_grad():
        model.eval()(clip)
    handle.remove()
    (x,) = found
    x = x[0] if isinstance(x, tuple) else x
    gain = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    weights = model.head.weight[classes] * gain
    cam = torch.einsum("bthwc,bc->bthw", x, weights).relu()[:, None]
    cam = F.interpolate(cam, clip.shape[2:], mode="trilinear")[:, 0]
    return cam / cam.amax((1, 2, 3), keepdim=True)


def test_the_last_stage_has_a_closed_form() -> None:
    small = tiny.stirred(
        uniformer.create_model("uniformer_video_small", depths=(1, 1, 1, 1), num_classes=3)
    )
    for model in (tiny.light(num_classes=3), small):
        clip = tiny.clip(2, 3, 5, 64, 96)
        heat = grad_cam(model.train(), clip, [2, 0])
        assert heat.shape == (2, 5, 64, 96)
        assert model.training
        with torch.no_grad():
            torch.testing.assert_close(heat, closed_form(model, clip, [2, 0]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_earlier_stages_are_the_gradients_at_their_maps(stage: int) -> None:
    """Held against autograd through the rest of the model, run from that map on."""
    model, clip = tiny.stirred(IMAGES.double()).eval(), tiny.clip(1, 3, 64, 64).double()
    heat = grad_cam(model, clip, [1], stage=stage)
    *_, a = (y for _, y in zip(range(stage), model._maps(clip), strict=False))
    a = a.detach().requires_grad_()
    x = a
    for number in range(stage + 1, 5):
        stem = model.get_submodule(f"patch_embed{number}")
        x = model.get_submodule(f"blocks{number}")(stem(x))
    logits = model.forward_head(model._normalised(x))
    (gradient,) = torch.autograd.grad(logits[0, 1], a)
    cam = (a * gradient.mean((1, 2, 3), keepdim=True)).sum(-1).relu()
    cam = F.interpolate(cam, (64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(heat.double(), (cam / cam.max()).detach(), rtol=1e-4, atol=1e-5)
    assert heat.shape == (1, 64, 64)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_class_is_the_best_one_by_default() -> None:
    model, clip = tiny.light(num_classes=3).eval(), tiny.clip(2, 3, 4, 32, 32)
    best = model(clip).argmax(1).tolist()
    assert grad_cam(model, clip).equal(grad_cam(model, clip, best))


def test_images_and_v2() -> None:
    image = tiny.stirred(uniformer.create_model("uniformer_xxs", num_classes=3, **tiny.LIGHT))
    assert grad_cam(image, tiny.clip(1, 3, 48, 32)).shape == (1, 48, 32)
    v2 = tiny.stirred(uniformer.create_model("uniformerv2_b16", num_classes=3, **tiny.V2))
    clip = tiny.clip(1, 3, 4, 32, 32)
    for stage in (2, 4):
        heat = grad_cam(v2.requires_grad_(False), clip, [1], stage=stage)
        assert heat.shape == (1, 4, 32, 32)
        assert heat.max() == 1


def test_grad_cam_of_nothing() -> None:
    model, clip = tiny.light(num_classes=3), tiny.clip(1, 3, 4, 32, 32)
    nn.init.zeros_(model.head.weight)
    assert grad_cam(model, clip).equal(torch.zeros(1, 4, 32, 32))
    with pytest.raises(ValueError, match="classes: expected 1 from 0 to 2, got \\[3\\]"):
        grad_cam(model, clip, [3])
    with pytest.raises(ValueError, match="stage: expected 1 to 4, got 5"):
        grad_cam(model, clip, stage=5)


def test_kept_tokens_are_the_most_important() -> None:
    model, clip = tiny.light(num_classes=3, keep=0.3), tiny.clip(2, 3, 4, 64, 96)
    blocks = kept_tokens(model.train(), clip)
    assert model.training
    assert [entry.block for entry in blocks] == ["blocks3.0", "blocks3.1", "blocks4.0"]
    assert [tuple(entry.kept.shape) for entry in blocks] == [
        (2, 2, 4, 6),
        (2, 2, 4, 6),
        (2, 2, 2, 3),
    ]
    first, *others = blocks
    assert first.importance is None
    assert first.kept.all()
    for entry in others:
        for kept, importance in zip(entry.kept, entry.importance, strict=True):
            assert kept.sum() == int(0.3 * kept.numel())
            assert importance[kept].min() >= importance[~kept].max()


def test_dropped_tokens_change_alike() -> None:
    """What a block calls kept is what it kept: the others all get one and the same residual."""
    model, clip = tiny.light(num_classes=3).eval(), tiny.clip(1, 3, 4, 64, 64)
    block, found = model.blocks3[1], []
    block.register_forward_hook(lambda _, inputs, outputs: found.append((inputs[0], outputs[0])))
    kept = kept_tokens(model, clip)[1].kept
    ((x, y),) = found
    change = (
        y
        - x
        - F.conv3d(  # what the position encoding adds
            x.movedim(-1, 1), block.pos_embed.weight, block.pos_embed.bias, padding=1, groups=16
        ).movedim(1, -1)
    ).detach()
    dropped, rest = change[~kept], change[kept]
    torch.testing.assert_close(dropped, dropped[:1].expand_as(dropped), rtol=1e-3, atol=1e-4)
    assert (rest - dropped[0]).abs().amax(1).min() > 1e-3


def test_only_lightweight_models_drop_tokens() -> None:
    model = uniformer.create_model("uniformerv2_b16", num_classes=3, **tiny.V2)
    with pytest.raises(ValueError, match=r"expected a lightweight one, .* got UniFormerV2"):
        kept_tokens(model, tiny.clip(1, 3, 4, 32, 32))


def test_frames_are_what_the_model_saw() -> None:
    frames = torch.randint(0, 256, (2, 4, 6, 3), dtype=torch.uint8)
    clip = (frames.permute(3, 0, 1, 2) / 255 - 0.45) / 0.225
    assert np.array_equal(to_frames(clip), frames.numpy())
    grey = np.full((1, 2, 2, 3), 100, np.uint8)
    shown = overlay(grey, torch.tensor([[[0.0, 0.0], [0.0, 1.0]]]))[0].astype(int)
    assert np.abs(shown[0, 0] - 100).max() < 25
    assert shown[1, 1, 0] - shown[1, 1, 2] > 40  # red, not blue


def test_pictures(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 33, 45, 3)).astype(np.uint8)
    heat = torch.rand(9, 33, 45)
    draw_heat(tmp_path / "heat.png", frames, heat, "title")
    tokens = kept_tokens(tiny.light(num_classes=3), tiny.clip(1, 3, 9, 32, 48))
    draw_tokens(tmp_path / "tokens.png", frames, tokens, "title")
    for name in ("heat.png", "tokens.png"):
        picture = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert picture.shape[1] > 1000  # eight columns
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 500
    write_heat(tmp_path / "heat.mp4", frames, heat, fps=5)
    with av.open(str(tmp_path / "heat.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.frames) == ("h264", 9)
        assert (stream.width, stream.height) == (90, 34)
        assert stream.average_rate == 5
    assert not list(tmp_path.glob(".*"))
