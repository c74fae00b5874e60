"""UniFormer models on the operators of ``uniformer_kernels``."""

from . import models  # noqa: F401  (importing registers them)
from .registry import create_model, list_models
from .weights import load_checkpoint

__all__ = ["create_model", "list_models", "load_checkpoint"]
