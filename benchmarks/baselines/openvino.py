"""OpenVINO, what one would pick for inference on a CPU without this library."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16"}


def compiled(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """`model` as OpenVINO runs inputs of `x`'s shape, in `dtype` inside, float32 outside.

    It gets as many threads as PyTorch, and is told to be quick with a single input.
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError("OpenVINO is missing: pip install 'uniformer-kernels[bench]'") from error

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, of what it will drop
        network = openvino.convert_model(torch.export.export(model.eval(), (x,)))
    hints = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": PRECISION[dtype],
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(network, "CPU", hints).create_infer_request()

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(request.infer([x.numpy()], share_inputs=True)[0])

    return run
