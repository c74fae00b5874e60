"""What the compiled CUDA kernels need: ``python -m tests.cuda.budgets`` rewrites ``budgets.json``.

Read from the extension that is built here, with the tools Triton carries. A row has a thread's
registers and stack in bytes, what a block asks for of shared memory, and the share of fused
multiply-adds among the instructions of the inner loop.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import astuple, dataclass
from hashlib import sha256
from pathlib import Path

import uniformer_kernels
from uniformer_kernels import _extension

FILE = Path(__file__).with_name("budgets.json")
LIBRARY = Path(uniformer_kernels.__file__).with_name("_C.abi3.so")
_CSRC = Path(__file__).parents[2] / "csrc"
_STORAGE = {"f": "float32", "NS_4bf16E": "bfloat16", "NS_3f16E": "float16"}
_MANGLED = re.compile(
    r"_ZN2uk4cuda\d+(?P<name>[a-z_]+)I(?P<storage>f|NS_4bf16E|NS_3f16E)(Li(?P<K>\d)ELi(?P<N>\d)E)?E"
)
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)([^;]*);")


@dataclass(frozen=True)
class Kernel:
    """What one kernel needs on one architecture; ``multiply_adds`` for those with tiles."""

    registers: int
    stack: int
    shared: int
    multiply_adds: float | None


def _tool(*arguments: str) -> str:
    import triton

    program = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run(
        [program, *arguments, str(LIBRARY)], capture_output=True, text=True, check=True
    ).stdout


def _text(mangled: str) -> str | None:
    """``forward float32 5x5 7``: storage, kernel and columns of a tile."""
    found = _MANGLED.match(mangled)
    if found is None:
        return None
    tile = f" {found['K']}x{found['K']} {found['N']}" if found["K"] else ""
    return f"{found['name']} {_STORAGE[found['storage']]}{tile}"


def sources() -> str:
    """A digest of what the kernels are compiled from."""
    files = [*sorted((_CSRC / "cuda").glob("*.cu*")), *sorted((_CSRC / "common").glob("*.h"))]
    return sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()[:16]


def usage() -> dict[tuple[str, str], Kernel]:
    """Registers, stack and shared memory of every kernel, by architecture and text."""
    found = {}
    for part in _tool("-res-usage").split("Fatbin elf code:")[1:]:
        architecture = re.search(r"arch = (\w+)", part)[1]
        rows = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", part)
        for mangled, registers, stack, shared, local in rows:
            if text := _text(mangled):
                memory = int(shared) + _planned(text, architecture)
                kernel = Kernel(int(registers), int(stack) + int(local), memory, None)
                found[architecture, text] = kernel
    return found


def _planned(text: str, architecture: str) -> int:
    """Shared memory for a cube as kernel, or for three frames of single taps, on a large map."""
    name, storage, *tile = text.split()
    if not tile:
        return 0
    K, W = int(tile[0][0]), {"7": 56, "5": 40}[tile[1]]
    plan = _extension._introspect.depthwise_conv_plan(
        (16, 8, W, W, 64),
        (max(K, 3), K, K),
        4 if storage == "float32" else 2,
        int(re.sub(r"\D", "", architecture)),
        name == "weight_gradient",
    )
    assert plan["columns"] == int(tile[1])
    return plan["shared"]


def multiply_adds(texts: Collection[str]) -> dict[tuple[str, str], float]:
    """The share of fused multiply-adds, by architecture and text."""
    listed = re.findall(r"Function (\w+):", _tool("-res-usage"))
    mangled = sorted({name for name in listed if _text(name) in texts})
    found = {}
    architecture = ""
    for part in re.split(
        r"(?=Fatbin elf code:|Function : )", _tool("-sass", "-fun", ",".join(mangled))
    ):
        if name := re.match(r"Function : (\w+)", part):
            # The compiler may cut the loop's body in two; what surrounds it hardly multiplies.
            body = [b for b in _blocks(part) if b.count("FFMA") > 0.2 * len(b) and len(b) > 40]
            share = sum(b.count("FFMA") for b in body) / sum(map(len, body))
            found[architecture, _text(name[1])] = round(share, 3)
        elif arch := re.search(r"arch = (\w+)", part):
            architecture = arch[1]
    return found


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


def budgets() -> tuple[dict[str, str], dict[tuple[str, str], Kernel]]:
    """The committed file: what it was made from, and every kernel's row."""
    data = json.loads(FILE.read_text())
    made = data.pop("made")
    return made, {(a, text): Kernel(*row) for a, rows in data.items() for text, row in rows.items()}


def made() -> dict[str, str]:
    return {"sources": sources(), "nvcc": _extension.manifest()["nvcc"]}


def main() -> None:
    rows = usage()
    shares = multiply_adds([text for _, text in rows if len(text.split()) > 2])
    lines = [f' "made": {json.dumps(made())}']
    for architecture in dict.fromkeys(a for a, _ in rows):
        kernels = [
            f"  {json.dumps(text)}: "
            + json.dumps([*astuple(kernel)[:3], shares.get((architecture, text))])
            for (a, text), kernel in sorted(rows.items())
            if a == architecture
        ]
        lines.append(f" {json.dumps(architecture)}: {{\n" + ",\n".join(kernels) + "\n }")
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
