"""The kernels of ``csrc/cuda`` compiled for this processor, and called with tensors.

``shim.h`` says how; needed is a C++ compiler, no CUDA.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import struct
import subprocess
import sysconfig
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

_HERE = Path(__file__).parent
ROOT = _HERE.parents[1]
# Unoptimised: compiling takes longer than running then, and both together the least time.
SANITIZED = ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

_SIZES = {torch.float32: 4, torch.bfloat16: 2, torch.float16: -2}
_OPERATIONS = {"forward": 0, "weight_gradient": 1, "moments": 2, "moments_backward": 3}
_TOKENS = {"shrink": 4, "shrink_backward": 5, "recover": 6, "recover_backward": 7}
_COPIES = 8
_FAULTS = re.findall(r"k([A-Z]\w+),$", (_HERE / "emulator_copies.cpp").read_text(), re.MULTILINE)
_KERNELS = ["tiles", "toeplitz", "tma", "general"]
# Of a block, in bytes; under 75 what is too little for most kernels.
_SHARED = {75: 24 * 1024, 80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}


class EmulationError(RuntimeError):
    """The kernel did what it must not: a barrier that some miss, or an access beside an array."""


@dataclass(frozen=True)
class Emulator:
    """A build of the kernels, and how to run it."""

    program: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        residual: bool = False,
        flip: bool = False,
        moments: bool = False,
        shift: Tensor | None = None,
        **options: int | str,
    ) -> tuple[Tensor, Tensor]:
        """The convolution, and its moments ``[2, C]`` if asked for and the kernel takes them."""
        out = self._run(
            "forward",
            x=x,
            weight=weight,
            bias=bias,
            shift=shift,
            flags=(flip, residual, moments),
            **options,
        )
        size = x.numel() * x.element_size()
        taken = len(out) > size
        sums = torch.frombuffer(out[size:], dtype=torch.float32) if taken else torch.empty(0)
        return torch.frombuffer(out[:size], dtype=x.dtype).view(x.shape), sums.view(2, -1)

    def weight_gradient(
        self, dy: Tensor, x: Tensor, weight: Tensor, **options: int | str
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the weight, like ``weight``, and of the bias."""
        out = self._run("weight_gradient", x=x, dy=dy, weight=weight, **options)
        both = torch.frombuffer(out, dtype=x.dtype)
        return both[: weight.numel()].view(weight.shape), both[weight.numel() :]

    def moments(self, x: Tensor, shift: Tensor | None) -> Tensor:
        out = self._run("moments", x=_as_map(x), shift=shift)
        return torch.frombuffer(out, dtype=torch.float32).view(2, -1)

    def moments_backward(
        self, dy: Tensor | None, x: Tensor, shift: Tensor | None, dmoments: Tensor
    ) -> Tensor:
        dy = None if dy is None else _as_map(dy)
        out = self._run("moments_backward", x=_as_map(x), dy=dy, shift=shift, others=dmoments)
        return torch.frombuffer(out, dtype=x.dtype).view(x.shape)

    def _run(
        self,
        operation: str,
        *,
        x: Tensor,
        dy: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        shift: Tensor | None = None,
        others: Tensor | None = None,
        flags: tuple[bool, bool, bool] = (False, False, False),
        architecture: int = 90,
        by: str = "tiles",
    ) -> bytearray:
        taps = weight.shape[2:] if weight is not None else (1, 1, 1)
        strides = [0] * 4 if weight is None else [weight.stride(i) for i in (0, 2, 3, 4)]
        storages = [_storage(t) for t in (x, dy, weight, bias, shift, others)]
        numbers = [
            _OPERATIONS[operation],
            _SIZES[x.dtype],
            *x.shape,
            *taps,
            architecture,
            _SHARED[architecture],
            _KERNELS.index(by),
            *flags,
            *x.stride(),
            *([0] * 5 if dy is None else dy.stride()),
            *strides,
            0 if bias is None else bias.stride(0),
            *(0 if t is None else t.storage_offset() * t.element_size() for t in (x, dy)),
            *map(len, storages),
        ]
        return self._call(numbers, storages)

    def token_shrink(
        self, x: Tensor, importance: Tensor, keep: int, prefix: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        B, N, C = x.shape
        P = 0 if prefix is None else prefix.shape[1]
        sizes = (B, N, keep, P, C)
        out = self._tokens("shrink", sizes, x.dtype, [x, prefix], importance)
        return _split(out, (x.dtype, (B, P + keep + 1, C)), (torch.int64, (B, keep)))

    def token_shrink_backward(
        self, dtokens: Tensor, x: Tensor, importance: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        (B, N, C), K = x.shape, index.shape[1]
        sizes = (B, N, K, dtokens.shape[1] - K - 1, C)
        out = self._tokens("shrink_backward", sizes, x.dtype, [dtokens, x], importance, index)
        return _split(out, (x.dtype, (B, N, C)), (torch.float32, (B, N)))

    def token_recover(self, x: Tensor, index: Tensor, kept: Tensor, delta: Tensor) -> Tensor:
        (B, N, C), K = x.shape, index.shape[1]
        out = self._tokens("recover", (B, N, K, 0, C), x.dtype, [x, kept, delta], index=index)
        return _split(out, (x.dtype, (B, N, C)))[0]

    def token_recover_with_importance(
        self,
        x: Tensor,
        index: Tensor,
        kept: Tensor,
        delta: Tensor,
        importance: Tensor,
        score: Tensor,
        trade_off: float,
    ) -> tuple[Tensor, Tensor]:
        (B, N, C), K = x.shape, index.shape[1]
        sizes = (B, N, K, score.shape[1] - K - 1, C)
        rows = [x, kept, delta]
        out = self._tokens("recover", sizes, x.dtype, rows, importance, index, score, trade_off)
        return _split(out, (x.dtype, (B, N, C)), (torch.float32, (B, N)))

    def token_recover_with_importance_backward(
        self, dy: Tensor, dupdated: Tensor, index: Tensor, prefixed: int, trade_off: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        (B, N, C), K = dy.shape, index.shape[1]
        sizes, name = (B, N, K, prefixed, C), "recover_backward"
        out = self._tokens(name, sizes, dy.dtype, [dy], dupdated, index, trade_off=trade_off)
        rows = ((dy.dtype, (B, n, C)) for n in (N, K, 1))
        return _split(out, *rows, *((torch.float32, (B, n)) for n in (N, prefixed + K + 1)))

    def token_recover_backward(self, dy: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (B, N, C), K = dy.shape, index.shape[1]
        out = self._tokens("recover_backward", (B, N, K, 0, C), dy.dtype, [dy], index=index)
        return _split(out, *((dy.dtype, (B, n, C)) for n in (N, K, 1)))

    def _tokens(
        self,
        operation: str,
        sizes: tuple[int, ...],
        dtype: torch.dtype,
        rows: list[Tensor | None],
        importance: Tensor | None = None,
        index: Tensor | None = None,
        score: Tensor | None = None,
        trade_off: float = 0.0,
    ) -> bytearray:
        rows = [*rows, None, None][:3]
        storages = [_storage(t) for t in (*rows, importance, score, index)]
        numbers = [_TOKENS[operation], _SIZES[dtype], *sizes]
        for t in rows:
            numbers += [0] * 3 if t is None else [t.stride(0), t.stride(1), t.storage_offset()]
        for t in (importance, score):
            numbers += [0] * 2 if t is None else [t.stride(0), t.storage_offset()]
        numbers += struct.unpack("q", struct.pack("d", trade_off))
        return self._call([*numbers, *map(len, storages)], storages)

    def tensor_copies(
        self,
        x: Tensor,
        box: Sequence[int],
        start: Sequence[int],
        steps: int = 1,
        fault: str = "None",
    ) -> Tensor:
        """Boxes of a map ``[B, T, H, W, C]``, one frame after another ``[steps, *box]``.

        Box and start are given as the map is, from samples to channels; ``fault`` is one of
        ``emulator_copies.cpp``.
        """
        out = self._call(
            [
                *(_COPIES, 0, _FAULTS.index(fault), steps, x.element_size()),
                *box[::-1],
                *x.shape,
                *start[::-1],
                *x.stride(),
                x.storage_offset() * x.element_size(),
                len(storage := _storage(x)),
            ],
            [storage],
        )
        return torch.frombuffer(out, dtype=x.dtype).view(steps, *box)

    def _call(self, numbers: list[int], storages: list[bytes]) -> bytearray:
        request = struct.pack(f"{len(numbers)}q", *map(int, numbers)) + b"".join(storages)
        done = subprocess.run(
            [self.program],
            input=request,
            capture_output=True,
            env=os.environ | dict(self.environment),
            timeout=100,
        )
        if done.returncode:
            raise EmulationError(done.stderr.decode(errors="replace")[:3000])
        return bytearray(done.stdout)


def _split(out: bytearray, *tensors: tuple[torch.dtype, tuple[int, ...]]) -> tuple[Tensor, ...]:
    found, at = [], 0
    for dtype, shape in tensors:
        count = math.prod(shape)
        part = out[at : at + count * dtype.itemsize]
        found.append(torch.frombuffer(part, dtype=dtype) if part else torch.empty(0, dtype=dtype))
        at += len(part)
    assert at == len(out)
    return tuple(t.view(shape) for t, (_, shape) in zip(found, tensors, strict=True))


def _as_map(rows: Tensor) -> Tensor:
    return rows[None, None, None]


def _storage(t: Tensor | None) -> bytes:
    """All that lies in the tensor's memory, around it as well; only maps have an offset."""
    if t is None:
        return b""
    return torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage()).numpy().tobytes()


def build(
    folder: Path,
    flags: Collection[str] = (),
    sources: Path = ROOT / "csrc",
    like: Emulator | None = None,
    only: str = "",
) -> Emulator:
    """Compile the kernels.

    Args:
        folder: where to.
        flags: more of them for the compiler.
        sources: a copy of ``csrc`` in which something was changed.
        like: a build with the same flags, to be taken but for the kernels of ``only``.
        only: such as ``"sums_kernel.float"``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"),
        *(
            "-std=c++17",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Wno-unknown-pragmas",
            "-Wno-clobbered",
            "-Wno-psabi",
        ),
        *(f"-I{sources}", f"-I{_HERE}", *flags),
    ]

    def compile_one(source: Path, name: str, *options: str) -> str:
        if like is not None and name != only:
            return str(like.program.with_name(f"{name}.o"))
        out = str(folder / f"{name}.o")
        subprocess.run([*command, *options, "-c", str(source), "-o", out], check=True)
        return out

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = [pool.submit(compile_one, path, path.stem) for path in _HERE.glob("*.cpp")]
        for path in sources.glob("cuda/*_kernel.cu"):
            for storage in ("float", "bf16", "f16"):
                options = ("-include", str(_HERE / "shim.h"), f"-DUK_STORAGE={storage}", "-xc++")
                parts.append(pool.submit(compile_one, path, f"{path.stem}.{storage}", *options))
        objects = [part.result() for part in parts]
    # Of inline functions the linker takes the first: what was compiled anew.
    objects.sort(key=lambda path: Path(path).parent != folder)
    program = folder / "emulator"
    subprocess.run([*command, *objects, "-o", f"{program}.new"], check=True)
    Path(f"{program}.new").rename(program)
    return Emulator(program)


def kept_build(name: str, flags: Collection[str] = ()) -> Emulator:
    """A build of the sources as they are, made once for each state of them."""
    files = [f for d in (ROOT / "csrc", _HERE) for f in sorted(d.rglob("*.[ch]*"))]
    digest = sha256(b"\0".join([repr(flags).encode(), *(f.read_bytes() for f in files)]))
    folder = ROOT / "build" / "emulator" / f"{name}-{digest.hexdigest()[:16]}"
    if (folder / "emulator").exists():
        return Emulator(folder / "emulator")
    for old in folder.parent.glob(f"{name}-*"):
        shutil.rmtree(old, ignore_errors=True)
    return build(folder, flags)


def changed(folder: Path, file: str, before: str, after: str) -> Path:
    """A copy of the sources in which one piece of a file is replaced."""
    shutil.copytree(ROOT / "csrc", folder, dirs_exist_ok=True)
    path = folder / "cuda" / file
    text = path.read_text()
    assert text.count(before) == 1, f"{file} has {text.count(before)} times {before!r}"
    path.write_text(text.replace(before, after))
    return folder


def barriers(pattern: str) -> list[str]:
    """Where the kernels' barriers are, as ``UK_SKIP_BARRIER`` names them."""
    return [
        f"{path.name}:{line}"
        for path in sorted((ROOT / "csrc" / "cuda").glob(pattern))
        for line, text in enumerate(path.read_text().splitlines(), 1)
        if "__syncthreads()" in text
    ]
