"""The bag table as arrays: patients in sorted order, their site, target and folds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mil.config import EndpointSpec
from mil.endpoints import Binary
from mil.errors import MilError
from mil.tables import require_columns

NO_FOLD = -1


@dataclass(frozen=True)
class Cohort:
    """Training patients by site and id; `outer` (patients, repeats), `inner` (patients, repeats, outer folds)."""

    patients: tuple[str, ...]
    site: np.ndarray
    targets: np.ndarray
    outer: np.ndarray
    inner: np.ndarray
    folds: int
    inner_folds: int

    @classmethod
    def of(cls, bags: pd.DataFrame, spec: EndpointSpec, endpoint: Binary) -> "Cohort":
        """Read the folds as they stand in the table; a row of any other site than a training one is refused."""
        columns = [f"repeat{r}" for r in range(spec.repeats)]
        columns += [f"repeat{r}_fold{f}_inner" for r in range(spec.repeats) for f in range(spec.folds)]
        require_columns(bags, ["patient_id", "site", "role", "label", *columns], "bags")
        foreign = bags[bags.role != "train"]
        if len(foreign):
            row = foreign.iloc[0]
            raise MilError(
                f"bags: patient {row.patient_id} of site {row.site} has role {row.role}; training is given training sites only"
            )
        if bags.patient_id.duplicated().any():
            raise MilError(
                f"bags: patient {bags.patient_id[bags.patient_id.duplicated()].iloc[0]} stands twice; keep one row"
            )
        bags = bags.sort_values(["site", "patient_id"], kind="stable")
        patients = tuple(bags.patient_id.astype(str))
        outer = np.stack([_folds(bags[f"repeat{r}"]) for r in range(spec.repeats)], axis=1)
        inner = np.stack(
            [
                np.stack([_folds(bags[f"repeat{r}_fold{f}_inner"]) for f in range(spec.folds)], axis=1)
                for r in range(spec.repeats)
            ],
            axis=1,
        )
        targets = endpoint.targets(list(bags.label), patients)
        return cls(patients, bags.site.to_numpy(str), targets, outer, inner, spec.folds, spec.inner_folds)

    @property
    def sites(self) -> list[str]:
        """Sites in sorted order."""
        return sorted(set(self.site))

    def outer_train(self, sites: Sequence[str], repeat: int, fold: int) -> np.ndarray:
        """Patients of `sites` that the models of this outer fold may see, by number."""
        placed = self.outer[:, repeat]
        return np.flatnonzero(np.isin(self.site, sites) & (placed != fold) & (placed != NO_FOLD))


def _folds(column: pd.Series) -> np.ndarray:
    return pd.to_numeric(column, errors="coerce").fillna(NO_FOLD).to_numpy(np.int64)
