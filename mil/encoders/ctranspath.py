"""CTransPath: Swin-T with a convolutional stem, and the names of its checkpoint."""

from typing import Any

import timm
import torch
from timm.layers.norm import LayerNorm

from mil.encoders.state import UNUSED, StateDict, from_old_swin, load_strictly


class ConvStem(torch.nn.Module):
    """CTransPath's patch embedding: two strided convolutions, then a 1 x 1 one; (n, 3, h, w) -> (n, h/4, w/4, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        channels = 3
        for wider in (width // 8, width // 4):
            layers += [
                torch.nn.Conv2d(channels, wider, kernel_size=3, stride=2, padding=1, bias=False),
                torch.nn.BatchNorm2d(wider),
                torch.nn.ReLU(inplace=True),
            ]
            channels = wider
        self.proj = torch.nn.Sequential(*layers, torch.nn.Conv2d(channels, width, kernel_size=1))
        self.norm = LayerNorm(width)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """The plane of tokens."""
        return self.norm(self.proj(tiles).permute(0, 2, 3, 1))


def make_ctranspath() -> torch.nn.Module:
    """Swin-T whose patches come from a convolutional stem."""
    net: Any = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, num_classes=0)
    net.patch_embed = ConvStem(96)
    return net


def load_ctranspath(module: torch.nn.Module, state: StateDict) -> None:
    """The checkpoint of timm 0.5 into the module; masks and the classifier are left out."""
    load_strictly(module, {name: tensor for name, tensor in from_old_swin(state).items() if not UNUSED.search(name)})
