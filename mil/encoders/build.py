"""A spec -> an encoder with its weights loaded, hashed and checked, on the CPU."""

import itertools
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from mil.config import EncoderSpec
from mil.encoders.entry import Encoder, Entry, Signature
from mil.encoders.sources import BUNDLE, NoWeights, locate, read_bundle
from mil.encoders.table import resolve
from mil.encoders.weights import checked, hash_of_tensors, read_state
from mil.errors import MilError
from mil.rng import seed_of

RANDOM = "random"


def build(spec: EncoderSpec) -> Encoder:
    """The encoder that `spec` names, its weights loaded and their hash checked, on the CPU and in evaluation mode."""
    entry = resolve(spec)
    module, sha256 = _weighted(entry, spec.weights)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    prepared = {field.name: getattr(entry, field.name) for field in fields(Signature)}
    return Encoder(**prepared, weights_sha256=sha256, module=module.float().eval())


def make_random(entry: Entry) -> torch.nn.Module:
    """The module with random weights that depend on its name only, never on what was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(0, "encoder", entry.name))
        return entry.make()


def _weighted(entry: Entry, weights: str | None) -> tuple[torch.nn.Module, str]:
    """The module with its weights, and their hash."""
    if isinstance(entry.source, NoWeights):
        module = make_random(entry) if weights == RANDOM else entry.make()
        return module, hash_of_tensors(module) if module.state_dict() else "none"
    if weights == RANDOM:
        module = make_random(entry)
        return module, hash_of_tensors(module)
    path = locate(entry.name, entry.source, weights)
    sha256 = checked(path, *_expected(entry, weights))
    return loaded(entry, read_state(path), path), sha256


def loaded(entry: Entry, state: Mapping[str, Any], path: Path) -> torch.nn.Module:
    """The entry's module around the tensors `state` of the file `path`; a `MilError` where they are another network's."""
    try:
        return _around(entry, state)
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise MilError(f"weights {path} do not fit encoder {entry.name}: {reason}") from error


def _expected(entry: Entry, weights: str | None) -> tuple[str, str]:
    """The hash that the weights must begin with, and who says so; a file that the user names may be any."""
    if weights is not None and Path(weights).is_file():
        return "", ""
    if weights is not None:
        return read_bundle(Path(weights)).get(entry.name, {}).get("sha256", ""), f"{weights}/{BUNDLE}"
    return getattr(entry.source, "sha256", ""), "the registry"


def _around(entry: Entry, state: Mapping[str, Any]) -> torch.nn.Module:
    """The module, made without memory first, so that a billion random numbers are not drawn in vain."""
    with torch.device("meta"):
        module = entry.make()
    entry.load(module, state)
    if any(tensor.is_meta for tensor in itertools.chain(module.parameters(), module.buffers())):
        module = entry.make()  # has buffers that no checkpoint stores
        entry.load(module, state)
    return module
