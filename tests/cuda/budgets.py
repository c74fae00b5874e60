"""What the compiled CUDA kernels need: ``make budgets`` rewrites ``budgets.json``.

Compiled by nvcc and read with the tools Triton carries; no GPU is needed. A row has a thread's
registers and stack in bytes, what a block asks for of shared memory, and the share of fused
multiply-adds among the instructions of the inner loop (of matrix products in ``toeplitz``).
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.cuda.emulator import ROOT
from uniformer_kernels import _extension

FILE = Path(__file__).with_name("budgets.json")
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
_CSRC = ROOT / "csrc"
_FLAGS = ("-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-I{_CSRC}")  # setup.py's
_STORAGE = {"float32": "float", "bfloat16": "uk::bf16", "float16": "uk::f16"}
_MANGLED_STORAGE = {"f": "float32", "NS_4bf16E": "bfloat16", "NS_3f16E": "float16"}
_MANGLED = re.compile(
    r"_ZN2uk4cuda\d+(?P<name>[a-z_]+)I(?P<storage>f|NS_4bf16E|NS_3f16E)(Li(?P<K>\d)E)?(Li(?P<N>\d)E)?"
    r"(Lb(?P<tma>[01])E)?E"
)
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)([^;]*);")
Rows = dict[tuple[str, str], "Kernel"]


@dataclass(frozen=True)
class Kernel:
    """What one kernel needs on one architecture; ``multiply_adds`` for convolutions with tiles."""

    registers: int
    stack: int
    shared: int
    multiply_adds: float | None


def _tool(*arguments: str | Path) -> str:
    import triton

    program = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def _text(mangled: str) -> str | None:
    """``forward float32 5x5 7``: storage, kernel and columns of a tile, and ``tma`` where it stages
    the frames; ``shrink float32 4``."""
    found = _MANGLED.match(mangled)
    if found is None:
        return None
    words = [found["name"], _MANGLED_STORAGE[found["storage"]]]
    if found["N"]:
        words += [f"{found['K']}x{found['K']}", found["N"], *["tma"] * int(found["tma"])]
    elif found["K"]:
        words.append(found["K"])
    return " ".join(words)


def has_tiles(text: str) -> bool:
    return len(text.split()) >= 4


def has_tma(text: str) -> bool:
    return text.endswith(" tma")


def has_share(text: str) -> bool:
    return has_tiles(text) or text.startswith("toeplitz")


def compiled(source: Path, architecture: str, out: Path, *flags: str) -> Rows:
    """Every kernel of a source, by architecture and text."""
    command = ["nvcc", *_FLAGS, f"-arch={architecture}", *flags, "-cubin", source, "-o", out]
    subprocess.run(command, check=True)
    usage = re.findall(
        r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",
        _tool("-res-usage", out),
    )
    rows, multiplying = {}, {}
    for mangled, registers, stack, shared, local in usage:
        text = _text(mangled)
        if text and not (has_tma(text) and architecture == "sm_80"):  # which has no code there
            memory = int(shared) + planned(text, architecture)
            rows[architecture, text] = Kernel(int(registers), int(stack) + int(local), memory, None)
            if has_share(text):
                multiplying[mangled] = text
    if multiplying:
        for part in _tool("-sass", "-fun", ",".join(multiplying), out).split("Function : ")[1:]:
            key = architecture, multiplying[part.split()[0]]
            if copies_boxes(part) != has_tma(key[1]):
                raise SystemExit(f"{key}: expected TMA where it is named, and nowhere else")
            wanted = "HMMA" if key[1].startswith("toeplitz") else "FFMA"
            rows[key] = replace(rows[key], multiply_adds=_share(part, wanted))
    return rows


def instantiated(text: str, architecture: str, folder: Path) -> Kernel:
    """One kernel with tiles, compiled alone."""
    name, storage, kernel, columns, *_ = text.split()
    arguments = {"forward": "Forward", "weight_gradient": "WeightGradient"}[name]
    source = folder / "one.cu"
    source.write_text(
        '#include "cuda/depthwise_conv_kernel.cuh"\n'
        f"template __global__ void uk::cuda::{name}<{_STORAGE[storage]}, {kernel[0]}, {columns}, "
        f"{str(has_tma(text)).lower()}>"
        f"(const __grid_constant__ {arguments}<{_STORAGE[storage]}>);\n"
    )
    return compiled(source, architecture, folder / "one.cubin")[architecture, text]


def planned(text: str, architecture: str) -> int:
    """What is asked for of shared memory: for a cube as kernel, or three frames of single taps, on
    a large map, and for the most tokens there may be."""
    if text.startswith("toeplitz"):
        plan = _extension._introspect.depthwise_conv_plan(
            (16, 8, 56, 56, 64),
            (int(text[-1]), 5, 5),
            2,
            int(re.sub(r"\D", "", architecture)),
            gradient="weight_gradient" in text,
            by=_extension._introspect.By.products,
        )
        return plan["shared"]
    if not has_tiles(text):
        tokens = _extension._introspect.token_select_plan(1, 1)["most_tokens"]
        return _extension._introspect.token_select_plan(tokens, 1).get(text.split()[0], 0)
    name, storage, *tile = text.split()
    K, W = int(tile[0][0]), {"7": 56, "5": 40}[tile[1]]
    by = _extension._introspect.By
    plan = _extension._introspect.depthwise_conv_plan(
        (16, 8, W, W, 64),
        (max(K, 3), K, K),
        4 if storage == "float32" else 2,
        int(re.sub(r"\D", "", architecture)),
        name == "weight_gradient",
        by.tma if has_tma(text) else by.tiles,
    )
    assert plan["columns"] == int(tile[1])
    return plan["shared"]


def _share(sass: str, wanted: str) -> float:
    """The share of an instruction in a kernel's inner loop."""
    blocks = list(_blocks(sass))
    if wanted == "HMMA":
        body = [b for b in blocks if wanted in b]
    else:  # the compiler may cut the loop's body in two; what surrounds it hardly multiplies
        body = [b for b in blocks if b.count(wanted) > 0.2 * len(b) and len(b) > 40]
    return round(sum(b.count(wanted) for b in body) / sum(map(len, body)), 3)


def copies_boxes(sass: str) -> bool:
    """Whether a kernel starts tensor copies and awaits the barriers where they arrive."""
    names = {name for _, name, _ in _INSTRUCTION.findall(sass)}
    return names >= {"UTMALDG", "SYNCS"}


def _blocks(sass: str) -> Iterator[list[str]]:
    """Runs of instructions that nothing jumps out of or into."""
    instructions = _INSTRUCTION.findall(sass)
    targets = {
        int(at, 16)
        for _, name, rest in instructions
        if name in ("BRA", "BSSY")
        for at in re.findall(r"0x([0-9a-f]+)", rest)
    }
    block: list[str] = []
    for at, name, _ in instructions:
        if int(at, 16) in targets and block:
            yield block
            block = []
        block.append(name)
        if name in ("BRA", "BRX", "EXIT"):
            yield block
            block = []
    yield block


def budgets() -> tuple[dict[str, str], Rows]:
    """The committed file: what it was made from, and every kernel's row."""
    data = json.loads(FILE.read_text())
    made = data.pop("made")
    return made, {(a, text): Kernel(*row) for a, rows in data.items() for text, row in rows.items()}


def sources() -> str:
    """A digest of what the kernels are compiled from."""
    files = [*sorted((_CSRC / "cuda").glob("*.cu*")), *sorted((_CSRC / "common").glob("*.h"))]
    return sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()[:16]


def compiler() -> str:
    done = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def main() -> None:
    rows: Rows = {}
    with TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        done = [
            pool.submit(
                compiled,
                source,
                architecture,
                Path(folder, f"{source.stem}.{storage}.{architecture}"),
                f"-DUK_STORAGE={storage}",
            )
            for architecture in ARCHITECTURES
            for source in sorted((_CSRC / "cuda").glob("*_kernel.cu"))
            for storage in ("float", "bf16", "f16")
        ]
        for one in done:
            rows |= one.result()
    lines = [f' "made": {json.dumps({"sources": sources(), "nvcc": compiler()})}']
    for architecture in ARCHITECTURES:
        kernels = [
            f"  {json.dumps(text)}: {json.dumps(astuple(kernel))}"
            for (a, text), kernel in sorted(rows.items())
            if a == architecture
        ]
        lines.append(f" {json.dumps(architecture)}: {{\n" + ",\n".join(kernels) + "\n }")
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
