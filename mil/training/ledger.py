"""A record of every round, each line bound to the one before: change, drop or move a line and `verify` names it.

Counts and digests only: no patient, no score. A ledger in memory has no clock, so that two equal runs write equal ledgers;
a `LedgerFile` is the record of something that happened, line by line on disk, with the time of each.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

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
    """A ledger on disk: every line is flushed before `add` returns, and what is there already is verified first.

    Two processes may write to one: the file is locked for each line, and lines of the other are read before it.
    """

    def __init__(self, path: str | Path, actor: str) -> None:
        super().__init__()
        self.path, self.actor, self.size = Path(path), actor, -1
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            self._locked(file)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append an entry with the time and who writes."""
        with open(self.path, "ab+") as file:
            self._locked(file)
            super().add({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "actor": self.actor, **entry})
            file.write(f"{self.lines[-1]}\n".encode())
            file.flush()
            os.fsync(file.fileno())
            self.size = file.tell()

    def _locked(self, file: BinaryIO) -> None:
        """Lock the file until it is closed, and catch up with what others wrote.

        An unfinished last line, as a power cut leaves it, is taken off; the next line follows the last whole one.
        """
        fcntl.flock(file, fcntl.LOCK_EX)
        if file.seek(0, os.SEEK_END) == self.size:
            return
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            file.truncate(len(whole))
        try:
            self.lines = whole.decode().splitlines()
        except UnicodeDecodeError as error:
            raise CorruptFile(f"{self.path}: is not text; the ledger was altered") from error
        entries = parsed(self.lines, str(self.path))
        check_actor(entries, self.actor, str(self.path))
        self.last = entries[-1]["hash"] if entries else FIRST
        self.size = len(whole)


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


def check_actor(entries: Iterable[Mapping[str, Any]], actor: str, where: str) -> None:
    """Raise where a line was written by somebody else: two sites' ledgers were mixed up."""
    for number, entry in enumerate(entries, start=1):
        if entry.get("actor") != actor:
            raise CorruptFile(
                f"{where}: line {number} is of {entry.get('actor')}, not of {actor}; put {actor}'s own ledger there"
            )


def parsed(lines: Iterable[str], where: str = "ledger") -> list[dict[str, Any]]:
    """Lines -> entries, once the chain holds."""
    last = FIRST
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            stands = json.dumps(entry, sort_keys=True) == line
        except (ValueError, RecursionError) as error:
            raise CorruptFile(f"{where}: line {number} is not JSON; the ledger was altered") from error
        if not stands or not isinstance(entry, dict):  # blanks, or a key twice, of which readers may take either
            raise CorruptFile(f"{where}: line {number} is not as it was written; the ledger was altered")
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
