"""The models that are measured, each with its rivals, which have its weights.

Every builder checks that all rivals compute the same before it returns them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
import uniformer
from torch import Tensor, nn
from uniformer.layers.v2 import GlobalUniBlock

import uniformer_kernels as uk
from uniformer_kernels import accelerate
from uniformer_kernels.bench import plain
from uniformer_kernels.blocks import Affine, video_memory

from .agreement import CHANNELS_LAST, OFFICIAL, OURS, Rivals, agree, equal
from .baselines import dense, light, onnxruntime, openvino, v2, video, x3d

SDPA = "SDPA + channels-last"
COMPILED = ("compiled, channels-last", "compiled max-autotune, channels-last")
OFFICIAL_SDPA = "official + SDPA"
DENSE = (OURS, OFFICIAL_SDPA)
PREPARED = "prepared and compiled"
OPENVINO, ONNXRUNTIME = "OpenVINO", "ONNX Runtime"
OWN = "our own model"

WINDOWS = {"attention": "hybrid", "window_size": 14}
V2 = {  # for Something-Something
    "num_frames": 16,
    "temporal_downsample": True,
    "return_layers": range(4, 12),
    "num_classes": 174,
}

Modules = dict[str, nn.Module]


# UniFormer-S, 16 frames of 224 x 224


def small(clips: int) -> tuple[Modules, Tensor]:
    """Ours and the eager rivals, and clips."""
    return _joint("uniformer_video_small", clips)


def base(clips: int) -> tuple[Modules, Tensor]:
    """The same of UniFormer-B."""
    return _joint("uniformer_video_base", clips)


def _joint(name: str, clips: int) -> tuple[Modules, Tensor]:
    torch.manual_seed(0)
    ours = uniformer.create_model(name)
    state = ours.state_dict()
    rivals = {OURS: ours, OFFICIAL: video.official(state), SDPA: video.best(state)}
    return rivals, torch.randn(clips, 3, 16, 224, 224)


def small_forward(dtype: torch.dtype = torch.float32) -> Rivals:
    """Inference, also compiled, of ours and of the best rival, by OpenVINO and, in float32, by ONNX
    Runtime.

    Clips are float32; with bfloat16 weights they are converted in every call.
    """
    modules, clip = small(1)
    want = torch.inference_mode()(modules[OFFICIAL].eval())(clip)
    networks = {OPENVINO: openvino.compiled(modules[OFFICIAL], clip, dtype)}
    if dtype == torch.float32:  # what its kernels for CPUs are written for
        networks[ONNXRUNTIME] = onnxruntime.compiled(modules[OFFICIAL], clip)
    runs = _inference({name: module.to(dtype) for name, module in modules.items()})
    runs[PREPARED] = _prepared(modules[OURS])
    for name, max_autotune in zip(COMPILED, (False, True), strict=True):
        runs[name] = video.compiled(modules[SDPA], max_autotune=max_autotune)
    runs = {name: _converting(run, dtype) for name, run in runs.items()}
    tolerance = 1e-3 if dtype == torch.float32 else 2e-2
    return _forward(runs | networks, clip, want, tolerance)


def small_training_step(dtype: torch.dtype = torch.float32) -> Rivals:
    """Training, also of the best rival compiled; weights are float32."""
    modules, clips = small(2)
    modules[COMPILED[0]] = torch.compile(copy.deepcopy(modules[SDPA]))
    return _training_step(modules, clips, dtype)


# UniFormer-XXS, 16 frames of 160 x 160


def xxs(clips: int) -> tuple[Modules, Tensor]:
    """Ours and the eager rivals, and clips."""
    return _light("uniformer_video_xxs", clips)


def xs(clips: int) -> tuple[Modules, Tensor]:
    """The same of UniFormer-XS."""
    return _light("uniformer_video_xs", clips)


def _light(name: str, clips: int) -> tuple[Modules, Tensor]:
    torch.manual_seed(0)
    ours = uniformer.create_model(name)
    # The zeros it starts from look at all tokens alike; rounding would choose among them.
    nn.init.normal_(ours.cls_token)
    state = ours.state_dict()
    last = light.official(state).to(memory_format=torch.channels_last_3d)
    rivals = {OURS: ours, OFFICIAL: light.official(state), CHANNELS_LAST: last}
    return rivals, torch.randn(clips, 3, 16, 160, 160)


def xxs_forward() -> Rivals:
    modules, clip = xxs(1)
    network = onnxruntime.compiled(modules[OFFICIAL], clip)
    runs = _inference(modules) | {ONNXRUNTIME: network, PREPARED: _prepared(modules[OURS])}
    return _forward(runs, clip)


def xxs_training_step() -> Rivals:
    modules, clips = xxs(2)
    del modules[OFFICIAL]
    return _training_step(modules, clips)


def tokens() -> Rivals:
    """Shrinking and recovering a sequence as UniFormer-XXS's third stage does at 16 x 160."""
    torch.manual_seed(0)
    N, C, keep = 800, 224, 400
    x, score_token, delta = (torch.randn(1, n, C) for n in (N, 1, 1))
    importance = torch.rand(1, N)

    def ours() -> tuple[Tensor, Tensor]:
        z, index = uk.token_shrink(x, importance, keep, prefix=score_token)
        return uk.token_recover(x, index, z[:, 1:-1], delta), z[:, -1]

    def official() -> tuple[Tensor, Tensor]:
        z, others, *order = plain.token_shrink(x, importance, keep, score_token)
        recovered, _ = plain.token_recover(z[:, 1:-1], others + delta, *order)
        return recovered, z[:, -1]

    rivals = {OURS: torch.inference_mode()(ours), OFFICIAL: torch.inference_mode()(official)}
    agree(rivals, 1e-4)
    return rivals


# The detection backbone, small, windows of 14 in three blocks of four, 800 x 1280


def dense_model(name: str) -> tuple[Callable[[Tensor], tuple[Tensor, ...]], Tensor]:
    """A rival's inference, unchecked, and an image."""
    torch.manual_seed(0)
    model = uniformer.create_model("uniformer_dense_small", **WINDOWS)
    image = torch.randn(1, 3, 800, 1280)
    if name != OURS:
        model = dense.official(model.state_dict())
    return torch.inference_mode()(model.eval()), image


def dense_small(images: int) -> tuple[Modules, Tensor]:
    """Ours and the official code with fused attention, and images."""
    torch.manual_seed(0)
    ours = uniformer.create_model("uniformer_dense_small", **WINDOWS)
    modules = {OURS: ours, OFFICIAL_SDPA: dense.official(ours.state_dict())}
    return modules, torch.randn(images, 3, 800, 1280)


def dense_forward() -> Rivals:
    rivals = {name: partial(*dense_model(name)) for name in DENSE}
    agree(rivals, 1e-3)
    return rivals


# UniFormerV2-B/16's global block, 8 frames of 224 x 224


def v2_global_block() -> Rivals:
    """The position encoding of a layer's tokens, and the video token's attention to them."""
    torch.manual_seed(0)
    dim, heads, frames, grid = 768, 12, 8, (14, 14)
    official, conv = v2.GlobalUniBlock(dim, heads).eval(), v2.depthwise(dim)
    dpe = Affine(conv.weight, conv.bias)
    ours = GlobalUniBlock(dim, num_heads=heads).eval()
    ours.load_state_dict(official.state_dict())
    query, x = torch.randn(1, 1, dim), torch.randn(1, frames, 197, dim)
    tokens_first = x.squeeze(0).transpose(0, 1).contiguous()

    rivals = {
        OURS: lambda: (ours(query, video_memory(x, grid=grid, dpe=dpe)),),
        OFFICIAL: lambda: (official(query, v2.video_memory(tokens_first, conv, frames)),),
    }
    rivals = {name: torch.inference_mode()(call) for name, call in rivals.items()}
    agree(rivals, 1e-4)
    return rivals


# UniFormerV2-B/16 as for Something-Something: 16 frames of 224 x 224, 8 behind the first layer


def v2_base(clips: int) -> tuple[Modules, Tensor]:
    """Ours and the official code with fused attention, and clips."""
    torch.manual_seed(0)
    ours = uniformer.create_model("uniformerv2_b16", **V2)
    # It starts with branches that add nothing, which any rival would agree to.
    for parameter in ours.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    modules = {OURS: ours, OFFICIAL_SDPA: v2.official(ours.state_dict())}
    return modules, torch.randn(clips, 3, 16, 224, 224)


def v2_forward() -> Rivals:
    modules, clip = v2_base(1)
    return _forward(_inference(modules) | {PREPARED: _prepared(modules[OURS])}, clip)


# Models of others, accelerated: UniFormer-S as above, X3D-M on 16 frames of 112 x 112


def accelerated_small(clips: int) -> tuple[Modules, Tensor]:
    """The official-style model accelerated, as it is, and our own."""
    modules, x = small(clips)
    accelerated = video.official(modules[OURS].state_dict())
    accelerate(accelerated)
    return {OURS: accelerated, OWN: modules[OURS], OFFICIAL: modules[OFFICIAL]}, x


def accelerated_small_forward() -> Rivals:
    modules, clip = accelerated_small(1)
    return _forward(_inference(modules), clip)


def accelerated_small_training_step() -> Rivals:
    return _training_step(*accelerated_small(2))


def accelerated_x3d_training_step() -> Rivals:
    torch.manual_seed(0)
    plain = x3d.X3D().to(memory_format=torch.channels_last_3d)
    accelerated = copy.deepcopy(plain)
    accelerate(accelerated)
    clips = torch.randn(2, 3, 16, 112, 112).to(memory_format=torch.channels_last_3d)
    return _training_step({OURS: accelerated, CHANNELS_LAST: plain}, clips)


# What they share


def _inference(modules: Modules) -> dict[str, Callable[[Tensor], Tensor]]:
    return {name: torch.inference_mode()(module.eval()) for name, module in modules.items()}


def _prepared(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """As the README has it for many clips of one size."""
    return torch.inference_mode()(torch.compile(uniformer.prepare(model.eval())))


def _layout(name: str, clip: Tensor) -> Tensor:
    """The clip as the rival likes it best."""
    return clip.to(memory_format=torch.channels_last_3d) if "channels-last" in name else clip


def _converting(run: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda clip: run(clip.to(dtype))


def _forward(
    runs: dict[str, Callable[[Tensor], Tensor]],
    clip: Tensor,
    want: Tensor | None = None,
    tolerance: float = 1e-3,
) -> Rivals:
    """All compute what ours does, or `want`."""

    def call(name: str) -> Callable[[], object]:
        run, x = runs[name], _layout(name, clip)
        return lambda: (run(x),)

    rivals = {name: call(name) for name in runs}
    agree(rivals, tolerance, None if want is None else (want,))
    return rivals


def _training_step(modules: Modules, clips: Tensor, dtype: torch.dtype = torch.float32) -> Rivals:
    """Forward under autocast to `dtype`, cross entropy, backward, AdamW.

    Of two clips: with one, the last BatchNorm and the mean over positions cancel, and every
    gradient but the head's bias is rounding. Losses and gradients are those of ours in float32.
    """
    label = torch.tensor([7, 42])
    exact = copy.deepcopy(modules[OURS]).train()
    want_loss, want = _step(exact, clips, label, torch.float32)(), _gradient(exact)
    tolerance = 1e-2 if dtype == torch.float32 else 5e-2
    steps = {}
    for name, module in modules.items():
        steps[name] = _step(module.train(), _layout(name, clips), label, dtype)
        equal(steps[name](), want_loss, 1e-3)
        error = ((_gradient(module) - want).norm() / want.norm()).item()
        if not error <= tolerance:
            raise ValueError(f"gradients of {name} and ours differ by {error:.2g}")
    return steps


def _gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for _, p in sorted(model.named_parameters())])


def _step(
    model: nn.Module, clips: Tensor, label: Tensor, dtype: torch.dtype
) -> Callable[[], Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(clips)
        found = loss(logits, label)
        found.backward()
        optimizer.step()
        return found.detach()

    return step


def loss(outputs: Tensor | tuple[Tensor, ...], label: Tensor) -> Tensor:
    """The sum over a model's outputs: cross entropy of logits, the mean square of feature maps."""
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    return sum(
        F.cross_entropy(y.float(), label) if y.ndim == 2 else y.float().square().mean()
        for y in outputs
    )
