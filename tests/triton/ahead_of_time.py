"""Compile planned launches for GPUs that are not here, and read what the compiler made of them."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from uniformer_kernels.triton.launch import Launch

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "i1",
}
_COMPILER_OPTIONS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Variant:
    """What of a launch the compiler sees; its text leaves out what it makes of single sizes."""

    kernel: Any
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    ones: tuple[str, ...]
    aligned: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, launch: Launch) -> Variant:
        """As ``JITFunction.run`` specialises: on ones, and on multiples of 16."""
        given = dict(zip(launch.kernel.arg_names, launch.args, strict=False)) | launch.options
        types, constants, ones, aligned = [], [], [], []
        for parameter in launch.kernel.params:
            name, value = parameter.name, given.get(parameter.name, parameter.default)
            if parameter.is_constexpr or value is None:
                types.append((name, "constexpr"))
                constants.append((name, value))
                continue
            types.append((name, _type(value)))
            if isinstance(value, torch.Tensor):
                aligned.append(name)
            elif type(value) is int and value == 1:
                ones.append(name)
            elif type(value) is int and value % 16 == 0:
                aligned.append(name)
        options = [(name, given[name]) for name in _COMPILER_OPTIONS if name in given]
        parts = types, constants, ones, aligned, options
        return cls(launch.kernel, *map(tuple, parts))

    @property
    def file(self) -> str:
        """The kernel's module, by its last name."""
        return self.kernel.fn.__module__.rpartition(".")[2]

    @property
    def source(self) -> str:
        """Of all compiled functions the kernel's module has or imports."""
        module = sys.modules[self.kernel.fn.__module__]
        functions = (f for f in vars(module).values() if isinstance(f, triton.JITFunction))
        return "\n".join(sorted(f.src for f in functions))

    def __str__(self) -> str:
        types = [f"{name}: {kind[1:]}" for name, kind in self.types if kind[0] == "*"]
        constants = [f"{name}={value}" for name, value in self.constants + self.options]
        return f"{self.file}.{self.kernel.fn.__name__}({', '.join(types + constants)})"


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + _TYPES[value.dtype]
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


@dataclass(frozen=True)
class Binary:
    """What a variant needs on one architecture."""

    registers: int
    stack: int
    shared: int
    tensor_cores: bool


def build(variant: Variant, architecture: str) -> Binary:
    """Compile for an architecture; no GPU is needed."""
    names = list(variant.kernel.arg_names)
    constants = dict(variant.constants) | dict.fromkeys(variant.ones, 1)
    source = ASTSource(
        fn=variant.kernel,
        signature={k: "constexpr" if k in constants else kind for k, kind in variant.types},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned},
    )
    target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    options = dict(variant.options) | {"enable_fp_fusion": True}
    made = triton.compile(source, target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [_CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return Binary(
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        stack=int(re.search(r"STACK:(\d+)", usage)[1]),
        shared=made.metadata.shared,
        tensor_cores=bool(re.search(r"\b(wgmma|mma\.sync|tcgen05\.mma)", made.asm["ptx"])),
    )
