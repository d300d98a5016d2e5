"""Cells of the report's tables: text, the number that it sorts by, and values with their intervals."""

from dataclasses import dataclass, field

import numpy as np

from mil.figures.layout import signed


@dataclass(frozen=True)
class Cell:
    """Text, and the number that it sorts by (none: the text)."""

    text: str
    number: float | None = None
    indented: bool = False
    strong: bool = False


@dataclass
class ReportTable:
    """One table of the page. `sortable` tables start in the order given."""

    title: str
    caption: str
    head: list[str]
    rows: list[list[Cell]]
    sortable: bool = True
    number: int = 0
    numeric: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        columns = list(zip(*self.rows, strict=True)) or [[] for _ in self.head]
        self.numeric = [any(cell.number is not None for cell in column) for column in columns]


def signed_interval(value: float, low: float, high: float) -> str:
    """`+0.08 [−0.02, +0.18]` with true minus signs."""
    if not np.isfinite(low):
        return signed(value)
    return f"{signed(value)} [{signed(low)}, {signed(high)}]"


def count(patients: float) -> Cell:
    """A whole number."""
    return Cell(f"{int(patients):,}", float(patients))


def number(value: float) -> float | None:
    """What a cell sorts by; none where there is no number."""
    return float(value) if np.isfinite(value) else None
