"""A record of every round, each line bound to the one before: change, drop or move a line and `verify` names it.

Counts and digests only: no patient, no score, no clock, so that two equal runs write equal ledgers.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mil.errors import CorruptFile
from mil.files import write_text

FIRST = "0" * 64


class Ledger:
    """Lines in the making."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.last = FIRST

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append an entry; it gets `prev_hash` and its own `hash` over everything else."""
        body = {**entry, "prev_hash": self.last}
        self.last = _hash(body)
        self.lines.append(json.dumps({**body, "hash": self.last}, sort_keys=True))

    def save(self, path: str | Path) -> None:
        """Write as JSON lines."""
        write_text(path, "".join(f"{line}\n" for line in self.lines))


def verify(path: str | Path) -> int:
    """Number of lines if the chain holds; `CorruptFile` naming the first line that does not."""
    last = FIRST
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorruptFile(f"{path}: line {number} is not JSON; the ledger was altered") from error
        stated = entry.pop("hash", None)
        if entry.get("prev_hash") != last or _hash(entry) != stated:
            raise CorruptFile(f"{path}: line {number} does not follow from the one before; the ledger was altered")
        last = stated
    return len(lines)


def digest(rows: Iterable[bytes]) -> str:
    """SHA-256 of tensors' bytes, in hex."""
    found = hashlib.sha256()
    for row in rows:
        found.update(row)
    return found.hexdigest()


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
