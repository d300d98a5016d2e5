"""Tables on disk: CSV or TSV in, CSV out, every cell text until somebody says otherwise."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from mil.errors import MilError, nearest
from mil.files import write_text


def read_text_table(path: str | Path, what: str) -> pd.DataFrame:
    """A CSV (or TSV, by its suffix) as text cells, blanks as empty strings; the index is the line number in the file."""
    path = Path(path)
    if not path.is_file():
        raise MilError(
            f"{what} {path} does not exist; give its path relative to the folder you run in, or an absolute one"
        )
    separator = "\t" if path.suffix.lower() in {".tsv", ".tab"} else ","
    try:
        table = pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise MilError(
            f"{what} {path} cannot be read as a {'TSV' if separator == chr(9) else 'CSV'} table: {_one_line(error)}"
        ) from error
    columns = [str(column).strip() for column in table.columns]
    table.columns = columns
    doubled = [column for column in columns if columns.count(column) > 1]
    if doubled:
        raise MilError(f"{what} {path}: column '{doubled[0]}' stands twice; keep one")
    for column in table.columns:
        table[column] = table[column].str.strip()
    table.index = pd.RangeIndex(2, 2 + len(table), name="line")  # the header is line 1
    return table[(table != "").any(axis=1)]


def require_columns(table: pd.DataFrame, needed: Iterable[str], where: str) -> None:
    """Raise for the first needed column that `table` lacks, naming the nearest one it has."""
    for column in needed:
        if column not in table.columns:
            raise MilError(f"{where}: column '{column}' is missing; {nearest(column, map(str, table.columns))}")


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as CSV, atomically, without its index; floats in their shortest exact form."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_table(path: str | Path, text: Iterable[str] = ()) -> pd.DataFrame:
    """A CSV of ours. Columns named in `text` (ids above all) stay text, so that '007' and 'NA' survive."""
    path = Path(path)
    if not path.is_file():
        raise MilError(f"table {path} does not exist; run the step that writes it")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in table.columns.difference(list(text)):
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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
