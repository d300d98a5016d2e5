"""The embedded encoder on grey tiles: what of its features is left without colour (`python:benchmarks/grey_effnet.py:effnet`)."""

import torch

from mil.config import EncoderSpec
from mil.encoders.build import build

WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue in the grey level (ITU-R BT.601)


class Grey(torch.nn.Module):
    """Normalised tiles (tiles, 3, 128, 128), the same mean and deviation for all three colours -> (tiles, 192)."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("weights", torch.tensor(WEIGHTS)[:, None, None])

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Vectors of the tiles, whose three colours are all their grey level."""
        grey = (tiles.float() * self.weights).sum(dim=1, keepdim=True)
        return self.net(grey.expand(-1, 3, -1, -1))


def effnet() -> torch.nn.Module:
    """EfficientNet-Lite0 as it is registered, behind the grey level."""
    return Grey(build(EncoderSpec(name="efficientnet_lite0")).module)
