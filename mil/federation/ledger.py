"""A record of every round, each line bound to the one before: change, drop or move a line and `verify` names it.

Counts and digests only: no patient, no score. A ledger in memory has no clock, so that two equal runs write equal ledgers;
a `LedgerFile` is the record of something that happened, line by line on disk, with the time of each.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
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


class LedgerFile(Ledger):
    """A ledger on disk: every line is flushed before `add` returns, and what is there already is verified first."""

    def __init__(self, path: str | Path, actor: str) -> None:
        super().__init__()
        self.path, self.actor = Path(path), actor
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            _mend(self.path)
            entries = read(self.path)
            self.lines = self.path.read_text(encoding="utf-8").splitlines()
            self.last = entries[-1]["hash"] if entries else FIRST

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append an entry with the time and who writes."""
        super().add({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "actor": self.actor, **entry})
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(f"{self.lines[-1]}\n")
            file.flush()
            os.fsync(file.fileno())


def verify(path: str | Path) -> int:
    """Number of lines if the chain holds; `CorruptFile` naming the first line that does not."""
    return len(read(path))


def read(path: str | Path) -> list[dict[str, Any]]:
    """The entries of a ledger whose chain holds; `CorruptFile` naming the first line that does not."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFile(f"{path}: cannot be read as a ledger ({error})") from error
    return parsed(lines, str(path))


def parsed(lines: Iterable[str], where: str = "ledger") -> list[dict[str, Any]]:
    """Lines -> entries, once the chain holds."""
    last = FIRST
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorruptFile(f"{where}: line {number} is not JSON; the ledger was altered") from error
        stated = entry.pop("hash", None)
        if entry.get("prev_hash") != last or _hash(entry) != stated:
            raise CorruptFile(f"{where}: line {number} does not follow from the one before; the ledger was altered")
        last = stated
        entries.append({**entry, "hash": stated})
    return entries


def digest(rows: Iterable[bytes]) -> str:
    """SHA-256 of tensors' bytes, in hex."""
    found = hashlib.sha256()
    for row in rows:
        found.update(row)
    return found.hexdigest()


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _mend(path: Path) -> None:
    """Take off an unfinished last line, as a power cut leaves it; the next line to be added follows the last whole one."""
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with open(path, "rb+") as file:
            file.truncate(content.rfind(b"\n") + 1)
            file.flush()
            os.fsync(file.fileno())
