"""Run by the Python of an environment the package was installed into: what works there, as JSON."""

from __future__ import annotations

import json
import sys

import torch

before = set(sys.modules)
import uniformer  # noqa: E402

import uniformer_kernels as uk  # noqa: E402

loaded = {name.partition(".")[0] for name in set(sys.modules) - before}


def gradients(y: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return [y.detach(), *torch.autograd.grad(y.square().sum(), inputs)]


def results() -> list[torch.Tensor]:
    """Operators with their gradients, and a model's logits."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 9, 24, requires_grad=True)
    weight = torch.randn(24, 1, 3, 5, 5, requires_grad=True)
    qkv = torch.randn(2, 50, 3 * 32, requires_grad=True)
    model = uniformer.create_model("uniformer_video_xxs", num_classes=7).eval()
    with torch.no_grad():
        logits = model(torch.randn(1, 3, 4, 64, 64))
    return [
        *gradients(uk.depthwise_conv3d(x, weight, residual=True), x, weight),
        *gradients(uk.joint_attention(qkv, 2), qkv),
        logits,
    ]


def main() -> None:
    found = results()
    with uk.use_backend("reference"):
        expected = results()
    errors = [((y - z).norm() / z.norm()).item() for y, z in zip(found, expected, strict=True)]
    explained = uk.explain(
        "depthwise_conv3d", torch.zeros(1, 1, 4, 4, 8), torch.zeros(8, 1, 3, 3, 3)
    )
    print(
        json.dumps(
            {
                "files": [uniformer.__file__, uk.__file__],
                "loaded": sorted(loaded - sys.stdlib_module_names),
                "serves": next(row.split()[0] for row in explained.splitlines() if "serves" in row),
                "logits": list(found[-1].shape),
                "error": max(errors),
            }
        )
    )


main()
