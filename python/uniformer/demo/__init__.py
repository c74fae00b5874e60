"""One video classified twice, in plain PyTorch and on the kernels; compared, timed and drawn."""

from .run import Settings, run_demo

__all__ = ["Settings", "run_demo"]
