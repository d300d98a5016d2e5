"""Time to an event: Harrell's c of the risk score, and groups of risk with a log-rank test."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mil.endpoints import curves
from mil.endpoints.bounds import metric_row
from mil.endpoints.cells import numbers, yes_or_no
from mil.endpoints.endpoint import ENDPOINTS, FEWEST, Endpoint, scope_columns
from mil.endpoints.measures import Measure
from mil.endpoints.target import number_of
from mil.errors import MilError
from mil.statistics.arms import GROUPS, PREDICTED, Scope, scopes
from mil.statistics.concordance import harrell, harrell_within, known_order
from mil.statistics.from_sites import LogRank, stratified_logrank
from mil.statistics.thresholds import MODEL

if TYPE_CHECKING:
    from torch import Tensor

    from mil.config import MetricsSpec
    from mil.slides.sheet import Cohort

LOG_RANK = "log_rank_of_risk_groups"


@ENDPOINTS.register("survival")
class Survival(Endpoint):
    """Time to an event: one logit, the log hazard; Cox's partial likelihood with Efron's handling of ties; C-index.

    The bag table's `time` is positive, its `label` 1 for an event and 0 for censored. Labels of measures are time and event
    (n, 2); a higher score means an earlier event. The risk set of a step is its batch, so batches should be large.
    """

    name = "survival"
    separable = False
    relative = True
    columns = ("time", "label")
    primary = Measure("c_index", "C-index", harrell, chance=0.5)
    predicted = (*PREDICTED, "time")
    quantity = "log_hazard"
    better = "tells who has the event sooner better than chance would"
    worse = "puts patients in the wrong order, worse than chance would"
    outcome, having = "events", "with the event of"
    watched = "C-index"
    pairs = "pairs of patients of the same site and, held out, of the same fold"
    measured = (
        "Of times to an event the measure is Harrell's C-index of the log hazard, ties in the score one half. Patients of training sites whom "
        "models of two folds judged are not compared, since their log hazards have no common zero. Groups of risk are cut at "
        "the median of the scores that one model gives the patients of its held-out fold, or those of external sites, and compared by a log-rank test stratified by site."
    )

    def read(self, cohort: "Cohort") -> pd.DataFrame:
        """`label` 1 for an event, 0 for censored; `time`, a positive number."""
        times = numbers(cohort, self.spec.column, positive=True)
        events = yes_or_no(cohort, self.spec, str(self.spec.event))
        return pd.DataFrame({"label": events, "time": times}).dropna().astype({"label": int})

    @property
    def meaning(self) -> str:
        """The column of the event, and its values."""
        return f"time to the event in column “{self.spec.event}”; {super().meaning}"

    def check(self, targets: np.ndarray, whose: str) -> None:
        """Refuse training patients none of whom had an event while another was followed further: there is no order to learn."""
        time, event = targets[:, 0], targets[:, 1] > 0.5
        if not (event & (time < time.max())).any():
            raise MilError(
                f"{whose}: {len(targets)} training patients have {int(event.sum())} events in column '{self.spec.event}' and nobody was "
                f"followed up after one (column '{self.spec.column}' is {time.min():g} to {time.max():g}), so there is no order to "
                "learn; correct these columns, use fewer folds, add patients, or give their site the role external"
            )

    def losses(self, logits: "Tensor", targets: "Tensor", present: "Tensor") -> "Tensor":
        """Minus each event's term of the log partial likelihood; 0 for the censored."""
        import torch

        hazard, time, event = logits[..., 0], targets[..., 0], (targets[..., 1] > 0.5) & present
        later = (time.unsqueeze(-2) >= time.unsqueeze(-1)) & present.unsqueeze(-2)  # row: event, column: at risk then
        tied = (time.unsqueeze(-2) == time.unsqueeze(-1)) & event.unsqueeze(-2) & event.unsqueeze(-1)
        before = torch.tril(tied, diagonal=-1).sum(-1) / tied.sum(-1).clamp(min=1)
        peak = hazard.detach().masked_fill(~present, float("-inf")).amax(-1, keepdim=True).clamp(min=-1e30)
        powers = torch.exp(hazard - peak).masked_fill(~present, 0.0).unsqueeze(-1)
        at_risk = (later.to(powers.dtype) @ powers).squeeze(-1)
        dying = (tied.to(powers.dtype) @ powers).squeeze(-1)
        remaining = torch.where(event, at_risk - before * dying, torch.ones_like(at_risk))
        return torch.where(event, torch.log(remaining) + peak - hazard, torch.zeros_like(hazard))

    def counts(self, targets: "Tensor", present: "Tensor") -> "Tensor":
        """Events count, the censored do not."""
        return ((targets[..., 1] > 0.5) & present).to(targets.dtype)

    def metric(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """Harrell's C-index."""
        return float(harrell(targets, logits[:, 0], np.ones((1, len(logits))))[0])

    def _target(self, cells: tuple[object, ...], patient: str) -> Sequence[float]:
        time = number_of(cells[0], patient, "time")
        if time <= 0:
            raise MilError(
                f"bags: patient {patient}: time {time:g} is not positive; correct it or leave the patient out"
            )
        return [time, number_of(cells[1], patient, "label", allowed=(0.0, 1.0))]

    def valid(self, table: pd.DataFrame) -> Mapping[str, pd.Series]:
        """0 or 1, a positive time, a finite score."""
        time = pd.to_numeric(table["time"], errors="coerce")
        return {
            "label": table["label"].isin([0, 1]),
            "time": (time > 0) & np.isfinite(time),
            "score": np.isfinite(table["score"]),
        }

    def labels_of(self, table: pd.DataFrame) -> np.ndarray:
        """Time and event (n, 2)."""
        return table[["time", "label"]].to_numpy(dtype=float)

    def undefined(self, table: pd.DataFrame) -> str:
        """No patient had the event while another was followed further."""
        time, event = self.labels_of(table).T
        if not event.any():
            return "no patient had the event"
        return "" if known_order(time, event > 0).any() else "nobody was followed up after an event"

    def by_model(self, scope: Scope) -> pd.DataFrame | None:
        """Log hazards of two models have no common zero."""
        return scope.judged

    def too_few(self, table: pd.DataFrame) -> str:
        """Pairs of few events share their patients."""
        events = int(table["label"].sum())
        return f"no interval: {events} event{'s' if events > 1 else ''}; {FEWEST} needed" if events < FEWEST else ""

    def beyond(
        self, predictions: pd.DataFrame, inner: pd.DataFrame | None, spec: "MetricsSpec"
    ) -> Iterator[dict[str, Any]]:
        """C-index over the folds; the log-rank test of the groups of risk, at every group of sites."""
        yield from super().beyond(predictions, inner, spec)
        for scope in scopes(predictions):
            if scope.site not in GROUPS:
                continue
            p = stratified_log_rank(risk_groups(scope, predictions))
            method = (
                "p, stratified by site"
                if np.isfinite(p)
                else "not defined: no event at a site while patients of both groups are followed there"
            )
            yield {**scope_columns(self, scope), **metric_row(LOG_RANK, p, np.nan, np.nan, method)}

    def curves(
        self, scope: Scope, predictions: pd.DataFrame, inner: pd.DataFrame | None, spec: "MetricsSpec"
    ) -> Iterator[pd.DataFrame]:
        """Kaplan-Meier curves of the groups of risk, at every group of sites."""
        if scope.site in GROUPS and scope.split != "transfer":
            yield curves.of_risks(risk_groups(scope, predictions), spec.confidence)

    def within(self, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """c over the pairs of the same group whose order is known."""
        return harrell_within(labels, scores, weights, groups)


def risk_groups(scope: Scope, predictions: pd.DataFrame) -> pd.DataFrame:
    """patient_id, site, time, event (bool) and higher (0/1) of the patients of `scope`.

    A model puts a patient at higher risk when the score is at least the median of its scores of the patients that it judges likewise
    (`split`). Times and events have no part in the cut. It is not taken from training patients: log hazards of two models have no
    common zero, and an overfitted model's scores of its own patients lie elsewhere. At higher risk are patients whom at least
    half of the models that did not see them put there.
    """
    halves = predictions.groupby([*MODEL, "split"])["score"].transform("median")
    voted = predictions.assign(score=(predictions["score"] >= halves).astype(float))
    key = (scope.trained_on, scope.split, scope.site)
    table = next(part.table for part in scopes(voted) if (part.trained_on, part.split, part.site) == key)
    table = table.assign(event=table["label"] > 0, higher=(table["score"] >= 0.5).astype(int))
    return table[["patient_id", "site", "time", "event", "higher"]]


def stratified_log_rank(table: pd.DataFrame) -> float:
    """p of equal survival of those at higher and at lower risk (`risk_groups`), stratified by site; nan where it has no variance."""
    parts = [
        LogRank.of(rows["time"].to_numpy(float), rows["event"].to_numpy(bool), rows["higher"].to_numpy() > 0)
        for _, rows in table.groupby("site")
    ]
    return float(stratified_logrank(parts)[1])
