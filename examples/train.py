"""The ten-line training loop, with one line changed: python examples/train.py

The model may be anybody's; here it is a plain one with a depthwise convolution.
"""

import sys

import torch
from torch import nn

import uniformer_kernels


def main(steps: int = 10, size: int = 56) -> list[float]:
    torch.manual_seed(0)
    clips, labels = torch.randn(4, 3, 8, size, size), torch.arange(4)
    model = nn.Sequential(
        nn.Conv3d(3, 24, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        nn.Conv3d(24, 24, 3, padding=1, groups=24),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(24, 4),
    )
    print(uniformer_kernels.accelerate(model))  # the one line
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(clips), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
