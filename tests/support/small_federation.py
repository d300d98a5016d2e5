"""Small federations of drawn patients, and the strategies' settings."""

import numpy as np
import torch
from reference import Course

from mil.endpoints import build_endpoint
from mil.models import build
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec, TrainingSpec
from mil.specs.models import MeanSpec
from mil.training.client import SiteData
from mil.training.store import FeatureStore

BINARY = build_endpoint(EndpointSpec())
WIDTH = 6
LR = 0.1
SUMMED = 1e-10
SPECS = {
    "fedavgm": {"momentum": 0.8, "server_lr": 0.5},
    "fedprox": {"mu": 0.5},
    "fedadam": {"server_lr": 0.05},
    "fedyogi": {"server_lr": 0.05},
    "fedadagrad": {"server_lr": 0.05},
    "fedper": {"local": ("score",)},
    "trimmed_mean": {"trim": 0.34},
    "finetune": {"epochs": 2, "base": "fedprox"},
    "cyclic": {"shuffled": True},
}


def strategy_of(name, **changes):
    return ExperimentSpec(
        encoder="e",
        endpoint="r",
        model="mean",
        strategy={"name": name} | SPECS.get(name, {}) | changes,
        training={"optimiser": "sgd", "local_steps": 1},
    ).strategy.of_rounds


def site_data(counts, training, model=None, same=False):
    """Sites with float64 arithmetic; `same`: all hold the first one's patients."""
    head = build(model or MeanSpec(), WIDTH, 1)
    found = {}
    for place, (name, count) in enumerate(counts.items()):
        generator = np.random.default_rng(0 if same else place)
        prefix = "X" if same else name
        bags = {f"{prefix}{k}": generator.normal(size=(4, WIDTH)).astype(np.float32) for k in range(count)}
        store = FeatureStore.of(bags)
        targets = torch.from_numpy(generator.integers(0, 2, (count, 1)).astype(np.float32))
        buffers = {"features.mean": torch.zeros(WIDTH), "features.deviation": torch.ones(WIDTH)}
        found[name] = SiteData(head, BINARY, training, store, targets, np.arange(count), buffers, torch.ones(2))
    return found


def first_state(sites, dtype=torch.float64):
    head = next(iter(sites.values())).head
    values = head.initial(np.random.default_rng(3))
    return {name: torch.from_numpy(values[name]).to(dtype) for name in sorted(values)}


def course_of(name, counts, steps=None, same=False, model=None, training=None, **changes):
    training = training or TrainingSpec(optimiser="sgd", batch_size=64 if steps is None else 2, local_steps=steps)
    sites = site_data(counts, training, model, same)
    return Course(strategy_of(name, **changes), training, sites, "task", LR, 0.0)


def after(course, rounds, start=None):
    now = start or course.begin(first_state(course.sites))
    for _ in range(rounds):
        now = course.round(now)
    return now


def farthest(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)
