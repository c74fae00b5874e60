"""Weights from files of every dialect, strictly: everything fits, or nothing is loaded."""

from .checkpoint import LoadReport, load_checkpoint, save_checkpoint
from .files import CheckpointError, read_state_dict

__all__ = ["CheckpointError", "LoadReport", "load_checkpoint", "read_state_dict", "save_checkpoint"]
