"""What went wrong, said to a person: one line that names the file or row, the value and the way out."""

import difflib
from collections.abc import Iterable, Sequence


class MilError(Exception):
    """An error of the user's data or settings. The command line prints its one line and exits with 1."""


class SlideError(MilError):
    """One slide cannot be used. `state` is the short code that goes into the tables, the message is the reason."""

    def __init__(self, state: str, reason: str) -> None:
        super().__init__(reason)
        self.state = state


class MissingColumn(MilError):
    """A table lacks columns that something asks for."""

    def __init__(self, where: str, missing: Sequence[str], columns: Sequence[str]) -> None:
        said = "; ".join(f"column '{column}' is missing; {nearest(column, columns)}" for column in missing)
        super().__init__(f"{where}: {said}")
        self.column = missing[0]


class CorruptFile(MilError):
    """A file of ours that is truncated, altered or not ours at all."""


class NoInnerFold(MilError):
    """A model has too few training patients for an inner fold."""


class Absent(MilError):
    """A result that this cohort or run does not have. The message is the reason that people read."""


class Stopped(BaseException):
    """The process received SIGTERM or SIGINT. Raised by the command line's handler; no `except Exception` catches it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A closing clause for messages about an unknown name: the nearest known one (case does not count), or all of them."""
    known = sorted(known)
    folded = {word.casefold(): word for word in reversed(known)}
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    close = close or [folded[key] for key in difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)]
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(known) if known else 'none'}"
