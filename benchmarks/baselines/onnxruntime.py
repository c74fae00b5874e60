"""ONNX Runtime, what one would pick for inference on any CPU without this library."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn


def compiled(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """`model` as ONNX Runtime runs inputs of `x`'s shape, in float32.

    It gets as many threads as PyTorch.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 the exporter's
    except ImportError as error:
        raise ImportError(
            "ONNX Runtime is missing: pip install 'uniformer-kernels[bench]'"
        ) from error

    file, logger = io.BytesIO(), logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        logger.setLevel(logging.ERROR)
        try:
            torch.onnx.export(model.eval(), (x,), dynamo=True, verbose=False).save(file)
        finally:
            logger.setLevel(level)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Behind a call its threads would look for work on, while the next rival is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        file.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    (name,) = (argument.name for argument in session.get_inputs())

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    return run
