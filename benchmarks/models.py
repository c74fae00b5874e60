"""The models that are measured, each with its rivals, which have its weights.

Every builder checks that all rivals compute the same before it returns them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
import uniformer
from torch import Tensor, nn
from uniformer.layers.v2 import GlobalUniBlock

from uniformer_kernels.blocks import Affine, video_memory

from .baselines import dense, light, v2, video
from .cases import CHANNELS_LAST, OFFICIAL, OURS, Rivals, agree, equal

SDPA = "SDPA + channels-last"
COMPILED = ("compiled, channels-last", "compiled max-autotune, channels-last")
DENSE = (OURS, "official + SDPA")

Modules = dict[str, nn.Module]


# UniFormer-S, 16 frames of 224 x 224


def small(clips: int) -> tuple[Modules, Tensor]:
    """Ours and the eager rivals, and clips."""
    torch.manual_seed(0)
    ours = uniformer.create_model("uniformer_video_small")
    state = ours.state_dict()
    rivals = {OURS: ours, OFFICIAL: video.official(state), SDPA: video.best(state)}
    return rivals, torch.randn(clips, 3, 16, 224, 224)


def small_forward() -> Rivals:
    """Inference, also of the best rival compiled."""
    modules, clip = small(1)
    runs = _inference(modules)
    for name, max_autotune in zip(COMPILED, (False, True), strict=True):
        runs[name] = video.compiled(modules[SDPA], max_autotune=max_autotune)
    return _forward(runs, clip)


def small_training_step() -> Rivals:
    modules, clips = small(2)
    del modules[OFFICIAL]
    return _training_step(modules, clips)


# UniFormer-XXS, 16 frames of 160 x 160


def xxs(clips: int) -> tuple[Modules, Tensor]:
    """Ours and the eager rivals, and clips."""
    torch.manual_seed(0)
    ours = uniformer.create_model("uniformer_video_xxs")
    # The zeros it starts from look at all tokens alike; rounding would choose among them.
    nn.init.normal_(ours.cls_token)
    state = ours.state_dict()
    last = light.official(state).to(memory_format=torch.channels_last_3d)
    rivals = {OURS: ours, OFFICIAL: light.official(state), CHANNELS_LAST: last}
    return rivals, torch.randn(clips, 3, 16, 160, 160)


def xxs_forward() -> Rivals:
    modules, clip = xxs(1)
    return _forward(_inference(modules), clip)


def xxs_training_step() -> Rivals:
    modules, clips = xxs(2)
    del modules[OFFICIAL]
    return _training_step(modules, clips)


# The detection backbone, small, windows of 14 in three blocks of four, 800 x 1280


def dense_model(name: str) -> tuple[Callable[[Tensor], tuple[Tensor, ...]], Tensor]:
    """A rival's inference, unchecked, and an image."""
    torch.manual_seed(0)
    model = uniformer.create_model("uniformer_dense_small", attention="hybrid", window_size=14)
    image = torch.randn(1, 3, 800, 1280)
    if name != OURS:
        model = dense.official(model.state_dict())
    return torch.inference_mode()(model.eval()), image


def dense_forward() -> Rivals:
    rivals = {name: partial(*dense_model(name)) for name in DENSE}
    agree(rivals, 1e-3)
    return rivals


# UniFormerV2-B/16's global block, 8 frames of 224 x 224


def v2_global_block() -> Rivals:
    """The position encoding of a layer's tokens, and the video token's attention to them."""
    torch.manual_seed(0)
    dim, heads, frames, grid = 768, 12, 8, (14, 14)
    official = v2.GlobalUniBlock(dim, heads, frames, grid).eval()
    state = official.state_dict()
    dpe = Affine(state.pop("dpe.weight"), state.pop("dpe.bias"))
    ours = GlobalUniBlock(dim, num_heads=heads).eval()
    ours.load_state_dict(state)
    query, x = torch.randn(1, 1, dim), torch.randn(1, frames, 197, dim)
    tokens_first = x.squeeze(0).transpose(0, 1).contiguous()

    rivals = {
        OURS: lambda: (ours(query, video_memory(x, grid=grid, dpe=dpe)),),
        OFFICIAL: lambda: (official(query, tokens_first),),
    }
    rivals = {name: torch.inference_mode()(call) for name, call in rivals.items()}
    agree(rivals, 1e-4)
    return rivals


# What they share


def _inference(modules: Modules) -> dict[str, Callable[[Tensor], Tensor]]:
    return {name: torch.inference_mode()(module.eval()) for name, module in modules.items()}


def _layout(name: str, clip: Tensor) -> Tensor:
    """The clip as the rival likes it best."""
    return clip.to(memory_format=torch.channels_last_3d) if "channels-last" in name else clip


def _forward(runs: dict[str, Callable[[Tensor], Tensor]], clip: Tensor) -> Rivals:
    def call(name: str) -> Callable[[], object]:
        run, x = runs[name], _layout(name, clip)
        return lambda: (run(x),)

    rivals = {name: call(name) for name in runs}
    agree(rivals, 1e-3)
    return rivals


def _training_step(modules: Modules, clips: Tensor) -> Rivals:
    """Forward, cross entropy, backward, AdamW.

    Of two clips: with one, the last BatchNorm and the mean over positions cancel, and every
    gradient but the head's bias is rounding.
    """
    label = torch.tensor([7, 42])
    steps, losses, gradients = {}, {}, {}
    for name, module in modules.items():
        step = _step(module.train(), _layout(name, clips), label)
        losses[name] = step()
        parameters = sorted(module.named_parameters())
        gradients[name] = torch.cat([p.grad.flatten() for _, p in parameters])
        steps[name] = step
    want = gradients.pop(OURS)
    for name, gradient in gradients.items():
        equal(losses[name], losses[OURS], 1e-3)
        error = ((gradient - want).norm() / want.norm()).item()
        if error > 1e-2:
            raise ValueError(f"gradients of {name} and ours differ by {error:.2g}")
    return steps


def _step(model: nn.Module, clips: Tensor, label: Tensor) -> Callable[[], Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(model(clips), label)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _loss(logits: Tensor | tuple[Tensor, Tensor], label: Tensor) -> Tensor:
    """Cross entropy, of two classifiers the mean."""
    if isinstance(logits, Tensor):
        return F.cross_entropy(logits, label)
    return sum(F.cross_entropy(one, label) for one in logits) / 2
