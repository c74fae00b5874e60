"""Features of a video, one vector and one map of each stage: python examples/features.py [VIDEO]"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import uniformer
from torch import Tensor
from uniformer.data import Dense, Video, VideoDataset, Views
from uniformer.data.scene import scene_frames, write_video


def main(
    video: str | None = None, frames: int = 16, size: int = 224
) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    model = uniformer.create_model("uniformer_video_xxs").eval()  # checkpoint="weights.pth"
    with TemporaryDirectory() as folder:
        path = Path(video) if video else write_video(Path(folder, "a.mp4"), scene_frames(seconds=3))
        dataset = VideoDataset(
            [Video(path, 0)], num_frames=frames, sampling=Dense(4), transform=Views(size), views=2
        )
        clips = dataset[0].clips  # [2, 3, frames, size, size]
    with torch.inference_mode():
        features, maps = model.forward_intermediates(clips)
        vectors = model.forward_head(features, pre_logits=True)
    print("vectors", list(vectors.shape))
    for info, x in zip(model.feature_info, maps, strict=True):
        print(f"map behind {info['module']}, stride {info['reduction']}:", list(x.shape))
    return vectors, maps


if __name__ == "__main__":
    main(*sys.argv[1:2])
