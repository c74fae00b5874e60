"""The blocks as the papers write them, on modules: nothing fused or folded, one op a symbol."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniformer_kernels.blocks import Affine, BatchNorm, LayerNorm

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def randomise(module: nn.Module) -> nn.Module:
    """Random parameters and statistics, so that no term of an equation is 0 or 1."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name.endswith("running_var"):
            tensor.data.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            nn.init.normal_(tensor, 0.1, 0.3)
    return module.double()


def local_modules(dim: int, ndim: int, **norm: Any) -> nn.ModuleDict:
    conv, batch_norm = CONV[ndim], BATCH_NORM[ndim]
    return randomise(
        nn.ModuleDict(
            {
                "dpe": conv(dim, dim, 3, padding=1, groups=dim),
                "norm1": batch_norm(dim, **norm),
                "pw1": conv(dim, dim, 1),
                "dw": conv(dim, dim, 5, padding=2, groups=dim),
                "pw2": conv(dim, dim, 1),
                "norm2": batch_norm(dim, **norm),
                "fc1": conv(dim, 3 * dim, 1),
                "fc2": conv(3 * dim, dim, 1),
            }
        )
    )


def global_modules(dim: int, ndim: int) -> nn.ModuleDict:
    return randomise(
        nn.ModuleDict(
            {
                "dpe": CONV[ndim](dim, dim, 3, padding=1, groups=dim),
                "norm1": nn.LayerNorm(dim, eps=1e-3),
                "qkv": nn.Linear(dim, 3 * dim),
                "proj": nn.Linear(dim, dim),
                "norm2": nn.LayerNorm(dim, eps=1e-3),
                "fc1": nn.Linear(dim, 3 * dim),
                "fc2": nn.Linear(3 * dim, dim),
            }
        )
    )


def divided_modules(dim: int) -> nn.ModuleDict:
    modules = global_modules(dim, 3)
    temporal = global_modules(dim, 3)
    modules.update({f"t_{name}": temporal[name] for name in ("qkv", "proj")})
    modules["t_norm"] = temporal["norm1"]
    return modules


def parameters(modules: nn.ModuleDict) -> dict[str, Any]:
    """The same modules as a block function takes them."""

    def of(module: nn.Module) -> Any:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return BatchNorm.of(module)
        return (LayerNorm if isinstance(module, nn.LayerNorm) else Affine).of(module)

    return {name: of(module) for name, module in modules.items()}


def local_block(
    x: Tensor, m: nn.ModuleDict, gamma_1: Tensor | float = 1.0, gamma_2: Tensor | float = 1.0
) -> Tensor:
    """On ``[B, C, H, W]`` or ``[B, C, T, H, W]``, the layer scales of a shape that broadcasts."""
    x = x + m["dpe"](x)
    x = x + gamma_1 * m["pw2"](m["dw"](m["pw1"](m["norm1"](x))))
    return x + gamma_2 * m["fc2"](F.gelu(m["fc1"](m["norm2"](x))))


def attention(x: Tensor, qkv: nn.Module, proj: nn.Module, num_heads: int) -> Tensor:
    """One head after another, on ``[B, N, C]``."""
    q, k, v = (part.chunk(num_heads, -1) for part in qkv(x).chunk(3, -1))
    heads = [
        (qh @ kh.mT / qh.shape[-1] ** 0.5).softmax(-1) @ vh
        for qh, kh, vh in zip(q, k, v, strict=True)
    ]
    return proj(torch.cat(heads, -1))


def global_block(
    x: Tensor,
    m: nn.ModuleDict,
    num_heads: int,
    gamma_1: Tensor | float = 1.0,
    gamma_2: Tensor | float = 1.0,
) -> Tensor:
    """On ``[B, C, H, W]`` or ``[B, C, T, H, W]``."""
    x = x + m["dpe"](x)
    z = x.flatten(2).mT
    z = z + gamma_1 * attention(m["norm1"](z), m["qkv"], m["proj"], num_heads)
    z = z + gamma_2 * m["fc2"](F.gelu(m["fc1"](m["norm2"](z))))
    return z.mT.reshape(x.shape)


def window_block(x: Tensor, m: nn.ModuleDict, num_heads: int, window_size: int) -> Tensor:
    """On ``[B, C, H, W]``, one window after another of the normalised map and zeros around it."""
    x = x + m["dpe"](x)
    _, _, H, W = x.shape
    p = window_size
    y = F.pad(m["norm1"](x.movedim(1, -1)), (0, 0, 0, -W % p, 0, -H % p))
    attended = torch.empty_like(y)
    for top in range(0, H, p):
        for left in range(0, W, p):
            window = y[:, top : top + p, left : left + p]
            z = attention(window.flatten(1, 2), m["qkv"], m["proj"], num_heads)
            attended[:, top : top + p, left : left + p] = z.view(window.shape)
    z = x.movedim(1, -1) + attended[:, :H, :W]
    z = z + m["fc2"](F.gelu(m["fc1"](m["norm2"](z))))
    return z.movedim(-1, 1)


def divided_block(x: Tensor, m: nn.ModuleDict, num_heads: int) -> Tensor:
    """On ``[B, C, T, H, W]``, one position and one frame after another."""
    x = x + m["dpe"](x)
    _, _, T, H, W = x.shape
    u = torch.empty_like(x)
    for h in range(H):
        for w in range(W):
            column = x[..., h, w].mT
            column = column + attention(m["t_norm"](column), m["t_qkv"], m["t_proj"], num_heads)
            u[..., h, w] = column.mT
    frames = []
    for t in range(T):
        frame = x[:, :, t].flatten(2).mT
        within = attention(m["norm1"](u[:, :, t].flatten(2).mT), m["qkv"], m["proj"], num_heads)
        frames.append((frame + within).mT.unflatten(2, (H, W)))
    z = torch.stack(frames, 2).flatten(2).mT
    z = z + m["fc2"](F.gelu(m["fc1"](m["norm2"](z))))
    return z.mT.reshape(x.shape)
