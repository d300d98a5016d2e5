"""Held-out AUROC: numbers by hand, the factor for shared training patients, and the level in simulated cohorts."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mil.rng import rng
from mil.statistics import delong, held_out
from mil.statistics.differences import corrected, difference_of


def folds_of(rows):
    return pd.DataFrame(rows, columns=["repeat", "fold", "patient_id", "site", "label", "score"])


TWO_FOLDS = folds_of(
    [
        (0, 0, "a", "S", 1, 0.9), (0, 0, "b", "S", 0, 0.1), (0, 0, "c", "S", 0, 0.9),
        (0, 1, "d", "S", 1, 0.2), (0, 1, "e", "S", 0, 0.3), (0, 1, "f", "S", 1, 0.8),
    ]
)  # fmt: skip


def test_pairs_are_of_one_fold_and_ties_count_half():
    pairs = held_out.pairs_of(TWO_FOLDS)
    assert pairs.total == 4  # a-b, a-c in one fold, d-e, f-e in the other
    assert pairs.auroc == (1 + 0.5 + 0 + 1) / 4
    # levels of a fold's model do not matter
    moved = TWO_FOLDS.assign(score=TWO_FOLDS["score"] + 10 * TWO_FOLDS["fold"])
    assert held_out.pairs_of(moved).auroc == pairs.auroc
    # another site has no pair in common
    apart = TWO_FOLDS.assign(site=["S", "S", "T", "S", "T", "S"])
    assert held_out.pairs_of(apart).total == 1
    assert held_out.pairs_of(apart, within_sites=False).total == 4


def test_the_variance_is_clustered_by_patient_by_hand():
    # deviations from 0.625: a-b .375, a-c -.125; d-e -.625; f-e .375
    pairs = held_out.pairs_of(TWO_FOLDS)
    positives = (0.25**2 + 0.625**2 + 0.375**2) / 16 * 3 / 2
    negatives = (0.375**2 + 0.125**2 + 0.25**2) / 16 * 3 / 2
    cells = (0.375**2 + 0.125**2 + 0.625**2 + 0.375**2) / 16
    variance, degrees = pairs.variance()
    assert variance == pytest.approx(positives + negatives - cells)
    assert degrees == pytest.approx((positives + negatives) ** 2 / (positives**2 / 2 + negatives**2 / 2))


def test_with_one_fold_the_variance_is_delongs_less_its_excess():
    stream = rng(0, "one fold")
    labels = np.repeat([0, 1], [150, 100])
    scores = stream.normal(size=250) + labels
    table = pd.DataFrame(
        {"repeat": 0, "fold": 0, "patient_id": np.arange(250), "site": "S", "label": labels, "score": scores}
    )
    variance, _ = held_out.pairs_of(table).variance()
    placed = delong.placements(labels, scores)
    assert held_out.pairs_of(table).auroc == pytest.approx(placed.auroc[0])
    assert 0.98 < variance / placed.covariance[0, 0] < 1


@pytest.mark.parametrize(("noise", "factor"), [(0.0, 1.0), (0.5, 1.6875), (1.0, 2.0), (3.0, 2.0), (-1.0, 1.0)])
def test_the_factor_by_hand(noise, factor):
    """(1 + u)^2 (2 - u) / 2, u within 0 and 1 above chance."""
    assert held_out.inflation(0.7, 0.01, noise, 0.5) == pytest.approx(factor)


def test_noise_is_what_repeats_disagree_in():
    stream, rows = rng(0, "noise"), []
    same, noise = stream.normal(size=4000), stream.normal(size=(2, 4000))
    for repeat in range(2):
        for patient in range(4000):
            score = same[patient] + 0.5 * noise[repeat, patient]
            rows.append((repeat, (patient + repeat) % 5, f"p{patient:04d}", "S", patient % 2, score))
    # correlation of repeats 1 / 1.25: (1 - 0.8) times 5 folds
    assert held_out.noise_share(folds_of(rows)) == pytest.approx(1.0, abs=0.1)
    assert held_out.noise_share(folds_of(rows[:4000])) is None


def test_too_few_patients_have_a_reason_in_place_of_an_interval():
    area, low, high, method = held_out.interval(held_out.pairs_of(TWO_FOLDS))
    assert area == 0.625
    assert np.isnan([low, high]).all()
    assert method == "no interval: 3 positive and 3 negative patients in pairs; 10 of each needed"
    _, method = held_out.paired(held_out.pairs_of(TWO_FOLDS), held_out.pairs_of(TWO_FOLDS))
    assert method.startswith("no test: 3 positive")
    alone = folds_of([(0, n, str(n), "S", n % 2, 0.5) for n in range(4)])
    assert held_out.interval(held_out.pairs_of(alone))[3].startswith("not defined")


def test_differences_stay_possible_and_agree_with_their_test():
    for difference in (-0.9, -0.3, 0.0, 0.02, 0.75, 0.99):
        for error in (0.01, 0.1, 0.4):
            tested = difference_of(difference, error**2, degrees=9)
            assert -1 < tested.low <= difference <= tested.high < 1
            assert (tested.p < 0.05) == (tested.low > 0 or tested.high < 0)
            assert tested.p == pytest.approx(2 * stats.t.sf(abs(difference) / error, 9))
            # the scale changes bounds near 1 only
    small = difference_of(0.02, 0.01**2)
    assert (small.low, small.high) == pytest.approx((0.0004, 0.0396), abs=1e-4)


def test_corrected_intervals_agree_with_holms_p():
    tests = [difference_of(value, 0.05**2) for value in (0.2, 0.12, 0.11, 0.02)]
    found = corrected(tests, 0.95)
    assert [p for *_, p in found] == pytest.approx(
        [4 * tests[0].p, 3 * tests[1].p, 3 * tests[1].p, tests[3].p], rel=0.35
    )
    for (low, high, p), tested in zip(found, tests, strict=True):
        assert (p < 0.05) == (low > 0 or high < 0)
        assert low <= tested.low
        assert tested.high <= high


def test_intervals_of_few_external_patients_hold_an_unequal_truth():
    """Five of twelve positive: the interval computed from the permutation test held it in 88 %."""
    labels, stream, held = np.repeat([1, 0], [5, 7]), rng(0, "few"), []
    truth = float(np.subtract(*stats.norm.cdf(np.array([1.5, 0.7]) / np.sqrt(2))))
    for _ in range(250):
        noise = stream.normal(size=12)
        pair = [up * labels + np.sqrt(0.9) * noise + np.sqrt(0.1) * stream.normal(size=12) for up in (1.5, 0.7)]
        found = delong.exchanged(labels, *pair, np.zeros(12), stream, 200)
        held += [found.low <= truth <= found.high] if np.isfinite(found.low) else []
        assert np.isnan(found.low) or (found.p < 0.05) == (found.low > 0 or found.high < 0)
    assert np.mean(held) > 0.93


def test_few_external_patients_are_tested_by_exchange():
    """Four positives and four negatives, one model right and one wrong: of 2^8 exchanges by hand."""
    labels = np.repeat([0, 1], 4)
    first, second = np.arange(8.0), np.array([1.0, 0, 6, 2, 7, 3, 5, 4])
    tested = delong.exchanged(labels, first, second, np.zeros(8), rng(0, "x"), 1000)
    ranks, areas = stats.rankdata([first, second], axis=1), []
    for number in range(256):
        own = np.array([ranks[number >> place & 1, place] for place in range(8)])
        other = np.array([ranks[1 - (number >> place & 1), place] for place in range(8)])
        areas.append(delong.auroc(labels, own) - delong.auroc(labels, other))
    assert tested.difference == pytest.approx(areas[0])
    assert tested.p == pytest.approx(np.mean(np.abs(areas) >= abs(areas[0]) - 1e-12))
    assert -1 <= tested.low <= tested.difference <= tested.high <= 1
    assert (tested.p < 0.05) == (tested.low > 0 or tested.high < 0)


def test_strata_are_weighted_by_pairs_and_their_variances_by_the_squares():
    stream = rng(0, "strata")
    labels, sites = np.tile([0, 0, 1], 30), np.repeat([0, 1], [30, 60])
    scores = stream.normal(size=90) + labels
    parts = [delong.placements(labels[sites == site], scores[sites == site]) for site in (0, 1)]
    share = 200 / 1000  # 20 x 10 pairs of 20 x 10 + 40 x 20
    together = delong.within(labels, scores, sites)
    assert together.auroc[0] == pytest.approx(share * parts[0].auroc[0] + (1 - share) * parts[1].auroc[0])
    assert together.covariance[0, 0] == pytest.approx(
        share**2 * parts[0].covariance[0, 0] + (1 - share) ** 2 * parts[1].covariance[0, 0]
    )
    assert delong.within_areas(labels, scores[None], sites) == pytest.approx(together.auroc)


def cross_validated(stream, values, labels, dealt):
    """Held-out scores of ridge regressions, as `Scope.folds`."""
    parts = []
    for repeat, fold in enumerate(dealt):
        scores = np.empty(len(labels))
        for number in range(5):
            train = fold != number
            x, y = values[train] - values[train].mean(axis=0), labels[train] - labels[train].mean()
            weights = np.linalg.solve(x.T @ x + 5 * np.eye(x.shape[1]), x.T @ y)
            scores[~train] = (values[~train] - values[train].mean(axis=0)) @ weights
        table = {"repeat": repeat, "fold": fold, "patient_id": np.arange(len(labels)), "site": "S"}
        parts.append(pd.DataFrame(table).assign(label=labels, score=scores))
    return held_out.pairs_of(pd.concat(parts))


@pytest.mark.slow
def test_models_that_know_nothing_are_called_so():
    """120 cohorts of 60, five folds twice over: level of the interval and of the test; long: benchmarks/held_out.py.

    Bounds are 95 % and 5 % with 3 binomial deviations; DeLong's, which takes models as given, holds 0.5 in 83 %.
    """
    stream, held, differ = rng(0, "nothing"), 0, 0
    labels = (np.arange(60) < 24).astype(int)
    for _ in range(120):
        dealt = [np.concatenate([stream.permutation(np.arange(size) % 5) for size in (24, 36)]) for _ in range(2)]
        pairs = [cross_validated(stream, stream.normal(size=(60, 6)), labels, dealt) for _ in range(2)]
        _, low, high, _ = held_out.interval(pairs[0])
        held += low <= 0.5 <= high
        differ += held_out.paired(*pairs)[0].p < 0.05
    assert held / 120 >= 0.89
    assert differ / 120 <= 0.11


@pytest.mark.parametrize(("positives", "negatives"), [(6, 6), (10, 10), (10, 30)])
def test_one_in_twenty_cohorts_without_signal_lies_below_the_chance_limit(positives, negatives):
    """Of 120 cohorts, five folds: 5 % with 3 binomial deviations; more cohorts: benchmarks/held_out.py, `nothing`."""
    stream, low = rng(0, "low by chance", positives, negatives), held_out.low_by_chance(positives, negatives)
    labels, areas = (np.arange(positives + negatives) < positives).astype(int), []
    for _ in range(120):
        dealt = np.concatenate([stream.permutation(np.arange(size) % 5) for size in (positives, negatives)])
        areas.append(cross_validated(stream, stream.normal(size=(len(labels), 6)), labels, [dealt]).auroc)
    assert 0.0 < np.mean(np.array(areas) < low) <= 0.11
