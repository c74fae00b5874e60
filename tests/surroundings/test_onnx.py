"""Models as ONNX files, which onnxruntime and OpenVINO compute as we do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.export import Dim

import uniformer_kernels as uk
from tests.surroundings.models import close, input_of, model_of

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def exported(kind: str, path: Path) -> Path:
    """The model for any batch, by way of its kernels' decompositions."""
    model = model_of(kind)
    with torch.no_grad():
        program = torch.export.export(
            model, (input_of(kind),), dynamic_shapes=({0: Dim("batch")},), strict=False
        )
        program = program.run_decompositions(uk.decompositions())
        torch.onnx.export(program, f=path, verbose=False)
        for batch in (1, 3):
            x = input_of(kind, batch)
            close([torch.from_numpy(y) for y in by_onnxruntime(path, x)], model(x), error=1e-4)
    return path


def by_onnxruntime(path: Path, x: Tensor) -> list:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


@pytest.mark.parametrize("kind", ["light video", "v2"])
def test_onnxruntime(kind: str, tmp_path: Path) -> None:
    exported(kind, tmp_path / "model.onnx")


def test_onnxruntime_and_openvino(tmp_path: Path) -> None:
    path = exported("image", tmp_path / "model.onnx")
    openvino = pytest.importorskip("openvino")
    x = input_of("image", 3)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    y = torch.from_numpy(compiled(x.numpy())[0])
    close(y, torch.from_numpy(by_onnxruntime(path, x)[0]), error=1e-4)
