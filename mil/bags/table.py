"""Census and patient table -> the bag table of an endpoint: who is in, with which slides, label and folds.

Folds are dealt within every training site and label, so a hospital can deal its own without seeing another's patients;
the same seed gives the same folds whatever the order of the rows. They are written once and never computed again.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mil.bags.census import flow
from mil.bags.covariates import clinical_inputs
from mil.config import EndpointSpec
from mil.endpoints import build_endpoint
from mil.errors import CorruptFile, MilError
from mil.rng import rng
from mil.schemas import BAGS
from mil.tables import TARGETS, has_label, read_table, require_columns

if TYPE_CHECKING:
    from mil.slides.sheet import Cohort

MOST_CLASSES = 12  # a number with more values is no class


def read_bags(path: str | Path, everyone: bool = False) -> pd.DataFrame:
    """The bag table at `path`; the ids of a patient's slides, parted by `;`, are text. Patients without a label only with `everyone`.

    `CorruptFile` for a missing column, a blank cell of `BAGS`, a patient twice, an unknown role, a training patient with a label
    and no outer fold, and one with a fold and no label.
    """
    table = read_table(path, text=BAGS)
    require_columns(table, BAGS, f"bag table {path}")
    wrong = {f"{name} is blank": table[name].str.strip() == "" for name in BAGS}
    wrong["the patient has a row already"] = table["patient_id"].duplicated()
    wrong["role is neither train nor external"] = ~table["role"].isin(["train", "external"])
    known, trains = has_label(table), table["role"] == "train"
    for name in table.columns[table.columns.str.fullmatch(r"repeat\d+")]:
        fold = pd.to_numeric(table[name], errors="coerce")
        whole = (fold >= 0) & (fold % 1 == 0)
        wrong[f"{name} is no number of a fold"] = trains & known & ~whole
        wrong[f"label is blank, but {name} is filled"] = trains & ~known & fold.notna()
    for why, rows in wrong.items():
        if rows.any():
            row = int(rows.to_numpy().argmax())
            raise CorruptFile(
                f"bag table {path} line {row + 2}: patient '{table['patient_id'].iloc[row]}': {why}; run `mil bag` again"
            )
    if known.all():
        return table
    of_labelled = read_table(path, text=BAGS, only_labelled=True)
    if not everyone:
        return of_labelled
    whole = [name for name in TARGETS if name in table and pd.api.types.is_integer_dtype(of_labelled[name])]
    return table.astype(dict.fromkeys(whole, "Int64"))


def make_bags(
    cohort: "Cohort",
    census: pd.DataFrame,
    roles: Mapping[str, str],
    endpoint: EndpointSpec,
    covariates: Sequence[str] = (),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The bag table (a row a patient: patient_id, slides, site, role, label, covariates, folds) and the flow table.

    A survival endpoint has `time` beside its label, which says whether the event happened. `covariates` are columns of the
    patient table that experiments read besides the slides, as numbers. A patient without a label (or time) has blanks there and
    stands in no fold, and in the flow table as left out.
    """
    targets = build_endpoint(endpoint).read(cohort)
    usable = census[census["state"] == "ok"]
    slides = usable.groupby("patient_id")["slide_id"].agg(lambda ids: ";".join(sorted(ids)))
    site = census.groupby("patient_id")["site"].first()
    listed = set(cohort.patients["patient_id"])
    used = sorted(set(slides.index) & listed)
    bags = pd.DataFrame({"patient_id": used, "slides": slides.loc[used].to_numpy(), "site": site.loc[used].to_numpy()})
    bags["role"] = bags["site"].map(dict(roles))
    for column in targets:
        cells = targets[column].reindex(used)
        whole = pd.api.types.is_integer_dtype(targets[column]) and cells.isna().any()
        bags[column] = (cells.astype("Int64") if whole else cells).array
    for name, numbers in covariate_columns(cohort, covariates).items():
        bags[str(name)] = numbers.loc[used].to_numpy()
    bags = bags.sort_values(["site", "patient_id"], ignore_index=True)
    lost = {name: "no_label" if name in listed else "no_patient" for name in set(slides.index) - set(targets.index)}
    table = flow(census, roles, set(used) & set(targets.index), lost)
    _refuse_none(table)
    check_classes(bags, roles, endpoint)
    return deal_folds(bags, endpoint), table


def _refuse_none(flow: pd.DataFrame) -> None:
    """Raise where slides of training sites were given, and none is used, with the reasons: the flow table is not written then."""
    train = flow[flow["role"] == "train"]
    if len(train) and not train.loc[train["step"] == "used", "patients"].any():
        out = train[train["step"] == "excluded"]
        reasons = ", ".join(f"{row.site}: {row.slides} slides {row.reason}" for row in out.itertuples())
        raise MilError(
            f"no patient of a training site is left ({reasons}); the tables census/SITE.csv say why of each slide, "
            "the patient table has the labels"
        )


def covariate_columns(cohort: "Cohort", covariates: Sequence[str]) -> pd.DataFrame:
    """Numbers by patient_id, blank where unknown: T2 is 2, of two classes the later one is 1; more classes are an error."""
    taken = [name for name in covariates if name in {*BAGS, "label", "time"} or name.startswith("repeat")]
    if taken:
        raise MilError(
            f"covariate '{taken[0]}': the bag table has a column of that name; rename it in the patient table"
        )
    parts = [pd.DataFrame(index=pd.Index(cohort.patients["patient_id"]))]
    for name in covariates:
        numbers = clinical_inputs(cohort.patients, [name], "covariates")
        if len(numbers.columns) != 1:
            raise MilError(
                f"patient table {cohort.source}: covariate '{name}' has {len(numbers.columns) + 1} classes; make a column of 0 "
                "and 1 for each that a model is to know"
            )
        parts.append(numbers.set_axis([name], axis=1))
    return pd.concat(parts, axis=1)


def deal_folds(bags: pd.DataFrame, endpoint: EndpointSpec) -> pd.DataFrame:
    """Add the columns `repeat{r}` (outer fold) and `repeat{r}_fold{f}_inner` (inner fold of those outside fold f).

    Patients of external sites and patients without a label stand in no fold.
    """
    dealt: dict[str, pd.Series] = {}
    train = (bags["role"] == "train") & has_label(bags)
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
        for label, same in members.groupby(_strata(members["label"]), sort=True):
            rows = same.sort_values("patient_id").index.to_numpy()
            order += rng(seed, *names, site, label).permutation(rows).tolist()
        start = int(rng(seed, *names, site, "start").integers(folds))
        fold.loc[order] = (start + np.arange(len(order))) % folds
    return fold


def _strata(labels: pd.Series) -> pd.Series:
    """What folds are stratified by: the label, or the third that a number is in."""
    if labels.nunique() <= MOST_CLASSES or not pd.api.types.is_numeric_dtype(labels):
        return labels
    return (labels.rank(method="first") * 3 / (len(labels) + 1)).astype(int)


def outer_folds(bags: pd.DataFrame) -> Iterator[tuple[int, int]]:
    """(repeat, fold) of the bag table's columns."""
    repeats = sorted(int(name[6:]) for name in bags.columns if name.startswith("repeat") and name[6:].isdigit())
    for repeat in repeats:
        for fold in sorted(pd.to_numeric(bags[f"repeat{repeat}"], errors="coerce").dropna().unique()):
            yield repeat, int(fold)


def check_classes(bags: pd.DataFrame, roles: Mapping[str, str], endpoint: EndpointSpec) -> None:
    """Every training site needs enough patients of both classes (events and none) for its folds; a hospital that is external has none.

    `bags`: site, role and label of each patient; those without a label do not count.
    """
    train, column = bags[(bags["role"] == "train") & has_label(bags)], endpoint.event or endpoint.column
    if train.empty and (bags.empty or "train" in roles.values()):
        raise MilError(
            "no patient of a training site has a label; fill the patient table, or change the roles of the sites"
        )
    for site, members in train.groupby("site", sort=True):
        if not build_endpoint(endpoint).outcome:
            if len(members) < 2 * endpoint.folds:
                lower = f"set folds to {len(members) // 2} (endpoints), " if len(members) >= 4 else ""
                raise MilError(
                    f"site {site}: {len(members)} patients are too few for {endpoint.folds} folds, which need "
                    f"{2 * endpoint.folds}; {lower}add patients, or give the site the role external"
                )
            continue
        words = {0: " or ".join(endpoint.negative), 1: " or ".join(endpoint.positive)}
        counts = members["label"].value_counts().reindex([0, 1], fill_value=0)
        rarest, number = int(counts.idxmin()), int(counts.min())
        if number == 0:
            raise MilError(
                f"site {site}: all {len(members)} patients have {column} = {words[1 - rarest]}; "
                "a training site needs both classes (give it the role external, or check the labels)"
            )
        if number < (needed := patients_needed(endpoint.folds)):
            fitting = [folds for folds in range(2, number + 1) if patients_needed(folds) <= number]
            change = f"set folds to {fitting[-1]} (endpoints), " if fitting else ""
            raise MilError(
                f"site {site}: {number} patients with {column} = {words[rarest]} are too few for {endpoint.folds} folds, which "
                f"need {needed}; {change}add patients, or give the site the role external"
            )


def patients_needed(folds: int) -> int:
    """Patients per class and training site: one in every fold, and two left to train on when the largest fold is held out."""
    return 4 if folds == 2 else folds
