"""``python -m uniformer_kernels.info``: versions, build, processor, and who serves what here."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

from . import __version__, _extension
from .backends import BACKENDS, OPERATORS, chosen_backend

# One small call of every operator, to ask each backend for its reason.
_CALLS = {
    "depthwise_conv3d": lambda x: (x, x.new_zeros(x.shape[-1], 1, 3, 3, 3)),
    "depthwise_conv3d_with_moments": lambda x: (x, x.new_zeros(x.shape[-1], 1, 3, 3, 3)),
    "depthwise_linear": lambda x: (
        x,
        x.new_zeros(x.shape[-1], 1, 3, 3, 3),
        None,
        x.new_zeros(8, x.shape[-1]),
        None,
    ),
    "depthwise_feed_forward": lambda x: (
        x,
        x,
        x.new_zeros(x.shape[-1], 1, 5, 5, 5),
        None,
        *(t for _ in range(3) for t in (x.new_zeros(x.shape[-1], x.shape[-1]), None)),
    ),
    "joint_attention": lambda x: (x.new_zeros(1, 4, 3 * x.shape[-1]), 1),
    "joint_attention_with_score": lambda x: (x.new_zeros(1, 4, 3 * x.shape[-1]), 1),
    "layer_norm": lambda x: (x,),
    "linear": lambda x: (x, x.new_zeros(8, x.shape[-1])),
    "feed_forward": lambda x: (x, x.new_zeros(8, x.shape[-1]), None, x.new_zeros(8, 8), None),
    "fold_batch_norm": lambda x: (
        x.new_zeros(8, x.shape[-1]),
        None,
        *(x.new_zeros(x.shape[-1]) for _ in range(4)),
    ),
    "moments": lambda x: (x,),
    "patch_embed": lambda x: (x, x.new_zeros(8, x.shape[-1], 1, 2, 2), None),
    "query_attention": lambda x: (
        x.new_zeros(1, 1, x.shape[-1]),
        x.new_zeros(1, 4, x.shape[-1]),
        *(x.new_zeros(x.shape[-1]) for _ in range(2)),
        x.new_zeros(3 * x.shape[-1], x.shape[-1]),
        x.new_zeros(3 * x.shape[-1]),
        1,
    ),
    "window_attention": lambda x: (x.new_zeros(1, 1, 2, 2, 3 * x.shape[-1]), None, 1, 2),
    "token_shrink": lambda x: (x[0, 0], x[0, 0, :, :, 0], 1),
    "token_recover": lambda x: (
        x[0, 0],
        x.new_zeros(x.shape[2], 1, dtype=torch.int64),
        x[0, 0, :, :1],
        x[0, 0, :, :1],
    ),
    "token_recover_with_importance": lambda x: (
        x[0, 0],
        x.new_zeros(x.shape[2], 1, dtype=torch.int64),
        x[0, 0, :, :1],
        x[0, 0, :, :1],
        x[0, 0, :, :, 0],
        x[0, 0, :, :2, 0],
    ),
}
_KEYWORDS: dict[str, dict[str, Any]] = {"patch_embed": {"stride": (1, 2, 2)}}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(
                line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def report() -> str:
    """Everything a bug report should carry, as text."""
    lines = [f"uniformer_kernels {__version__}"]

    def section(title: str, rows: dict[str, Any]) -> None:
        lines.append(f"\n{title}")
        lines.extend(f"  {name:<20}{value}" for name, value in rows.items())

    section(
        "versions",
        {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "platform": platform.platform(),
        },
    )
    section("build", _extension.manifest() or {"extension": "none"})
    if _extension.missing:
        section("extension", {"not loaded": _extension.missing})
    features: dict[str, Any] = {"name": processor(), "threads": torch.get_num_threads()}
    if _extension._introspect:
        found = _extension._introspect.cpu_features()
        features["features"] = " ".join(name for name, has in found.items() if has)
        features["kernels use"] = _extension._introspect.instruction_set()
    section("processor", features)
    section("gpu", _gpus() or {"": "none that torch can use"})

    lines.append(f"\noperators (asked for: {chosen_backend() or 'automatic choice'})")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        x = torch.zeros(1, 2, 4, 4, 8, device=device)
        for name, operator in OPERATORS.items():
            call, keywords = _CALLS[name](x), _KEYWORDS.get(name, {})
            reasons = {b: operator.reason(b, *call, **keywords) for b in BACKENDS}
            serving = chosen_backend() or operator.automatic(*call, **keywords)
            lines.append(f"  {name:<31}{device:<6}{serving}")
            lines.extend(f"  {'':<37}{b}: {reason}" for b, reason in reasons.items() if reason)
    return "\n".join(lines)


def _gpus() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {}
    rows = {}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        rows[f"cuda:{index}"] = (
            f"{properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB"
        )
    return rows


if __name__ == "__main__":
    print(report())
