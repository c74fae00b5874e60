"""A model compiled ahead of time, loaded by a process that has nothing but the kernels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from tests.surroundings.models import close, input_of, model_of

LOAD = """
import sys, torch, uniformer_kernels
model = torch._inductor.aoti_load_package(sys.argv[1])
torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
"""


def test_package_loaded_in_another_process(tmp_path: Path) -> None:
    model, x = model_of("image", depths=(1, 0, 1, 0)), input_of("image", 3)
    with torch.no_grad():
        program = torch.export.export(
            model, (input_of("image"),), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},)
        )
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2")
        )
        want = model(x)
    torch.save(x, tmp_path / "x.pt")
    paths = [package, str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    subprocess.run([sys.executable, "-c", LOAD, *paths], check=True, timeout=120)
    close(torch.load(tmp_path / "y.pt"), want)
