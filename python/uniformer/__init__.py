"""UniFormer models on the operators of ``uniformer_kernels``."""

from . import models  # noqa: F401  (importing registers them)
from .prepare import prepare
from .registry import create_model, list_models
from .timm import register_in_timm
from .weights import load_checkpoint, save_checkpoint

try:
    from timm.models import register_model
except (ImportError, RuntimeError):  # not there, or its torchvision does not fit this PyTorch
    pass
else:
    register_in_timm(register_model)

__all__ = ["create_model", "list_models", "load_checkpoint", "prepare", "save_checkpoint"]
