"""Whether sums give a single patient away: those over many sets of patients together, or those of two runs by their difference.

Sums of features, covariates, targets or classes are asked for over the training patients of every fold. Whoever knows the
folds can solve them like equations. Where a patient follows from the sums, the plan is refused before anything is sent. Nor is
anything told of nearly the same patients as in an earlier run, which the site's ledger knows by keyed digests: neither sums nor, where both
runs begin with the same weights, updates and errors.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from itertools import combinations, product

import numpy as np
import pandas as pd

from mil.errors import MilError
from mil.hospital.config import FederationSpec
from mil.hospital.forms import slots
from mil.hospital.local import LocalWork
from mil.hospital.payload import TooFewPatients
from mil.training.cohort import covariate_table
from mil.training.store import FeatureStore

Groups = Mapping[str, Sequence[str]]
Whom = Mapping[str, Groups]
"""As a line of the ledger holds it, all as keyed digests: `judged` patients with their outcomes by class, `known` patients by class,
or with their values by covariate, their features or their folds; `trained` patients with all that models learn from, by seed."""

PARTS = ("judged", "known", "trained")
FIRST_OF_DIGEST = 16
BITS = 0.75
"""Most that sums may tell of a patient with two values. Integer programming found no single patient below 0.7, some from 0.9 on, all at 1.3."""
EXACT = 1e-6
"""Share of a patient's own direction that may lie outside the sums, where it still counts as inside."""


def check_plan(protocol: FederationSpec, work: LocalWork, small_cells: int) -> None:
    """Raise where the sums that the protocol asks for determine a patient of the site, or tell the coordinator of few events."""
    sets = [work.train_patients(slot) for phase in ("inner", "refit") for slot in slots(protocol, phase)]
    if protocol.endpoint.kind == "survival" and not work.shapes.masked:  # each watched error comes with their number
        fewest = min(
            int(work.cohort.targets[patients, -1].sum()) for patients in sets[-len(slots(protocol, "refit")) :]
        )
        if fewest < small_cells:
            raise MilError(
                f"federation.yaml: under trust: coordinator site {work.site} would tell of {fewest} events, fewer than {small_cells} "
                "(small_cells); use trust: sites, where only the sum over all sites is seen. Nothing was sent"
            )
    _check_bits(protocol, work, sets)
    if not (work.shapes.measured or work.shapes.balanced):
        return
    everyone = np.ones((1, len(work.cohort.patients)), bool)
    for known in np.unique(np.concatenate([everyone, np.isfinite(work.cohort.covariates).T]), axis=0):
        alone = determined([patients[known[patients]] for patients in sets], len(known))
        if len(alone):
            asked = [*work.shapes.measured, *(["classes"] if work.shapes.balanced else [])]
            ways = "scaling site, " * ("features" in asked) + "fewer folds or repeats"
            raise MilError(
                f"federation.yaml: the sums of {' and '.join(asked)} over {len(sets)} sets of patients determine {len(alone)} of the "
                f"{known.sum()} patients of site {work.site} one by one; use {ways}. Nothing was sent"
            )


def _check_bits(protocol: FederationSpec, work: LocalWork, sets: Sequence[np.ndarray]) -> None:
    """Raise where sums of a column of two values are enough equations to be solved in whole numbers."""
    count, columns = len(work.cohort.patients), dict[str, tuple[np.ndarray, Sequence[np.ndarray]]]()
    for name, column in zip(protocol.experiment.covariates, work.cohort.covariates.T, strict=True):
        known = np.isfinite(column)
        if len(np.unique(column[known])) == 2:
            columns[name] = (known, sets)
    if work.shapes.balanced:
        columns["classes"] = (np.ones(count, bool), sets)
    if protocol.endpoint.kind == "survival":  # whose events are counted with the watched errors
        columns["events"] = (np.ones(count, bool), [work.train_patients(slot) for slot in slots(protocol, "refit")])
    for name, (known, groups) in columns.items():
        bits, most = bits_revealed([patients[known[patients]] for patients in groups], count), BITS * known.sum()
        if bits > most:
            raise MilError(
                f"federation.yaml: the sums of {name} over {len(groups)} sets of patients of site {work.site} tell {bits:.0f} bits of "
                f"{known.sum()} patients with two values, and above {most:.0f} single patients can be worked out; use fewer folds or "
                "repeats, or leave it out. Nothing was sent"
            )


def bits_revealed(sets: Sequence[np.ndarray], patients: int) -> float:
    """Entropy of the sums over `sets` of numbers that are 0 or 1 with equal chance, as of a normal distribution."""
    strengths = np.linalg.svd(_matrix(sets, patients), compute_uv=False)
    strengths = strengths[strengths > strengths.max(initial=0.0) * patients * np.finfo(float).eps]
    return float(np.log2(strengths * (np.pi * np.e / 2) ** 0.5).sum())


def _matrix(sets: Sequence[np.ndarray], patients: int) -> np.ndarray:
    matrix = np.zeros((len(sets), patients))
    for row, members in enumerate(sets):
        matrix[row, members] = 1.0
    return np.unique(matrix, axis=0)


def determined(sets: Sequence[np.ndarray], patients: int) -> np.ndarray:
    """Numbers of the patients whose own values follow from the sums over `sets` (patient numbers each)."""
    matrix = _matrix(sets, patients)
    _, strengths, directions = np.linalg.svd(matrix, full_matrices=False)
    basis = directions[strengths > strengths.max(initial=0.0) * max(matrix.shape) * np.finfo(float).eps]
    return np.nonzero((basis**2).sum(0) > 1 - EXACT)[0]


def check_columns(bags: pd.DataFrame, names: Sequence[str], small_cells: int) -> None:
    """Raise where two covariates differ in few patients: the difference of their sums would be of these alone."""
    columns = zip(names, covariate_table(bags, names).T, strict=True)
    for (name, column), (other, values) in combinations(columns, 2):
        alike = (column == values) | (np.isnan(column) & np.isnan(values))
        if 0 < (~alike).sum() < small_cells:
            raise MilError(
                f"federation.yaml: covariates {name} and {other} differ in {(~alike).sum()} patients of this site, fewer than {small_cells} "
                "(small_cells), whose values the two sums would tell; leave one of them out. Nothing was sent"
            )


def check_runs(work: LocalWork, secret: bytes, ledger: Sequence[str], small_cells: int, data: str) -> Whom:
    """Whom the sums of a run's `moments` are of, and its updates; `TooFewPatients` where those of an earlier run differ by few.

    `data`: digest of the site's data, as lines of the ledger hold it.
    """
    shapes, protocol, bags, whom = work.shapes, work.protocol, work.bags, dict[str, Groups]()
    known, kind = dict[str, list[str]](), protocol.endpoint.kind
    if "features" in shapes.measured or "covariates" in shapes.measured:
        features = work.features if "features" in shapes.measured else None
        known |= known_patients(secret, bags, protocol.experiment.covariates, features)
    with_events = kind == "survival"  # which are counted with the watched errors
    if shapes.balanced or "target" in shapes.measured or with_events:
        whom["judged"] = judged_patients(secret, bags, kind)
        known |= outcomes(secret, bags, kind)
    if known:
        whom["known"] = known | _folds(secret, bags)
    if protocol.privacy is None:  # whose noise hides a patient
        whom["trained"] = _trained(secret, bags, work.features, work.training.seed)
    if said := near_earlier(whom, ledger, protocol.experiment.endpoint, small_cells, _digest(secret, "folds"), data):
        raise TooFewPatients(
            f"site {work.site}: {said}, so that the difference of both runs would tell of these alone; nothing was sent. Take the "
            f"table of that run, or one that differs by {small_cells} patients or more; where the protocol asks for no sums over "
            "patients, another experiment.training.seed will do"
        )
    return whom


def judged_patients(secret: bytes, bags: pd.DataFrame, kind: str) -> dict[str, list[str]]:
    """Keyed digests of the site's patients and their outcomes, by class: nobody else can test a guess."""
    digests: dict[str, list[str]] = {}
    outcome = [name for name in ("label", "time") if name in bags]
    for row in bags[["patient_id", *outcome]].itertuples(index=False):
        of_class = "" if kind == "regression" else str(row[1])
        digests.setdefault(_digest(secret, of_class), []).append(_digest(secret, f"judged|{tuple(row)}"))
    return digests


def known_patients(
    secret: bytes, bags: pd.DataFrame, covariates: Sequence[str], features: FeatureStore | None = None
) -> dict[str, list[str]]:
    """The same of the patients of whom a covariate is known, and its value; with `features`, of their slides' files too."""
    patients, digests = bags["patient_id"].tolist(), dict[str, list[str]]()
    for name, column in zip(covariates, covariate_table(bags, covariates).T, strict=True):
        rows = [(patient, float(value)) for patient, value in zip(patients, column, strict=True) if np.isfinite(value)]
        digests[_digest(secret, f"covariate|{name}")] = [_digest(secret, f"known|{row}") for row in rows]
    if features is not None:
        rows = zip(patients, _checksums(bags, features)["files"], strict=True)
        digests[_digest(secret, "features")] = [
            _digest(secret, f"known|{(patient, *files)}") for patient, files in rows
        ]
    return digests


def _checksums(bags: pd.DataFrame, features: FeatureStore) -> pd.DataFrame:
    """Of each patient's feature files."""
    checksums = iter(features.checksums)
    return pd.DataFrame({"files": [[next(checksums) for _ in str(slides).split(";")] for slides in bags["slides"]]})


def outcomes(secret: bytes, bags: pd.DataFrame, kind: str) -> dict[str, list[str]]:
    """The patients of each class or, of a regression, with their numbers: equal where endpoint or classes have other names."""
    if kind == "regression":
        table = bags.assign(target=bags["label"])[["patient_id", "target"]]
        return known_patients(secret, table, ["target"])
    return {
        _digest(secret, f"class|{name}"): [_digest(secret, f"known|{patient}") for patient in members["patient_id"]]
        for name, members in bags.groupby("label")
    }


def _folds(secret: bytes, bags: pd.DataFrame) -> dict[str, list[str]]:
    """Patients with their folds: the sums over two sets that differ by a patient who was moved tell of this patient."""
    rows = bags[["patient_id", *_fold_columns(bags)]].astype(str)
    return {_digest(secret, "folds"): [_digest(secret, f"folds|{tuple(row)}") for row in rows.itertuples(index=False)]}


def _fold_columns(bags: pd.DataFrame) -> list[str]:
    return [name for name in bags if name.startswith("repeat")]


def _trained(secret: bytes, bags: pd.DataFrame, features: FeatureStore, seed: int) -> dict[str, list[str]]:
    """Patients with their outcomes, with their folds and with their features, under the seed that first weights and batches follow from.

    Where two runs of one seed differ by a patient, the first updates of all others are the same in both, and their difference is
    this patient's gradient. Under another seed nothing cancels.
    """
    outcome = [name for name in ("label", "time") if name in bags]
    parts = {"outcomes": bags[outcome], "folds": bags[_fold_columns(bags)], "files": _checksums(bags, features)}
    digests = {}
    for name, table in parts.items():
        whole = [column for column in table if pd.api.types.is_integer_dtype(table[column])]
        rows = table.astype(dict.fromkeys(whole, float)).astype(str).itertuples(index=False, name=None)
        pairs = zip(bags["patient_id"], rows, strict=True)
        digests[_digest(secret, f"seed|{seed}|{name}")] = [_digest(secret, f"trained|{pair}") for pair in pairs]
    return digests


def _digest(secret: bytes, text: str) -> str:
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()[:FIRST_OF_DIGEST]


def near_earlier(
    whom: Whom, ledger: Sequence[str], endpoint: str, small_cells: int, folds: str = "", data: str = ""
) -> str:
    """What an earlier run told of nearly the same patients; blank where there is none.

    Nearly: of one class, covariate or seed, patients that are in one of the two runs only are some, but fewer than `small_cells`. Names
    do not count: every class and covariate of one run is compared with every one of the other that has a patient, with the value, in common.
    `folds`: name of the digests of folds, which the sums of older versions lack. Unless the site's `data` are as they were, folds
    may have changed as well, so that it takes other patients.
    """
    for entry in (json.loads(line) for line in ledger if any(f'"{part}"' in line for part in PARTS)):
        if "endpoint" not in entry:  # a run has such a name
            continue
        judged, known, trained = (whom.get(part, {}) for part in PARTS)
        judged_before, known_before, trained_before = (entry.get(part, {}) for part in PARTS)
        columns = product(known.values(), known_before.values())
        pairs = [(digests, other) for digests, other in columns if not set(digests).isdisjoint(other)]
        if judged and judged_before:
            same_endpoint = entry["endpoint"] == endpoint
            groups = {*judged, *judged_before} if same_endpoint else judged.keys() & judged_before.keys()
            pairs += [(judged.get(group, ()), judged_before.get(group, ())) for group in groups]
        is_old = entry.get("kind") == "moments" and folds in known and folds not in known_before
        fewest = 0 if is_old and entry.get("data_sha256") != data else 1
        for changed in (_changed(digests, other) for digests, other in pairs):
            if fewest <= changed < small_cells:
                old = ", under an older version that did not note their folds" if is_old else ""
                return f"run {entry['run']} sent sums over patients of whom {changed} differ{old}"
        for group in trained.keys() & trained_before.keys():
            if 0 < (changed := _changed(trained[group], trained_before[group])) < small_cells:
                return f"run {entry['run']} began with the same weights and patients of whom {changed} differ"
    return ""


def _changed(digests: Sequence[str], other: Sequence[str]) -> int:
    """Patients that are in one of two groups only; one whose value changed counts once."""
    return max(len(set(digests) - set(other)), len(set(other) - set(digests)))
