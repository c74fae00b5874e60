"""Modules that hold parameters under the official names and call the block functions."""

from .basic import Foldable
from .divided import DividedBlock
from .hourglass import HourglassBlock
from .joint import GlobalBlock
from .local import LocalBlock
from .stage import Stage, recompute
from .stems import ConvStem, PatchStem, smallest_input
from .v2 import VideoTransformer
from .window import WindowBlock

__all__ = [
    "ConvStem",
    "DividedBlock",
    "Foldable",
    "GlobalBlock",
    "HourglassBlock",
    "LocalBlock",
    "PatchStem",
    "Stage",
    "VideoTransformer",
    "WindowBlock",
    "recompute",
    "smallest_input",
]
