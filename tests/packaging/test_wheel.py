"""What is built from this tree, installed where there is PyTorch and nothing else.

PyTorch is linked from here and the compiled kernels are those of `make build`, to be quick;
`test_install.py` does neither.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from .environment import ROOT, Environment, outside, run

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")

MOST_BYTES = 15e6


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sdist and the wheel; built once, by whichever process comes first."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / "dist.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "dist").exists():
            new = folder / "new"
            said = run(
                *(sys.executable, "setup.py", "--quiet"),
                *("build", "--build-base", folder / "build"),  # ours may hold files that are gone
                *("sdist", "--dist-dir", new, "bdist_wheel", "--dist-dir", new),
                **(os.environ | {"UNIFORMER_KERNELS_CUDA": "0"}),  # which would take minutes
            )
            assert "absent from the `packages` configuration" not in said
            new.rename(folder / "dist")
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(dist: Path) -> Path:
    (path,) = dist.glob("*.tar.gz")
    return path


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    made = Environment(tmp_path / "environment")
    made.link("torch", "numpy")
    return made


def package_files() -> set[str]:
    """The packages' files in the tree, under the names they are installed by."""
    found = set()
    for folder in (ROOT / "uniformer_kernels", ROOT / "python" / "uniformer"):
        for suffix in ("py", "json", "yaml", "typed"):
            found |= {str(p.relative_to(folder.parent)) for p in folder.rglob(f"*.{suffix}")}
    return found


def test_the_wheel_holds_the_packages_and_the_extension(wheel: Path) -> None:
    assert wheel.name.startswith("uniformer_kernels-0.1.0-cp310-abi3-")
    assert wheel.stat().st_size < MOST_BYTES
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    libraries = {name for name in names if name.endswith(".so")}
    assert {Path(name).name.partition(".")[0] for name in libraries} == {"_C", "_introspect"}
    assert names - libraries == package_files() | {"uniformer_kernels/manifest.json"}


def test_the_sdist_holds_all_that_is_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    assert sources | {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not any(name.startswith(("tests", "benchmarks", "build")) for name in names)


def test_the_wheel_runs_with_torch_alone(wheel: Path, environment: Environment) -> None:
    environment.install("--no-index", wheel)
    before = sorted(environment.folder.rglob("*"))
    found = environment.check()
    assert sorted(environment.folder.rglob("*")) == before  # nothing was compiled, or written
    assert found["loaded"] == ["uniformer", "uniformer_kernels"]
    assert found["serves"] == "cpu"
    assert found["logits"] == [1, 7]
    assert 0 < found["error"] < 1e-5  # two backends were at work, and agree

    (introspect,) = environment.packages.glob("uniformer_kernels/_introspect*")
    introspect.unlink()  # as another version of Python sees it
    info = environment.info()
    assert re.search(r"torch_target +2\.11\n", info)
    assert "instruction_sets" in info
    assert "joint_attention                cpu   cpu" in info


def test_without_a_compiler_pip_makes_a_pure_wheel(
    sdist: Path, environment: Environment, tmp_path: Path
) -> None:
    said = run(
        *(sys.executable, "-m", "pip", "wheel", "--verbose", "--no-build-isolation", "--no-deps"),
        *("--no-index", "--wheel-dir", tmp_path, sdist),
        **outside(),
    )
    assert "no C++ compiler 'no-such-compiler'" in said
    (pure,) = tmp_path.glob("*.whl")
    assert pure.name == "uniformer_kernels-0.1.0-py3-none-any.whl"
    environment.install("--no-index", pure)
    found = environment.check()
    assert found["loaded"] == ["uniformer", "uniformer_kernels"]
    assert found["serves"] == "reference"
    assert found["logits"] == [1, 7]
    info = environment.info()
    assert "the extension is not built" in info
    assert "what pip makes without a C++ compiler is pure Python" in info


def test_cuda_is_not_left_out_in_silence() -> None:
    with pytest.raises(AssertionError, match="expected a C\\+\\+ compiler, got no 'no-such"):
        run(
            *(sys.executable, "setup.py", "--version"),
            **outside(UNIFORMER_KERNELS_CUDA="1"),
        )
