"""What stands before a stage's blocks: ``proj`` and ``norm``, or ``proj`` with norms in it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..blocks import Affine, BatchNorm, LayerNorm, conv_stem, patch_stem
from . import structure as s
from .family import Family
from .probe import Inputs, Random
from .swap import Swapped, untouched


class PatchForward(Swapped):
    _accelerated_as = "patch_stem"

    def forward(self, x: Tensor) -> Tensor:
        proj = self.proj
        if not s.is_map(x, proj) or _asserts_size(self, x) or not untouched(self):
            return super().forward(x)
        y = patch_stem(
            s.channels_last(x),
            proj=Affine.of(proj),
            norm=LayerNorm.of(self.norm),
            stride=proj.stride,
            padding=proj.padding,
        )
        return s.channels_first(y, x.dim())


class ConvForward(Swapped):
    _accelerated_as = "conv_stem"

    def forward(self, x: Tensor) -> Tensor:
        convs = self.proj[0::3]
        if not s.is_map(x, convs[0]) or not untouched(self):
            return super().forward(x)
        y = conv_stem(
            s.channels_last(x),
            [(Affine.of(c), BatchNorm.of(n)) for c, n in zip(convs, self.proj[1::3], strict=True)],
            temporal_strides=[c.stride[0] for c in convs] if x.dim() == 5 else (),
        )
        return s.channels_first(y, x.dim())


def _asserts_size(stem: nn.Module, x: Tensor) -> bool:
    """Whether the stem's own forward might refuse an image of this size."""
    return _reads_size(stem) and tuple(x.shape[-2:]) != tuple(stem.img_size)


def _reads_size(stem: nn.Module) -> bool:
    code = s.code_of(stem)
    return hasattr(stem, "img_size") and code is not None and "img_size" in code.co_names


def _is_patch_stem(m: nn.Module) -> bool:
    conv = s.part(m, "proj")
    return s.has(m, "norm") and isinstance(conv, (nn.Conv2d, nn.Conv3d)) and len(m._modules) == 2


def _patch_declines(m: nn.Module) -> str | None:
    proj = m.proj
    plain = proj.groups == 1 and set(proj.dilation) == {1}
    if not plain or proj.padding_mode != "zeros" or isinstance(proj.padding, str):
        return "proj: expected no groups, no dilation, padding by numbers, of zeros"
    return s.is_floating(m) or s.mismatch(m, {"norm": s.layer_norm(proj.out_channels)})


def _is_conv_stem(m: nn.Module) -> bool:
    proj = s.part(m, "proj")
    if not isinstance(proj, nn.Sequential) or len(m._modules) != 1 or len(proj) not in (2, 5):
        return False
    return all(
        isinstance(layer, (nn.Conv2d, nn.Conv3d)) == (index % 3 == 0)
        for index, layer in enumerate(proj)
    )


def _conv_declines(m: nn.Module) -> str | None:
    checks: dict[str, Any] = {}
    for index, layer in enumerate(m.proj):
        if index % 3 == 0:
            conv = layer
            checks[f"proj.{index}"] = _halving
        elif index % 3 == 1:
            checks[f"proj.{index}"] = s.batch_norm(conv.out_channels)
        elif not (isinstance(layer, nn.GELU) and layer.approximate == "none"):
            return f"proj.{index}: expected the exact GELU, got {layer!r}"
    return s.is_floating(m) or s.mismatch(m, checks)


def _halving(conv: nn.Module) -> str | None:
    """A 3x3(x3) convolution that halves height and width."""
    usual = (
        set(conv.kernel_size) == {3}
        and conv.stride[-2:] == (2, 2)
        and set(conv.padding) == {1}
        and conv.groups == 1
        and set(conv.dilation) == {1}
        and conv.padding_mode == "zeros"
    )
    return None if usual else f"expected a 3x3 convolution of stride 2, got {conv!r}"


def _images(m: nn.Module, random: Random) -> Inputs:
    conv = m.proj[0] if isinstance(m.proj, nn.Sequential) else m.proj
    if _reads_size(m):
        grid = tuple(m.img_size)
    else:
        steps = zip(conv.stride, conv.kernel_size, strict=True)
        grid = tuple(2 * stride + kernel for stride, kernel in steps)[-2:]
    sizes = 2, conv.in_channels, 4, *grid
    yield (random.normal(*s.shapes(sizes, like=conv)),)


FAMILIES = [
    Family("blocks", _is_patch_stem, _patch_declines, PatchForward, _images),
    Family("blocks", _is_conv_stem, _conv_declines, ConvForward, _images),
]
