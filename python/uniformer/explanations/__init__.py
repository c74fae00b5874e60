"""Where a model looks: Grad-CAM; which tokens the lightweight models keep; and how to draw both."""

from .grad_cam import grad_cam
from .tokens import KeptTokens, kept_tokens

__all__ = ["KeptTokens", "grad_cam", "kept_tokens"]
