"""Follow-up and scores -> c-index, Kaplan-Meier groups with a log-rank test, Cox models with and without the score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy

from mil.bags.covariates import complete_inputs
from mil.errors import MilError
from mil.statistics.concordance import c_index
from mil.statistics.intervals import GROUPS, deletions, jackknife_error, on_logit_scale

if TYPE_CHECKING:
    from lifelines import CoxPHFitter

MIN_EVENTS = 5
EVENTS_A_COVARIATE = 5  # below, a Cox model's coefficients are hardly more than noise (Vittinghoff and McCulloch 2007)


@dataclass(frozen=True)
class CoxModels:
    """Hazard ratios of both models (model, covariate, ratio, low, high, p), and the test of what the score adds."""

    ratios: pd.DataFrame
    patients: int
    events: int
    likelihood_ratio: float
    p: float


def c_index_interval(table: pd.DataFrame, confidence: float) -> tuple[float, float, float]:
    """c-index of `table` (time, event, score) with a jackknife over patients, on the logit scale; nan without a known pair."""
    arrays = table["time"].to_numpy(), table["event"].to_numpy(bool), table["score"].to_numpy()
    value = float(c_index(*arrays, np.ones((1, len(table))))[0])
    if not np.isfinite(value):
        return np.nan, np.nan, np.nan
    drawn = c_index(*arrays, deletions(len(table)))
    degrees, events = min(len(table), GROUPS) - 1, float(arrays[1].sum())
    bounds = on_logit_scale(value, jackknife_error(drawn), degrees, confidence, events, "jackknife")
    return value, bounds.low, bounds.high


def kaplan_meier(table: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Survival of each `group` of `table` (time, event, group): group, time, survival, low, high, at_risk."""
    from lifelines import KaplanMeierFitter

    parts = []
    for group, members in table.groupby("group", sort=False):
        fitted = KaplanMeierFitter(alpha=1 - confidence).fit(members["time"], members["event"])
        bounds = fitted.confidence_interval_survival_function_
        parts.append(
            pd.DataFrame(
                {
                    "group": group,
                    "time": fitted.survival_function_.index.to_numpy(),
                    "survival": fitted.survival_function_.iloc[:, 0].to_numpy(),
                    "low": bounds.iloc[:, 0].to_numpy(),
                    "high": bounds.iloc[:, 1].to_numpy(),
                    "at_risk": fitted.event_table["at_risk"].to_numpy(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def log_rank(table: pd.DataFrame) -> float:
    """p of equal survival of the groups."""
    from lifelines.statistics import multivariate_logrank_test

    return float(multivariate_logrank_test(table["time"], table["group"], table["event"]).p_value)


def cox_models(scores: pd.DataFrame, patients: pd.DataFrame, columns: Sequence[str], confidence: float) -> CoxModels:
    """Cox models of clinical `columns` alone and with the score (a deviation's change), and their likelihood-ratio test.

    `scores` has time, event and score by patient_id. Patients with a blank covariate are left out of both models. Raises
    where events are too few for the covariates, or a model does not converge.
    """
    inputs = complete_inputs(patients, columns, scores.index)
    complete, covariates = scores.loc[inputs.index], [*map(str, inputs.columns), "score"]
    events = int(complete["event"].sum())
    if events < max(MIN_EVENTS, EVENTS_A_COVARIATE * len(covariates)):
        raise MilError(f"{events} events are too few for a Cox model with {len(covariates)} covariates")
    names = [f"x{number}" for number in range(len(covariates))]  # a clinical column may be called time
    table = pd.DataFrame(np.column_stack([inputs, complete["score"]]), complete.index, names, dtype=float)
    table = ((table - table.mean()) / table.std().replace(0, 1)).assign(time=complete["time"], event=complete["event"])
    models = {"clinical": names[:-1], "clinical + score": names}
    ratios, likelihood = [], {"clinical": _null_likelihood(table)}
    for name, used in models.items():
        if not used:
            continue
        fitted = _fit(table[[*used, "time", "event"]], confidence)
        likelihood[name] = float(fitted.log_likelihood_)
        ratios.append(_ratios(fitted, name, covariates[: len(used)]))
    ratio = 2 * (likelihood["clinical + score"] - likelihood["clinical"])
    return CoxModels(
        pd.concat(ratios, ignore_index=True), len(table), events, ratio, float(scipy.stats.chi2.sf(ratio, 1))
    )


def _fit(table: pd.DataFrame, confidence: float) -> "CoxPHFitter":
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError

    try:
        return CoxPHFitter(alpha=1 - confidence).fit(table, "time", "event")
    except ConvergenceError as error:
        raise MilError(f"the Cox model does not converge ({' '.join(str(error).split())[:120]})") from error


def _null_likelihood(table: pd.DataFrame) -> float:
    """Log partial likelihood without covariates (Efron's handling of ties, as lifelines fits)."""
    total = 0.0
    for time, tied in table[table["event"]].groupby("time"):
        at_risk = int((table["time"] >= time).sum())
        total -= float(np.log(at_risk - np.arange(len(tied))).sum())
    return total


def _ratios(fitted: "CoxPHFitter", model: str, covariates: Sequence[str]) -> pd.DataFrame:
    summary = fitted.summary
    lower = next(column for column in summary.columns if column.startswith("exp(coef) lower"))
    upper = next(column for column in summary.columns if column.startswith("exp(coef) upper"))
    return pd.DataFrame(
        {
            "model": model,
            "covariate": covariates,
            "ratio": summary["exp(coef)"].to_numpy(),
            "low": summary[lower].to_numpy(),
            "high": summary[upper].to_numpy(),
            "p": summary["p"].to_numpy(),
        }
    )
