"""Files that are complete or absent: written under a temporary name, flushed, renamed."""

import errno
import hashlib
import io
import json
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mil.errors import MilError

# Names that become file names: no separators, no leading dash or dot, no surprises on any file system.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
MACHINE = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:32]
PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<machine>[A-Za-z0-9-]*)\.(?P<process>[0-9]+)\.partial\Z", re.DOTALL)
"""A file that is being written: its name, and the machine and process that write it."""


NEVER_IN_ID = set("/\\;")  # parts of paths; what parts the slides of a patient in the bag table


def file_name(slide_id: str) -> str:
    """The id as part of a file name: letters, digits, '.', '_', '-' and '~' as they are, the rest as `%` and two hex digits of UTF-8.

    `urllib.parse.unquote` gives the id back.
    """
    return quote(slide_id, safe="")


def shown(text: str) -> str:
    """`text` between quotes for an error line: signs that print nothing as escapes, and its first 60 signs where it has more than 80."""
    return repr(text) if len(text) <= 80 else f"{text[:60]!r}... ({len(text)} signs)"


def check_id(kind: str, name: str, where: str) -> str:
    """`name` if it can be the id of a slide or patient, which may hold blanks, brackets and other signs; see `file_name`."""
    fit = name.isprintable() and name == name.strip() and not NEVER_IN_ID & set(name) and name[:1] not in {"", ".", "-"}
    if not fit or len(name) > 128 or len(file_name(name)) > 200:
        raise MilError(
            f"{where}: {kind} {shown(name)} cannot be a file name; use at most 128 letters, digits, blanks and signs other than / \\ ; "
            "(not '.' or '-' first)"
        )
    return name


def check_name(kind: str, name: str, where: str) -> str:
    """`name` if it can be part of a path on every system; a `MilError` naming the row otherwise."""
    if not SAFE_NAME.match(name):
        raise MilError(
            f"{where}: {kind} {shown(name)} cannot be a file name; use letters, digits, '.', '_' and '-' "
            "(first a letter or digit, at most 128)"
        )
    return name


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; on a clean exit it is flushed and takes `path`'s place, else it is removed.

    What a killed writer of the same file left is removed first.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{MACHINE}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(path)
        yield partial
        with open(partial, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise MilError(f"{path}: cannot be written ({reason_of(error)}); nothing was left there") from error
    finally:
        with suppress(OSError):  # nothing to remove, or no folder to remove it from
            partial.unlink()


class Sink(io.FileIO):
    """A binary file for a C library that takes a failed write badly (HDF5 prints its stack and may crash later).

    After the first write that fails, everything is taken and nothing written; `check`, and the end of the `with` block,
    raise that failure.
    """

    failure: OSError | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if kind is None or issubclass(kind, Exception):  # what the library raises then is a consequence
            self.check()

    def check(self) -> None:
        """Raise the `OSError` of the first write that failed, if one did."""
        if self.failure is not None:
            raise self.failure

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        """Take all of `data`."""
        view = memoryview(data).cast("B")
        done = 0
        while self.failure is None and done < len(view):
            try:
                done += super().write(view[done:]) or 0
            except OSError as error:
                self.failure = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0


def reason_of(error: OSError) -> str:
    """What the operating system said, in a few words; HDF5 hides them in a text of several lines."""
    match = re.search(r"error message = '([^']+)'", str(error))
    return error.strerror or (match[1] if match else " ".join(str(error).split()))


WAYS_OUT = {
    errno.ENOSPC: "; make room on the disk and run the same command again",
    errno.EDQUOT: "; your quota is used up: make room and run the same command again",
    errno.EFBIG: "; raise the limit on file sizes (`ulimit -f`) and run the same command again",
}


def way_out(error: OSError) -> str:
    """What a person can do about a full disk or a limit, as the end of a sentence; blank for other errors."""
    return WAYS_OUT.get(error.errno or 0, "")


def _clear_leftovers(path: Path) -> None:
    """Remove the partials of `path` whose writer's process is gone; another machine's stay, as it cannot be asked."""
    with os.scandir(path.parent) as entries:
        partials = [match for entry in entries if (match := PARTIAL.match(entry.name))]
    for match in partials:
        if (match["name"], match["machine"]) == (path.name, MACHINE) and not _is_running(int(match["process"])):
            with suppress(OSError):  # another writer was quicker, or it is another user's
                (path.parent / match[0]).unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # somebody else's; a number that no process of this machine has
        return True
    return True


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` atomically (UTF-8, newlines as they are)."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes, private: bool = False) -> None:
    """Write `content` atomically; a `private` file can be read by its owner only, at every moment."""
    mode = 0o600 if private else 0o666  # less the umask

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, mode)

    with replacing(path) as partial, open(partial, "wb", opener=opener) as handle:
        handle.write(content)


SHEET_PATH = "give its path relative to the folder you run in, or an absolute one"


def why_no_file(path: str | Path) -> str:
    """Why `path` is not read as a file; blank where it is one. Opening a pipe would wait for a writer without end."""
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name with a zero byte
        return "does not exist"
    except OSError as error:
        return f"cannot be opened ({reason_of(error)})"
    if stat.S_ISREG(mode):
        return ""
    return "is a folder, not a file" if stat.S_ISDIR(mode) else "is a pipe, socket or device, not a file"


def require_file(path: str | Path, what: str = "", way_out: str = "") -> Path:
    """The path of a file that exists, else a `MilError`: `{what} {path} {why_no_file}; {way_out}`."""
    if why := why_no_file(path):
        raise MilError(f"{what} {path} {why}{'; ' if way_out else ''}{way_out}".strip())
    return Path(path)


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_of(stated: Any) -> str:
    """SHA-256, in hex, of what is stated: as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()
