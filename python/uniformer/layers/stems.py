"""Stems: what makes a stage's grid out of the grid before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from uniformer_kernels.blocks import conv_stem, layer, patch_stem

from .basic import BATCH_NORM, CONV, Foldable, fold_norm


class PatchStem(nn.Module):
    """A convolution and the LayerNorm after it; as many axes as ``kernel`` has numbers."""

    def __init__(
        self,
        in_chans: int,
        dim: int,
        *,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        padding = (0,) * len(kernel) if padding is None else padding
        self.ndim, self.stride, self.padding = len(kernel), stride, padding
        self.norm = nn.LayerNorm(dim)
        self.proj = CONV[len(kernel)](in_chans, dim, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H, W, C]`` to ``[B, T', H', W', dim]``."""
        return patch_stem(
            x,
            proj=layer(self.proj, self.ndim),
            norm=layer(self.norm),
            stride=self.stride,
            padding=self.padding,
        )


class ConvStem(Foldable):
    """3x3 convolutions of stride 2 with BatchNorm, ``in_chans -> dims[0] -> dims[1] ...``.

    ``temporal_strides``, one a layer, makes them convolutions of clips, over three frames.
    """

    def __init__(self, in_chans: int, *dims: int, temporal_strides: Sequence[int] = ()) -> None:
        super().__init__()
        ndim = 3 if temporal_strides else 2
        layers: list[nn.Module] = []
        for depth, dim in enumerate(dims):
            stride = (*temporal_strides[depth : depth + 1], 2, 2)
            conv = CONV[ndim](in_chans, dim, 3, stride, 1)
            layers += [conv, BATCH_NORM[ndim](dim), nn.GELU()]
            in_chans = dim
        self.temporal_strides = temporal_strides
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H, W, C]`` to ``[B, T', H', W', dims[-1]]``."""
        convs, norms = self.proj[0::3], self.proj[1::3]
        ndim = 3 if self.temporal_strides else 2
        return conv_stem(
            x,
            [
                (layer(conv, ndim), norm and layer(norm, ndim))
                for conv, norm in zip(convs, norms, strict=True)
            ],
            temporal_strides=self.temporal_strides,
        )

    def fold(self) -> None:
        """Norms become parts of the convolutions in front of them."""
        for number in range(1, len(self.proj), 3):
            fold_norm(self.proj, str(number), self.proj[number - 1], behind=True)


def smallest_input(stems: Iterable[nn.Module]) -> tuple[int, ...]:
    """The smallest size along each axis for which every one of the stems has an output."""
    convs = [m for stem in stems for m in stem.modules() if isinstance(m, tuple(CONV.values()))]
    size = [1] * len(convs[-1].kernel_size)
    for conv in reversed(convs):
        geometry = zip(size, conv.stride, conv.kernel_size, conv.padding, strict=True)
        size = [max(1, (n - 1) * stride + kernel - 2 * pad) for n, stride, kernel, pad in geometry]
    return tuple(size)
