"""Tables and a trainer -> findings: ways in which the label, or a patient who is to be judged, could have got into training."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from mil.metrics import delong
from mil.metrics.baselines.protocol import outer_folds
from mil.metrics.multiplicity import holm
from mil.rng import rng

Features = Mapping[str, np.ndarray]
# of every model, by (trained_on, repeat, fold), its scores on a fixed set of bags
Scores = Mapping[tuple[str, int, int], np.ndarray]
# (bags and features to train on, further bags to score) -> the trained models' scores on the latter
Trainer = Callable[[pd.DataFrame, Features, Features], Scores]

ENCODES = 0.97  # an input that ranks patients this well knows the label
FEW = 5  # patients of a class below which an input is not judged
PROBES = 12  # bags that models are compared on
SAME = 1e-3  # scores that differ by less are the same model up to rounding: models that train together share batches
KNOWS_TOO_MUCH = 0.01  # adjusted p below which an input that should know nothing is suspect


@dataclass(frozen=True)
class Finding:
    """One check of one subject: `state` is ok, suspect (look at it) or leak (a fault), with the reason and the way out."""

    check: str
    subject: str
    state: str
    reason: str = ""
    value: float = np.nan
    p: float = np.nan


def findings_table(findings: Iterable[Finding]) -> pd.DataFrame:
    """check, subject, state, reason, value, p; leaks first, then what is suspect."""
    table = pd.DataFrame(
        [asdict(one) for one in findings], columns=["check", "subject", "state", "reason", "value", "p"]
    )
    order = table["state"].map({"leak": 0, "suspect": 1, "ok": 2})
    return table.iloc[order.argsort(kind="stable")].reset_index(drop=True)


def check_bags(bags: pd.DataFrame) -> list[Finding]:
    """No patient or slide twice, no fold at external sites, and nobody of an outer fold in its inner folds."""
    found = []
    doubled = bags[bags["patient_id"].duplicated()]["patient_id"].unique()
    found += [
        Finding(
            "patients",
            str(patient),
            "leak",
            "stands in two rows of the bag table, so it can be in two folds; merge them",
        )
        for patient in doubled
    ]
    slides = bags["slides"].astype(str).str.split(";").explode()
    found += [
        Finding("slides", str(slide), "leak", "belongs to two patients; correct the slide sheet")
        for slide in slides[slides.duplicated()].unique()
    ]
    for repeat, fold in outer_folds(bags):
        outer = pd.to_numeric(bags[f"repeat{repeat}"], errors="coerce")
        inner = pd.to_numeric(bags[f"repeat{repeat}_fold{fold}_inner"], errors="coerce")
        wrong = bags[((outer == fold) | (bags["role"] == "external")) & inner.notna()]
        found += [
            Finding(
                "folds",
                str(patient),
                "leak",
                f"is judged in repeat {repeat}, fold {fold}, and stands in its inner folds",
            )
            for patient in wrong["patient_id"]
        ]
    return found or [Finding("bags", f"{len(bags)} patients", "ok")]


def check_duplicate_slides(slides: pd.DataFrame) -> list[Finding]:
    """No two patients share a slide file; `slides` has slide_id, patient_id, fingerprint."""
    known = slides[slides["fingerprint"].fillna("").astype(str) != ""]
    found = []
    for _, same in known.groupby("fingerprint"):
        if same["patient_id"].nunique() > 1:
            names = ", ".join(f"{row.slide_id} of {row.patient_id}" for row in same.itertuples())
            found.append(
                Finding("duplicate slides", names, "leak", "are one file under several patients; keep the right one")
            )
    return found or [Finding("duplicate slides", f"{len(known)} slides", "ok")]


def check_inputs(check: str, inputs: pd.DataFrame, labels: pd.Series, innocent: bool = False) -> list[Finding]:
    """Each column of `inputs` (by patient_id) against the labels: one that ranks patients almost perfectly encodes them.

    `innocent` inputs (file sizes, row order, number of tiles) should know nothing at all, so what they know beyond chance,
    after Holm's correction over the columns, is suspect.
    """
    judged: list[tuple[str, float, float]] = []
    for column in inputs.columns:
        values = inputs[column].reindex(labels.index)
        known = values.notna()
        truth = labels[known].to_numpy(dtype=int)
        if min(truth.sum(), (1 - truth).sum()) >= FEW and values[known].nunique() > 1:
            placed = delong.placements(truth, values[known].to_numpy(dtype=float))
            area, variance = float(placed.auroc[0]), float(placed.covariance[0, 0])
            p = delong.difference_of(area - 0.5, variance).p if variance > 0 else 0.0
            judged.append((str(column), area, p))
    adjusted = holm(np.array([p for _, _, p in judged]))
    found = []
    for (column, area, _), p in zip(judged, adjusted, strict=True):
        strong = max(area, 1 - area) >= ENCODES
        if strong:
            reason = f"ranks patients by label with an AUROC of {max(area, 1 - area):.2f}; it was likely made from the label, leave it out"
            found.append(Finding(check, column, "leak", reason, area, float(p)))
        elif innocent and p < KNOWS_TOO_MUCH:
            reason = "should know nothing of the label and does; find out how positives and negatives were collected"
            found.append(Finding(check, column, "suspect", reason, area, float(p)))
    if found:
        return found
    return [Finding(check, f"{len(judged)} inputs", "ok")] if judged else []


def administrative_inputs(slides: pd.DataFrame, bags: pd.DataFrame) -> pd.DataFrame:
    """By patient: number of tiles and slides, bytes, size, mpp, row in the sheet; what should tell nothing of the label.

    `slides` has a row a slide with patient_id and any of num_tiles, bytes, width, height, mpp.
    """
    numbered = slides.reset_index(drop=True).assign(row=np.arange(len(slides), dtype=float))
    columns = [name for name in ("num_tiles", "bytes", "width", "height", "mpp", "row") if name in numbered.columns]
    numbers = numbered[columns].apply(pd.to_numeric, errors="coerce").groupby(numbered["patient_id"]).mean()
    numbers["slides"] = numbered.groupby("patient_id").size()
    digits = pd.to_numeric(bags["patient_id"].astype(str).str.extract(r"(\d+)\D*$", expand=False), errors="coerce")
    numbers["number in patient_id"] = pd.Series(digits.to_numpy(), index=bags["patient_id"].to_numpy())
    return numbers.reindex(bags["patient_id"]).loc[:, lambda table: table.nunique() > 1]


def probe_training(train: Trainer, bags: pd.DataFrame, features: Features, folds: int = 1) -> list[Finding]:
    """Train twice, the second time with noise for the features of an outer fold and with its labels turned round.

    The models that judge this fold must come out the same, seen by their scores on copies of other bags: whatever
    differs was read. `features` are tiles (n, width) by patient; `folds` of the first repeat are probed. Catches a test
    fold that early stopping, scaling or selection looks at.
    """
    training = bags[bags["role"] == "train"].reset_index(drop=True)
    own = {patient: features[patient] for patient in training["patient_id"]}
    copies = {f"probe{n}": tiles for n, tiles in enumerate(list(own.values())[:PROBES])}
    before = train(training, own, copies)
    found = []
    for repeat, fold in list(outer_folds(training))[:folds]:
        judged = pd.to_numeric(training[f"repeat{repeat}"], errors="coerce") == fold
        spoiled = training.assign(label=np.where(judged, 1 - training["label"], training["label"]))
        stream = rng(0, "probe", repeat, fold)
        noise = {
            patient: stream.normal(size=own[patient].shape).astype(own[patient].dtype) * 10
            for patient in training.loc[judged, "patient_id"]
        }
        after = train(spoiled, {**own, **noise}, copies)
        mine = [key for key in before if key[1:] == (repeat, fold)]
        moved = {key: float(np.abs(before[key] - after[key]).max()) if key in after else np.inf for key in mine}
        subject, most = f"repeat {repeat}, fold {fold}", max(moved.values(), default=np.nan)
        if not mine:
            reason = "no model of this fold came back, so nothing was tested"
            found.append(Finding("training", subject, "suspect", reason))
        elif most > SAME:
            key = max(moved, key=lambda one: moved[one])
            reason = (
                f"the model of {key[0]} changes with the patients that it is to judge: training or selection reads them"
            )
            found.append(Finding("training", subject, "leak", reason, most))
        else:
            found.append(Finding("training", f"{subject}, {len(mine)} models", "ok", value=most))
    return found
