"""Cells of the patient table -> labels and numbers by patient; a value that cannot be used is an error with its line."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mil.errors import MilError, MissingColumn

if TYPE_CHECKING:
    from mil.slides.sheet import Cohort
    from mil.specs.endpoints import EndpointSpec

LARGEST = float(np.finfo(np.float32).max)  # models predict in single precision


def yes_or_no(cohort: "Cohort", endpoint: "EndpointSpec", column: str) -> pd.Series:
    """0 or 1 by patient_id, of patients whose cell is filled."""
    classes = dict.fromkeys(endpoint.negative, 0) | dict.fromkeys(endpoint.positive, 1)
    known = spelt_as(filled(cohort, column), classes)
    what = (
        f"neither positive ({', '.join(endpoint.positive)}) nor negative ({', '.join(endpoint.negative)})",
        "correct it, leave it blank, or name it in the endpoint",
    )
    refuse_cells(known[~known.isin(list(classes))], column, *what, cohort=cohort)
    return known.map(classes).astype(int)


def spelt_as(cells: pd.Series, classes: Collection[str]) -> pd.Series:
    """Cells such as `1.0` as `1` where that is a class: so a column of whole numbers is saved once a cell of it is blank."""
    whole = cells.str.replace(r"^([+-]?\d+)\.0+$", r"\1", regex=True)
    return cells.where(cells.isin(list(classes)) | ~whole.isin(list(classes)), whole)


def numbers(cohort: "Cohort", column: str, positive: bool = False) -> pd.Series:
    """Numbers by patient_id, of patients whose cell is filled; with `positive`, numbers above 0."""
    values = filled(cohort, column)
    parsed = pd.to_numeric(values, errors="coerce").astype(float)
    usable = (parsed.abs() <= LARGEST) & ((parsed > 0) | (not positive))
    refuse_cells(values[~usable], column, "no positive number" if positive else "no number", cohort=cohort)
    return parsed


def filled(cohort: "Cohort", column: str) -> pd.Series:
    """Text cells by patient_id that are not blank."""
    if column not in cohort.patients.columns:
        raise MissingColumn(f"patient table {cohort.source}", [column], list(map(str, cohort.patients)))
    values = cohort.patients.set_index("patient_id")[column]
    return values[values != ""]


def refuse_cells(
    wrong: pd.Series, column: str, what: str, remedy: str = "correct it, or leave it blank", *, cohort: "Cohort"
) -> None:
    """Raise for the first of `wrong` cells, if there are any; `what` says what it is, `remedy` what to do."""
    if len(wrong):
        line = cohort.patients.index[cohort.patients["patient_id"] == wrong.index[0]][0]
        raise MilError(
            f"patient table {cohort.source} line {line}: patient '{wrong.index[0]}' has {column} = '{wrong.iloc[0]}', which is "
            f"{what}; {remedy}"
        )
