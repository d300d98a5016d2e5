"""Trainings on the simulated card, each beside the same one on the CPU; prints one JSON object. Run in a process of its own.

python tests/ghost/training.py [[without] NAME ... | pairwise]
"""

import json
import sys
import traceback
from itertools import combinations

import guard

guard.load()

from typing import Any

import numpy as np
import pandas as pd
import torch

torch.inference_mode = torch.no_grad  # type: ignore[assignment]  wrapper tensors cannot live under inference mode

from card import simulated_card

from mil.bags.table import deal_folds
from mil.endpoints import build_endpoint
from mil.errors import MilError
from mil.models import build
from mil.progress import quiet
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec, TrainingSpec
from mil.specs.models import ChowderSpec, GatedAttentionSpec, WeldonSpec
from mil.strategies import STRATEGIES
from mil.training.client import Job, SiteData, client_update
from mil.training.run import train
from mil.training.store import FeatureStore

GATED = {"name": "gated_attention", "hidden": 16, "attention": 8}
HEADS = {
    "mean": {"name": "mean"},
    "mean_hidden": {"name": "mean", "hidden": 16},
    "max": {"name": "max"},
    "attention": {"name": "attention", "hidden": 16, "attention": 8},
    "gated_attention": GATED | {"dropout": 0.25},
    "chowder": {"name": "chowder", "top": 3, "bottom": 3},
    "weldon": {"name": "weldon", "top": 3, "bottom": 3},
    "clam_sb": {"name": "clam_sb", "hidden": 16, "attention": 8, "samples": 2},
    "dsmil": {"name": "dsmil"},
    "transmil": {"name": "transmil", "width": 16, "heads": 2, "landmarks": 4, "iterations": 2},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {"optimiser": "adamw", "lr": 1e-3},
    "adam": {"optimiser": "adam", "lr": 1e-3},
    "momentum": {"momentum": 0.9},
    "auto": {"precision": "auto"},
    "clip": {"clip_norm": 0.1},
    "site_scaling": {"scaling": "site"},
    "no_scaling": {"scaling": "none"},
    "max_tiles": {"max_tiles": 5},
    "sampling": {"imbalance": "sampling"},
    "weights": {"imbalance": "weights"},
    "cosine": {"schedule": "cosine", "warmup": 1},
    "patience": {"patience": 1},
    "replicas": {"replicas": 2},
    "local_steps": {"local_steps": 3},
}
PLAIN = {"rounds": 2, "batch_size": 4, "precision": "fp32", "optimiser": "sgd", "lr": 0.05}
"""Adam's steps take the sign of every rounding error, so most cases use SGD."""
ENDPOINTS: dict[str, dict[str, Any]] = {
    "multiclass": {"kind": "multiclass", "column": "three", "classes": ["x", "y", "z"]},
    "regression": {"kind": "regression", "column": "amount"},
    "survival": {"kind": "survival", "column": "time", "event": "event"},
}


def cohort() -> tuple[pd.DataFrame, FeatureStore]:
    """24 patients of two sites with 3 to 39 tiles of 16 numbers, far from zero."""
    generator, count = np.random.default_rng(0), 24
    names = [f"{'AB'[k % 2]}{k:03d}" for k in range(count)]
    drawn = {name: generator.normal(3, 1, (int(generator.integers(3, 40)), 16)).astype(np.float16) for name in names}
    table = pd.DataFrame({"patient_id": names, "slides": names, "site": [name[0] for name in names], "role": "train"})
    return table.assign(
        label=np.arange(count) // 2 % 2,
        three=np.array(list("xyz"))[np.arange(count) // 2 % 3],
        amount=generator.normal(size=count),
        time=generator.exponential(size=count),
        event=np.arange(count) // 2 % 2,
        age=generator.normal(size=count),
    ), FeatureStore.of(drawn)


def cases() -> dict[str, dict[str, Any]]:
    """Every head in both precisions, every setting, strategy, endpoint."""
    found: dict[str, dict[str, Any]] = {}
    for name, model in HEADS.items():
        found |= {f"{name}, {kind}": {"model": model, "training": {"precision": kind}} for kind in ("fp32", "bf16")}
    found |= {name: {"training": training} for name, training in SETTINGS.items()}
    for name in STRATEGIES:
        training = {"local_steps": 1, "batch_size": 24} if name == "fedsgd" else {}
        strategy: Any = name if name != "finetune" else {"name": "finetune", "base": {"name": "fedavg"}, "epochs": 1}
        found[f"strategy {name}"] = {"strategy": strategy, "training": training}
    found["covariates"] = {"covariates": ["age"]}
    found["covariates, dsmil"] = {"covariates": ["age"], "model": HEADS["dsmil"]}
    found["clinical"] = {"covariates": ["age"], "model": {"name": "clinical"}}
    found |= {name: {"endpoint": endpoint} for name, endpoint in ENDPOINTS.items()}
    found["survival, dsmil"] = {"endpoint": ENDPOINTS["survival"], "model": HEADS["dsmil"]}
    for name in ("gated_attention", "transmil", "survival", "max_tiles"):
        like = found.get(name) or found[f"{name}, fp32"]
        found[f"{name}, more steps"] = like | {
            "training": like.get("training", {}) | {"batch_size": 1 if name != "survival" else 2}
        }
    return found


FACTORS: dict[str, dict[str, dict[str, Any]]] = {
    "model": {name: {"model": model} for name, model in HEADS.items()},
    "precision": {kind: {"training": {"precision": kind}} for kind in ("fp32", "bf16")},
    "optimiser": {name: {"training": SETTINGS[name]} for name in ("adamw", "adam", "momentum")} | {"sgd": {}},
    "strategy": {name: {"strategy": name} for name in STRATEGIES if name not in ("fedsgd", "finetune")},
    "endpoint": {name: {"endpoint": endpoint} for name, endpoint in ENDPOINTS.items()} | {"binary": {}},
    "more": {name: {"training": SETTINGS[name]} for name in ("clip", "site_scaling", "no_scaling", "max_tiles", "sampling", "weights", "replicas")}
    | {"covariates": {"covariates": ["age"]}},
}  # fmt: skip
APART = ({"model", "strategy"}, {"strategy", "more"})
"""Not paired with each other: a strategy sees rows of weights, of whichever head and however they were trained."""


def possible(chosen: dict[str, str]) -> bool:
    """Whether settings do not refuse the combination."""
    classes = chosen["endpoint"] in ("binary", "multiclass")
    if not classes and (chosen["model"] == "clam_sb" or chosen["more"] in ("sampling", "weights")):
        return False
    try:
        experiment({name: value for name, value in laid(chosen).items() if name != "endpoint"})
    except (ValueError, MilError):
        return False
    return True


def laid(chosen: dict[str, str]) -> dict[str, Any]:
    """A case from one value of each factor."""
    parts = [FACTORS[factor][value] for factor, value in chosen.items()]
    training = {name: value for part in parts for name, value in part.get("training", {}).items()}
    return {name: value for part in parts for name, value in part.items()} | {"training": training}


def pairwise_cases(tries: int = 20) -> dict[str, dict[str, Any]]:
    """Cases in which every possible pair of values of two factors stands at least once; greedy, of a fixed seed."""
    generator, found = np.random.default_rng(0), {}
    couples = [couple for couple in combinations(FACTORS, 2) if set(couple) not in APART]
    missing = {(a, x, b, y) for a, b in couples for x in FACTORS[a] for y in FACTORS[b]}
    while missing:
        a, x, b, y = min(missing)
        best: dict[str, str] | None = None
        gain = 0
        for _ in range(tries):
            chosen = {factor: str(generator.choice(list(values))) for factor, values in FACTORS.items()} | {a: x, b: y}
            new = sum((c, chosen[c], d, chosen[d]) in missing for c, d in couples)
            if new > gain and possible(chosen):
                best, gain = chosen, new
        missing.discard((a, x, b, y))  # also where it is not possible
        if best is not None:
            missing -= {(c, best[c], d, best[d]) for c, d in couples}
            found[", ".join(best.values())] = laid(best)
    return found


def experiment(case: dict[str, Any]) -> ExperimentSpec:
    """With the settings of a case."""
    base = {"encoder": "none", "endpoint": "label", "model": GATED, "strategy": "fedavg"}
    return ExperimentSpec.model_validate(base | case | {"training": PLAIN | case.get("training", {})})


def compared(case: dict[str, Any]) -> dict[str, Any]:
    """Largest difference of the weights of both trainings, what the host waited for, the card's peak."""
    table, store = cohort()
    endpoint = EndpointSpec(repeats=1, folds=2, inner_folds=2, **case.get("endpoint", {"column": "label"}))
    table = deal_folds(table.assign(label=table[endpoint.event or endpoint.column]), endpoint)
    spec = experiment({key: value for key, value in case.items() if key != "endpoint"})
    training = spec.training
    here = train(spec, endpoint, table, store, quiet())
    with simulated_card() as log:
        there = train(spec, endpoint, table, store, quiet())
    pairs = [
        (a.weights[n].double(), b.weights[n].double())
        for a, b in zip(here.families, there.families, strict=True)
        for n in a.weights
    ]
    worst = max((float((a - b).abs().max()) for a, b in pairs), default=0.0)
    lower = training.precision in ("bf16", "auto")
    adaptive = "adam" in training.optimiser or spec.strategy.name in (
        "fedadam",
        "fedyogi",
        "fedadagrad",
    )  # signs of roundings
    adaptive = adaptive or (lower and isinstance(spec.model, (ChowderSpec, WeldonSpec)))  # which tiles they pick, too
    return {
        "difference": worst,
        "tolerance": (3e-2 if adaptive else 5e-3) if lower else 2e-3 if adaptive else 1e-5,
        "waits": dict(log.waits),
        "computed": dict(there.computed),
    }


def hospital() -> dict[str, Any]:
    """A hospital's round on the card and on the CPU, SGD with dropout and FedProx's pull."""
    table, store = cohort()
    head, endpoint = (
        build(GatedAttentionSpec(hidden=16, attention=8, dropout=0.25), 16, 1),
        build_endpoint(EndpointSpec()),
    )
    training = TrainingSpec.model_validate(PLAIN)
    drawn = head.initial(np.random.default_rng(0))
    state = {name: torch.from_numpy(value) for name, value in drawn.items()}
    scales = {"features.mean": torch.full((16,), 3.0), "features.deviation": torch.full((16,), 1.1)}
    targets = torch.from_numpy(table["label"].to_numpy(np.float32))[:, None]
    job = Job("task", "A", 1, 0.05, 1e-4, mu=0.1)

    def update(device: torch.device) -> dict[str, torch.Tensor]:
        about = (store, targets, np.arange(24), scales, torch.ones(2), None, store.source(device), device)
        return client_update(state, job, SiteData(head, endpoint, training, *about))[0].state

    here = update(torch.device("cpu"))
    with simulated_card():
        there = update(torch.device("cuda"))
    return {
        "difference": max(float((here[name] - there[name]).abs().max()) for name in here),
        "tolerance": 1e-5,
        "waits": {},
    }


if __name__ == "__main__":
    results: dict[str, Any] = {}
    given = sys.argv[1:]
    every = pairwise_cases() if given == ["pairwise"] else cases()
    chosen = given if every.keys() >= set(given) - {"hospital"} else []
    left_out = given if given[:1] == ["without"] else []
    rest = [name for name in every if name not in left_out] + (["hospital"] if given != ["pairwise"] else [])
    for name in chosen or rest:
        try:
            results[name] = hospital() if name == "hospital" else compared(every[name])
        except (RuntimeError, ValueError, MilError) as error:  # one case does not hide the others
            results[name] = {"error": traceback.format_exc(limit=-4) + str(error)}
    json.dump(results, sys.stdout)
