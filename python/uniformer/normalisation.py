"""The official normalisation of videos, the same for all three channels."""

MEAN, STD = 0.45, 0.225
