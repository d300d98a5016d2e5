"""Where a run stands after a round -> a folder that it can go on from, as if it had never been interrupted."""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as packed
from torch import Tensor

from mil.files import write_bytes, write_text
from mil.training.phase import Phase
from mil.training.records import Records


@dataclass
class Checkpoint:
    """Saves at most every `seconds`; `key` names the run's settings and data, and a checkpoint of another key is void."""

    folder: Path
    key: str
    seconds: float = 30.0
    saved: float = 0.0

    def save(self, name: str, number: int, phase: Phase, records: Records) -> None:
        """Write the state after round `number` of phase `name`; the small file, the last, makes it count."""
        if time.monotonic() - self.saved < self.seconds:
            return
        tensors = {part: value.cpu().contiguous() for part, value in _tensors(phase).items()}
        tensors |= {"errors": torch.from_numpy(records.errors), "counts": torch.from_numpy(records.counts)}
        tensors["watched"] = torch.from_numpy(records.watched)
        file = f"{name}.{number}.safetensors"
        write_bytes(self.folder / file, packed(tensors))
        stated = {
            "key": self.key,
            "phase": name,
            "round": number,
            "file": file,
            "live": phase.live.tolist(),
            "table": records.table,
            "ledger": records.ledger.lines,
            "last": records.ledger.last,
        }
        write_text(self.folder / "checkpoint.json", json.dumps(stated))
        for old in self.folder.glob("*.safetensors"):
            if old.name != file:
                old.unlink()
        self.saved = time.monotonic()

    def resume(self, name: str, phase: Phase, records: Records) -> int:
        """Put the state of phase `name` back in place and say after which round it was; 0: there is none to go on from."""
        stated = self._stated()
        if stated is None or stated["phase"] != name:
            return 0
        tensors = load_file(self.folder / stated["file"])
        records.errors, records.counts = tensors.pop("errors").numpy(), tensors.pop("counts").numpy()
        records.watched = tensors.pop("watched").numpy()
        for part, tensor in _tensors(phase).items():
            tensor.copy_(tensors[part])
        phase.live = np.array(stated["live"], bool)
        records.table, records.ledger.lines = stated["table"], stated["ledger"]
        records.ledger.last = stated["last"]
        return stated["round"]

    def finish(self, name: str, records: Records) -> None:
        """Keep what the whole phase `name` found out, so that it need not be run again."""
        stated = {"key": self.key, "errors": records.errors.tolist(), "counts": records.counts.tolist()}
        stated |= {"held": [logits.tolist() for logits in records.held]}
        stated |= {"table": records.table, "ledger": records.ledger.lines, "last": records.ledger.last}
        write_text(self.folder / f"{name}.json", json.dumps(stated))

    def finished(self, name: str, records: Records) -> bool:
        """Whether the whole phase `name` was run before; if so, its records are put back."""
        path = self.folder / f"{name}.json"
        stated = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if stated is None or stated["key"] != self.key:
            return False
        records.errors, records.counts = np.array(stated["errors"]), np.array(stated["counts"])
        records.held = [np.array(logits, np.float32) for logits in stated["held"]]
        records.table, records.ledger.lines = stated["table"], stated["ledger"]
        records.ledger.last = stated["last"]
        return True

    def _stated(self) -> dict | None:
        path = self.folder / "checkpoint.json"
        if not path.is_file():
            return None
        stated = json.loads(path.read_text(encoding="utf-8"))
        return stated if stated["key"] == self.key and (self.folder / stated["file"]).is_file() else None


def forget(folder: Path) -> None:
    """Remove a checkpoint; its run is saved."""
    shutil.rmtree(folder, ignore_errors=True)


def _tensors(phase: Phase) -> dict[str, Tensor]:
    """All tensors that change from round to round, by name."""
    tensors = {"rows": phase.rows, "learners": phase.learners.rows}
    tensors |= {"first": phase.state.first, "second": phase.state.second, "steps": phase.state.steps}
    tensors |= {f"server/{name}": value for name, value in phase.server.items()}
    return tensors if phase.controls is None else tensors | {"controls": phase.controls}
