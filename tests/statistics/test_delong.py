"""DeLong's variance, its intervals and tests, against sums over all pairs that are written out."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from mil.errors import MilError
from mil.rng import rng
from mil.statistics import delong
from mil.statistics.ranking import midranks

STREAM = rng(0, "delong")
LABELS = np.array([1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0])
SCORES = np.round(STREAM.normal(size=(2, 12)) + 0.8 * LABELS, 1)
SCORES[0, 1] = SCORES[0, 0]  # a tie between the classes
SITES = np.array(["a", "a", "b", "a", "a", "b", "b", "b", "a", "b", "b", "c"])  # c: one class
Z = 1.959963984540054


def pairs(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """1 where the positive (row) is above the negative (column), one half where they tie."""
    above = scores[labels == 1][:, None] - scores[labels == 0][None]
    return (above > 0) + 0.5 * (above == 0)


def by_hand(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs and DeLong's covariance from all pairs."""
    won = [pairs(labels, one) for one in scores]
    m, n = won[0].shape
    covariance = np.cov([one.mean(axis=1) for one in won]) / m + np.cov([one.mean(axis=0) for one in won]) / n
    return np.array([one.mean() for one in won]), covariance


def test_areas_and_covariance_are_those_of_all_pairs():
    placed = delong.placements(LABELS, SCORES)
    areas, covariance = by_hand(LABELS, SCORES)
    np.testing.assert_allclose(placed.auroc, areas, atol=1e-12)
    np.testing.assert_allclose(placed.covariance, covariance, atol=1e-12)
    assert delong.auroc(LABELS, SCORES[0]) == pytest.approx(areas[0])


def test_one_patient_of_a_class_has_no_variance_and_two_have():
    one, two = np.array([1, 0, 0, 0]), np.array([1, 1, 0, 0])
    assert np.isnan(delong.placements(one, SCORES[:, :4]).covariance).all()
    assert np.isfinite(delong.placements(two, SCORES[:, :4]).covariance).all()
    with pytest.raises(MilError, match="finite scores"):
        delong.placements(two, np.array([0.1, np.nan, 0.3, 0.4]))
    assert not delong.both_classes(np.ones(3))
    assert not delong.both_classes(np.zeros(3))


@pytest.mark.parametrize("sites", [SITES, np.tile(["a", "b"], 6)])
def test_strata_count_by_their_pairs_and_those_of_one_class_not_at_all(sites):
    found = delong.within(LABELS, SCORES, sites)
    parts = [by_hand(LABELS[site == sites], SCORES[:, site == sites]) for site in "ab"]
    sizes = np.array([pairs(LABELS[site == sites], SCORES[0, site == sites]).size for site in "ab"])
    weights = sizes / sizes.sum()
    np.testing.assert_allclose(found.auroc, sum(w * area for w, (area, _) in zip(weights, parts, strict=True)))
    np.testing.assert_allclose(found.covariance, sum(w**2 * cov for w, (_, cov) in zip(weights, parts, strict=True)))
    np.testing.assert_allclose(delong.within_areas(LABELS, SCORES, sites), found.auroc)
    with pytest.raises(MilError, match="a site with patients of both classes"):
        delong.within(LABELS, SCORES, np.where(LABELS == 1, "a", "b"))


def test_a_site_with_one_patient_of_a_class_leaves_the_others_their_interval_and_test():
    random = np.random.default_rng(0)
    strata, labels = np.repeat(["A", "B", "C"], [60, 60, 6]), np.r_[np.tile([0, 1], 60), [1, 0, 0, 0, 0, 0]]
    first, second = labels + random.normal(size=126), 0.3 * labels + random.normal(size=126)
    large = strata != "C"
    whole = delong.paired(labels, first, second, strata=strata)
    others = delong.paired(labels[large], first[large], second[large], strata=strata[large])
    assert whole.p == pytest.approx(others.p, rel=0.2)
    parts = [delong.placements(labels[strata == site], first[strata == site], 0.25) for site in "ABC"]
    expected = sum(pairs**2 * part.covariance[0, 0] for pairs, part in zip((900, 900, 5), parts, strict=True)) / 1805**2
    assert delong.within(labels, first, strata).covariance[0, 0] == pytest.approx(expected)
    alike = delong.paired(labels, first, 2 * first, strata=strata)
    assert (alike.difference, alike.p) == (0, 1)
    assert np.isnan(alike.low)


def test_intervals_are_cut_at_the_ends_and_blank_without_variance():
    area, low, high = delong.interval(LABELS, SCORES[0])
    half = Z * np.sqrt(by_hand(LABELS, SCORES)[1][0, 0])
    assert (area, low, high) == pytest.approx((area, max(area - half, 0), min(area + half, 1)))
    labels = np.array([1, 1, 0, 0, 0])
    assert delong.interval(labels, np.array([0.9, 0.5, 0.6, 0.1, 0.2]))[2] == 1.0
    assert delong.interval(labels, -np.array([0.9, 0.5, 0.6, 0.1, 0.2]))[1] == 0.0
    assert np.isnan(delong.interval(labels, np.array([0.9, 0.8, 0.6, 0.1, 0.2]))[1:]).all()
    assert delong.interval(LABELS, SCORES[0], 0.5)[1] > low


def test_the_logit_interval_is_the_delta_method_on_the_log_odds():
    area, variance = by_hand(LABELS, SCORES)[0][0], by_hand(LABELS, SCORES)[1][0, 0]
    odds, error = np.log(area / (1 - area)), np.sqrt(variance) / area / (1 - area)
    expected = [1 / (1 + np.exp(-(odds + sign * Z * error))) for sign in (-1, 1)]
    assert delong.logit_interval(LABELS, SCORES[0]) == pytest.approx((area, *expected))
    within = delong.within(LABELS, SCORES[:1], SITES)
    assert delong.logit_interval(LABELS, SCORES[0], 0.9, SITES) == delong.logit_bounds(
        float(within.auroc[0]), float(within.covariance[0, 0]), 5, 6, 0.9
    )


@pytest.mark.parametrize(("area", "variance"), [(1.0, 0.01), (0.0, 0.01), (1.0, 0.0), (0.5, 0.0), (0.7, np.nan)])
def test_without_use_of_a_variance_the_interval_is_newcombe_s(area, variance):
    assert delong.logit_bounds(area, variance, 10, 30, 0.95) == (area, *delong.newcombe_interval(area, 10, 30))


@pytest.mark.parametrize("strata", [None, SITES])
def test_newcombe_s_interval_counts_patients_of_pairs(strata):
    """A site of one class has no pair, and adds no knowledge."""
    numbers = (5, 7) if strata is None else (5, 6)
    for area in (0, 1):
        scores = (area == LABELS) + 0.01 * np.arange(12)
        expected = (area, *delong.newcombe_interval(area, *numbers))
        assert delong.logit_interval(LABELS, scores, strata=strata) == expected
        assert delong.numbers_in_pairs(LABELS, strata) == numbers


def test_areas_of_one_in_every_stratum_are_one_together():
    """To the last bit, however many pairs each has: what is perfect is treated apart."""
    for seed in range(12):
        strata = np.random.default_rng(seed).integers(0, 7, 60)
        labels = np.random.default_rng(seed + 100).integers(0, 2, 60)
        assert delong.within(labels, labels, strata).auroc == 1
        assert (delong.within_areas(labels, np.stack([labels, 1 - labels]), strata) == [1, 0]).all()


@pytest.mark.parametrize("area", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("positives", "negatives"), [(10, 30), (5, 5)])
def test_newcombe_s_bounds_solve_his_equation(area, positives, negatives):
    low, high = delong.newcombe_interval(area, positives, negatives)
    assert (low == 0.0) == (area == 0)
    assert (high == 1.0) == (area == 1)
    size = (positives + negatives) / 2
    for theta in {low, high} - {0.0, 1.0}:
        spread = 1 + (size - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        reach = Z * np.sqrt(theta * (1 - theta) * spread / (positives * negatives))
        assert abs(theta - area) == pytest.approx(reach, abs=1e-9)
    assert low <= area <= high


def test_the_paired_test_is_of_the_contrast():
    for strata in (None, SITES):
        placed = delong.placements(LABELS, SCORES) if strata is None else delong.within(LABELS, SCORES, strata)
        error = np.sqrt(placed.covariance[0, 0] + placed.covariance[1, 1] - 2 * placed.covariance[0, 1])
        found = delong.paired(LABELS, *SCORES, strata=strata)
        assert found.difference == pytest.approx(placed.auroc[0] - placed.auroc[1])
        assert found.z == pytest.approx(found.difference / error)
        assert found.p == pytest.approx(2 * stats.norm.sf(abs(found.z)))
    same = delong.paired(LABELS, SCORES[0], 2 * SCORES[0] + 1)
    assert (same.difference, same.p) == (0, 1)
    assert np.isnan([same.low, same.high]).all()  # a difference that never varied says nothing of how it may


def test_a_small_variance_is_a_variance():
    """Of 2 x 2,000 patients one of each class change ranks: the difference is one pair of 4 million, its error twice that."""
    labels, first = np.repeat([0, 1], 2000), np.arange(4000.0) % 2000
    second = first.copy()
    second[[7, 2006]] = first[[2006, 7]] + [0.5, 0.5]
    contrast = np.stack([first, second])
    areas, covariance = by_hand(labels, contrast)
    found = delong.paired(labels, first, second)
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert 0 < error < 1e-6
    assert found.z == pytest.approx((areas[0] - areas[1]) / error, rel=1e-3)


def test_scores_whose_placements_differ_by_a_constant_have_no_error():
    """Each positive ties with one negative, and is above it in the second score: no error is known, whatever rounding leaves of 0."""
    labels, first = np.repeat([1, 0], 11), np.tile(np.arange(11.0), 2)
    found = delong.paired(labels, first, first + 0.5 * labels)
    assert found.difference == pytest.approx(-0.5 / 11)
    assert np.isnan([found.z, found.p]).all()
    assert found.low < found.difference < found.high


def test_two_perfect_areas_have_newcombe_s_intervals_joined():
    labels, first = np.array([1, 1, 0, 0, 0]), np.array([5.0, 4, 3, 2, 1])
    low = delong.newcombe_interval(1.0, 2, 3)[0]
    found = delong.paired(labels, first, first)
    assert (found.difference, found.z, found.p) == (0, 0, 1)
    assert (found.low, found.high) == pytest.approx((low - 1, 1 - low))
    found = delong.paired(labels, first, -first)
    high = delong.newcombe_interval(0.0, 2, 3)[1]
    assert (found.difference, found.high) == (1, 1)
    assert found.low == pytest.approx(1 - np.hypot(1 - low, high))
    assert np.isnan([found.z, found.p]).all()


def exchanges(labels, ranks, strata, swapped):
    """Difference of the areas within strata of each exchange, from all pairs."""
    won, number = 0.0, 0
    for one, sign in ((np.where(swapped, ranks[1], ranks[0]), 1), (np.where(swapped, ranks[0], ranks[1]), -1)):
        for site in np.unique(strata):
            positive, negative = (one[:, (labels == label) & (strata == site)] for label in (1, 0))
            above = positive[:, :, None] - negative[:, None]
            won = won + sign * ((above > 0) + 0.5 * (above == 0)).sum(axis=(1, 2))
            number += above[0].size
    return won / (number / 2)


def as_rare(drawn, difference):
    return (1 + np.sum(np.abs(drawn) >= abs(difference) - 1e-9)) / (1 + len(drawn))


@pytest.mark.parametrize("seed", range(6))
def test_exchange_permutes_ranks_within_strata(seed):
    stream = np.random.default_rng(seed)
    labels, strata = np.array([1, 0, 1, 0, 0, 1, 0, 1]), np.array([0, 0, 0, 0, 1, 1, 2, 2])
    scores = np.round(3 * labels * np.array([[1.0], [0.2]]) + stream.normal(size=(2, 8)), 1)[:: 1 if seed % 2 else -1]
    ranks = np.concatenate([stats.rankdata(scores[:, strata == site], axis=1) for site in range(3)], axis=1)
    every = np.array([[number >> place & 1 for place in range(8)] for number in range(1, 256)], bool)
    difference = np.subtract(*delong.within(labels, scores, strata).auroc)
    found = delong.exchanged(labels, *scores, strata, rng(0, "x"), 256)
    assert found.difference == pytest.approx(difference)
    assert found.p == pytest.approx(as_rare(exchanges(labels, ranks, strata, every), difference))
    for resamples in (255, 50):  # drawn at random from here on
        swapped = rng(0, "x").random((resamples, 8)) < 0.5
        found = delong.exchanged(labels, *scores, strata, rng(0, "x"), resamples)
        assert found.p == pytest.approx(as_rare(exchanges(labels, ranks, strata, swapped), difference))
    assert np.isnan([found.low, found.high, found.z]).all()  # below ten patients of a class in several strata


def joined(first, second, alike):
    """Zou's interval of a difference, from (value, low, high) of both and their correlation."""
    (one, low1, high1), (two, low2, high2) = first, second
    below = (one - low1) ** 2 + (high2 - two) ** 2 - 2 * alike * (one - low1) * (high2 - two)
    above = (high1 - one) ** 2 + (two - low2) ** 2 - 2 * alike * (high1 - one) * (two - low2)
    return one - two - np.sqrt(below), one - two + np.sqrt(above)


@pytest.mark.parametrize(
    ("positives", "negatives", "sites"),
    [(10, 14, 1), (9, 14, 1), (14, 9, 1), (10, 10, 2), (9, 14, 2), (14, 9, 2), (1, 20, 1)],
)
@pytest.mark.parametrize("effect", [0.3, 4.0])
def test_the_interval_of_few_patients_joins_both_and_agrees_with_the_test(positives, negatives, sites, effect):
    """Newcombe's of each below ten patients of a class; none then where sites are several."""
    stream = rng(0, "joined", positives, negatives)
    labels = np.repeat([1, 0], [positives, negatives])
    strata = np.arange(len(labels)) % sites
    noise = stream.normal(size=(3, len(labels)))
    scores = labels * np.array([[effect], [0.3]]) + noise[:2] + noise[2]
    placed = delong.within(labels, scores, strata)
    found = delong.exchanged(labels, *scores, strata, rng(0, "x"), 300)
    if min(positives, negatives) < 10 and sites > 1:
        assert np.isnan([found.low, found.high]).all()
        return
    both = [delong.logit_interval(labels, one, strata=strata) for one in scores]
    if min(positives, negatives) < 10:
        both = [(area, *delong.newcombe_interval(area, positives, negatives)) for area, *_ in both]
    spread = np.sqrt(placed.covariance[0, 0] * placed.covariance[1, 1])
    low, high = joined(*both, placed.covariance[0, 1] / spread if spread > 0 else 0.0)
    if found.p >= 0.05:
        low, high = min(low, 0), max(high, 0)
    else:
        low, high = (max(low, 0), high) if found.difference > 0 else (low, min(high, 0))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize("sites", [1, 3])
def test_scores_that_rank_alike_have_an_interval_where_they_are_perfect_only(sites):
    """Exchanged or not. Without a variance the correlation of two perfect areas is not known, and taken as 0."""
    labels = np.repeat([1, 0], [11, 19])
    strata = np.arange(30) % sites
    for scores, is_perfect in ((labels, True), (-labels, True), (np.arange(30.0) % 7, False)):
        found = delong.exchanged(labels, scores, 2 * scores, strata, rng(0, "x"), 50)
        assert (found.difference, found.p) == (0, 1)
        plain = delong.paired(labels, scores, 2 * scores, strata=strata)
        assert (plain.difference, plain.z, plain.p) == (0, 0, 1)
        if is_perfect:
            interval = delong.logit_interval(labels, scores, strata=strata)
            expected = joined(interval, interval, 0.0)
            assert (found.low, found.high) == pytest.approx(expected)
            assert (plain.low, plain.high) == pytest.approx(expected)
        else:
            assert np.isnan([found.low, found.high, plain.low, plain.high]).all()
    one = np.where(np.arange(30) == 3, 99.0, np.arange(30.0) % 7)  # a negative or positive that differs in rank alone
    found = delong.exchanged(labels, one, np.arange(30.0) % 7, strata, rng(0, "x"), 50)
    assert np.isfinite([found.low, found.high]).all()


def test_ranks_are_those_of_scipy_and_scoring_does_not_import_its_statistics():
    """`scipy.stats` takes a second to import, in every job that scores."""
    for shape in ((1,), (30,), (1, 7), (4, 50)):
        values = np.round(STREAM.normal(size=shape), 1)
        assert np.array_equal(midranks(values), stats.rankdata(values, axis=-1))
    code = "import sys, mil.metrics.score, mil.metrics.localisation; print('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"
