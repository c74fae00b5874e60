"""The kernels of lesser processors, each in a process that is told to use them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from uniformer_kernels import _introspect

RUN = """
import sys, pytest
from uniformer_kernels import _introspect
assert _introspect.instruction_set() == sys.argv[1]
sys.exit(pytest.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("instruction_set", ["avx2", "portable"])
@pytest.mark.parametrize("operator", ["depthwise_conv", "attention", "window_attention"])
def test_lesser_instruction_sets(operator: str, instruction_set: str) -> None:
    """The operator's tests of the ``cpu`` backend again."""
    if instruction_set != "portable" and not _introspect.cpu_features().get(instruction_set):
        pytest.skip("not of this processor")
    tests = Path(__file__).with_name(f"test_{operator}.py")
    command = [sys.executable, "-c", RUN, instruction_set, str(tests), "-k", "cpu-"]
    environment = os.environ | {"UNIFORMER_KERNELS_CPU": instruction_set}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
