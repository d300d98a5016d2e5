"""Memory of training on the simulated card; prints one JSON object. Run in a process of its own.

python tests/ghost/training_memory.py [NAME ...]
"""

import json
import sys

import guard

guard.load()

import io
import traceback
from typing import Any

import numpy as np
import torch
from card import simulated_card
from card_log import PACKAGE, Log
from pydantic import TypeAdapter

from mil.endpoints import build_endpoint
from mil.errors import MilError
from mil.models import build
from mil.progress import Reporter
from mil.specs.endpoints import EndpointSpec
from mil.specs.models import ModelSpec
from mil.training.card import UPDATING
from mil.training.data import Data, Method
from mil.training.engine import Engine
from mil.training.learners import Learners, Plan
from mil.training.packing import Places
from mil.training.sources import Pinned
from mil.training.store import FeatureStore

WIDTH, BAGS, MODELS = 96, 24, 6
HEADS = {
    "mean": {"name": "mean", "hidden": 64},
    "max": {"name": "max", "hidden": [64]},
    "attention": {"name": "attention", "hidden": 64, "attention": 32},
    "gated_attention": {"name": "gated_attention", "hidden": 64, "attention": 32},
    "dropout": {"name": "gated_attention", "hidden": 64, "attention": 32, "dropout": 0.25},
    "chowder": {"name": "chowder"},
    "weldon": {"name": "weldon"},
    "clam_sb": {"name": "clam_sb", "hidden": 64, "attention": 32},
    "dsmil": {"name": "dsmil"},
    "transmil": {"name": "transmil", "width": 64, "heads": 2, "landmarks": 16},
}


class Fleet:
    """Some models, a plan of two steps for each, bags of 200 to 600 tiles."""

    def __init__(self, model: dict[str, Any], precision: str, pinned: bool = False) -> None:
        generator, device = np.random.default_rng(0), torch.device("cuda")
        sizes = generator.integers(200, 600, BAGS)
        store = FeatureStore.of(
            {f"p{k:02d}": generator.normal(size=(n, WIDTH)).astype(np.float16) for k, n in enumerate(sizes)}
        )
        centre = (torch.zeros(WIDTH), torch.ones(WIDTH)) if precision == "bf16" else None
        source = (
            Pinned(store.tiles, device, centre) if pinned and store.tiles is not None else store.source(device, centre)
        )
        targets = torch.arange(BAGS).remainder(2).float()[:, None].to(device)
        head = build(TypeAdapter(ModelSpec).validate_python(model), WIDTH, 1)
        self.said = io.StringIO()
        data = Data(source, WIDTH, targets, store.patient_keys().to(device))
        endpoint = build_endpoint(EndpointSpec())
        method = Method("sgd", precision=precision)
        self.engine = Engine(head, endpoint, data, method, device, reporter=Reporter(stream=self.said))
        first = [self.engine.layout.flat(head.initial(np.random.default_rng(k))) for k in range(MODELS)]
        one = torch.ones(MODELS, 1, device=device)
        buffers = {"features.mean": torch.zeros(MODELS, WIDTH), "features.deviation": torch.ones(MODELS, WIDTH)}
        self.learners = Learners(
            torch.from_numpy(np.stack(first)).to(device),
            {name: value.to(device) for name, value in buffers.items()},
            0.01 * one,
            0 * one,
            torch.ones(MODELS, 2, device=device),
        )
        self.places = Places.of(store.starts, store.sizes)
        orders = [generator.permutation(BAGS) for _ in range(MODELS)]
        self.plans = [Plan([own[:12], own[12:]], stream=k) for k, own in enumerate(orders)]

    def train(self) -> np.ndarray:
        """The weights after a round."""
        self.engine.train(self.learners, None, self.plans, self.places)
        return self.learners.rows.cpu().numpy()

    def limited(self, log: Log, free: int) -> None:
        """Let the card have so much memory left."""
        log.total_bytes = log.live_bytes + free
        log.peak_bytes = log.live_bytes


def budgeted(model: dict[str, Any], precision: str) -> dict[str, Any]:
    """A round on a card with 8 MB free for it; 32 for TransMIL, of which a bag takes 10."""
    with simulated_card() as log:
        fleet = Fleet(model, precision)
        fleet.limited(log, 32_000_000 if model["name"] == "transmil" else 8_000_000)
        before = log.live_bytes
        fleet.train()
        assert fleet.engine.card is not None
        return {
            "peak": log.peak_bytes - before,
            "budget": fleet.engine.card.fitting.bytes() + UPDATING * 4 * fleet.learners.rows.numel(),
            "said": fleet.said.getvalue().splitlines(),
        }


def full_card() -> dict[str, Any]:
    """A card that has less than the engine was told: weights as with plenty, and what was said."""
    found = []
    for free in (None, 3_000_000):
        with simulated_card() as log:
            fleet = Fleet(HEADS["gated_attention"], "fp32")
            assert fleet.engine.card is not None
            fleet.engine.card.fitting.bytes()
            if free is not None:
                fleet.limited(log, free)
            found.append(fleet.train())
    return {"said": fleet.said.getvalue().splitlines(), "difference": float(np.abs(found[0] - found[1]).max())}


def failing(name: str, every: int) -> dict[str, Any]:
    """Every so many-th allocation of a round fails once: the same weights, or a line. What failed otherwise, by the line of `mil`."""
    with simulated_card() as log:
        fleet = Fleet(HEADS[name], "fp32")
        before = log.allocations
        expected = fleet.train()
        count = log.allocations - before
    found: dict[str, Any] = {"allocations": count, "worst": 0.0, "silent": 0, "ended": {}}
    for number in range(1, count + 1, every):
        with simulated_card() as log:
            fleet = Fleet(HEADS[name], "fp32")
            log.fails_at = log.allocations + number
            try:
                worst = float(np.abs(fleet.train() - expected).max())
            except (RuntimeError, MilError) as error:
                frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename.startswith(PACKAGE)]
                place = frames[-1].filename.removeprefix(PACKAGE)
                line = f"{type(error).__name__} @ {place}:{frames[-1].name}:{frames[-1].lineno}"
                found["ended"][line] = found["ended"].get(line, 0) + 1
                continue
            found["worst"] = max(found["worst"], worst)
            found["silent"] += "going on with" not in fleet.said.getvalue()
    return found


def pinned() -> dict[str, Any]:
    """Tiles on the host: the same weights, no wait within the round, at most some bags on the card at once."""
    found = {}
    for name in ("resident", "pinned"):
        with simulated_card() as log:
            fleet = Fleet(HEADS["gated_attention"], "bf16", pinned=name == "pinned")
            log.waits.clear()
            found[name] = fleet.train()
            waits = dict(log.waits)
    return {"difference": float(np.abs(found["resident"] - found["pinned"]).max()), "waits": waits}


if __name__ == "__main__":
    results: dict[str, Any] = {}
    for name, model in HEADS.items():
        for precision in ("fp32", "bf16"):
            if not sys.argv[1:] or name in sys.argv[1:]:
                results[f"{name}, {precision}"] = budgeted(model, precision)
    if not sys.argv[1:] or "rest" in sys.argv[1:]:
        results |= {"full": full_card(), "pinned": pinned()}
        if torch.version.cuda is None:
            results["failing"] = failing("gated_attention", 7)
    json.dump(results, sys.stdout)
