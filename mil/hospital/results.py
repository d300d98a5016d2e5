"""What a site tells of its own patients at the end, and what all sites' numbers say together. No row, no score, no small count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mil.hospital.config import FederationSpec
from mil.hospital.differencing import Whom, judged_patients, known_patients, near_earlier, outcomes
from mil.hospital.forms import PARTS
from mil.hospital.masking import exact, numbers_of, summed
from mil.hospital.messages import FINISHED
from mil.hospital.payload import PayloadError
from mil.hospital.sums import ONE_SITE, has_few, moments_of, of_moments
from mil.statistics.concordance import harrell_within
from mil.statistics.delong import newcombe_interval, placements
from mil.statistics.from_sites import LogRank, Summary, auroc_of_sums, merged, stratified_logrank
from mil.statistics.held_out import NO_VARIANCE, inflation
from mil.statistics.thresholds import MODEL
from mil.training.cohort import covariate_table

Metrics = dict[str, float | int | None]
NOTHING: Metrics = dict.fromkeys(FINISHED)
Totals = dict[str, float]
COVARIATES = "covariates."
POOLED = ("sites", *FINISHED)
"""Sums over sites: how many tell anything, patients, and what `parts_of` makes of each metric."""
GROUPS = {"train": "training sites", "external": "external sites"}
COLUMNS = ["site", "role", *FINISHED, "low", "high", "method", "logrank_chi2", "logrank_p"]


def site_metrics(kind: str, predictions: pd.DataFrame, bags: pd.DataFrame, small_cells: int) -> Metrics:
    """How well the final models judge the site's patients that they did not learn from.

    Binary: AUROC with DeLong's variance. Survival: C-index, and the log-rank parts of those at higher risk (at or above the median of a
    model's scores, by at least half of the models) against the rest. Regression: share of pairs in order. Held-out times and numbers are
    compared within folds. Everything is withheld where a class has fewer than `small_cells` patients.
    """
    judged = predictions[predictions["split"].isin(["held_out", "external"])]
    scores = judged.groupby("patient_id")["score"].mean()
    rows = bags.set_index("patient_id").loc[scores.index]
    labels, predicted = rows["label"].to_numpy(np.float64), scores.to_numpy(np.float64)
    metrics = dict(NOTHING)
    positives = int((labels > 0.5).sum()) if kind in {"binary", "survival"} else len(labels) // 2
    if kind == "multiclass" or min(positives, len(labels) - positives) < small_cells:
        return metrics
    metrics["patients"] = len(labels)
    if kind == "regression":
        sooner = judged.assign(score=-judged["score"])  # the larger number is the later one
        return _defined(metrics | {"metric": _in_order(sooner, rows[["label"]].assign(event=1))})
    metrics["positives"] = positives
    if kind == "binary":
        area = placements(labels.astype(int), predicted)
        metrics |= {"metric": float(area.auroc[0]), "variance": float(area.covariance[0, 0])}
        return metrics
    times, events = rows["time"].to_numpy(np.float64), labels > 0.5
    halves = judged.groupby(MODEL)["score"].transform("median")
    higher = (judged["score"] >= halves).groupby(judged["patient_id"]).mean().reindex(scores.index) >= 0.5
    ordered = _in_order(judged, rows[["time", "label"]])
    parts = LogRank.of(times, events, higher.to_numpy())
    logrank = {"logrank_difference": parts.difference, "logrank_variance": parts.variance}
    return _defined(metrics | {"metric": ordered, **logrank})


def _in_order(judged: pd.DataFrame, outcomes: pd.DataFrame) -> float:
    """Harrell's c of a risk; `outcomes` are time and event by patient_id. Log hazards of two folds' models have no common zero."""
    if not (judged["split"] == "held_out").all():
        judged = judged.groupby("patient_id", as_index=False)["score"].mean().assign(repeat=0, fold=0)
    groups, everyone = judged.groupby(["repeat", "fold"]).ngroup().to_numpy(), np.ones((1, len(judged)))
    labels = outcomes.loc[judged["patient_id"]].to_numpy(np.float64)
    return float(harrell_within(labels, judged["score"].to_numpy(np.float64), everyone, groups)[0])


def _defined(metrics: Metrics) -> Metrics:
    """Nothing is told where no two outcomes can be put in an order."""
    return metrics if metrics["metric"] == metrics["metric"] else dict(NOTHING)


@dataclass(frozen=True)
class SiteResults:
    """What a site may tell of its patients."""

    metrics: Metrics
    covariates: dict[str, Tensor]
    whom: Whom
    """Whom it is told of; empty where nothing is told."""

    @classmethod
    def none(cls, protocol: FederationSpec) -> "SiteResults":
        """Nothing."""
        names = protocol.experiment.covariates
        return cls(
            dict(NOTHING), {f"{COVARIATES}{part}": torch.zeros(len(names)).double() for part in PARTS if names}, {}
        )

    def pooled(self) -> dict[str, Tensor]:
        """The same as exact integers, to be masked and summed; what is withheld adds nothing."""
        covariates = of_moments(self.covariates) if self.covariates else {}
        return {"metrics": exact(parts_of(self.metrics)), **covariates}


def site_results(
    protocol: FederationSpec,
    predictions: pd.DataFrame,
    bags: pd.DataFrame,
    secret: bytes,
    ledger: Sequence[str],
    small_cells: int,
) -> SiteResults:
    """What may be told: nothing of nearly the same patients as in an earlier run."""
    experiment, kind = protocol.experiment, protocol.endpoint.kind
    names = experiment.covariates
    known = known_patients(secret, bags, names) | outcomes(secret, bags, kind)
    whom = {"judged": judged_patients(secret, bags, kind), "known": known}
    if near_earlier(whom, ledger, experiment.endpoint, small_cells):
        return SiteResults.none(protocol)
    covariates = site_covariates(bags, names, small_cells) if names else {}
    metrics = site_metrics(kind, predictions, bags, small_cells)
    is_told = metrics["patients"] is not None or any(bool(value.any()) for value in covariates.values())
    return SiteResults(metrics, covariates, whom if is_told else {})


def parts_of(metrics: Mapping) -> list[Fraction]:
    """What a site adds to the sums `POOLED`; a metric counts by its patients, a variance by their square."""
    if metrics["patients"] is None:
        return [Fraction(0)] * len(POOLED)
    patients = Fraction(metrics["patients"])
    weights = {"metric": patients, "variance": patients**2}
    return [Fraction(1), *(Fraction(metrics[name] or 0) * weights.get(name, Fraction(1)) for name in FINISHED)]


def totals_of(parts: Sequence[Sequence[Fraction]]) -> Totals:
    """The sums of all sites' parts, by name."""
    return {name: float(sum(column)) for name, column in zip(POOLED, zip(*parts, strict=True), strict=True)}


def pooled_totals(answers: Sequence[Mapping[str, Tensor]], patients: int) -> Totals:
    """The same from masked integers; `PayloadError` for sums that cannot be, where the sites have `patients`."""
    totals = totals_of([numbers_of(summed([tensors["metrics"] for tensors in answers]))])
    size, positives = totals["patients"], totals["positives"]
    highest = {"sites": len(answers), "patients": patients, "positives": size, "metric": size, "variance": size**2 / 4}
    highest["logrank_variance"] = positives / 4
    whole = all(totals[name].is_integer() for name in ("sites", "patients", "positives"))
    possible = all(0 <= totals[name] <= most + 1e-6 for name, most in highest.items())
    if not (whole and possible and abs(totals["logrank_difference"]) <= positives):
        raise PayloadError(f"the sums of the sites' metrics are {totals}, which cannot be; {ONE_SITE}")
    return totals


def site_covariates(bags: pd.DataFrame, names: Sequence[str], small_cells: int) -> dict[str, Tensor]:
    """Number, mean and squares of each covariate among the site's patients; zeros where too few are known, or have one of few values."""
    table = covariate_table(bags, names)
    nothing = Summary(0.0, 0.0, 0.0)
    shown = [nothing if has_few(column, small_cells) else Summary.of(column) for column in table.T]
    shown = [summary if summary.count >= small_cells else nothing for summary in shown]
    return {
        f"{COVARIATES}{part}": torch.tensor([getattr(summary, part) for summary in shown]).double() for part in PARTS
    }


def sites_table(
    kind: str, roles: Mapping[str, str], results: Mapping[str, Mapping], pooled: Totals | None = None
) -> pd.DataFrame:
    """A row a site, and what the sites' numbers say together; or, from the sums `pooled`, the training sites together alone."""
    if pooled is not None:
        return pd.DataFrame([together(kind, "train", pooled)] if pooled["sites"] else [], columns=COLUMNS)
    rows = [
        {"site": site, "role": roles[site], **{key: results[site][key] for key in FINISHED}} for site in sorted(results)
    ]
    for role in GROUPS:
        group = [row for row in rows if row["role"] == role and row["metric"] is not None]
        if group:
            rows.append(together(kind, role, totals_of([parts_of(row) for row in group])))
    return pd.DataFrame(rows)


def together(kind: str, role: str, totals: Totals) -> dict[str, object]:
    """The row of all sites of a role."""
    row: dict[str, object] = {"site": GROUPS[role], "role": role, "patients": int(totals["patients"])}
    row |= {"positives": int(totals["positives"])} if kind in {"binary", "survival"} else {}
    if kind == "binary":
        patients, positives, variance = totals["patients"], totals["positives"], totals["variance"]
        if role == "train":  # held-out patients trained one another's models
            variance *= inflation(totals["metric"] / patients, variance / patients**2, None, 0.5)
        area = auroc_of_sums(patients, totals["metric"], variance)
        bounds, method = (area.low, area.high), area.how
        if not variance > 0:  # every site's patients are in the right order
            bounds, method = newcombe_interval(area.auroc, int(positives), int(patients - positives)), NO_VARIANCE
        row |= {"metric": area.auroc, "low": bounds[0], "high": bounds[1], "method": method}
    if kind == "survival":
        statistic, p = stratified_logrank([LogRank(totals["logrank_difference"], totals["logrank_variance"])])
        row |= {"logrank_chi2": statistic, "logrank_p": p, "method": "log-rank stratified by site"}
    return row


def covariates_table(
    names: Sequence[str], results: Mapping[str, Mapping[str, Tensor]], pooled: int | None = None
) -> pd.DataFrame:
    """Number known, mean and deviation of every covariate, by site and of all together; of the training sites together where they `pooled` so many patients."""
    if pooled is not None:
        total = moments_of(summed([tensors["covariates.sums"] for tensors in results.values()]), pooled)
        columns = zip(total.count[0], total.mean[0], total.squares[0], strict=True)
        covariates = [{GROUPS["train"]: Summary(*map(float, column))} for column in columns]
    else:
        covariates = []
        for column in range(len(names)):
            sites = {
                site: Summary(*(float(tensors[f"{COVARIATES}{part}"][column]) for part in PARTS))
                for site, tensors in sorted(results.items())
            }
            covariates.append({**sites, "all sites": merged(list(sites.values()))})
    rows = []
    for name, summaries in zip(names, covariates, strict=True):
        for site, summary in summaries.items():
            values = {"mean": summary.mean, "deviation": summary.variance**0.5} if summary.count else {}
            rows.append({"covariate": name, "site": site, "known": int(summary.count) or None, **values})
    return pd.DataFrame(rows)
