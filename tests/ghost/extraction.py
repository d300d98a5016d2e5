"""Scenarios of the extraction engine on the simulated card; prints one JSON object. Run in a process of its own."""

import json
import sys

import guard

guard.load()

import io

import numpy as np
import torch

torch.inference_mode = torch.no_grad  # type: ignore[assignment]  wrapper tensors cannot live under inference mode

from card import simulated_card

from mil.config import EncoderSpec
from mil.encoders.build import build
from mil.features.device import pinned
from mil.features.engine import EncoderEngine
from mil.features.stain import change_of
from mil.progress import Reporter

CASES = {
    "colour": {"name": "colour"},
    "vit": {"name": "lunit_dino_s16", "weights": "random"},
    "convolutions": {"name": "resnet50_layer3", "weights": "random"},
    "macenko": {"name": "colour", "stain": "macenko"},
    "reinhard": {"name": "colour", "stain": "reinhard"},
}


def difference(features: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, as a share of the largest value."""
    return float(np.abs(features.astype(float) - expected).max() / np.abs(expected.astype(float)).max())


def encode(case: str) -> dict[str, object]:
    """Three tiles in batches of two: features on the card and on the CPU, and what the host waited for."""
    spec = EncoderSpec(batch_size=2, precision="fp32", **CASES[case])
    encoder = build(spec)
    pixels = np.random.default_rng(0).integers(30, 220, (3, 256, 256, 3)).astype(np.uint8)
    pixels[..., 1] //= 2  # pink, so that stains are found
    stains = None
    if spec.stain is not None:
        stains = np.tile(change_of(spec.stain, pixels.reshape(-1, 3)), (3, 1))
    expected = EncoderEngine(encoder, spec, torch.device("cpu"))(pixels, stains)
    with simulated_card() as log:
        engine = EncoderEngine(encoder, spec, torch.device("cuda"))
        engine.prepare(256)
        log.waits.clear()
        features = engine(pixels, stains)
    return {"waits": dict(log.waits), "difference": difference(features, expected)}


def full_card() -> dict[str, object]:
    """A card with too little memory for a batch: it goes on with less and says so."""
    said = io.StringIO()
    spec = EncoderSpec(name="colour", batch_size=64, precision="fp32")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3)).astype(np.uint8)
    expected = EncoderEngine(build(spec), spec, torch.device("cpu"))(pixels)
    with simulated_card(total_bytes=3_000_000):
        engine = EncoderEngine(build(spec), spec, torch.device("cuda"), reporter=Reporter(stream=said))
        engine.prepare(64)
        features = engine(pixels)
    return {"said": said.getvalue().splitlines(), "difference": difference(features, expected)}


def unpinned() -> dict[str, object]:
    """Host memory that the driver refuses to register."""
    said = io.StringIO()
    with simulated_card(register_code=2), pinned(torch.zeros(8), torch.device("cuda"), Reporter(stream=said)):
        pass
    return {"said": said.getvalue().splitlines()}


def step() -> dict[str, object]:
    """The step for tiles of 1,024 px: no longer than the batches that the ring holds."""
    with simulated_card():
        engine = EncoderEngine(build(EncoderSpec(name="colour")), EncoderSpec(name="colour"), torch.device("cuda"))
        engine.prepare(1024)
    return {"step": engine.step}


if __name__ == "__main__":
    results: dict[str, object] = {case: encode(case) for case in CASES}
    results |= {"full": full_card(), "unpinned": unpinned(), "step": step()}
    json.dump(results, sys.stdout)
