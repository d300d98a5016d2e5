"""Small heads, bags and the arithmetic of their layers in numpy."""

import numpy as np
import torch

from mil.models import build
from mil.specs.models import named
from mil.training.artefact import MODEL

WIDTH = 12
SMALL = {
    "mean": {"hidden": 5},
    "max": {"hidden": (6,)},
    "chowder": {"top": 4, "bottom": 3, "tile_hidden": (6,), "hidden": (5,)},
    "weldon": {"top": 4, "bottom": 3},
    "attention": {"hidden": 7, "attention": 5, "classifier": (4,)},
    "gated_attention": {"hidden": 7, "attention": 5},
    "dsmil": {"queries": 6},
    "clam_sb": {"hidden": 7, "attention": 5, "samples": 3, "dropout": 0.0},
    "transmil": {"width": 8, "heads": 2, "landmarks": 4, "kernel": 5, "dropout": 0.0},
    "clinical": {},
}


def spec_of(name, **changes):
    return MODEL.validate_python(named({"name": name} | SMALL.get(name, {}) | changes))


def head_of(name, outputs=1, seed=0, **changes):
    spec = spec_of(name, **changes)
    head = build(spec, WIDTH, outputs)
    weights = head.initial(np.random.default_rng(seed))
    return head, {key: torch.from_numpy(value) for key, value in weights.items()}


def bag_of(tiles, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(tiles, WIDTH)).astype(np.float32))


def alone(tiles):
    return torch.ones(1, len(tiles), dtype=torch.bool)


def numpy_of(weights):
    return {name: value.double().numpy() for name, value in weights.items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis=-1):
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
