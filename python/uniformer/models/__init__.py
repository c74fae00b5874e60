"""The models; importing them registers their names."""

from .image import ImageUniFormer
from .video import VideoUniFormer

__all__ = ["ImageUniFormer", "VideoUniFormer"]
