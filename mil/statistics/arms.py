"""Predictions of every model -> one score a patient for every arm that can be scored or compared.

An arm is a model as a user would have it: trained on one site (`A`), on all (`A+B`), and, for strategies that train one
model a site, two more: `own site` (each training patient by their own hospital's model) and `ensemble` (the mean of all
sites' models). Where each site is left out once, `other sites` is one arm of all: each patient by the model of the other
hospitals. A patient's score is the mean over the repeats and folds whose model never saw that patient; `models` is how many
these are, for a mean over several is better than each: a held-out patient has one a repeat, an external one all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mil.errors import MilError
from mil.schemas import PREDICTIONS

OWN_SITE = "own site"
ENSEMBLE = "ensemble"
OTHER_SITES = "other sites"
APART = ("repeat", "fold")
TRAINING_SITES = "training sites"
EXTERNAL_SITES = "external sites"
GROUPS = (TRAINING_SITES, EXTERNAL_SITES)
PREDICTED = ("experiment", *PREDICTIONS)
SPLITS = ("held_out", "transfer", "external")
ROLES = ("train", "external")
NAMES = ("experiment", "trained_on", "patient_id", "site")
"""Columns of which no cell is blank."""


@dataclass(frozen=True)
class Scope:
    """One arm's scores for the patients of one site or group of sites: `table` has patient_id, site, label, score.

    Survival's has `time` besides, several classes' a column `score_{class}` each.
    """

    trained_on: str
    split: str
    site: str
    table: pd.DataFrame
    models: int = 1
    """Models whose mean a patient's score is (the fewest of any patient)."""
    folds: pd.DataFrame | None = None
    """Of models that were trained on other patients of this scope: a row per repeat, fold and patient, columns of `table`
    and repeat, fold. None where no patient of the scope trained any of the models."""
    judged: pd.DataFrame | None = None
    """The same at every training site, also where no patient trained the models. None at external sites, where all models judge all."""

    def of_patients(self, patients: pd.Series) -> "Scope":
        """The scope with these patients only."""
        table = self.table[self.table["patient_id"].isin(patients)].reset_index(drop=True)
        by_fold = (self.folds, self.judged)
        folds, judged = (part if part is None else part[part["patient_id"].isin(patients)] for part in by_fold)
        return replace(self, table=table, folds=folds, judged=judged)

    @property
    def labels(self) -> np.ndarray:
        """0/1 labels (patients,)."""
        return self.table["label"].to_numpy()

    @property
    def sites(self) -> np.ndarray:
        """Site of every patient (patients,)."""
        return self.table["site"].to_numpy()

    @property
    def has_pairs(self) -> bool:
        """Whether any site has patients of both classes."""
        return bool((self.table.groupby("site")["label"].nunique() > 1).any())

    @property
    def scores(self) -> np.ndarray:
        """Scores (patients,)."""
        return self.table["score"].to_numpy()


def refuse(table: pd.DataFrame, valid: Mapping[str, pd.Series], where: str, kind: str = "") -> None:
    """Raise for the first row whose value of a column is not `valid` (for an endpoint of `kind`)."""
    clause = f" for an endpoint of kind {kind}; name the right one, or" if kind else ";"
    for column, fine in valid.items():
        if not fine.all():
            row = table[~fine].iloc[0]
            raise MilError(
                f"{where}: patient {row['patient_id']}: {column} '{row[column]}' is refused{clause} run `mil predict` again"
            )


def check_patients(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """`table` if its splits are known and every patient stands at one site, with one label, once in each repeat."""
    if table.empty:
        raise MilError(f"{where}: no prediction stands in it; run `mil predict` again")
    known = {name: table[name].notna() & (table[name].astype(str) != "") for name in NAMES if name in table.columns}
    known |= {"role": table["role"].isin(ROLES), "split": table["split"].isin(SPLITS)}
    refuse(table, known | {name: table[name] % 1 == 0 for name in APART}, where)
    for column in (*label_columns(table), "site", "role"):
        doubled = table.groupby("patient_id")[column].nunique()
        if (doubled > 1).any():
            raise MilError(f"{where}: patient {doubled[doubled > 1].index[0]} has two values of {column}; see bags.csv")
    doubled = table[table.duplicated(["trained_on", *APART, "patient_id"])]
    if len(doubled):
        row = doubled.iloc[0]
        raise MilError(
            f"{where}: patient {row['patient_id']} has two rows of repeat {row['repeat']}, fold {row['fold']} by models of "
            f"{row['trained_on']}; run `mil predict` again"
        )
    inside = table[table["split"] != "external"]
    doubled = inside[inside.duplicated(["trained_on", "repeat", "patient_id"])]
    if len(doubled):
        row = doubled.iloc[0]
        raise MilError(
            f"{where}: patient {row['patient_id']} is predicted twice in repeat {row['repeat']} by models of "
            f"{row['trained_on']}: they stand in two folds; run `mil bag` and `mil train` again"
        )
    return table


def label_columns(table: pd.DataFrame) -> list[str]:
    """What is known of a patient: `label`, of survival also `time`."""
    return [name for name in ("label", "time") if name in table.columns]


def score_columns(table: pd.DataFrame) -> list[str]:
    """What a model says of a patient: `score`, of several classes also `score_{class}`."""
    scores = [name for name in map(str, table.columns) if name == "score" or name.startswith("score_")]
    return [name for name in scores if pd.api.types.is_numeric_dtype(table[name])]  # a remark of somebody's is none


def patient_scores(predictions: pd.DataFrame, apart: Sequence[str] = ()) -> pd.DataFrame:
    """One row a (trained_on, split, patient): the mean score over repeats and folds; the derived arms included.

    Columns in `apart` (repeat, fold) are not averaged over: a row each.
    """
    keys = ["trained_on", "split", "site", "role", "patient_id", *label_columns(predictions), *apart]
    grouped = predictions.groupby(keys, sort=True)
    means = {name: (name, "mean") for name in score_columns(predictions)}
    scores = grouped.agg(**means, models=("score", "size")).reset_index()
    if left_out(predictions):
        return pd.concat([scores, scores.assign(trained_on=OTHER_SITES)], ignore_index=True)
    if scores["trained_on"].nunique() < 2 or scores["trained_on"].str.contains("+", regex=False).any():
        return scores  # one model of all sites, or models of several sites each: nothing is a site's own
    own_site = scores[scores["split"] == "held_out"].assign(trained_on=OWN_SITE)
    return pd.concat([scores, own_site, _ensemble(scores, apart)], ignore_index=True)


def left_out(predictions: pd.DataFrame) -> bool:
    """Whether these are predictions of models that each left one training site out, and judged that site alone."""
    several = predictions["trained_on"].str.contains("+", regex=False)
    return bool(len(predictions) and ((predictions["split"] == "transfer") & several).all())


def scopes(predictions: pd.DataFrame) -> Iterator[Scope]:
    """Every arm on every site and on the training and the external sites together, in a fixed order."""
    scores = patient_scores(predictions)
    by_fold = patient_scores(predictions[predictions["split"] != "external"], APART)
    inside = dict(tuple(by_fold.groupby(["trained_on", "split"], sort=False)))
    training = sorted(scores.loc[scores["role"] == "train", "site"].unique())
    for (trained_on, split), arm in scores.groupby(["trained_on", "split"], sort=False):
        judged, taught = inside.get((trained_on, split)), split == "held_out" or trained_on == OTHER_SITES
        for site, table in arm.groupby("site"):
            if not (trained_on in {OWN_SITE, OTHER_SITES} or (trained_on == ENSEMBLE and split == "transfer")):
                yield _scope(trained_on, split, str(site), table, judged, taught)
        if split == "external":
            yield _scope(trained_on, split, EXTERNAL_SITES, arm)
        elif taught and sorted(arm["site"].unique()) == training:
            yield _scope(trained_on, split, TRAINING_SITES, arm, judged, taught)


def _ensemble(scores: pd.DataFrame, apart: Sequence[str]) -> pd.DataFrame:
    """The mean over the sites' models; every training patient by held-out models of their site and models of the others."""
    external = scores[scores["split"] == "external"]
    inside = scores[scores["split"] != "external"].assign(split="held_out")
    together = pd.concat([inside, external], ignore_index=True)
    keys = ["split", "site", "role", "patient_id", *label_columns(scores), *apart]
    counts = together.groupby(keys)["trained_on"].nunique()
    means = {name: (name, "mean") for name in score_columns(scores)}
    summed = together.groupby(keys).agg(**means, models=("models", "sum"))
    mean = summed[counts == scores["trained_on"].nunique()].reset_index()
    return mean.assign(trained_on=ENSEMBLE)[scores.columns.tolist()]


def _scope(
    trained_on: str,
    split: str,
    site: str,
    table: pd.DataFrame,
    judged: pd.DataFrame | None = None,
    taught: bool = False,
) -> Scope:
    """`taught`: whether patients of `table` trained models that judge others of them."""
    columns = ["patient_id", "site", *label_columns(table), *score_columns(table)]
    plain = table[columns].sort_values("patient_id").reset_index(drop=True)
    if judged is not None:
        there = judged["site"].isin(table["site"].unique())
        judged = judged.loc[there, [*columns, *APART]].sort_values([*APART, "patient_id"], ignore_index=True)
    return Scope(trained_on, split, site, plain, int(table["models"].min()), judged if taught else None, judged)
