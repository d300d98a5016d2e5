"""Statistics from a few numbers a site: equal to the pooled computation; and counts that cannot be worked out."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines.statistics import logrank_test

from mil.hospital.results import NOTHING, SiteResults, covariates_table, pooled_totals, site_metrics, sites_table
from mil.statistics.delong import newcombe_interval, placements
from mil.statistics.from_sites import LogRank, Summary, auroc_of_sums, merged, stratified_logrank, suppress


def test_merged_moments_are_those_of_the_pooled_rows_where_sums_of_squares_fail() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(1e6, 1.0, 900)
    sites = np.split(values, [100, 450])
    found = merged([Summary.of(site) for site in sites])
    exact = float(np.var(values.astype(np.longdouble), ddof=1))
    assert found.mean == pytest.approx(values.mean(), rel=1e-14)
    assert found.variance == pytest.approx(exact, rel=1e-11)
    assert found.count == 900


@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=8), min_size=1, max_size=5))
def test_merging_is_of_any_number_of_sites_in_any_order(sites: list[list[float]]) -> None:
    whole = np.array([value for site in sites for value in site])
    one = merged([Summary.of(np.array(site)) for site in sites])
    other = merged([Summary.of(np.array(site)) for site in reversed(sites)])
    assert one.count == other.count == len(whole)
    if len(whole) > 1:
        assert one.mean == pytest.approx(whole.mean(), abs=1e-9)
        assert one.variance == pytest.approx(whole.var(ddof=1), rel=1e-9, abs=1e-9)
        assert other.variance == pytest.approx(one.variance, rel=1e-9, abs=1e-9)


def test_unknown_values_and_empty_sites_count_for_nothing() -> None:
    assert Summary.of(np.array([np.nan, 1.0, 3.0])) == Summary(2.0, 2.0, 2.0)
    assert merged([Summary.of(np.array([])), Summary(2.0, 2.0, 2.0)]) == Summary(2.0, 2.0, 2.0)
    assert np.isnan(merged([Summary.of(np.array([]))]).variance)


def test_sites_aurocs_combine_near_the_pooled_one_where_scores_mean_the_same() -> None:
    generator = np.random.default_rng(1)
    labels = [generator.integers(0, 2, size) for size in (120, 300, 80)]
    scores = [generator.normal(1.5 * label, 1.0) for label in labels]
    sites = []
    for label, score in zip(labels, scores, strict=True):
        found = placements(label, score)
        size, auroc, variance = len(label), float(found.auroc[0]), float(found.covariance[0, 0])
        sites.append((size, size * auroc, size**2 * variance))
    combined = auroc_of_sums(*np.sum(sites, axis=0))
    pooled = placements(np.concatenate(labels), np.concatenate(scores))
    assert combined.auroc == pytest.approx(float(pooled.auroc[0]), abs=0.005)
    assert combined.low < float(pooled.auroc[0]) < combined.high
    width = 2 * 1.959964 * np.sqrt(pooled.covariance[0, 0])
    assert combined.high - combined.low == pytest.approx(width, rel=0.15)
    assert auroc_of_sums(*sites[0]).auroc == pytest.approx(sites[0][1] / 120)


def _cohort(seed: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    group = generator.random(size) < 0.5
    times = np.ceil(generator.exponential(np.where(group, 20, 30)))  # months, with ties
    return times, generator.random(size) < 0.7, group


def test_one_site_s_log_rank_is_lifelines() -> None:
    times, events, group = _cohort(0, 200)
    statistic, p = stratified_logrank([LogRank.of(times, events, group)])
    other = logrank_test(times[group], times[~group], events[group], events[~group])
    assert statistic == pytest.approx(other.test_statistic, rel=1e-10)
    assert p == pytest.approx(other.p_value, rel=1e-10)


def test_two_numbers_a_site_give_the_stratified_log_rank_of_all_rows() -> None:
    cohorts = [_cohort(seed, size) for seed, size in ((1, 60), (2, 140), (3, 90))]
    statistic, _ = stratified_logrank([LogRank.of(*cohort) for cohort in cohorts])
    observed = expected = variance = 0.0  # over all rows, stratum by stratum, by the textbook's table
    for times, events, group in cohorts:
        for time in sorted(set(times[events])):
            n1, n = sum((times >= time) & group), sum(times >= time)
            d1, d = sum((times == time) & events & group), sum((times == time) & events)
            observed, expected = observed + d1, expected + d * n1 / n
            variance += 0 if n < 2 else d * n1 * (n - n1) * (n - d) / (n**2 * (n - 1))
    assert statistic == pytest.approx((observed - expected) ** 2 / variance, rel=1e-12)


def test_nothing_to_compare_is_not_a_number() -> None:
    assert all(np.isnan(stratified_logrank([LogRank.of(np.array([1.0]), np.array([True]), np.array([True]))])))


def test_outcomes_that_are_all_alike_are_no_metric() -> None:
    """NaN crossed in no message, so that the run could not end."""
    table = pd.DataFrame({"patient_id": [f"P{number}" for number in range(40)], "label": 3.0})
    predictions = table.assign(split="external", score=range(40))
    assert site_metrics("regression", predictions, table, 10) == NOTHING
    told = site_metrics("regression", predictions, table.assign(label=range(40)), 10)
    assert told["metric"] == 1.0


def test_held_out_times_are_compared_within_folds() -> None:
    """Log hazards of two folds' models have no common zero: laid together, the C-index was 0.56 where it is 0.71."""
    generator, ids = np.random.default_rng(5), [f"P{number}" for number in range(60)]
    times, folds = generator.integers(1, 40, 60), np.arange(60) % 3
    table = pd.DataFrame({"patient_id": ids, "time": times, "label": generator.integers(0, 2, 60)})
    rows = pd.DataFrame({"patient_id": ids, "trained_on": "A+B", "repeat": 0, "fold": folds, "split": "held_out"})
    rows["score"] = generator.normal(size=60) - np.log(times)
    told = site_metrics("survival", rows, table, 10)
    assert site_metrics("survival", rows.assign(score=rows["score"] + 5 * folds), table, 10) == told
    right = known = 0
    for fold in range(3):
        part = rows[folds == fold].merge(table, on="patient_id")
        for first in part[part["label"] == 1].itertuples():
            later = part[(part["time"] > first.time) | ((part["time"] == first.time) & (part["label"] == 0))]
            right, known = right + (later["score"] < first.score).sum(), known + len(later)
    assert told["metric"] == pytest.approx(right / known)
    numbers = table.assign(label=times.astype(float))
    moved = rows.assign(score=-rows["score"])
    alone = site_metrics("regression", moved, numbers, 10)["metric"]
    assert site_metrics("regression", moved.assign(score=moved["score"] + 5 * folds), numbers, 10)["metric"] == alone


def test_a_site_without_a_pair_in_the_wrong_order_has_an_interval() -> None:
    """It was [1, 1]; and held-out patients, who trained one another's models, have a wider one than external ones."""
    metrics = NOTHING | {"patients": 40, "positives": 20, "metric": 1.0, "variance": 0.0}
    row = sites_table("binary", {"A": "external"}, {"A": metrics}).iloc[-1]
    assert (row["low"], row["high"]) == newcombe_interval(1.0, 20, 20)
    metrics |= {"metric": 0.6, "variance": 0.01}
    widths = []
    for role in ("train", "external"):
        row = sites_table("binary", {"A": role}, {"A": metrics}).iloc[-1]
        widths.append(row["high"] - row["low"])
    assert widths[1] == pytest.approx(2 * 1.959964 * 0.1)
    assert widths[0] == pytest.approx(widths[1] * np.sqrt(2), rel=0.05)


# Small cells


def test_large_counts_are_all_shown() -> None:
    counts = np.array([[30, 12], [25, 40]])
    shown = suppress(counts, 10)
    assert np.array_equal(shown.cells, counts)
    assert np.array_equal(shown.rows, [42, 65])
    assert shown.total == 107


@pytest.mark.parametrize("small", range(1, 13))
def test_a_small_cell_takes_others_with_it(small: int) -> None:
    """Counts 1 to 12 at threshold 10: below it neither the cell nor what is left of its totals is shown."""
    shown = suppress(np.array([[small, 40, 50], [30, 20, 60]]), 10)
    if small >= 10:
        assert not np.isnan(shown.cells).any()
        return
    assert np.isnan(shown.cells[0, 0])
    assert np.isnan(shown.cells[0]).sum() >= 2
    assert np.isnan(shown.cells[:, 0]).sum() >= 2


def test_zero_is_no_small_cell() -> None:
    assert not np.isnan(suppress(np.array([[0, 40], [30, 20]]), 10).cells).any()


def test_a_total_of_a_small_table_is_withheld() -> None:
    shown = suppress(np.array([[2, 3]]), 10)
    assert np.isnan(shown.total)
    assert np.isnan(shown.rows).all()
    assert np.isnan(shown.cells).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.data())
def test_no_withheld_small_cell_can_be_worked_out(rows: int, columns: int, data: st.DataObject) -> None:
    """All whole-number tables that agree with what is shown: every small cell takes at least three values among them."""
    threshold = 5
    counts = np.array(data.draw(st.lists(st.integers(0, 9), min_size=rows * columns, max_size=rows * columns)))
    counts = counts.reshape(rows, columns)
    shown = suppress(counts, threshold)
    assert not ((shown.cells > 0) & (shown.cells < threshold)).any()
    hidden = np.argwhere(np.isnan(shown.cells))
    small = [place for place, cell in enumerate(hidden) if 0 < counts[tuple(cell)] < threshold]
    if not small or len(hidden) > 4:
        return
    values = np.indices([24] * len(hidden)).reshape(len(hidden), -1)  # every table of hidden cells up to 23
    tables = np.repeat(shown.cells[None], values.shape[1], 0)
    tables[:, hidden[:, 0], hidden[:, 1]] = values.T
    agree = np.ones(len(tables), bool)
    for stated, found in ((shown.rows, tables.sum(2)), (shown.columns, tables.sum(1))):
        agree &= (np.isnan(stated) | (stated == found)).all(1)
    if not np.isnan(shown.total):
        agree &= tables.sum((1, 2)) == shown.total
    for place in small:
        assert len(np.unique(values[place, agree])) >= 3


# Sums over sites that are masked


def test_covariates_from_masked_sums_are_those_of_all_rows() -> None:
    """Two sites' ages and sizes, one of which is withheld at the first site; the number known, mean and deviation are the pooled rows'."""
    generator = np.random.default_rng(3)
    rows = {"A": generator.normal(60, 12, size=(40, 2)), "B": generator.normal(55, 9, size=(70, 2))}
    rows["A"][:, 1] = np.nan
    told = {}
    for site, values in rows.items():
        summaries = [Summary.of(column) for column in values.T]
        parts = {
            f"covariates.{part}": [getattr(one, part) for one in summaries] for part in ("count", "mean", "squares")
        }
        covariates = {name: torch.tensor(numbers, dtype=torch.float64) for name, numbers in parts.items()}
        told[site] = SiteResults(dict(NOTHING), covariates, {}).pooled()
    table = covariates_table(["age", "size"], told, pooled=110).set_index("covariate")
    ages = np.concatenate([rows["A"][:, 0], rows["B"][:, 0]])
    assert table["site"].tolist() == ["training sites"] * 2
    assert table["known"].tolist() == [110, 70]
    assert table.loc["age", "mean"] == pytest.approx(ages.mean(), rel=1e-12)
    assert table.loc["age", "deviation"] == pytest.approx(ages.std(ddof=1), rel=1e-12)
    assert table.loc["size", "deviation"] == pytest.approx(rows["B"][:, 1].std(ddof=1), rel=1e-12)
    totals = pooled_totals(list(told.values()), 110)
    assert totals["sites"] == 0
    assert len(sites_table("binary", {}, {}, totals)) == 0
