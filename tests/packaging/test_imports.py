"""What importing the packages costs: no other module than their own, whatever is installed."""

from __future__ import annotations

import json
import subprocess
import sys

IMPORT = """
import json, sys
import torch
before = set(sys.modules)
import uniformer, uniformer_kernels
print(json.dumps(sorted(set(sys.modules) - before)))
"""
# timm is asked for the registration of the models, where it is installed.
OWN = {"uniformer", "uniformer_kernels", "timm", "torchvision"} | sys.stdlib_module_names


def test_importing_loads_nothing_else() -> None:
    result = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
    )
    loaded = json.loads(result.stdout)
    assert {name for name in loaded if name.partition(".")[0] not in OWN} == set()
    for part in ("data", "engine", "cli", "demo", "hub"):  # nor what few programs need
        assert f"uniformer.{part}" not in loaded
