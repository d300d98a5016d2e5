"""Where a run between hospitals stands, without its tensors: what a person or another process asks the checkpoint."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from mil.errors import CorruptFile
from mil.hospital.blobs import HEADER, LONGEST_HEADER


@dataclass
class Progress:
    """Everything of a run but its tensors."""

    stage: str = "new"
    """What is asked next: `new` (nothing is known of the sites yet), `moments`, `train`, `watch`, `finish`, `close`, `done`.

    In a rehearsal `canary` stands for all of them.
    """
    phase: str = "inner"
    round: int = 1
    visit: int = 0
    """Sites visited in this round, where one after the other is."""
    choices: list[int] = field(default_factory=list)
    """Candidate of every outer fold, once it is chosen."""
    rounds: list[int] = field(default_factory=list)
    """Rounds of every slot of the phase."""
    width: int = 0
    about: dict[str, str | float | int | None] = field(default_factory=dict)
    """What the sites' features say of their encoder."""
    patients: dict[str, int | None] = field(default_factory=dict)
    """Patients of every site, as it joined; none where they are too few to be told."""
    data: dict[str, str] = field(default_factory=dict)
    """Digest of every site's data, as it joined."""
    curves: list[list[float | None]] = field(default_factory=list)
    """Mean error on the inner folds after each round, for every outer fold and candidate; none after it has stopped."""
    num_bags: dict[str, list[int]] = field(default_factory=dict)
    """Training patients of every slot, by site."""
    used: dict[str, int] = field(default_factory=dict)
    """Round of the phase in which each site's answer was used last."""
    step: int = 0
    """Questions that were answered since the sites joined, and 1."""

    @property
    def place(self) -> dict[str, str | int]:
        """Phase and round, for the ledger."""
        return {"stage": self.stage, "phase": self.phase, "round": self.round}


def progress_of(path: Path) -> Progress:
    """Where the run of a checkpoint stands, its tensors unread; a new run's where there is no file."""
    if not path.exists():
        return Progress()
    try:
        with open(path, "rb") as file:  # opened once: the server puts another in its place at any moment
            if (length := int.from_bytes(file.read(HEADER), "little")) > LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
            left = os.fstat(file.fileno()).st_size - file.tell()
        progress = Progress(**json.loads(header.pop("__metadata__")["progress"]))
        if left != max((tensor["data_offsets"][1] for tensor in header.values()), default=0):
            raise ValueError("it is cut off")
        return progress
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError, MemoryError, RecursionError) as error:
        raise CorruptFile(f"{path}: not a checkpoint of ours ({error}); restore it from the backup") from error
