"""From weights of images to a model of videos: python examples/finetune.py [WEIGHTS]

Kernels of images are inflated over time, the classifier is a new one.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import uniformer
from torch import nn


def main(weights: str | None = None, steps: int = 3, size: int = 96) -> list[float]:
    torch.manual_seed(0)
    model = uniformer.create_model("uniformer_video_small", num_classes=2, drop_path_rate=0.1)
    with TemporaryDirectory() as folder:
        if weights is None:  # random ones, to show how
            weights = Path(folder, "images.safetensors")
            uniformer.save_checkpoint(uniformer.create_model("uniformer_small"), weights)
        print(uniformer.load_checkpoint(model, weights, head="drop", inflation="average"))
    clips, labels = torch.randn(2, 3, 8, size, size), torch.tensor([0, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(clips), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"loss {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:2])
