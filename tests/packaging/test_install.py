"""`make wheel-test`: the wheel and the sdist of dist/, into an environment pip fills.

Nothing is linked and nothing is reused: PyTorch is installed and the sdist compiled.
"""

from __future__ import annotations

import os

import pytest

from .environment import ROOT, Environment

pytestmark = pytest.mark.installs

CONSTRAINTS = ("--constraint", ROOT / "constraints.txt")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("environment"))
    made.install(*CONSTRAINTS, "torch", "numpy")
    return made


def works(environment: Environment) -> None:
    found = environment.check()
    assert found["loaded"] == ["uniformer", "uniformer_kernels"]
    assert (found["serves"], found["logits"]) == ("cpu", [1, 7])
    assert 0 < found["error"] < 1e-5
    assert "instruction_sets" in environment.info()


@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_what_was_built_installs_and_runs(pattern: str, environment: Environment) -> None:
    (package,) = (ROOT / "dist").glob(pattern)
    compiling = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    alone = ("--no-deps", "--force-reinstall")
    if package.suffix == ".gz":
        environment.install(*CONSTRAINTS, "setuptools>=77", "ninja", "pybind11>=2.13")
        alone += ("--no-build-isolation",)  # which would install PyTorch once more
    environment.install(*alone, package, **compiling)
    works(environment)
