"""Strategies less pooled and less local, by arithmetic on a few patients; and the traffic figure's sums."""

import numpy as np
import pandas as pd
import pytest

from mil.config import MetricsSpec, load
from mil.figures.communication import traffic
from mil.metrics.strategies import ELSEWHERE, POOLED, strategy_table
from mil.rng import rng
from mil.statistics import delong
from mil.statistics.arms import EXTERNAL_SITES, OWN_SITE, TRAINING_SITES
from mil.strategies import STRATEGIES

SPEC = MetricsSpec(bootstrap=400)
ROLES = {"A": "train", "B": "train", "C": "external"}
# scores of three positives, then three negatives, by model and site; AUROC is the share of the 9 pairs in order
FIRST = [0.9, 0.8, 0.7, 0.3, 0.2, 0.1]  # 9 of 9
SECOND = [0.9, 0.8, 0.15, 0.3, 0.2, 0.1]  # 7 of 9
THIRD = [0.9, 0.15, 0.05, 0.3, 0.2, 0.1]  # 4 of 9


def predictions(name, scores):
    """`scores`: (trained_on, site) -> six scores."""
    rows = []
    for (on, site), own in scores.items():
        split = "external" if site == "C" else ("held_out" if site in on.split("+") else "transfer")
        for number, score in enumerate(own):
            label = int(number < 3)
            rows.append((name, on, 0, 0, f"{site}{number}", site, ROLES[site], split, label, score))
    columns = ["experiment", "trained_on", "repeat", "fold", "patient_id", "site", "role", "split", "label", "score"]
    return pd.DataFrame(rows, columns=columns)


TABLES = {
    "alone": predictions(
        "alone",
        {
            ("A", "A"): SECOND,
            ("A", "B"): THIRD,
            ("A", "C"): THIRD,
            ("B", "A"): THIRD,
            ("B", "B"): FIRST,
            ("B", "C"): SECOND,
        },
    ),
    "all": predictions("all", {("A+B", "A"): FIRST, ("A+B", "B"): SECOND, ("A+B", "C"): FIRST}),
    "together": predictions("together", {("A+B", "A"): SECOND, ("A+B", "B"): FIRST, ("A+B", "C"): SECOND}),
}


def row_of(table, experiment, site, against):
    found = table[(table["experiment"] == experiment) & (table["site"] == site) & (table["against"] == against)]
    assert len(found) == 1
    return found.iloc[0]


def test_differences_by_hand():
    table = strategy_table(TABLES, SPEC, "all", "alone")
    assert row_of(table, "together", "A", "")["value"] == pytest.approx(7 / 9)
    assert row_of(table, "together", "A", POOLED)["difference"] == pytest.approx(-2 / 9)
    assert row_of(table, "together", TRAINING_SITES, POOLED)["difference"] == pytest.approx(0)
    assert row_of(table, "together", "B", OWN_SITE)["difference"] == pytest.approx(0)
    assert row_of(table, "together", "A", OWN_SITE)["difference"] == pytest.approx(0)
    # at A the only local model from elsewhere is B's, 4 of 9; at C there are two, 4 of 9 and 7 of 9
    assert row_of(table, "together", "A", ELSEWHERE)["against_value"] == pytest.approx(4 / 9)
    assert row_of(table, "together", "C", ELSEWHERE)["against_value"] == pytest.approx(5.5 / 9)
    assert row_of(table, "together", "C", ELSEWHERE)["difference"] == pytest.approx(1.5 / 9)
    assert row_of(table, "together", TRAINING_SITES, ELSEWHERE)["difference"] == pytest.approx((7 + 9 - 4 - 4) / 18)
    assert EXTERNAL_SITES not in set(table["site"])  # one external site stands for itself
    assert not len(table[(table["experiment"] == "all") & (table["against"] == POOLED)])
    tested = table[table["against"] != ""]
    assert tested["correction"].str.match(r"Holm, \d+ comparisons").all()
    known = tested.dropna(subset=["p"])
    assert (known["p_adjusted"] >= known["p"]).all()
    assert tested.loc[tested["p"].isna(), "method"].str.startswith(("no test", "not defined")).all()


def test_a_difference_to_pooled_is_delongs():
    generator = rng(0, "strategies")
    labels = np.arange(40) % 2
    noisy = [labels + generator.normal(0, 1, 40) for _ in range(2)]
    scores = [1 / (1 + np.exp(-one)) for one in noisy]
    tables = {}
    for name, own in zip(("all", "together"), scores, strict=True):
        tables[name] = pd.DataFrame(
            {"experiment": name, "trained_on": "A+B", "repeat": 0, "fold": 0, "patient_id": [f"C{k:02d}" for k in range(40)],
             "site": "C", "role": "external", "split": "external", "label": labels, "score": own}
        )  # fmt: skip
    row = row_of(strategy_table(tables, SPEC, "all", None), "together", "C", POOLED)
    expected = delong.paired(labels, scores[1], scores[0])
    assert (row["difference"], row["low"], row["high"], row["p"]) == pytest.approx(
        (expected.difference, expected.low, expected.high, expected.p)
    )


def test_intervals_against_the_locals_resample_patients():
    row = row_of(strategy_table(TABLES, SPEC, None, "alone"), "together", "C", ELSEWHERE)
    assert row["low"] < row["difference"] < row["high"]
    assert row["method"] == "patient bootstrap, paired"
    again = row_of(strategy_table(TABLES, SPEC, None, "alone"), "together", "C", ELSEWHERE)
    assert row["low"] == again["low"]


def test_traffic_by_hand():
    line = {"bytes_received": 2_000_000, "bytes_sent": 1_000_000}
    entries = [
        {"model": "m/inner0", "phase": "inner", "round": 1, "site": "A", **line},
        *[
            {"model": "m", "phase": "refit", "round": number, "site": site, **line}
            for number in (1, 2)
            for site in "AB"
        ],
    ]
    told = traffic(entries)
    assert (told["site_down_mb"], told["site_up_mb"], told["round_mb"], told["rounds"]) == (2, 1, 6, 2)
    assert (told["model_mb"], told["models"], told["run_mb"]) == (12, 1, 15)
    assert traffic([{"model": "m", "phase": "refit", "round": 1, "site": "A"}]) == {}


@pytest.mark.parametrize(("cohort", "overlay"), [("demo", "strategies"), ("idc", "strategies"), ("idc", "local_work")])
def test_every_strategy_has_a_stanza_and_overlays_fit_their_cohorts(cohort, overlay, repository):
    files = ["default", "experiments", f"cohorts/{cohort}", overlay]
    config = load(*(repository / "configs" / f"{name}.yaml" for name in files))
    assert config.results == f"results/{overlay}"
    endpoints = {one.endpoint for one in config.selected().values()}
    assert endpoints == {"response" if cohort == "demo" else "tumour"}
    assert config.endpoints[endpoints.pop()].repeats == 1
    named = {config.experiments[name].strategy.name for name in config.experiments if name.startswith("attention_")}
    assert named == set(STRATEGIES)
    if overlay == "strategies":
        missing = set(STRATEGIES) - {one.strategy.name for one in config.selected().values()}
        assert missing == {"trimmed_mean"}  # the median's equal with two sites
        assert all(one.search is not None and one.training.patience for one in config.selected().values())
