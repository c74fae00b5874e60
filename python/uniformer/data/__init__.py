"""From a video file to clips a model takes: decode, sample, transform."""

from .video import VideoError, count_frames, decode

__all__ = ["VideoError", "count_frames", "decode"]
