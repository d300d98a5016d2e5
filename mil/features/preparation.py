"""Bytes -> the encoder's input, in one module with the encoder, so that a GPU computes both in one compiled step."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mil.encoders.entry import Encoder


def resizing(size_px: int, encoder: Encoder) -> Tensor | None:
    """Weights (input_px, size_px) that resize one axis as `interpolate` does, and cut; none: tiles have the size already."""
    resized = encoder.resize_px or encoder.input_px
    if resized is None or encoder.input_px is None or (resized == size_px and encoder.resize_px is None):
        return None
    single = torch.eye(size_px)[None, None]
    if resized != size_px:
        single = interpolate(single, (resized, size_px), mode=encoder.interpolation, antialias=True)
    margin = (resized - encoder.input_px) // 2
    return single[0, 0, margin : margin + encoder.input_px].contiguous()


class Preparation(torch.nn.Module):
    """Tiles as bytes (n, 3, size, size) -> vectors: resized by two small matrix products, normalised, encoded."""

    def __init__(
        self, module: torch.nn.Module, encoder: Encoder, size_px: int, scale: Tensor, shift: Tensor, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.module, self.dtype, self.scale, self.shift = module, dtype, scale, shift
        weights = resizing(size_px, encoder)
        self.weights = None if weights is None else weights.to(scale.device)

    def forward(self, tiles: Tensor) -> Tensor:
        """Resized and normalised in fp32, then in the type of the encoder's arithmetic."""
        pixels = tiles.float()
        if self.weights is not None:
            pixels = (self.weights @ pixels @ self.weights.mT).clamp(0, 255)  # bicubic overshoots
        pixels = torch.addcmul(self.shift, pixels, self.scale)
        return self.module(pixels.to(self.dtype, memory_format=torch.channels_last))
