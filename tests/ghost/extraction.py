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

FAMILIES = {
    "colour": {"name": "colour"},
    "vit": {"name": "lunit_dino_s16", "weights": "random"},
    "resnet": {"name": "resnet50_layer3", "weights": "random"},
    "efficientnet": {"name": "efficientnet_lite0"},
    "swin": {"name": "ctranspath", "weights": "random"},
    "conch": {"name": "conch", "weights": "random"},
}
CASES = {
    "colour": {"name": "colour"},
    "vit": FAMILIES["vit"],
    "convolutions": FAMILIES["resnet"],
    "macenko": {"name": "colour", "stain": "macenko"},
    "reinhard": {"name": "colour", "stain": "reinhard"},
}

FAILURES = ("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
EVERY = 7
"""So many-th allocation is made to fail; a batch makes some 70."""


def difference(features: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, as a share of the largest value."""
    return float(np.abs(features.astype(float) - expected).max() / np.abs(expected.astype(float)).max())


def pairwise() -> dict[str, dict[str, str]]:
    """Every family with every precision and every stain, and every precision with every stain."""
    kinds, stains = ("fp32", "bf16", "fp16"), (None, "macenko", "reinhard")
    return {
        f"{family}, {kinds[row]}, {stains[(row + number) % 3]}": about
        | {"precision": kinds[row]}
        | ({"stain": stain} if (stain := stains[(row + number) % 3]) else {})
        for number, (family, about) in enumerate(FAMILIES.items())
        for row in range(3)
    }


def encode(about: dict[str, str]) -> dict[str, object]:
    """Three tiles in batches of two: features on the card and on the CPU, and what the host waited for."""
    spec = EncoderSpec.model_validate({"batch_size": 2, "precision": "fp32"} | about)
    encoder = build(spec)
    pixels = np.random.default_rng(0).integers(30, 220, (3, 256, 256, 3)).astype(np.uint8)
    pixels[..., 1] //= 2  # pink, so that stains are found
    stains = None
    if spec.stain is not None:
        stains = np.tile(change_of(spec.stain, pixels.reshape(-1, 3)), (3, 1))
    exact = spec.model_copy(update={"precision": "fp32"})  # a CPU takes half a minute for bf16, and has no fp16
    expected = EncoderEngine(encoder, exact, torch.device("cpu"))(pixels, stains)
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


def failing(failure: str) -> dict[str, object]:
    """Every allocation of a batch fails once, for what `failure` says: the same features each time, and a line."""
    spec = EncoderSpec(name="efficientnet_lite0", batch_size=4, precision="fp32")
    encoder = build(spec)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)

    def encoded(number: int, said: io.StringIO) -> tuple[np.ndarray, int]:
        """Features where allocation `number` fails (0: none does), and how many there were."""
        with simulated_card() as log:
            engine = EncoderEngine(encoder, spec, torch.device("cuda"), reporter=Reporter(stream=said))
            engine.prepare(64)
            before = log.allocations
            log.failure, log.fails_at = failure, before + number if number else None
            return engine(pixels), log.allocations - before

    expected, count = encoded(0, io.StringIO())
    worst, silent, numbers = 0.0, 0, range(1, count + 1, EVERY)
    for number in numbers:
        said = io.StringIO()
        worst = max(worst, difference(encoded(number, said)[0], expected))
        silent += "memory is too small" not in said.getvalue()
    return {"difference": worst, "silent": silent, "failed": len(numbers)}


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
    if sys.argv[1:]:  # pairwise
        json.dump({case: encode(about) for case, about in pairwise().items()}, sys.stdout)
        sys.exit()
    results: dict[str, object] = {case: encode(about) for case, about in CASES.items()}
    results["step"] = step()
    if torch.version.cuda is None:
        results |= {failure: failing(failure) for failure in FAILURES}
        results |= {"full": full_card(), "unpinned": unpinned()}
    json.dump(results, sys.stdout)
