"""Slide sheet and patient table -> a cohort whose ids, sites and paths can be trusted, or one line that says why not."""

import math
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path

import pandas as pd

from mil.config import SlidesSpec
from mil.errors import MilError, nearest
from mil.files import check_id, check_name
from mil.schemas import SHEET
from mil.tables import as_it_was, read_text_table, require_columns

DECIMAL = re.compile(r"[+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")  # Python would take 1_0 for 10
OPTIONAL_COLUMNS = ("mpp",)
EXPONENT = re.compile(r"[0-9]([.,][0-9]+)?e\+[0-9]{1,2}")
MINUS = "\u2212"  # no dash to Unicode


@dataclass(frozen=True)
class Cohort:
    """`slides`: slide_id, patient_id, site, path (absolute or relative to here), mpp (text, may be blank), one row a slide.

    `patients`: patient_id and every column of the patient table as text; the index is the line in its file.
    """

    slides: pd.DataFrame
    patients: pd.DataFrame
    source: str
    """The file that holds the patient columns, for messages."""

    @cached_property
    def _by_site(self) -> dict[str, pd.DataFrame]:
        return {str(site): rows for site, rows in self.slides.groupby("site", sort=True)}

    @property
    def sites(self) -> list[str]:
        """Sites in alphabetical order."""
        return list(self._by_site)

    def at(self, site: str) -> pd.DataFrame:
        """The rows of one site, in the order of the sheet."""
        if site not in self._by_site:
            raise MilError(f"site '{site}' has no slide in the sheet; {nearest(site, self.sites)}")
        return self._by_site[site]


def read_cohort(spec: SlidesSpec, label_columns: Iterable[str] = ()) -> Cohort:
    """Read and check both tables; `label_columns` must exist. Column `listed` says whether a slide's patient has a row."""
    sheet = read_text_table(spec.sheet, "slide sheet")
    if spec.features and "path" not in sheet.columns:
        sheet = sheet.assign(path="")  # rows of sites that have slides are refused below
    require_columns(sheet, SHEET, f"slide sheet {spec.sheet}")
    if sheet.empty:
        raise MilError(f"slide sheet {spec.sheet} has no rows; write one row a slide: {', '.join(SHEET)}")
    if "mpp" not in sheet.columns:
        sheet = sheet.assign(mpp="")
    patients, source = _patients(sheet, spec)
    require_columns(patients, label_columns, f"patient table {source}")
    slides = sheet[[*SHEET, *OPTIONAL_COLUMNS]].copy()
    _check_rows(slides, spec)
    _check_persons(slides, set(patients["patient_id"]) if spec.patients else set(), spec)
    slides["path"] = _resolve(slides, spec)
    slides["listed"] = slides["patient_id"].isin(set(patients["patient_id"]))
    return Cohort(slides, patients, source)


def read_shard(path: str | Path) -> pd.DataFrame:
    """The slides of a shard that the workflow wrote from the sheet; columns as `Cohort.slides`."""
    rows = read_text_table(path, "shard").map(as_it_was)
    require_columns(rows, (*SHEET, "mpp", "listed"), f"shard {path}")
    return rows.assign(listed=rows["listed"] == "1")


def _patients(sheet: pd.DataFrame, spec: SlidesSpec) -> tuple[pd.DataFrame, str]:
    """The patient table: a file of its own, or the sheet's further columns, which must then agree within a patient."""
    extra = [column for column in sheet.columns if column not in (*SHEET, *OPTIONAL_COLUMNS)]
    if spec.patients is None:
        table = sheet[["patient_id", *extra]].drop_duplicates()
        doubled = table[table["patient_id"].duplicated()]
        if len(doubled):
            line, patient = doubled.index[0], doubled["patient_id"].iloc[0]
            raise MilError(
                f"slide sheet {spec.sheet} line {line}: patient '{patient}' has other values than in an earlier row; "
                f"make {', '.join(extra)} agree, or give a patient table (slides.patients)"
            )
        return table, spec.sheet
    if extra:
        known = (*SHEET, *OPTIONAL_COLUMNS)
        unknown = "; ".join(f"unknown column '{column}'; {nearest(column, known)}" for column in extra)
        raise MilError(f"slide sheet {spec.sheet}: {unknown} (columns of patients belong into {spec.patients})")
    table = read_text_table(spec.patients, "patient table")
    require_columns(table, ["patient_id"], f"patient table {spec.patients}")
    check_patients(table, spec.patients)
    _check_spelling(sheet, table, spec)
    return table, spec.patients


def check_patients(table: pd.DataFrame, path: str) -> None:
    """Raise where the patient table at `path` has a row without an id, or two of one person."""
    nameless = table.index[table["patient_id"] == ""]
    if len(nameless):
        raise MilError(
            f"patient table {path} line {nameless[0]}: column 'patient_id' is blank; fill it or remove the row"
        )
    doubled = table[table["patient_id"].duplicated()]
    if len(doubled):
        raise MilError(
            f"patient table {path} line {doubled.index[0]}: patient '{doubled['patient_id'].iloc[0]}' "
            "has a row already; keep one row a patient"
        )
    alike = table[table["patient_id"].map(_spelt).duplicated()]
    if len(alike):
        patient = alike["patient_id"].iloc[0]
        first = table[table["patient_id"].map(_spelt) == _spelt(patient)]
        quoted = _quoted(patient, first["patient_id"].iloc[0])
        raise MilError(
            f"patient table {path} line {alike.index[0]}: patient {quoted[0]} is spelt {quoted[1]} in "
            f"line {first.index[0]}; keep one row, or give two persons ids that differ by more than case, blanks or kind of dash"
        )


def _check_spelling(sheet: pd.DataFrame, patients: pd.DataFrame, spec: SlidesSpec) -> None:
    """A patient of the sheet who has no row, while one who has no slide is spelt almost alike, is one patient: '007' and '7.0'."""
    having, wanted = set(patients["patient_id"]), set(sheet["patient_id"])
    spare = {_without_signs(patient): patient for patient in sorted(having - wanted)}
    for line, patient in sheet["patient_id"].items():
        if patient not in having and (other := spare.get(_without_signs(patient))):
            quoted = _quoted(patient, other)
            raise MilError(
                f"slide sheet {spec.sheet} line {line}: patient {quoted[0]} has no row in {spec.patients}, but {quoted[1]} has; "
                "write both alike"
            )


def _check_persons(sheet: pd.DataFrame, having: set[str], spec: SlidesSpec) -> None:
    """Raise where no patient is among those `having` a row, or a site has '7' and '007', one patient unless both have rows."""
    wanted = set(sheet["patient_id"])
    if having and not having & wanted:
        raise MilError(
            f"none of the {len(wanted)} patients of slide sheet {spec.sheet} has a row in {spec.patients}: ids there are like "
            f"'{min(having)}', in the sheet like '{min(wanted)}'; write them alike"
        )

    seen: dict[tuple[str, str], tuple[str, int]] = {}
    for line, patient, site in sheet[["patient_id", "site"]].itertuples():
        other, first = seen.setdefault((site, _plain(patient)), (patient, line))
        if other != patient and not {other, patient} <= having:
            raise MilError(
                f"slide sheet {spec.sheet} line {line}: patient '{patient}' stands as '{other}' in line {first}; write both alike, or "
                "give two persons ids that differ by more than zeros in front or behind"
            )


def _spelt(name: str) -> str:
    """An id without case, blanks, kinds of dashes and the ways to write one letter: what a person takes for the same id."""
    plain = "".join(_seen(name).casefold().split())
    return "".join("-" if unicodedata.category(sign) == "Pd" or sign == MINUS else sign for sign in plain)


def _plain(patient: str) -> str:
    """An id as `_spelt`, and without what spreadsheets change: zeros in front, '.0' behind, '1e+05' for 100000."""
    text = _spelt(patient)
    if EXPONENT.fullmatch(text):
        text = f"{Decimal(text.replace(',', '.')):f}"
    return re.sub(r"\.0+$", "", text).lstrip("0")


def _without_signs(patient: str) -> str:
    """An id as `_plain`, with one sign for all that is no letter and no digit: 'A-1/2' and 'a_1-2'."""
    return re.sub(r"[\W_]+", "-", _plain(patient))


def _seen(name: str) -> str:
    """An id as it looks: one way to write a letter, and no sign that prints nothing."""
    return "".join(sign for sign in unicodedata.normalize("NFKC", name) if unicodedata.category(sign) != "Cf")


def _quoted(*names: str) -> list[str]:
    """Names for a message, with escapes where they look alike."""
    return [ascii(name) if len(set(map(_seen, names))) == 1 else f"'{name}'" for name in names]


def _check_rows(slides: pd.DataFrame, spec: SlidesSpec) -> None:
    """Every id is present and usable as a file name, unique where it must be, and every site has a role."""
    slide_lines: dict[str, int] = {}
    path_lines: dict[str, int] = {}
    spellings: dict[str, tuple[str, int]] = {}
    patient_sites: dict[str, tuple[str, int]] = {}
    for row in slides.itertuples():
        line = int(row.Index)  # type: ignore[arg-type]
        where = f"slide sheet {spec.sheet} line {line}"
        featured = row.site in spec.features
        for column in SHEET:
            if not getattr(row, column) and not (column == "path" and featured):
                raise MilError(f"{where}: column '{column}' is blank; fill it or remove the row")
        check_id("slide_id", row.slide_id, where)
        check_id("patient_id", row.patient_id, where)
        check_name("site", row.site, where)
        _refuse_second(slide_lines, _spelt(row.slide_id), line, f"{where}: slide_id '{row.slide_id}'")
        if not featured:
            _refuse_second(path_lines, os.path.normpath(row.path), line, f"{where}: path '{row.path}'")
        other, first = spellings.setdefault(_spelt(row.patient_id), (row.patient_id, line))
        if other != row.patient_id:
            quoted = _quoted(row.patient_id, other)
            raise MilError(
                f"{where}: patient {quoted[0]} is spelt {quoted[1]} in line {first}; one person's slides must not lie in two "
                "folds: write both alike, or give two persons ids that differ by more than case, blanks or kind of dash"
            )
        site, first = patient_sites.setdefault(row.patient_id, (row.site, line))
        if site != row.site:
            raise MilError(
                f"{where}: patient '{row.patient_id}' is at site '{row.site}', but in line {first} at '{site}'; "
                "a patient belongs to one site (or rename one of the two patients)"
            )
        if row.site not in spec.roles:
            raise MilError(
                f"{where}: site '{row.site}' has no role; add it under slides.roles as train or external "
                f"({nearest(row.site, spec.roles)})"
            )
        _check_mpp(row.mpp, where)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file system takes, or a folder that may not be entered
        return False


def _refuse_second(lines: dict[str, int], key: str, line: int, what: str) -> None:
    if key in lines:
        raise MilError(f"{what} stands in line {lines[key]} already; one row a slide")
    lines[key] = line


def _check_mpp(text: str, where: str) -> None:
    if not text:
        return
    if not DECIMAL.fullmatch(text) or not 0 < float(text) < math.inf:
        raise MilError(
            f"{where}: mpp '{text}' is not a positive number; give microns a pixel with a decimal point, e.g. 0.25, or leave it blank"
        )


def _resolve(slides: pd.DataFrame, spec: SlidesSpec) -> list[str]:
    """Paths relative to the sheet become usable from here; each must exist and be named once."""
    folder = Path(spec.sheet).parent
    resolved: dict[str, int] = {}
    paths = []
    for line, text, site in slides[["path", "site"]].itertuples():
        if site in spec.features:
            paths.append("")
            continue
        path = folder / text
        where = f"slide sheet {spec.sheet} line {line}"
        if not _exists(path):
            raise MilError(
                f"{where}: slide {path} does not exist; correct the path (relative to the sheet) or remove the row"
            )
        _refuse_second(resolved, os.path.realpath(path), int(line), f"{where}: the file of '{text}'")  # type: ignore[arg-type]
        paths.append(str(path))
    return paths
