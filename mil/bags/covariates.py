"""Columns of the patient table -> numbers for a model."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mil.errors import MilError, nearest

# A class that begins with letters and ends in a number stands for it: T2 -> 2, N0 -> 0, "grade 3" -> 3, T1c -> 1. Letters after a
# number alone are a unit, as in 71y and 18m, which must not be dropped.
NUMBERED = re.compile(r"^[A-Za-z][A-Za-z ]*(\d+(?:\.\d+)?)[a-z]*$")
STAGED = re.compile(r"^[acmpry]+(?=[A-Z])")  # cT2, pT2 and ypT2 are T2, known in another way
COMMA = re.compile(r"[+-]?\d+,\d+")
DATE = re.compile(r"\d{1,4}([-./])\d{1,2}\1\d{1,4}")
MAX_LEVELS = 12
BLANKS = frozenset({"na", "n/a", "#n/a", "nan", "null"})
"""What R, Python, spreadsheets and databases write for a value that is not known."""


def follow_up(patients: pd.DataFrame, time: str, event: str, where: str = "") -> pd.DataFrame:
    """time (float) and event (bool) by patient_id, from text cells; patients with a blank in either are left out."""
    by_patient = patients.set_index("patient_id")
    for column in (time, event):
        if column not in by_patient.columns:
            raise MilError(
                f"metrics: column '{column}' is not in the patient table; see metrics.time and metrics.event"
            )
    times, events = (pd.to_numeric(by_patient[column], errors="coerce") for column in (time, event))
    known = times.notna() & events.notna()
    unread = (times.isna() & by_patient[time].ne("")) | (events.isna() & by_patient[event].ne(""))
    wrong = unread | (known & (~events.isin([0, 1]) | (times < 0) | ~np.isfinite(times)))
    if wrong.any():
        patient = wrong[wrong].index[0]
        raise MilError(
            f"{where}metrics.time and metrics.event: patient '{patient}' has {time} = '{by_patient.loc[patient, time]}', {event} = "
            f"'{by_patient.loc[patient, event]}'; the time must be a number with a decimal point, not below 0, and the event 0 or 1 (or "
            "both blank)"
        )
    return pd.DataFrame({"time": times[known].astype(float), "event": events[known].astype(bool)})


def clinical_inputs(patients: pd.DataFrame, columns: Sequence[str], where: str = "metrics.clinical") -> pd.DataFrame:
    """Numbers by patient_id: a column as it is, classes of one name and a number (T1, T2) as that number, else a column a class.

    `patients` holds text cells; a blank is nan. `where` are the settings that name the columns, for messages. Raises for a column that is not there, or has too many classes.
    """
    by_patient = patients.set_index("patient_id")
    parts = []
    for column in columns:
        if column not in by_patient.columns:
            raise MilError(
                f"{where}: column '{column}' is not in the patient table; {nearest(column, map(str, by_patient.columns))}"
            )
        parts.append(_numbers(by_patient[column].astype(str), column, where))
    return pd.concat(parts, axis=1) if parts else pd.DataFrame(index=by_patient.index)


def complete_inputs(patients: pd.DataFrame, columns: Sequence[str], index: pd.Index) -> pd.DataFrame:
    """`clinical_inputs` of the patients of `index` in whose row nothing is blank, without columns that do not vary among them."""
    inputs = clinical_inputs(patients, columns).reindex(index)
    inputs = inputs.loc[:, inputs.nunique() > 1].dropna()
    return inputs.loc[:, inputs.nunique() > 1]


def _numbers(cells: pd.Series, column: str, where: str) -> pd.DataFrame:
    known = cells[cells != ""]
    _refuse_spelling(known, column, where)
    refuse_mixture(known, column, where)
    numbers = pd.to_numeric(known, errors="coerce")
    names = known.str.replace(STAGED, "", regex=True).str.extract(r"^([A-Za-z ]*)", expand=False)
    if numbers.isna().any() and names.str.strip().str.casefold().nunique() == 1:  # FEC100 and AC4 are no 100 and 4
        numbers = pd.to_numeric(known.str.extract(NUMBERED, expand=False), errors="coerce")
    if not numbers.isna().any():
        return numbers.reindex(cells.index).to_frame(column).astype(float)
    levels = sorted(known.unique())
    if len(levels) > MAX_LEVELS:
        raise MilError(
            f"{where}: column '{column}' has {len(levels)} classes ({levels[0]}, {levels[1]}, ...); at most {MAX_LEVELS} "
            "can be used, so group them, or leave it out"
        )
    return pd.DataFrame(
        {f"{column} = {level}": (known == level).astype(float).reindex(cells.index) for level in levels[1:]},
        index=cells.index,
    )


def _refuse_spelling(cells: pd.Series, column: str, where: str) -> None:
    """Raise for decimal commas and dates, which would be classes, each of few patients."""
    for kind, pattern, way_out in (
        ("a decimal comma", COMMA, "write a decimal point"),
        ("a date", DATE, "write a number (years of age, months of follow-up), or leave the column out"),
    ):
        odd = cells[cells.map(lambda cell, pattern=pattern: pattern.fullmatch(cell) is not None)]
        if len(odd):
            raise MilError(
                f"{where}: column '{column}' has {kind} for patient '{odd.index[0]}' ('{odd.iloc[0]}'); {way_out}"
            )


def refuse_mixture(cells: pd.Series, column: str, where: str) -> None:
    """Raise for 'NA', for '<5', 'T2' or 'inf' among numbers, and for 'Yes' beside 'yes': no class is meant.

    `cells` are texts by patient_id, none blank.
    """
    plain = np.isfinite(pd.to_numeric(cells, errors="coerce").astype(float))
    odd = cells[~plain]
    if plain.any() and len(odd):
        raise MilError(
            f"{where}: column '{column}' holds numbers, but '{odd.iloc[0]}' for patient '{odd.index[0]}'; leave what is unknown "
            "blank, or make all of it classes"
        )
    unknown = odd[odd.str.casefold().isin(BLANKS)]
    if len(unknown):
        raise MilError(
            f"{where}: column '{column}' is '{unknown.iloc[0]}' for patient '{unknown.index[0]}'; leave what is unknown blank"
        )
    classes = odd.drop_duplicates()
    twins = classes[classes.str.split().str.join(" ").str.casefold().duplicated()]
    if len(twins):
        raise MilError(
            f"{where}: column '{column}' is '{twins.iloc[0]}' for patient '{twins.index[0]}', and for others the same with other "
            "capitals or blanks; write one class alike"
        )
