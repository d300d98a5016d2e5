"""The encoders of the GPU benchmark as plain networks: alone on the device, and beside JPEG decoding there."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torchvision.io import decode_jpeg, encode_jpeg

from mil.bench.slide import texture
from mil.encoders.vit import SWIGLU


@dataclass
class Size:
    """How much is done of everything."""

    side: int = 32_768
    batch: int = 256
    seconds: float = 4.0
    peers_seconds: float = 8.0
    tiles: int = 512
    slides: int = 40
    compile_with: str = "inductor"

    def shrink(self) -> None:
        """To what a CPU does in a minute or two."""
        self.side, self.batch, self.seconds, self.peers_seconds, self.tiles = 2048, 8, 0.1, 0.1, 8
        self.slides, self.compile_with = 2, "eager"


@dataclass(frozen=True)
class Model:
    """An encoder of the registry, the plain network of timm behind it, and what is wanted of it on an H100 with 16 cores."""

    entry: str
    architecture: str
    settings: dict[str, Any]
    slides: int
    alone: int
    """Tiles a second compiled in bf16, as measured before."""
    usual: int
    """Tiles a second under fp16 autocast, as measured before."""
    share: float | None
    """Of the encoder alone, from slide to file."""
    ratio: float | None
    """Over the peers' way."""


DINOV2 = {"img_size": 224}
UNI2 = {"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536}
UNI2 |= {"mlp_ratio": 5.33334, "no_embed_class": True, "reg_tokens": 8, **SWIGLU}
MODELS = {
    "vit_l": Model("uni", "vit_large_patch16_224", {"init_values": 1e-5}, 8, 3690, 2620, 0.97, 2.2),
    "uni2_h": Model("uni2_h", "vit_giant_patch14_224", UNI2, 4, 1310, 960, 0.97, None),
    "vit_g": Model("h_optimus_0", "vit_giant_patch14_reg4_dinov2", DINOV2, 3, 800, 594, 0.97, None),
    "vit_b": Model("phikon", "vit_base_patch16_224", {}, 20, 10_900, 8410, 0.92, 5.0),
    "resnet50": Model("resnet50", "resnet50", {}, 24, 21_800, 9590, None, 5.0),
}
RESNET_BAR = 10_000  # tiles a second from slide to file
COSINE_BAR = 0.999
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZE = Size()


def wait() -> None:
    """Until the device has done what it was told."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def half() -> AbstractContextManager[Any]:
    """Autocast as peers run it: fp16 on the GPU."""
    return torch.autocast(DEVICE.type, torch.float16 if DEVICE.type == "cuda" else torch.bfloat16)


def rate_of(step: Callable[[], Any], tiles: int) -> float:
    """Tiles a second of `step`, after a warm-up."""
    for _ in range(3):
        step()
    wait()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < SIZE.seconds:
        for _ in range(8):
            step()
        steps += 8
        wait()
    return tiles * steps / (time.perf_counter() - began)


def plain(model: Model) -> torch.nn.Module:
    """The network of timm with random weights, on the device."""
    return timm.create_model(model.architecture, pretrained=False, num_classes=0, **model.settings).to(DEVICE).eval()


def fast_step(model: Model) -> Callable[[], Any]:
    """The network compiled in bf16, on a batch that lies on the device."""
    net = plain(model).bfloat16().to(memory_format=torch.channels_last)
    tiles = torch.randn(SIZE.batch, 3, 224, 224, device=DEVICE, dtype=torch.bfloat16)
    tiles = tiles.to(memory_format=torch.channels_last)
    fast = torch.compile(net, dynamic=False, backend=SIZE.compile_with)
    return lambda: fast(tiles)


def encoder_alone(model: Model, way: str) -> float:
    """The plain network on batches that lie on the GPU: compiled bf16, or fp16 autocast as peers run it."""
    with torch.inference_mode():
        if way == "compiled":
            return rate_of(fast_step(model), SIZE.batch)
        net, tiles = plain(model), torch.randn(SIZE.batch, 3, 224, 224, device=DEVICE)
        with half():
            return rate_of(lambda: net(tiles), SIZE.batch)


def nvjpeg(model: Model | None) -> float:
    """Tiles of 512 px a second, each four JPEG files of 256 px, decoded on the GPU; in turns with the encoder if one is given."""
    picture = torch.from_numpy(texture(2048, 0)).permute(2, 0, 1)
    corners = [(x, y) for y in range(0, 2048, 256) for x in range(0, 2048, 256)]
    files = [encode_jpeg(picture[:, y : y + 256, x : x + 256].contiguous(), quality=80) for x, y in corners]
    files = [files[number % len(files)] for number in range(4 * SIZE.batch)]
    step = fast_step(model) if model is not None else None

    def turn() -> None:
        decode_jpeg(files, device=DEVICE)
        if step is not None:
            step()

    with torch.inference_mode():
        return rate_of(turn, SIZE.batch)
