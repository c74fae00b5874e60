"""From a video file to clips a model takes: decode, sample, transform."""

from .augment import Augment
from .dataset import Batch, Broken, Sample, VideoDataset, collate
from .lists import Video, VideoListError, read_videos
from .mixup import Mixup
from .motion import motion
from .rand_augment import RandAugment
from .sampler import ResumableSampler
from .sampling import Dense, Uniform
from .transforms import Views
from .video import VideoError, count_frames, decode

__all__ = [
    "Augment",
    "Batch",
    "Broken",
    "Dense",
    "Mixup",
    "RandAugment",
    "ResumableSampler",
    "Sample",
    "Uniform",
    "Video",
    "VideoDataset",
    "VideoError",
    "VideoListError",
    "Views",
    "collate",
    "count_frames",
    "decode",
    "motion",
    "read_videos",
]
