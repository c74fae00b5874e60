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


LINEAR = ["linear", "packing", "weight_gradient"]
ATTENTION = ["attention", "attention_bfloat16", "window_attention"]
OPERATORS = {  # tests of the operators whose kernels differ there
    "amx": [*LINEAR, *ATTENTION, "layer_norm"],
    "avx512_bf16": [*LINEAR, *ATTENTION, "layer_norm"],
    "avx512": [*LINEAR, *ATTENTION, "layer_norm"],
    "avx2": [*LINEAR, "depthwise_conv", *ATTENTION, "layer_norm", "query_attention"],
    "portable": [*LINEAR, "depthwise_conv", *ATTENTION, "layer_norm", "query_attention"],
}

CHOSEN = "(cpu- or weight_gradient or pooling) and not (opcheck or refuse)"
"""Schemas and errors are the same whichever kernel computes."""


@pytest.mark.parametrize("instruction_set", OPERATORS)
def test_lesser_instruction_sets(instruction_set: str) -> None:
    """The operators' tests of the ``cpu`` backend again (weight gradients have no other)."""
    if instruction_set not in _introspect.instruction_sets():
        pytest.skip("not of this processor")
    if instruction_set == _introspect.instruction_set():
        pytest.skip("not a lesser one")
    files = [Path(__file__).with_name(f"test_{name}.py") for name in OPERATORS[instruction_set]]
    chosen = "--hypothesis-profile=few", "-k", CHOSEN, *map(str, files)
    environment = os.environ | {"UNIFORMER_KERNELS_CPU": instruction_set, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", RUN, instruction_set, *chosen],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
