"""The models against the official ones: every figure of ``tests/golden``."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import uniformer
from torch import Tensor, nn

from uniformer_kernels import use_backend

from ..golden import fill

GOLDEN = Path(fill.__file__).parent
CASES = json.loads((GOLDEN / "cases.json").read_text())


class Tolerance(NamedTuple):
    """Relative errors asked for; the floor is for gradients that are 0 by construction."""

    output: float
    gradient: float


TOLERANCE = {
    torch.float64: Tolerance(1e-9, 1e-9),
    torch.float32: Tolerance(1e-4, 1e-3),
}

LARGE = 40e6
"""Parameters above which a model is run on the automatic backend only."""


@functools.cache
def probe(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return fill.uniform(f"{name}/probe", shape)


class Case:
    """The official figures of one case, and the tensors that produced them."""

    def __init__(self, name: str) -> None:
        self.figures: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
        self.outputs = np.load(GOLDEN / f"{name}.npz")
        self.model = uniformer.create_model(CASES[name]["model"], **CASES[name]["kwargs"])
        shapes = self.figures["state_dict"]
        self.state = {k: torch.from_numpy(fill.parameter(k, s)) for k, s in shapes.items()}
        self.x = torch.from_numpy(2 * fill.uniform("input", self.figures["input_shape"]))

    def filled(self, dtype: torch.dtype) -> nn.Module:
        model = self.model.to(dtype)
        model.load_state_dict(self.state, strict=True)
        model.requires_grad_()  # the official figures have the gradients of frozen layers too
        model.zero_grad()
        return model


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield Case(request.param)
    probe.cache_clear()


def test_the_state_dict_has_the_official_keys_and_shapes(case: Case) -> None:
    state = {key: list(value.shape) for key, value in case.model.state_dict().items()}
    assert list(state.items()) == list(case.figures["state_dict"].items())
    assert sum(p.numel() for p in case.model.parameters()) == case.figures["params"]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", ["reference", "automatic"])
def test_outputs_and_gradients_are_the_official_ones(
    case: Case, backend: str, dtype: torch.dtype
) -> None:
    if backend == "reference" and case.figures["params"] > LARGE:
        pytest.skip("the small models show the same, sooner")
    model, x = case.filled(dtype), case.x.to(dtype, copy=True).requires_grad_()
    with use_backend(backend) if backend != "automatic" else contextlib.nullcontext():
        with torch.no_grad():
            evaluated = tensors(model.eval()(x))
        trained = tensors(model.train()(x))
        loss = sum(
            (y * torch.from_numpy(fill.uniform(f"cotangent_{i}", y.shape)).to(dtype)).sum()
            for i, y in enumerate(trained)
        )
        loss.backward()

    tolerance = TOLERANCE[dtype]
    outputs = {f"eval_{i}": y for i, y in enumerate(evaluated)}
    outputs |= {f"train_{i}": y for i, y in enumerate(trained)}
    assert outputs.keys() == case.figures["outputs"].keys()
    for name, value in outputs.items():
        check_output(case, name, value, tolerance.output)
    # The loss is a probe of the outputs.
    scale = sum(case.figures["outputs"][f"train_{i}"]["norm"] for i in range(len(trained)))
    assert loss.item() == pytest.approx(case.figures["train_loss"], abs=tolerance.output * scale)

    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    official = case.figures["grad"]
    assert gradients.keys() == official.keys()
    floor = statistics.median(norm for norm, _ in official.values()) / 10
    for key, gradient in gradients.items():
        check_figures(key, gradient, official[key], tolerance.gradient, floor)
    check_figures("input", x.grad, case.figures["input_grad"], tolerance.gradient)

    for key, figures in case.figures["buffers_after"].items():
        check_figures(key, model.get_buffer(key), figures, tolerance.output)
    counters = [b for key, b in model.named_buffers() if key.endswith("num_batches_tracked")]
    assert bool(counters) == bool(case.figures["buffers_after"])
    assert all(counter == 1 for counter in counters)


def tensors(outputs: Any) -> list[Tensor]:
    """Those among a model's outputs: with token labels the last one is a box."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [output for output in outputs if isinstance(output, Tensor)]


def check_output(case: Case, name: str, value: Tensor, tolerance: float) -> None:
    figures = case.figures["outputs"][name]
    assert list(value.shape) == figures["shape"]
    check_figures(name, value, (figures["norm"], figures["probe"]), tolerance)
    official = case.outputs[name]
    sample = value.detach().double().numpy().reshape(-1)[:: figures["step"]]
    assert np.linalg.norm(sample - official) <= tolerance * np.linalg.norm(official), name


def check_figures(
    name: str, value: Tensor, official: tuple[float, float], tolerance: float, floor: float = 0.0
) -> None:
    """Norm and probe; a probe is wrong by no more than the norm of the tensor's error, or so."""
    array = value.detach().double().numpy()
    came = (np.linalg.norm(array), np.vdot(array, probe(name, array.shape)))
    allowed = tolerance * max(official[0], floor)
    for kind, figure, expected in zip(("norm", "probe"), came, official, strict=True):
        error = abs(figure - expected)
        assert error <= allowed, f"{name}: {kind}: expected {expected}, got {figure}"
    assert math.isfinite(came[0]), name
