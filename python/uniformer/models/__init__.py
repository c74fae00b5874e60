"""The models; importing them registers their names."""

from .dense import DenseUniFormer
from .image import ImageUniFormer
from .light import DenseLightUniFormer, ImageLightUniFormer, VideoLightUniFormer
from .token_labeling import TokenLabelingUniFormer
from .v2 import UniFormerV2
from .video import VideoUniFormer

__all__ = [
    "DenseLightUniFormer",
    "DenseUniFormer",
    "ImageLightUniFormer",
    "ImageUniFormer",
    "TokenLabelingUniFormer",
    "UniFormerV2",
    "VideoLightUniFormer",
    "VideoUniFormer",
]
