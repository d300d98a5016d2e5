"""The state of a run as one safetensors file: the server's checkpoint, and every hospital's copy of the state."""

import json
from dataclasses import asdict
from pathlib import Path

from mil.errors import CorruptFile, MilError
from mil.hospital import blobs
from mil.hospital.blobs import Lazy
from mil.hospital.config import FederationSpec
from mil.hospital.stages import Stages
from mil.hospital.standing import progress_of


def save(stages: Stages, path: Path, more: Lazy | None = None) -> None:
    """Write the state as one file, atomically; `more`: tensors that are kept with it."""
    blobs.write(path, Lazy({**stages.flat(), **(more.parts if more else {})}), _about(stages))


def _about(stages: Stages) -> dict[str, str]:
    return {"spec_sha256": stages.protocol.sha256, "progress": json.dumps(asdict(stages.progress), sort_keys=True)}


def load(protocol: FederationSpec, path: Path, canary: bool = False) -> Stages:
    """The stages as `save` left them, or new ones; a state of another protocol is refused."""
    stages = Stages(protocol, canary)
    stages.progress = progress_of(path)
    if not path.exists():
        return stages
    try:
        stated = str(blobs.MessageHeader.of(path).stated["__metadata__"].get("spec_sha256", ""))
        checkpoint = blobs.read(path)
        tensors = {name: checkpoint[name] for name in checkpoint if name.partition(":")[0] in stages.parts}
    except (ValueError, KeyError, TypeError, RuntimeError) as error:  # the last: shapes that torch does not have
        raise CorruptFile(f"{path}: not a state of ours ({error}); restore it from the backup") from error
    if stated != protocol.sha256:
        raise MilError(
            f"{path}: belongs to another protocol ({stated[:12]}, not {protocol.sha256[:12]}); give the run another name, "
            "or put the old federation.yaml back"
        )
    for name, value in tensors.items():  # the server keeps more in its checkpoint
        part, _, key = name.partition(":")
        stages.parts[part][key] = value
    return stages
