"""Builds the two extension modules with ninja; everything else is in pyproject.toml.

``_C.abi3.so``       the operators, on the LibTorch stable ABI: one file for every CPython >= 3.10
                     and torch >= 2.11.
``_introspect``      processor features, by pybind11, for this Python only.
``manifest.json``    what was built, and from what.

Without a C++ compiler nothing is built: the wheel is pure Python, for any platform, and what it has
is the reference and the Triton kernels.

Variables: ``UNIFORMER_KERNELS_CUDA`` (whether to compile ``csrc/cuda``: ``0``, ``1``, which is an
error without nvcc, or ``auto``, the default: where there is nvcc, and for a build in place a GPU
that torch sees, as this costs minutes and serves nobody else), ``UNIFORMER_KERNELS_CUDA_ARCHS``
(``80;90a;100`` unless set; the last one also as PTX, for what comes after it), ``MAX_JOBS``,
``CXX``.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
import warnings
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
TORCH_TARGET = (2, 11)
X86 = platform.machine().lower() in ("x86_64", "amd64")

# The kernels of csrc/cpu/*_kernel.cpp are compiled once per set; the processor decides at run time.
INSTRUCTION_SETS = {"portable": []}
if X86:
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = [
        *INSTRUCTION_SETS["avx2"],
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
    ]
# Sets that multiply bfloat16 and round to it, and the kernels that make use of it.
BFLOAT16_SETS = {}
BFLOAT16_KERNELS = {
    "attention_kernel",
    "feed_forward_backward_kernel",
    "layer_norm_kernel",
    "linear_kernel",
    "weight_gradient_kernel",
}
if X86:
    BFLOAT16_SETS["avx512_bf16"] = [*INSTRUCTION_SETS["avx512"], "-mavx512bf16"]
    BFLOAT16_SETS["amx"] = [*BFLOAT16_SETS["avx512_bf16"], "-mamx-tile", "-mamx-bf16"]

_ARCHS = os.environ.get("UNIFORMER_KERNELS_CUDA_ARCHS", "80;90a;100")
CUDA_ARCHS = _ARCHS.split(";")
if not all(re.fullmatch(r"\d+[af]?", arch) for arch in CUDA_ARCHS):
    raise SystemExit(
        "UNIFORMER_KERNELS_CUDA_ARCHS: expected numbers with ; between them, as in 80;90a;100, "
        f"got {_ARCHS!r}"
    )
# The kernels of csrc/cuda/*_kernel.cu are compiled once per type a number is stored in.
CUDA_STORAGE = ["float", "bf16", "f16"]

COMMON = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-MMD"]
# Kernels: fused multiply-adds wherever written; GCC's own headers trip its uninitialised warning.
KERNEL = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-uninitialized"]
if platform.system() == "Linux":
    KERNEL.append("-Wno-maybe-uninitialized")


def find_nvcc(*, in_place: bool) -> str | None:
    """nvcc's path when CUDA sources are to be compiled, ``None`` when they are not."""
    wanted = os.environ.get("UNIFORMER_KERNELS_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"UNIFORMER_KERNELS_CUDA: expected auto, 0 or 1, got {wanted!r}")
    if wanted == "0" or (wanted == "auto" and in_place and not torch_sees_a_gpu()):
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None) or shutil.which(
        "nvcc", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin"
    )
    if wanted == "1" and nvcc is None:
        raise SystemExit(
            "UNIFORMER_KERNELS_CUDA=1: expected nvcc on PATH or in CUDA_HOME, got none"
        )
    return nvcc


def torch_sees_a_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def compiler_command() -> list[str]:
    """The C++ compiler, as the environment or this Python's own build names it."""
    return shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")


def has_compiler() -> bool:
    """Whether there is a C++ compiler; a warning says what becomes of the package without."""
    compiler = compiler_command()[0]
    if shutil.which(compiler):
        return True
    if os.environ.get("UNIFORMER_KERNELS_CUDA") == "1":
        raise SystemExit(f"UNIFORMER_KERNELS_CUDA=1: expected a C++ compiler, got no {compiler!r}")
    warnings.warn(
        f"no C++ compiler {compiler!r} (CXX names another): the CPU kernels are left out; "
        "operators run in plain PyTorch, and on an NVIDIA GPU in Triton",
        stacklevel=2,
    )
    return False


def sets_of(kernel: Path) -> dict[str, list[str]]:
    """The instruction sets a kernel's source is compiled for, with their flags."""
    return INSTRUCTION_SETS | (BFLOAT16_SETS if kernel.stem in BFLOAT16_KERNELS else {})


def commit() -> str:
    """The commit being built, ``unknown`` outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class NinjaBuild(build_ext):
    """Writes one build.ninja for both modules and runs it."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.endswith("._C"):
            return str(Path(*fullname.split("."))) + ".abi3.so"
        return super().get_ext_filename(fullname)

    def run(self) -> None:
        # Asked here, as setuptools builds elsewhere first and clears `inplace` meanwhile.
        self.nvcc = find_nvcc(in_place=bool(self.inplace or self.editable_mode))
        super().run()

    def build_extensions(self) -> None:
        import torch

        # Not setuptools' own folder, which is fresh for every editable install: ninja resumes here.
        temporary = ROOT / "build" / sysconfig.get_config_var("SOABI")
        temporary.mkdir(parents=True, exist_ok=True)
        self.write_ninja(temporary, Path(torch.__file__).parent)
        ninja = [shutil.which("ninja") or "ninja", "-C", str(temporary)]
        if jobs := os.environ.get("MAX_JOBS"):
            ninja += ["-j", jobs]
        subprocess.run(ninja, check=True)
        manifest = json.dumps(self.manifest(torch.__version__), indent=2)
        self.built("manifest.json").write_text(f"{manifest}\n")

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        self.copy_file(self.built("manifest.json"), ROOT / "uniformer_kernels" / "manifest.json")

    def built(self, name: str) -> Path:
        """Where a file of the built package lies."""
        return Path(self.build_lib).resolve() / "uniformer_kernels" / name

    def manifest(self, torch_version: str) -> dict[str, object]:
        return {
            "commit": commit(),
            "torch": torch_version,
            "torch_target": ".".join(map(str, TORCH_TARGET)),
            "compiler": self.version_of(compiler_command())[0],
            "cuda_architectures": CUDA_ARCHS if self.nvcc else [],
            "nvcc": self.nvcc and self.version_of([self.nvcc])[-1],
            "instruction_sets": [*INSTRUCTION_SETS, *BFLOAT16_SETS],
            "platform": f"{platform.system()} {platform.machine()}",
        }

    def version_of(self, compiler: list[str]) -> list[str]:
        command = [*compiler, "--version"]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        return found.stdout.splitlines()

    def cuda_home(self) -> Path:
        """Where the CUDA toolkit lies; nvcc may be a wrapper far from it, but names its home."""
        dry = subprocess.run(
            [self.nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True
        )
        home = next(line for line in dry.stderr.splitlines() if " TOP=" in line).split("TOP=")[1]
        return Path(home).resolve()

    def cuda_flags(self) -> list[str]:
        """nvcc's, for every architecture asked for and PTX of the last one."""
        flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-MD"]
        flags.append("-Xcompiler=-fPIC,-fvisibility=hidden")
        flags += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in CUDA_ARCHS]
        return [*flags, f"-gencode=arch=compute_{CUDA_ARCHS[-1]},code=compute_{CUDA_ARCHS[-1]}"]

    def write_ninja(self, temporary: Path, torch_home: Path) -> None:
        from ninja.ninja_syntax import Writer

        target = f"0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}000000000000"
        stable = [f"-DTORCH_TARGET_VERSION={target}", "-isystem", str(torch_home / "include")]
        kernels = sorted((ROOT / "csrc" / "cpu").glob("*_kernel.cpp"))
        sources = [p for p in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")) if p not in kernels]
        include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'cpu'}"]

        with (temporary / "build.ninja").open("w") as file:
            n = Writer(file)
            n.rule(
                "compile",
                shlex.join(compiler_command()) + " $flags -MF $out.d -c $in -o $out",
                depfile="$out.d",
                deps="gcc",
                description="compile $out",
            )
            n.rule(
                "link",
                shlex.join(compiler_command()) + " -shared $in -o $out $flags",
                description="link $out",
            )

            def compile_one(source: Path, flags: list[str], name: str = "") -> str:
                out = f"{name or source.stem}.o"
                n.build(out, "compile", str(source), variables={"flags": shlex.join(flags)})
                return out

            home = self.cuda_home() if self.nvcc else None
            cuda = ["-DUSE_CUDA", "-isystem", str(home / "include")] if home else []
            objects = [
                compile_one(ROOT / "csrc" / "library.cpp", [*COMMON, *stable, *include, *cuda])
            ]
            objects += [compile_one(p, [*COMMON, *stable, *include]) for p in sources]
            objects += [
                compile_one(
                    p, [*COMMON, *KERNEL, *include, f"-DUK_ISA={isa}", *flags], f"{p.stem}.{isa}"
                )
                for p in kernels
                for isa, flags in sets_of(p).items()
            ]
            if home:
                objects += [
                    compile_one(p, [*COMMON, *stable, *include, *cuda], f"{p.stem}.cuda")
                    for p in sorted((ROOT / "csrc" / "cuda").glob("*.cpp"))
                ]
                n.rule(
                    "cuda",
                    f"{self.nvcc} $flags -MF $out.d -c $in -o $out",
                    depfile="$out.d",
                    deps="gcc",
                    description="nvcc $out",
                )
                for source in sorted((ROOT / "csrc" / "cuda").glob("*_kernel.cu")):
                    for storage in CUDA_STORAGE:
                        flags = [*self.cuda_flags(), f"-DUK_STORAGE={storage}"]
                        objects.append(f"{source.stem}.{storage}.cuda.o")
                        n.build(
                            objects[-1], "cuda", str(source), variables={"flags": shlex.join(flags)}
                        )
            # libtorch itself, not its parts: with CUDA wheels it brings libtorch_cuda in as well.
            libtorch = [f"-L{torch_home / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu"]
            if home:  # not shared, so that no other release of it is needed where this runs
                folders = sorted({p.parent for p in home.glob("**/libcudart_static.a")})
                libtorch += [f"-L{folder}" for folder in folders]
                libtorch += ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
            n.build(
                str(self.built("_C.abi3.so")),
                "link",
                objects,
                variables={"flags": shlex.join(libtorch)},
            )

            import pybind11

            python = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
            source = ROOT / "csrc" / "introspect" / "introspect.cpp"
            n.build(
                str(Path(self.get_ext_fullpath("uniformer_kernels._introspect")).resolve()),
                "link",
                [compile_one(source, [*COMMON, *python, *include])],
            )
        for extension in self.extensions:
            Path(self.get_ext_fullpath(extension.name)).parent.mkdir(parents=True, exist_ok=True)


setup(
    packages=[
        *find_packages(include=["uniformer_kernels", "uniformer_kernels.*"]),
        *find_packages("python", include=["uniformer", "uniformer.*"]),
        *("uniformer.recipes", "uniformer.recipes.families"),  # of data alone
    ],
    package_dir={"uniformer": "python/uniformer", "uniformer_kernels": "uniformer_kernels"},
    ext_modules=[
        Extension("uniformer_kernels._C", sources=[], py_limited_api=True),
        Extension("uniformer_kernels._introspect", sources=[]),
    ]
    if has_compiler()
    else [],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
    cmdclass={"build_ext": NinjaBuild},
)
