"""Made cohorts of two hospitals and of new patients, and federated rounds over them; for the benchmarks of privacy.

A patient is a bag of 8 to 20 tiles of `WIDTH` numbers. All tiles of a patient share a random shift, which no other patient has and
which a model can memorise. Three tenths of the tiles of a positive patient are moved by `SIGNAL` along a fixed direction.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq
from torch import Tensor

from mil.bags.table import deal_folds
from mil.endpoints import build_endpoint
from mil.hospital.config import FederationSpec, PrivacySpec
from mil.hospital.forms import BALANCE, Shapes, Slot, slots
from mil.hospital.local import LocalWork
from mil.hospital.noise import SecretStream
from mil.hospital.privacy import Charge, spent, steps_of
from mil.models import build
from mil.rng import rng
from mil.strategies.aggregation import Answers
from mil.training.engine import Data, Engine, Learners
from mil.training.packing import Places
from mil.training.plans import first_weights
from mil.training.store import FeatureStore

WIDTH, SIGNAL, SHIFT = 32, 3.0, 0.5
TRAINING = {"batch_size": 8, "optimiser": "adam", "lr": 0.003, "scaling": "none"}
MODEL = {"name": "gated_attention", "hidden": 32, "attention": 16}


@dataclass
class Made:
    """Patients of one site: their tiles by patient, and a row of the bag table for each."""

    tiles: dict[str, np.ndarray]
    bags: pd.DataFrame


def make(site: str, role: str, patients: int, seed: int = 0) -> Made:
    """A site's patients, every second one positive."""
    generator, tiles, rows = rng(seed, "made hospital", site), {}, []
    direction = np.ones(WIDTH) / np.sqrt(WIDTH)
    for number in range(patients):
        name, label = f"{site}{number:04d}", number % 2
        count = int(generator.integers(8, 21))
        bag = generator.normal(size=(count, WIDTH)) + SHIFT * generator.normal(size=WIDTH)
        bag[generator.random(count) < 0.3] += SIGNAL * label * direction
        tiles[name] = bag.astype(np.float16)
        rows.append({"patient_id": name, "slides": name, "site": site, "role": role, "label": label})
    return Made(tiles, pd.DataFrame(rows))


def folded(made: Made, protocol: FederationSpec) -> pd.DataFrame:
    """The bag table with the protocol's folds."""
    return deal_folds(made.bags, protocol.endpoint)


def simulated(endpoint: Mapping, training: Mapping, privacy: Mapping | None, sites: tuple[str, ...] = ("A", "B")):
    """A protocol of hospitals that are simulated here. Trusting the coordinator changes no number: sums are exact either way."""
    stanza = {"encoder": "made", "endpoint": "response", "model": MODEL, "strategy": "fedavg"}
    return FederationSpec.model_validate(
        {
            "federation": "simulated",
            "server": {"host": "localhost"},
            "trust": "coordinator",
            "sites": {site: {"organisation": site} for site in sites},
            "experiment": {**stanza, "training": {**TRAINING, **training}},
            "endpoint": dict(endpoint),
            "privacy": dict(privacy) if privacy else None,
        }
    )


def federated(protocol: FederationSpec, work: Mapping[str, LocalWork], rounds: int, seed: int) -> dict[str, Tensor]:
    """The refit models (slots, ...) of all outer folds after `rounds`, with the noise of `seed` where the protocol is private."""
    shapes, wanted = next(iter(work.values())).shapes, slots(protocol, "refit")
    first = [shapes.head.initial(first_weights(0, slot.repeat, slot.fold, 0)) for slot in wanted]
    state = {name: torch.from_numpy(np.stack([one[name] for one in first])) for name in shapes.state}
    buffers = {name: torch.zeros(len(wanted), *shape) for name, shape in shapes.buffers.items()}
    buffers |= {name: value + 1 for name, value in buffers.items() if name == BALANCE or name.endswith("deviation")}
    counts = torch.tensor([[len(one.train_patients(slot)) for slot in wanted] for one in work.values()])
    for number in range(1, rounds + 1):
        updates = [_updates(one, site, state | buffers, wanted, number, seed) for site, one in work.items()]
        steps = []
        for place in range(len(wanted)):
            states = {name: torch.stack([own[place].state[name] for own in updates]) for name in state}
            answers = Answers(states, protocol.strategy.amounts(counts[:, place]))
            before = {name: value[place] for name, value in state.items()}
            steps.append(protocol.strategy.server_step(before, {}, answers)[0])
        state = {name: torch.stack([one[name] for one in steps]) for name in state}
    return state | buffers


def _updates(work: LocalWork, site: str, models: dict, wanted: list[Slot], number: int, seed: int):
    if work.protocol.privacy is None:
        found = work.train(models, wanted, number, [None] * len(wanted))
    else:

        def stream(slot: Slot) -> SecretStream:
            return SecretStream(b"benchmark", seed, site, slot.name, number)

        found = work.train_privately(models, wanted, number, stream)
    return [update for update, _ in found]


def work_of(protocol: FederationSpec, made: Mapping[str, Made]) -> dict[str, LocalWork]:
    """Every training site's part of the work, on its own patients."""
    shapes = Shapes(protocol, WIDTH)
    return {
        site: LocalWork(protocol, shapes, site, folded(one, protocol), FeatureStore.of(one.tiles))
        for site, one in made.items()
    }


def confidences(protocol: FederationSpec, models: Mapping[str, Tensor], made: Mapping[str, Made]) -> np.ndarray:
    """Logit of the true label (models, patients) of all patients, in the order of `made`: large where the loss is small."""
    labels = np.concatenate([one.bags["label"].to_numpy() for one in made.values()])
    return logits(protocol, models, made) * np.where(labels == 1, 1, -1)


def logits(protocol: FederationSpec, models: Mapping[str, Tensor], made: Mapping[str, Made]) -> np.ndarray:
    """Logits (models, patients) of all patients, in the order of `made`."""
    store = FeatureStore.of({name: bag for one in made.values() for name, bag in one.tiles.items()})
    labels = np.concatenate([one.bags["label"].to_numpy() for one in made.values()])
    endpoint = build_endpoint(protocol.endpoint)
    head = build(protocol.experiment.model, WIDTH, endpoint.outputs, 0)
    targets = torch.from_numpy(labels[:, None].astype(np.float32))
    data = Data(store.source(torch.device("cpu")), WIDTH, targets, store.patient_keys(), None)
    engine = Engine(head, endpoint, data)
    rows = torch.cat([models[name].reshape(len(models[name]), -1) for name in engine.layout.shapes], dim=1)
    none = torch.zeros(len(rows), 1)
    scales = {name: models[name] for name in ("features.mean", "features.deviation")}
    everyone = [np.arange(len(labels))] * len(rows)
    found = engine.logits(Learners(rows, scales, none, none, none), everyone, Places.of(store.starts, store.sizes))
    return np.stack([own[:, 0] for own in found])


def noise_for(epsilon: float, privacy: Mapping[str, float], patients: int, rounds: int, models: int = 1) -> float:
    """The noise that spends `epsilon` on a patient who is in `models` models of `patients` patients each, in `rounds` rounds.

    `privacy`: clip, expected_batch and delta, as in a protocol.
    """
    spec = PrivacySpec(noise=1.0, epsilon=epsilon, **privacy)
    rate, steps = min(1.0, spec.expected_batch / patients), models * rounds * steps_of(spec, patients)

    def excess(noise: float) -> float:
        return spent([Charge(rate, noise, steps)], spec.delta).epsilon - epsilon

    return float(brentq(excess, 0.2, 300.0, xtol=0.001))
