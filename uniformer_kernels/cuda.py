"""The CUDA C++ kernels: which calls they can serve on which GPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _extension, triton
from .triton import tuning

_CAPABILITY = (8, 0)
_BUILT = _extension.missing is None and torch._C._dispatch_has_kernel_for_dispatch_key(
    "uniformer_kernels::depthwise_conv3d", "CUDA"
)
ARCHITECTURES: tuple[str, ...] = tuple(_extension.manifest().get("cuda_architectures", ()))
"""What they are compiled for, e.g. ``("80", "90a", "100")``; the last one as PTX, too."""
CONVOLUTION = "depthwise_conv3d"
TOEPLITZ, TMA = f"{CONVOLUTION}_toeplitz", f"{CONVOLUTION}_tma"
TWINS = (TOEPLITZ, TMA)
"""Kernels that convolve another way: as matrix products, or with frames staged by TMA. Rows of
the tuning table by these names say where the convolution, so its input gradient, is faster that
way, and rows with ``_backward`` behind where its weight gradient is: none until a GPU has measured
it."""
CONVOLUTIONS, TOKENS = "cuda_depthwise_conv3d", "cuda_tokens"
"""Rows that say where all kernels here of such a call are faster than Triton's."""


def declines(tensor: Tensor, name: str = "x") -> str | None:
    """Why no CUDA kernel can serve a call whose first tensor this is, ``None`` when one can."""
    if _extension.missing is not None:
        return _extension.missing
    if not _BUILT:
        return "the extension was built without nvcc"
    if tensor.dtype == torch.float64:
        return f"{name} is float64"
    if tensor.device.type != "cuda":
        return f"{name} is on {tensor.device}"
    if not torch.cuda.is_available():  # a fake tensor
        return None
    capability = torch.cuda.get_device_capability(tensor.device)
    if reason := cannot_run(capability):
        return f"{tensor.device} has compute capability {capability}, {reason}"
    return None


def convolution_yields(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> str | None:
    return _yields(CONVOLUTIONS, x, convolution_class(x, weight))


def tokens_yield(x: Tensor, *_: Any, **__: Any) -> str | None:
    return _yields(TOKENS, x, token_class(x))


def _yields(row: str, x: Tensor, shape_class: str) -> str | None:
    """Why a call goes to Triton's kernels unless these are asked for."""
    if triton.declines(x) or _is_faster(x.device, row, shape_class):
        return None
    return "triton's kernels go first where these are not measured to be faster"


def convolution_class(x: Tensor, weight: Tensor) -> str:
    (_, T, H, W, C), (_, _, kt, kh, kw) = x.shape, weight.shape
    return f"k{kt}x{kh}x{kw} {T}x{H}x{W} C{C} {8 * x.element_size()} bits"


def token_class(x: Tensor) -> str:
    _, N, C = x.shape
    return f"N{N} C{C} {8 * x.element_size()} bits"


def fastest(x: Tensor, weight: Tensor, suffix: str = "") -> str:
    """The kernels that are measured to be the fastest of a convolution."""
    for twin in TWINS:
        if allows(twin, x, weight) and _is_faster(
            x.device, twin + suffix, convolution_class(x, weight)
        ):
            return twin
    return CONVOLUTION


def allows(twin: str, x: Tensor, weight: Tensor) -> bool:
    """Whether tensor cores can do a convolution, 5 x 5 taps of 16 bits, or TMA stage its frames,
    which are copied 16 bytes at once."""
    if twin == TOEPLITZ:
        return x.dtype != torch.float32 and tuple(weight.shape[2:]) in ((5, 5, 5), (1, 5, 5))
    *_, kh, kw = weight.shape
    return x.shape[4] * x.element_size() % 16 == 0 and kh == kw < 7


def has_tma(device: torch.device) -> bool:
    """Whether a GPU copies boxes of tensors: Hopper and later."""
    name = tuning.architecture(device)
    return name.startswith("sm_") and int(name.removeprefix("sm_")) >= 90


def _is_faster(device: torch.device, kernel: str, shape_class: str) -> bool:
    return tuning.row(device, kernel, shape_class).get("faster", False)


# All that torch.compiler.assume_constant_result does, but that imports the compiler, which takes
# longer than everything else here.
_is_faster._dynamo_marked_constant = True  # type: ignore[attr-defined]


def cannot_run(
    capability: tuple[int, int], architectures: tuple[str, ...] = ARCHITECTURES
) -> str | None:
    """Why a GPU runs nothing that was compiled for the architectures, ``None`` when it does.

    Without a list, as the manifest of a build for another Python has none to tell, it is tried.
    """
    if capability < _CAPABILITY:
        return f"expected at least {_CAPABILITY}"
    if not architectures or any(_runs(a, capability) for a in architectures):
        return None
    newest = architectures[-1]
    if newest.isdigit() and _capability(newest) <= capability:  # compiled from PTX when first used
        return None
    return f"the extension was built for sm_{', sm_'.join(architectures)}"


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Binaries run on later minor revisions; those with a letter on theirs only."""
    major, minor = _capability(architecture)
    exact = not architecture.isdigit()
    return major == capability[0] and (
        minor == capability[1] or (minor < capability[1] and not exact)
    )


def _capability(architecture: str) -> tuple[int, int]:
    number = int(architecture.rstrip("af"))
    return divmod(number, 10)
