"""A record of every round, each line bound to the one before: change, drop or move a line and `read` names it.

Counts and digests only: no patient, no score. There is no clock in it, so that two equal runs write equal ledgers. The signed
record of a federation between hospitals, with the time of each line, is `mil.hospital.record`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mil.errors import CorruptFile
from mil.files import digest_of, write_text

FIRST = "0" * 64


class Ledger:
    """Lines in the making."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.last = FIRST

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append an entry; it gets `prev_hash` and its own `hash` over everything else."""
        body = {**entry, "prev_hash": self.last}
        self.last = digest_of(body)
        self.lines.append(json.dumps(self.signed({**body, "hash": self.last}), sort_keys=True))

    def signed(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The entry as it is written; a record with a key adds its signature."""
        return dict(body)

    def save(self, path: str | Path) -> None:
        """Write as JSON lines."""
        write_text(path, "".join(f"{line}\n" for line in self.lines))


def read(path: str | Path) -> list[dict[str, Any]]:
    """The entries of a ledger whose chain holds; `CorruptFile` naming the first line that does not."""
    return parsed(lines_of(path), str(path))


def lines_of(path: str | Path) -> list[str]:
    """The lines of a file, each ended by a newline and by nothing else that an editor may take for the end of a line."""
    try:
        text = Path(path).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFile(f"{path}: cannot be read as a ledger ({error})") from error
    if text and not text.endswith("\n"):
        raise CorruptFile(f"{path}: its last line is unfinished; the ledger was cut, or its party must start once more")
    return text.split("\n")[:-1]


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
        seal = {"signature": entry.pop("signature")} if "signature" in entry else {}
        if entry.get("prev_hash") != last or digest_of(entry) != stated:
            raise CorruptFile(f"{where}: line {number} does not follow from the one before; the ledger was altered")
        last = stated
        entries.append({**entry, "hash": stated, **seal})
    return entries


def digest(rows: Iterable[bytes]) -> str:
    """SHA-256 of tensors' bytes, in hex."""
    hasher = hashlib.sha256()
    for row in rows:
        hasher.update(row)
    return hasher.hexdigest()
