"""What a site tells of its own patients at the end, and what all sites' numbers say together. No row, no score, no small count."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mil.hospital.forms import FINISHED, PARTS
from mil.statistics.concordance import harrell, pairs_in_order
from mil.statistics.delong import placements
from mil.statistics.from_sites import LogRank, SiteAuroc, Summary, combined_auroc, merged, stratified_logrank
from mil.training.cohort import covariate_table

Metrics = dict[str, float | int | None]
NOTHING: Metrics = dict.fromkeys(FINISHED)
COVARIATES = "covariates."


def own_metrics(kind: str, predictions: pd.DataFrame, bags: pd.DataFrame, small_cells: int) -> Metrics:
    """How well the final models judge the site's patients that they did not learn from.

    Binary: AUROC with DeLong's variance. Survival: C-index, and the log-rank parts of the half at higher risk against the
    rest. Regression: share of pairs in order. Everything is withheld where a class has fewer than `small_cells` patients.
    """
    own = predictions[predictions["split"].isin(["held_out", "external"])]
    scores = own.groupby("patient_id")["score"].mean()
    rows = bags.set_index("patient_id").loc[scores.index]
    labels, found = rows["label"].to_numpy(np.float64), scores.to_numpy(np.float64)
    told = dict(NOTHING)
    positives = int((labels > 0.5).sum()) if kind in {"binary", "survival"} else len(labels) // 2
    if kind == "multiclass" or min(positives, len(labels) - positives) < small_cells:
        return told
    told["patients"] = len(labels)
    if kind == "regression":
        told["metric"] = pairs_in_order(labels, found)
        return told
    told["positives"] = positives
    if kind == "binary":
        area = placements(labels.astype(int), found)
        told |= {"metric": float(area.auroc[0]), "variance": float(area.covariance[0, 0])}
        return told
    times, events = rows["time"].to_numpy(np.float64), labels > 0.5
    ordered = float(harrell(rows[["time", "label"]].to_numpy(np.float64), found, np.ones((1, len(found))))[0])
    parts = LogRank.of(times, events, found > np.median(found))
    logrank = {"logrank_difference": parts.difference, "logrank_variance": parts.variance}
    return told | {"metric": ordered, **logrank}


def near_earlier(told: Mapping, ledger: Sequence[str], endpoint: str, small_cells: int) -> bool:
    """Whether a line of the ledger has the result of an earlier run of nearly the same patients (`differ_by_few`)."""
    results = [json.loads(line) for line in ledger if '"event": "result"' in line]
    earlier = [line for line in results if line["event"] == "result" and line["endpoint"] == endpoint]
    return any(differ_by_few(told, line, small_cells) for line in earlier)


def differ_by_few(told: Mapping, earlier: Mapping, small_cells: int) -> bool:
    """Whether two runs' metrics are of nearly the same patients, so that their difference would be of the few others."""
    if told["patients"] is None or earlier["patients"] is None:
        return False
    ones, before = (int(one["positives"] or 0) for one in (told, earlier))
    changes = (abs(ones - before), abs(told["patients"] - ones - earlier["patients"] + before))
    return any(0 < change < small_cells for change in changes)


def own_covariates(bags: pd.DataFrame, names: Sequence[str], small_cells: int) -> dict[str, Tensor]:
    """Number, mean and squares of each covariate among the site's patients; zeros where too few are known."""
    table = covariate_table(bags, names)
    summaries = [Summary.of(column) for column in table.T]
    shown = [one if one.count >= small_cells else Summary(0.0, 0.0, 0.0) for one in summaries]
    return {f"{COVARIATES}{part}": torch.tensor([getattr(one, part) for one in shown]).double() for part in PARTS}


def sites_table(kind: str, roles: Mapping[str, str], told: Mapping[str, Mapping]) -> pd.DataFrame:
    """A row a site, and what the sites' numbers say together: of all training sites, of all external ones."""
    rows = [{"site": site, "role": roles[site], **{key: told[site][key] for key in FINISHED}} for site in sorted(told)]
    for role, name in (("train", "training sites"), ("external", "external sites")):
        own = [row for row in rows if row["role"] == role and row["metric"] is not None]
        if not own:
            continue
        together: dict[str, object] = {"site": name, "role": role, "patients": sum(row["patients"] for row in own)}
        if kind == "binary":
            area = combined_auroc([SiteAuroc(row["patients"], row["metric"], row["variance"]) for row in own])
            together |= {"metric": area.auroc, "low": area.low, "high": area.high, "method": area.how}
        if kind == "survival":
            parts = [LogRank(row["logrank_difference"], row["logrank_variance"]) for row in own]
            together["logrank_chi2"], together["logrank_p"] = stratified_logrank(parts)
            together["method"] = "log-rank stratified by site"
        rows.append(together)
    return pd.DataFrame(rows)


def covariates_table(names: Sequence[str], told: Mapping[str, Mapping[str, Tensor]]) -> pd.DataFrame:
    """Number known, mean and deviation of every covariate, by site and of all sites together."""
    rows = []
    for column, name in enumerate(names):
        sites = {
            site: Summary(*(float(tensors[f"{COVARIATES}{part}"][column]) for part in PARTS))
            for site, tensors in sorted(told.items())
        }
        for site, one in {**sites, "all sites": merged(list(sites.values()))}.items():
            values = {"mean": one.mean, "deviation": one.variance**0.5} if one.count else {}
            rows.append({"covariate": name, "site": site, "known": int(one.count) or None, **values})
    return pd.DataFrame(rows)
