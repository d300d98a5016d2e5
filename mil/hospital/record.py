"""A party's ledger on disk: hash-chained lines, each signed with the party's key.

Every line is flushed before `add` returns. Line 1 states the party's public key. An unfinished last line, as a full disk or
a power cut leaves it, is removed at the next start, and a line `repaired` says so.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mil.errors import CorruptFile, MilError
from mil.hospital.keys import PartyKey, is_signed
from mil.hospital.lines import check_lines
from mil.training.ledger import FIRST, Ledger, lines_of, parsed

Entry = dict[str, Any]


class RecordFull(MilError):
    """The record cannot be written, so nothing more is answered."""

    code = "disk"


class LedgerFile(Ledger):
    """Lines of one party. Two processes of it may write to one file: it is locked for each line."""

    def __init__(self, path: str | Path, actor: str, key: PartyKey) -> None:
        super().__init__()
        self.path, self.actor, self.key, self.size = Path(path), actor, key, -1
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked() as (file, torn):
            if not self.lines:
                self._append(file, {"event": "key", "key": key.public})
            self._repair(file, torn)

    def refresh(self) -> None:
        """Read what other processes have written since."""
        with self._locked() as (file, torn):
            self._repair(file, torn)

    def add(self, entry: Mapping[str, Any], timed: bool = True) -> None:
        """Append an entry with its author and, where it is `timed`, the time."""
        with self._locked() as (file, torn):
            self._repair(file, torn)
            self._append(file, entry, timed)

    def signed(self, body: Mapping[str, Any]) -> Entry:
        """The entry with the party's signature over its hash."""
        return {**body, "signature": self.key.sign(str(body["hash"]).encode())}

    def _repair(self, file: io.FileIO, torn: bytes) -> None:
        if torn:
            self._append(file, {"event": "repaired", "bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()})

    def _append(self, file: io.FileIO, entry: Mapping[str, Any], timed: bool = True) -> None:
        before = self.last, len(self.lines), file.seek(0, os.SEEK_END)
        time = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")} if timed else {}
        super().add({**time, "actor": self.actor, **entry})
        try:
            line = f"{self.lines[-1]}\n".encode()
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            self.last, count, size = before
            del self.lines[count:]
            os.ftruncate(file.fileno(), size)
            raise
        self.size = file.tell()

    @contextmanager
    def _locked(self) -> Iterator[tuple[io.FileIO, bytes]]:
        """The file, locked and read as far as others wrote it, and the unfinished last line that was removed from it."""
        try:
            with open(self.path, "ab+", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file, self._catch_up(file)
        except OSError as error:
            why = error.strerror or error
            raise RecordFull(
                f"{self.path}: cannot be written ({why}); make room or give access, then start again"
            ) from error

    def _catch_up(self, file: io.FileIO) -> bytes:
        if file.seek(0, os.SEEK_END) == self.size:
            return b""
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if _entry(content[len(whole) :]):  # an editor took its newline
            file.write(b"\n")
            whole = content = content + b"\n"
        if whole != content:
            file.truncate(len(whole))
        try:
            self.lines = whole.decode().split("\n")[:-1]
        except UnicodeDecodeError as error:
            raise CorruptFile(f"{self.path}: is not text; the ledger was altered") from error
        entries = parsed(self.lines, str(self.path))
        check_author(entries, self.actor, str(self.path), self.key.public)
        self.last = entries[-1]["hash"] if entries else FIRST
        self.size = len(whole)
        return content[len(whole) :]


def read_record(path: str | Path, actor: str | None = None, key: str | None = None) -> list[Entry]:
    """The lines of a ledger whose chain and signatures hold; `CorruptFile` names the first that does not.

    `actor`, `key`: whose it must be; none: whoever line 1 says.
    """
    entries = parsed(lines_of(path), str(path))
    if not entries:
        raise CorruptFile(f"{path}: holds no line; restore it from the backup of the workspace")
    actor = actor or str(entries[0].get("actor"))
    check_author(entries, actor, str(path), key)
    check_lines(entries, actor, str(path))
    return entries


def whole_entries(path: Path) -> list[Entry]:
    """The complete lines of a ledger that may be written at this moment, its chain unread; none where there is no file."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    entries = [_entry(line) for line in lines]
    for number, entry in enumerate(entries, start=1):
        if "event" not in entry:
            raise CorruptFile(f"{path}: line {number} is none of a ledger; restore it from the backup of the workspace")
    return entries


def _entry(line: bytes) -> Entry:
    """A whole line, as far as can be said without the one before; empty for what is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) and "hash" in entry else {}


def author(entries: Sequence[Entry]) -> tuple[str, str]:
    """Name and public key of the party whose ledger it is, as line 1 states them."""
    return str(entries[0]["actor"]), str(entries[0]["key"])


def check_author(entries: Sequence[Entry], actor: str, where: str, key: str | None = None) -> None:
    """Raise for the first line that was not written by `actor` or not signed with its key."""
    for number, entry in enumerate(entries, start=1):
        if entry.get("actor") != actor:
            raise CorruptFile(
                f"{where}: line {number} is of {entry.get('actor')}, not of {actor}; put {actor}'s own ledger there"
            )
    if not entries:
        return
    stated = str(entries[0].get("key", ""))
    if entries[0].get("event") != "key" or (key is not None and stated != key):
        raise CorruptFile(
            f"{where}: line 1 does not state {actor}'s key {(key or '')[:16]}; the ledger was written anew with another key"
        )
    for number, entry in enumerate(entries, start=1):
        if not is_signed(str(entry["hash"]).encode(), entry.get("signature"), stated):
            raise CorruptFile(f"{where}: line {number} is not signed with {actor}'s key; the ledger was altered")


def torn_line(path: Path) -> int:
    """Bytes of an unfinished last line, which the next start removes."""
    content = path.read_bytes()
    return len(content) - content.rfind(b"\n") - 1
