"""What training and evaluation need besides a model."""

from .token_labeling import token_labeling_loss

__all__ = ["token_labeling_loss"]
