"""The state of a run as one safetensors file: the server's checkpoint, and every hospital's copy of the state."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save as packed
from torch import Tensor

from mil.errors import MilError
from mil.hospital import blobs
from mil.hospital.blobs import Lazy
from mil.hospital.config import FederationSpec
from mil.hospital.stages import Stages
from mil.hospital.standing import progress_of


def snapshot(stages: Stages) -> bytes:
    """The state as one safetensors file."""
    return packed(stages.flat(), _about(stages))


def save(stages: Stages, path: Path, more: Lazy | None = None) -> None:
    """Write the state as one file, atomically; `more`: tensors that are kept with it."""
    makers = {name: partial(_as_it_is, value) for name, value in stages.flat().items()}
    blobs.write(path, Lazy({**makers, **(more.makers if more else {})}), _about(stages))


def _as_it_is(value: Tensor) -> Tensor:
    return value


def _about(stages: Stages) -> dict[str, str]:
    return {"spec_sha256": stages.protocol.sha256, "progress": json.dumps(asdict(stages.progress), sort_keys=True)}


def load(protocol: FederationSpec, path: Path, canary: bool = False) -> Stages:
    """The stages as `save` left them, or new ones; a state of another protocol is refused."""
    stages = Stages(protocol, canary)
    stages.progress = progress_of(path)
    if not path.exists():
        return stages
    with safe_open(path, "pt") as file:
        stated = file.metadata().get("spec_sha256", "")
        # the server keeps more in its checkpoint
        parts = [name for name in file.keys() if name.partition(":")[0] in stages.parts]  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name in parts}
    if stated != protocol.sha256:
        raise MilError(
            f"{path}: belongs to another protocol ({stated[:12]}, not {protocol.sha256[:12]}); give the run another name, "
            "or put the old federation.yaml back"
        )
    for name, value in tensors.items():
        part, _, own = name.partition(":")
        stages.parts[part][own] = value
    return stages
