"""The state of a run as one safetensors file: the server's checkpoint, and every hospital's copy of the state."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save as packed
from torch import Tensor

from mil.errors import MilError
from mil.files import write_bytes
from mil.hospital.config import FederationSpec
from mil.hospital.stages import Stages
from mil.hospital.standing import progress_of


def snapshot(stages: Stages, more: Mapping[str, Tensor] | None = None) -> bytes:
    """The state as one safetensors file; `more`: tensors that are kept with it."""
    about = {"spec_sha256": stages.protocol.sha256, "progress": json.dumps(asdict(stages.progress), sort_keys=True)}
    return packed({**stages.flat(), **(more or {})}, about)


def save(stages: Stages, path: Path, more: Mapping[str, Tensor] | None = None) -> None:
    """Write the state as one file, atomically."""
    write_bytes(path, snapshot(stages, more))


def load(protocol: FederationSpec, path: Path, canary: bool = False) -> Stages:
    """The stages as `save` left them, or new ones; a state of another protocol is refused."""
    stages = Stages(protocol, canary)
    stages.progress = progress_of(path)
    if not path.exists():
        return stages
    with safe_open(path, "pt") as file:
        stated = file.metadata().get("spec_sha256", "")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if stated != protocol.sha256:
        raise MilError(
            f"{path}: belongs to another protocol ({stated[:12]}, not {protocol.sha256[:12]}); give the run another name, "
            "or put the old federation.yaml back"
        )
    for name, value in tensors.items():
        part, _, own = name.partition(":")
        if part in stages.parts:  # others are the server's relay
            stages.parts[part][own] = value
    return stages
