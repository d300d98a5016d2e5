"""Tiles as bytes -> vectors: the encoder made fast on the device that is there, always in batches of one shape."""

import copy
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mil.config import EncoderSpec
from mil.encoders import Encoder
from mil.errors import MilError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Tiles a step on the CPU: 16 images of 128 px keep a network's planes in the cache (16: 806 tiles/s, 64: 523, two cores).
CPU_STEP = 16


class Engine:
    """Runs one encoder on one device. Batches have one shape, padded, so that a tile's vector never depends on its neighbours."""

    def __init__(self, encoder: Encoder, spec: EncoderSpec, device: torch.device | None = None) -> None:
        self.encoder = encoder
        self.device = device or best_device()
        self.precision = choose_precision(spec.precision, self.device)
        self.step = CPU_STEP if self.device.type == "cpu" else spec.batch_size
        self.dtype = DTYPES[self.precision]
        module = fuse_batchnorm(encoder.module, encoder.input_px).to(self.device, self.dtype)
        self.module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  torch's stub lacks it
        scale = torch.tensor(encoder.std, device=self.device).view(1, 3, 1, 1) * 255
        self.scale = 1 / scale
        self.shift = -torch.tensor(encoder.mean, device=self.device).view(1, 3, 1, 1) * 255 / scale

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """uint8 (tiles, size, size, 3) -> float16 (tiles, width)."""
        vectors = np.empty((len(tiles), self.encoder.width), np.float16)
        for start in range(0, len(tiles), self.step):
            part = tiles[start : start + self.step]
            vectors[start : start + len(part)] = self._step(part)
        return vectors

    @torch.inference_mode()
    def _step(self, tiles: np.ndarray) -> np.ndarray:
        padded = tiles
        if len(tiles) < self.step:
            padded = np.concatenate([tiles, np.zeros((self.step - len(tiles), *tiles.shape[1:]), np.uint8)])
        pixels = torch.from_numpy(np.ascontiguousarray(padded)).to(self.device).permute(0, 3, 1, 2)
        size = self.encoder.input_px
        if size is not None and pixels.shape[2] != size:
            if self.device.type != "cpu":
                pixels = pixels.float()  # CUDA resizes no bytes
            pixels = interpolate(pixels, (size, size), mode=self.encoder.interpolation, antialias=True)
        pixels = torch.addcmul(self.shift, pixels.float(), self.scale).clamp_(*self._bounds())
        vectors = self.module(pixels.to(self.dtype, memory_format=torch.channels_last))
        return vectors[: len(tiles)].float().cpu().numpy().astype(np.float16)

    def _bounds(self) -> tuple[float, float]:
        """What black and white become in the widest channel; bicubic resizing may overshoot them."""
        return float(self.shift.min()), float((self.shift + 255 * self.scale).max())


def best_device() -> torch.device:
    """CUDA where there is any, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """The arithmetic to use: as asked for, or under `auto` bf16 where the device has instructions for it."""
    if wanted in ("fp32", "bf16"):
        return wanted  # type: ignore[return-value]  narrowed by the line above
    if wanted == "fp16":
        if device.type == "cpu":
            raise MilError("precision fp16 is for GPUs; on this machine's CPU use auto, bf16 or fp32")
        return "fp16"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def fuse_batchnorm(module: torch.nn.Module, input_px: int | None) -> torch.nn.Module:
    """A copy whose batch normalisations are folded into the convolutions before them; refused if the output changes."""
    fused = copy.deepcopy(module)
    folded = 0
    for parent in list(fused.modules()):
        children = list(parent.named_children())
        for (_, first), (name, second) in pairwise(children):
            if not (isinstance(first, torch.nn.Conv2d) and isinstance(second, torch.nn.BatchNorm2d)):
                continue
            if second.running_mean is not None and second.running_var is not None:
                first.weight, first.bias = fuse_conv_bn_weights(
                    first.weight,
                    first.bias,
                    second.running_mean,
                    second.running_var,
                    second.eps,
                    second.weight,
                    second.bias,
                )
                setattr(parent, name, getattr(second, "act", None) or torch.nn.Identity())
                folded += 1
    if not folded:
        return module
    with torch.inference_mode():
        probe = torch.randn(2, 3, input_px or 64, input_px or 64, generator=torch.Generator().manual_seed(0))
        same = torch.allclose(fused(probe), module(probe), rtol=1e-3, atol=1e-3)
    return fused if same else module
