"""Modules that hold parameters under the official names and call the block functions."""

from .divided import DividedBlock
from .joint import GlobalBlock
from .local import LocalBlock
from .stems import ConvStem, PatchStem, smallest_input

__all__ = [
    "ConvStem",
    "DividedBlock",
    "GlobalBlock",
    "LocalBlock",
    "PatchStem",
    "smallest_input",
]
