"""Tables on disk: CSV or TSV in, CSV out, every cell text until somebody says otherwise."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd

from mil.errors import CorruptFile, MilError, MissingColumn
from mil.files import SHEET_PATH, require_file, write_text
from mil.schemas import NUMBERS, TEXT

SIGNS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
ENDS = re.compile(r"^[\s\u200b\ufeff]+|[\s\u200b\ufeff]+$")  # blanks and signs of no width, which copied text brings
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""The first bytes of .xlsx and .ods, and of .xls."""


def read_text_table(path: str | Path, what: str) -> pd.DataFrame:
    """A person's CSV (or TSV, by its suffix) as trimmed text cells; the index is the line number in the file. A name of two lines has a blank.

    Cells are parted by commas; by semicolons where the header has these and no comma, as spreadsheets write in many countries.
    """
    path = require_file(path, what, SHEET_PATH)
    tabs = path.suffix.lower() in {".tsv", ".tab"}
    try:
        with open(path, "rb") as start:
            if start.read(4) in WORKBOOKS:
                raise MilError(
                    f"{what} {path} is a spreadsheet's workbook; save the sheet as CSV UTF-8 and name that file"
                )
        with open(path, newline="", encoding="utf-8-sig") as handle:
            header = handle.readline()
            handle.seek(0)
            parted = ";" if ";" in header and "," not in header else ","
            reader = csv.reader(handle, delimiter="\t" if tabs else parted, strict=True)
            lines = [(reader.line_num, [ENDS.sub("", cell) for cell in cells]) for cells in reader]
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
    if len(columns) == 1 and (other := next((sign for sign in "\t,;|" if sign in columns[0]), None)):
        raise MilError(
            f"{what} {path}: its columns are parted by {SIGNS[other]}, not {SIGNS[reader.dialect.delimiter]}; save it with commas "
            "as .csv, or with tabs as .tsv"
        )
    columns = [" ".join(name.split()) for name in columns]
    if "" in columns:
        raise MilError(
            f"{what} {path}: column {columns.index('') + 1} has no name; name it, or empty it (the first line has the names)"
        )
    doubled = [column for column in columns if columns.count(column) > 1]
    if doubled:
        raise MilError(f"{what} {path}: column '{doubled[0]}' stands twice; keep one")
    for line, cells in rows:
        if len(cells) != len(columns):
            raise MilError(
                f"{what} {path} line {line}: {len(cells)} cells, but the header has {len(columns)}; check for a stray "
                f"{SIGNS[reader.dialect.delimiter][:-1]}"
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
    """Raise for the needed columns that `table` lacks, naming the nearest one it has for each."""
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise MissingColumn(where, missing, list(map(str, table.columns)))


FORMULA = re.compile(r"'*[=+\-@\t\r]")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?inf(inity)?", re.IGNORECASE)


def harmless(cell: Any) -> Any:
    """A cell that a spreadsheet would execute, with an apostrophe before it; numbers and all other cells as they are."""
    risky = isinstance(cell, str) and FORMULA.match(cell) and not NUMBER.fullmatch(cell)
    return f"'{cell}" if risky else cell


def as_it_was(cell: str) -> str:
    """The inverse of `harmless`."""
    return cell[1:] if cell[:1] == "'" and FORMULA.match(cell) else cell


def slides_of(bag: Any) -> list[str]:
    """Slides of a bag, from the cell `slides` of its row in the bag table."""
    return str(bag).split(";")


def by_slide(bags: pd.DataFrame) -> pd.DataFrame:
    """The bag table with a row per slide, whose id is in the column `slide_id`."""
    return bags.assign(slide_id=bags["slides"].map(slides_of)).explode("slide_id")


TARGETS = ("label", "time")
"""Columns that say a patient's outcome in tables of bags and predictions; a patient without a label has a blank cell there."""


def has_label(table: pd.DataFrame) -> pd.Series:
    """Whether any cell of each row's outcome is filled (rows,) bool; True where the table has no column of outcomes."""
    there = [name for name in TARGETS if name in table.columns]
    filled = [table[name].notna() & (table[name].astype(str) != "") for name in there]
    return pd.concat(filled, axis=1).any(axis=1) if filled else pd.Series(True, table.index)


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of patients with a label; labels that are whole numbers are integers, as in a table without blanks."""
    known = has_label(table)
    if known.all():
        return table
    table = table[known].reset_index(drop=True)
    if "label" in table and pd.api.types.is_numeric_dtype(table["label"]) and (table["label"] % 1 == 0).all():
        table["label"] = table["label"].astype("int64")
    return table


def stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all tables; the first table where none has a row. (An empty table would change the types of columns.)"""
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else tables[0]


def table_of(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> pd.DataFrame:
    """A table whose whole numbers stay whole where other rows of their column are blank (type `Int64`)."""
    table = pd.DataFrame(list(rows), columns=list(columns), dtype=object)
    for column in table:
        blank = table[column].isna()
        whole = table.loc[~blank, column].map(lambda value: isinstance(value, Integral) and not isinstance(value, bool))
        table[column] = table[column].astype("Int64") if blank.any() and len(whole) and whole.all() else table[column]
    return table.infer_objects()


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as CSV, atomically; see `csv_text`."""
    write_text(path, csv_text(table))


def csv_text(table: pd.DataFrame) -> str:
    """The table as CSV without its index; floats in their shortest exact form, formulas as `harmless` text."""
    text = [column for column in table.columns if table[column].dtype == object or table[column].dtype.name == "string"]
    safe = table.assign(**{column: table[column].map(harmless) for column in text}) if text else table
    # csv leaves a carriage return bare, which ends the row for those who read it
    returns = any(safe[column].map(lambda cell: isinstance(cell, str) and "\r" in cell).any() for column in text)
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    return safe.rename(columns=harmless).to_csv(index=False, lineterminator="\n", quoting=quoting)


def read_table(path: str | Path, text: Iterable[str] = (), only_labelled: bool = False) -> pd.DataFrame:
    """A CSV of ours. The columns of `schemas.TEXT` and those named in `text` stay text, so that '007' and 'NA' survive.

    With `only_labelled` the table is as if its file had no row of a patient without a label.
    """
    path = require_file(path, "table", "run the step that writes it")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise CorruptFile(
            f"table {path} is not as it was written ({reason}); run the step that writes it again"
        ) from error
    table = table.rename(columns=as_it_was)
    for column in table.columns:
        if table[column].str.startswith("'").any():
            table[column] = table[column].map(as_it_was)
    if only_labelled:
        table = table[has_label(table)].reset_index(drop=True)
    for column in table.columns.difference([*TEXT, *text]):
        table[column] = _as_numbers(table[column])
        if column in NUMBERS and (table[column] == "").all():
            table[column] = float("nan")
    return table


def _as_numbers(cells: pd.Series) -> pd.Series:
    """Integers or floats (blank is NaN) where every cell is one, else the text as it is."""
    filled = cells[cells != ""]
    if filled.str.contains("_", regex=False).any():  # Python reads 1_0 as 10
        return cells
    try:
        if len(filled) == len(cells) and len(cells) and filled.str.fullmatch(r"-?\d{1,18}").all():
            return cells.astype("int64")
        return cells.replace("", "nan").astype(float) if len(filled) else cells
    except ValueError:
        return cells
