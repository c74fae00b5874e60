"""Weights from files, strictly: every key and every shape fits, or nothing is loaded."""

from .checkpoint import CheckpointError, LoadReport, load_checkpoint, read_state_dict

__all__ = ["CheckpointError", "LoadReport", "load_checkpoint", "read_state_dict"]
