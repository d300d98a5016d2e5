"""Tables on disk: CSV or TSV in, CSV out, every cell text until somebody says otherwise."""

import csv
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from mil.errors import CorruptFile, MilError, nearest
from mil.files import SHEET_PATH, require_file, write_text
from mil.schemas import TEXT

SIGNS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def read_text_table(path: str | Path, what: str) -> pd.DataFrame:
    """A person's CSV (or TSV, by its suffix) as trimmed text cells; the index is the line number in the file."""
    path = require_file(path, what, SHEET_PATH)
    tabs = path.suffix.lower() in {".tsv", ".tab"}
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, delimiter="\t" if tabs else ",", strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except UnicodeDecodeError as error:
        raise MilError(
            f"{what} {path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as CSV UTF-8"
        ) from error
    except (csv.Error, OSError) as error:
        raise MilError(f"{what} {path} cannot be read as a {'TSV' if tabs else 'CSV'} table: {error}") from error
    filled = [(line, cells) for line, cells in lines if any(cells)]
    if not filled:
        raise MilError(f"{what} {path} is empty; write a header line and one row each")
    filled = _without_empty_ends(filled)
    (_, columns), *rows = filled
    if len(columns) == 1 and (other := next((sign for sign in ";\t,|" if sign in columns[0]), None)):
        raise MilError(
            f"{what} {path}: its columns are parted by {SIGNS[other]}, not {SIGNS[reader.dialect.delimiter]}; save it with commas "
            "as .csv, or with tabs as .tsv"
        )
    if "" in columns:
        raise MilError(f"{what} {path}: column {columns.index('') + 1} has no name; name it, or empty it")
    doubled = [column for column in columns if columns.count(column) > 1]
    if doubled:
        raise MilError(f"{what} {path}: column '{doubled[0]}' stands twice; keep one")
    for line, cells in rows:
        if len(cells) != len(columns):
            raise MilError(
                f"{what} {path} line {line}: {len(cells)} cells, but the header has {len(columns)}; check for a stray "
                f"{'tab' if tabs else 'comma'}"
            )
    return pd.DataFrame(
        [cells for _, cells in rows],
        columns=columns,
        index=pd.Index([line for line, _ in rows], name="line"),
        dtype=str,
    )


def _without_empty_ends(lines: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """The lines without the blank columns at the right that spreadsheets leave; a row that is short stays so."""
    (_, header), *_ = lines
    named = max(number for number, cell in enumerate(header, 1) if cell)
    if any(any(cells[named:]) for _, cells in lines):
        return lines
    return [(line, cells[:named]) for line, cells in lines]


def require_columns(table: pd.DataFrame, needed: Iterable[str], where: str) -> None:
    """Raise for the first needed column that `table` lacks, naming the nearest one it has."""
    for column in needed:
        if column not in table.columns:
            raise MilError(f"{where}: column '{column}' is missing; {nearest(column, map(str, table.columns))}")


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as CSV, atomically, without its index; floats in their shortest exact form."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_table(path: str | Path, text: Iterable[str] = ()) -> pd.DataFrame:
    """A CSV of ours. The columns of `schemas.TEXT` and those named in `text` stay text, so that '007' and 'NA' survive."""
    path = require_file(path, "table", "run the step that writes it")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise CorruptFile(
            f"table {path} is not as it was written ({reason}); run the step that writes it again"
        ) from error
    for column in table.columns.difference([*TEXT, *text]):
        table[column] = _as_numbers(table[column])
    return table


def _as_numbers(cells: pd.Series) -> pd.Series:
    """Integers or floats (blank is NaN) where every cell is one, else the text as it is."""
    filled = cells[cells != ""]
    try:
        if len(filled) == len(cells) and len(cells) and filled.str.fullmatch(r"-?\d{1,18}").all():
            return cells.astype("int64")
        return cells.replace("", "nan").astype(float) if len(filled) else cells
    except ValueError:
        return cells
