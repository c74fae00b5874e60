"""timm's and torchvision's nearest blocks, where these are installed, on the call's own tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...reference.window_attention import from_windows, windows
from ..case import Results, Rival, Tensors
from .depthwise import channels_first

_NETWORK = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")


def block(
    package: str,
    make: Callable[[], nn.Module],
    names: Mapping[str, str],
    run: Callable[..., Results],
    **forms: Any,
) -> Rival:
    """A module of another library, as a rival wherever the library is installed.

    Args:
        package: the library.
        make: imports the module's class, and builds one.
        names: of the module's parameters, by the tensors that take their places.
        run: of the module and the tensors that are left.
        forms: how the rival takes its tensors and returns its results.
    """

    @cache
    def made(device: torch.device) -> tuple[nn.Module, dict[str, tuple[nn.Module, str]]]:
        module, places = make().eval().to(device), {}
        for tensor, path in names.items():
            owner, _, attribute = path.rpartition(".")
            places[tensor] = module.get_submodule(owner), attribute
            delattr(*places[tensor])  # a parameter's place takes no other tensors
        return module, places

    def compute(**tensors: Tensor) -> Results:
        module, places = made(next(iter(tensors.values())).device)
        for name, place in places.items():
            setattr(*place, tensors.pop(name))
        return run(module, **tensors)

    return Rival(compute, serves=lambda dtype, device: find_spec(package) is not None, **forms)


def attention(channels: int, num_heads: int) -> dict[str, Rival]:
    """Without its projections."""

    def make() -> nn.Module:
        from timm.layers import Attention

        module = Attention(channels, num_heads)
        module.qkv = module.proj = nn.Identity()
        return module

    return {"timm Attention": block("timm", make, {}, lambda module, qkv: module(qkv))}


def window_attention(channels: int, num_heads: int, size: int) -> dict[str, Rival]:
    """On copied windows; without its projections, and its position biases are zeros."""

    def make() -> nn.Module:
        from timm.models.swin_transformer import WindowAttention

        module = WindowAttention(channels, num_heads, window_size=size)
        module.qkv = module.proj = nn.Identity()
        return module

    def layout(**tensors: Tensor) -> Tensors:
        return tensors | {"table": tensors["qkv"].new_zeros((2 * size - 1) ** 2, num_heads)}

    def run(module: nn.Module, qkv: Tensor, bias: Tensor) -> Tensor:
        return from_windows(module(windows(qkv, bias, size)), qkv.shape[:4], size)

    names = {"table": "relative_position_bias_table"}
    return {"timm WindowAttention": block("timm", make, names, run, layout=layout)}


def query_attention(channels: int, num_heads: int) -> dict[str, Rival]:
    """A pool whose latent is the query, behind a norm."""

    def make() -> nn.Module:
        from timm.layers import AttentionPoolLatent

        return AttentionPoolLatent(channels, out_features=0, num_heads=num_heads)

    def layout(in_proj_weight: Tensor, in_proj_bias: Tensor, **tensors: Tensor) -> Tensors:
        for name, t in {"weight": in_proj_weight, "bias": in_proj_bias}.items():
            tensors[f"q_{name}"], tensors[f"kv_{name}"] = t.tensor_split([channels])
        return tensors

    def run(module: nn.Module, memory: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
        return module(F.layer_norm(memory, memory.shape[-1:], norm_weight, norm_bias)).unsqueeze(1)

    names = {"query": "latent"}
    names |= {f"{of}_{name}": f"{of}.{name}" for of in ("q", "kv") for name in ("weight", "bias")}
    return {"timm AttentionPoolLatent": block("timm", make, names, run, layout=layout)}


def feed_forward(channels: int, hidden: int) -> dict[str, Rival]:
    def timm() -> nn.Module:
        from timm.layers import Mlp

        return Mlp(channels, hidden)

    def torchvision() -> nn.Module:
        from torchvision.ops import MLP

        return MLP(channels, [hidden, channels], activation_layer=nn.GELU)

    def run(module: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
        return residual + module(x)

    def named(*layers: str) -> dict[str, str]:
        paths = [f"{layer}.{name}" for layer in layers for name in ("weight", "bias")]
        return dict(zip(_NETWORK, paths, strict=True))

    return {
        "timm Mlp": block("timm", timm, named("fc1", "fc2"), run),
        "torchvision MLP": block("torchvision", torchvision, named("0", "3"), run),
    }


def patch_embed(
    grid: Sequence[int], C_out: int, kernel: Sequence[int], options: Mapping[str, Sequence[int]]
) -> dict[str, Rival]:
    """Of patches that do not overlap, from maps with channels first; timm's has no frames."""
    if tuple(options["stride"]) != tuple(kernel) or any(options["padding"]):
        return {}
    T, H, W, C_in = grid

    def torchvision() -> nn.Module:
        from torchvision.models.video.swin_transformer import PatchEmbed3d

        return PatchEmbed3d(list(kernel), C_in, C_out, norm_layer=nn.LayerNorm)

    def timm() -> nn.Module:
        from timm.layers import PatchEmbed

        return PatchEmbed(None, kernel[1], C_in, C_out, norm_layer=nn.LayerNorm)

    def frames(x: Tensor, weight: Tensor, **tensors: Tensor) -> Tensors:
        x = x.flatten(0, 1).movedim(-1, 1).contiguous()
        return tensors | {"x": x, "weight": weight.squeeze(2)}

    def clips(y: Tensor) -> Tensor:
        return y.view(-1, T, H // kernel[1], W // kernel[2], C_out)

    def run(module: nn.Module, x: Tensor) -> Tensor:
        return module(x)

    names = {"weight": "proj.weight", "bias": "proj.bias"}
    names |= {"norm_weight": "norm.weight", "norm_bias": "norm.bias"}
    found = {
        "torchvision PatchEmbed3d": block(
            "torchvision", torchvision, names, run, layout=channels_first
        )
    }
    if kernel[0] == 1 and kernel[1] == kernel[2]:
        found["timm PatchEmbed"] = block("timm", timm, names, run, layout=frames, restore=clips)
    return found
