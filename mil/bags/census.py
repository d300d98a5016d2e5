"""One site's slide, tile and feature tables -> its census: every slide's state and counts, the only such table to leave."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from mil.errors import MilError
from mil.schemas import CENSUS
from mil.tables import read_table, require_columns


def take_census(slides: pd.DataFrame, manifests: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Lay the manifests of the later stages (in their order, by stage name) over the slide table of one site.

    A slide keeps the state of the first stage at which it stopped being `ok`. Returns `CENSUS`, a row a slide.
    """
    _check(slides, "check", [name for name in CENSUS if name not in {"stage", "num_tiles"}])
    census = slides.assign(stage="check", num_tiles=0).set_index("slide_id", drop=False)
    for stage, manifest in manifests.items():
        _check(manifest, stage, ("slide_id", "state", "reason", "num_tiles"))
        known = manifest.set_index("slide_id")
        waiting = census.index[census["state"] == "ok"]
        missing = waiting.difference(known.index)
        if len(missing):
            raise MilError(
                f"stage {stage}: slide '{missing[0]}' is ok so far but has no row in its manifests; run the stage again"
            )
        census.loc[waiting, "stage"] = stage
        for column in ("state", "reason", "num_tiles"):
            census.loc[waiting, column] = known.loc[waiting, column]
    return census.reset_index(drop=True)[list(CENSUS)]


def _check(table: pd.DataFrame, stage: str, columns: Sequence[str]) -> None:
    """Refuse a stage's table that lacks a column, or has a slide twice, a blank state or a number of tiles that is none."""
    require_columns(table, columns, f"stage {stage}")
    numbers = (
        pd.to_numeric(table["num_tiles"], errors="coerce") if "num_tiles" in columns else pd.Series(0, table.index)
    )
    for why, rows in {
        "stands twice": table["slide_id"].duplicated(),
        "has no state": table["state"].isna() | (table["state"].astype(str).str.strip() == ""),
        "has a number of tiles that is no whole number": ~((numbers >= 0) & (numbers % 1 == 0)),
    }.items():
        if rows.any():
            raise MilError(f"stage {stage}: slide '{table.loc[rows, 'slide_id'].iloc[0]}' {why}; run the stage again")


def read_manifests(paths: Iterable[str | Path]) -> pd.DataFrame:
    """The shards' manifests of one stage, one below the other."""
    tables = [read_table(path) for path in sorted(map(Path, paths))]
    return (
        pd.concat(tables, ignore_index=True)
        if tables
        else pd.DataFrame(columns=["slide_id", "state", "reason", "num_tiles"])
    )


def read_census(paths: Iterable[str | Path]) -> pd.DataFrame:
    """The sites' censuses, one below the other, sites in alphabetical order."""
    return pd.concat([read_table(path) for path in sorted(map(Path, paths))], ignore_index=True)


def flow(
    census: pd.DataFrame, roles: Mapping[str, str], used_patients: Iterable[str], lost: Mapping[str, str]
) -> pd.DataFrame:
    """Patients and slides in -> used, per site, with what was left out and why.

    `used_patients` form the bags; `lost` says why a patient with usable slides does not (a state such as `no_label`).
    Steps: `in_sheet`, then `excluded` once a reason (slides, and the patients who thereby have none left), then `used`.
    Columns: site, role, step, reason, patients, slides.
    """
    used = set(used_patients)
    rows = []
    for site, slides in census.sort_values("slide_id").groupby("site", sort=True):
        role = roles[str(site)]
        rows.append((site, role, "in_sheet", "", slides["patient_id"].nunique(), len(slides)))
        why = slides["state"].where(slides["state"] != "ok", slides["patient_id"].map(lost).fillna("ok"))
        for reason, excluded in slides[why != "ok"].groupby(why[why != "ok"], sort=True):
            # a patient counts once, under the reason of the last of their slides by id, in any order of the sheet
            gone = set(excluded["patient_id"]) - used
            last = slides.assign(why=why)[slides["patient_id"].isin(gone)].groupby("patient_id")["why"].last()
            rows.append((site, role, "excluded", reason, int((last == reason).sum()), len(excluded)))
        kept = slides[(why == "ok") & slides["patient_id"].isin(used)]
        rows.append((site, role, "used", "", kept["patient_id"].nunique(), len(kept)))
    return pd.DataFrame(rows, columns=["site", "role", "step", "reason", "patients", "slides"])
