"""The bag table as arrays: patients by site and id, their targets, covariates and folds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mil.endpoints import Endpoint
from mil.errors import MilError
from mil.specs.endpoints import EndpointSpec
from mil.tables import require_columns

NO_FOLD = -1


@dataclass(frozen=True)
class TrainingCohort:
    """Training patients by site and id; `outer` (patients, repeats), `inner` (patients, repeats, outer folds)."""

    patients: tuple[str, ...]
    site: np.ndarray
    targets: np.ndarray
    """(patients, target columns) float32"""
    covariates: np.ndarray
    """(patients, covariates) float32, NaN where not known"""
    outer: np.ndarray
    inner: np.ndarray
    folds: int
    inner_folds: int

    @classmethod
    def of(
        cls, bags: pd.DataFrame, spec: EndpointSpec, endpoint: Endpoint, covariates: Sequence[str] = ()
    ) -> "TrainingCohort":
        """Read the folds as they stand in the table; a row of any other site than a training one is refused."""
        columns = [f"repeat{r}" for r in range(spec.repeats)]
        columns += [f"repeat{r}_fold{f}_inner" for r in range(spec.repeats) for f in range(spec.folds)]
        require_columns(bags, ["patient_id", "site", "role", *endpoint.columns, *columns], "bags")
        foreign = bags[bags["role"] != "train"]
        if len(foreign):
            row = foreign.iloc[0]
            raise MilError(
                f"bags: patient {row.patient_id} of site {row.site} has role {row.role}; training is given training sites only"
            )
        doubled = bags["patient_id"][bags["patient_id"].duplicated()]
        if len(doubled):
            raise MilError(f"bags: patient {doubled.iloc[0]} stands twice; keep one row")
        bags = bags.sort_values(["site", "patient_id"], kind="stable")
        outer = np.stack([_folds(bags[f"repeat{r}"]) for r in range(spec.repeats)], axis=1)
        inner = [[_folds(bags[f"repeat{r}_fold{f}_inner"]) for f in range(spec.folds)] for r in range(spec.repeats)]
        return cls(
            tuple(bags["patient_id"].astype(str)),
            bags["site"].to_numpy(str),
            endpoint.targets(bags),
            covariate_table(bags, covariates),
            outer,
            np.array(inner).transpose(2, 0, 1),
            spec.folds,
            spec.inner_folds,
        )

    @property
    def sites(self) -> list[str]:
        """Sites in sorted order."""
        return sorted(set(self.site.tolist()))

    def outer_train(self, sites: Sequence[str], repeat: int, fold: int) -> np.ndarray:
        """Patients of `sites` that the models of this outer fold may see, by number."""
        placed = self.outer[:, repeat]
        return np.flatnonzero(np.isin(self.site, sites) & (placed != fold) & (placed != NO_FOLD))


def covariate_table(bags: pd.DataFrame, covariates: Sequence[str]) -> np.ndarray:
    """The covariates' columns as float32 (patients, covariates); blank is NaN, text is an error that names the patient."""
    require_columns(bags, covariates, "bags")
    table = np.full((len(bags), len(covariates)), np.nan, np.float32)
    for column, name in enumerate(covariates):
        if bags[name].dtype == float and not np.isinf(bags[name]).any():
            table[:, column] = bags[name]
            continue
        blank = bags[name].isna() | (bags[name].astype(str).str.strip() == "")
        numbers = pd.to_numeric(bags[name].where(~blank), errors="coerce")
        bad = bags[~np.isfinite(numbers.astype(float)) & ~blank]
        if len(bad):
            patient, value = bad["patient_id"].iloc[0], bad[name].iloc[0]
            raise MilError(
                f"bags: patient {patient}: covariate {name} is {value!r}, not a number; give categories as 0/1 columns"
            )
        table[:, column] = numbers.to_numpy(np.float32)
    return table


def _folds(column: pd.Series) -> np.ndarray:
    return pd.to_numeric(column, errors="coerce").astype(float).fillna(NO_FOLD).to_numpy(np.int64)
