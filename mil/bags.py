"""Census and patient table -> the bag table of an endpoint: who is in, with which slides, label and folds.

Folds are dealt within every training site and label, so a hospital can deal its own without seeing another's patients;
the same seed gives the same folds whatever the order of the rows. They are written once and never computed again.
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from mil.census import flow
from mil.config import EndpointSpec
from mil.errors import MilError
from mil.rng import rng
from mil.slides.sheet import Cohort

TEXT = ("patient_id", "slides", "site", "role")


def make_bags(
    cohort: Cohort, census: pd.DataFrame, roles: Mapping[str, str], endpoint: EndpointSpec
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The bag table (a row a patient: patient_id, slides, site, role, label, folds) and the flow table."""
    labels = binary_labels(cohort, endpoint)
    usable = census[census["state"] == "ok"]
    slides = usable.groupby("patient_id")["slide_id"].agg(lambda ids: ";".join(sorted(ids)))
    site = census.groupby("patient_id")["site"].first()
    used = sorted(set(slides.index) & set(labels.index))
    bags = pd.DataFrame({"patient_id": used, "slides": slides.loc[used].to_numpy(), "site": site.loc[used].to_numpy()})
    bags["role"] = bags["site"].map(dict(roles))
    bags["label"] = labels.loc[used].to_numpy()
    bags = bags.sort_values(["site", "patient_id"], ignore_index=True)
    lost = dict.fromkeys(set(slides.index) - set(labels.index), "no_label")
    table = flow(census, roles, used, lost)
    _check_classes(bags, roles, endpoint)
    return deal_folds(bags, endpoint), table


def binary_labels(cohort: Cohort, endpoint: EndpointSpec) -> pd.Series:
    """Label 0/1 by patient_id; blank cells are left out, any other value than the endpoint's is an error."""
    values = cohort.patients.set_index("patient_id")[endpoint.column]
    classes = dict.fromkeys(endpoint.negative, 0) | dict.fromkeys(endpoint.positive, 1)
    known = values[values != ""]
    unknown = known[~known.isin(list(classes))]
    if len(unknown):
        line = cohort.patients.index[cohort.patients["patient_id"] == unknown.index[0]][0]
        raise MilError(
            f"patient table {cohort.source} line {line}: patient '{unknown.index[0]}' has {endpoint.column} = "
            f"'{unknown.iloc[0]}', which is neither positive ({', '.join(endpoint.positive)}) nor negative "
            f"({', '.join(endpoint.negative)}); correct it, leave it blank, or name it in the endpoint"
        )
    return known.map(classes).astype(int)


def deal_folds(bags: pd.DataFrame, endpoint: EndpointSpec) -> pd.DataFrame:
    """Add the columns `repeat{r}` (outer fold) and `repeat{r}_fold{f}_inner` (inner fold of those outside fold f)."""
    dealt: dict[str, pd.Series] = {}
    train = bags["role"] == "train"
    for repeat in range(endpoint.repeats):
        outer = _deal(bags[train], endpoint.folds, endpoint.seed, "outer", repeat)
        dealt[f"repeat{repeat}"] = outer
        for fold in range(endpoint.folds):
            rest = bags.loc[outer.index[outer != fold]]
            dealt[f"repeat{repeat}_fold{fold}_inner"] = _deal(
                rest, endpoint.inner_folds, endpoint.seed, "inner", repeat, fold
            )
    columns = {name: fold.reindex(bags.index).astype("Int64") for name, fold in dealt.items()}
    return pd.concat([bags, pd.DataFrame(columns)], axis=1)


def _deal(bags: pd.DataFrame, folds: int, seed: int, *names: object) -> pd.Series:
    """Deal patients into folds like cards, site by site and label by label, going on where the last label ended."""
    fold = pd.Series(-1, index=bags.index)
    for site, members in bags.groupby("site", sort=True):
        order: list[int] = []
        for label, same in members.groupby("label", sort=True):
            rows = same.sort_values("patient_id").index.to_numpy()
            order += rng(seed, *names, site, label).permutation(rows).tolist()
        start = int(rng(seed, *names, site, "start").integers(folds))
        fold.loc[order] = (start + np.arange(len(order))) % folds
    return fold


def _check_classes(bags: pd.DataFrame, roles: Mapping[str, str], endpoint: EndpointSpec) -> None:
    """Every training site needs enough patients of both classes for its folds; a hospital that is external has none."""
    train = bags[bags["role"] == "train"]
    if train.empty and (bags.empty or "train" in roles.values()):
        raise MilError("no patient of a training site is left; see the flow table for what was excluded and why")
    for site, members in train.groupby("site", sort=True):
        counts = members["label"].value_counts().reindex([0, 1], fill_value=0)
        rarest, number = counts.idxmin(), int(counts.min())
        if number == 0:
            raise MilError(
                f"site {site}: all {len(members)} patients have {endpoint.column} = {1 - int(rarest)}; "
                "a training site needs both classes (give it the role external, or check the labels)"
            )
        left = number - math.ceil(number / endpoint.folds)
        if number < endpoint.folds or left < 2:
            raise MilError(
                f"site {site}: {number} patients with {endpoint.column} = {rarest} are too few for {endpoint.folds} folds "
                f"with {endpoint.inner_folds} inner ones; lower folds (endpoints), add patients, or give the site the role external"
            )
