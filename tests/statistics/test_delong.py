"""DeLong's variance, its intervals and tests, against sums over all pairs that are written out."""

import numpy as np
import pytest
from scipy import stats

from mil.errors import MilError
from mil.rng import rng
from mil.statistics import delong

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


def test_strata_count_by_their_pairs_and_those_of_one_class_not_at_all():
    found = delong.within(LABELS, SCORES, SITES)
    parts = [by_hand(LABELS[site == SITES], SCORES[:, site == SITES]) for site in "ab"]
    sizes = np.array([pairs(LABELS[site == SITES], SCORES[0, site == SITES]).size for site in "ab"])
    weights = sizes / sizes.sum()
    np.testing.assert_allclose(found.auroc, sum(w * area for w, (area, _) in zip(weights, parts, strict=True)))
    np.testing.assert_allclose(found.covariance, sum(w**2 * cov for w, (_, cov) in zip(weights, parts, strict=True)))
    np.testing.assert_allclose(delong.within_areas(LABELS, SCORES, SITES), found.auroc)
    with pytest.raises(MilError, match="a site with patients of both classes"):
        delong.within(LABELS, SCORES, np.where(LABELS == 1, "a", "b"))


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
    numbers = (5, 7)
    assert delong.within_interval(LABELS, SCORES[0], SITES) == delong.logit_bounds(
        float(within.auroc[0]), float(within.covariance[0, 0]), *numbers, 0.95
    )


@pytest.mark.parametrize("area", [1.0, 1 - 1e-14, 0.0, 1e-14])
def test_a_perfect_area_has_newcombe_s_interval(area):
    found = delong.logit_bounds(area, 0.0, 10, 30, 0.95)
    assert found[0] == round(area)
    assert found[1:] == delong.newcombe_interval(round(area), 10, 30)
    assert delong.logit_bounds(0.7, np.nan, 10, 30, 0.95)[1:] == delong.newcombe_interval(0.7, 10, 30)
    assert delong.logit_bounds(1 - 1e-11, 1e-30, 10, 30, 0.95)[0] == 1 - 1e-11


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


def test_the_unpaired_test_is_welch_s():
    labels = [LABELS, np.array([1, 0, 1, 0, 0, 1, 1])]
    scores = [SCORES[0], np.array([0.3, 0.4, 0.9, 0.1, 0.5, 0.6, 0.2])]
    (first, second) = (by_hand(own, np.stack([one, one])) for own, one in zip(labels, scores, strict=True))
    variances = first[1][0, 0], second[1][0, 0]
    degrees = sum(variances) ** 2 / (variances[0] ** 2 / 11 + variances[1] ** 2 / 6)
    found = delong.unpaired((labels[0], scores[0]), (labels[1], scores[1]))
    assert found.difference == pytest.approx(first[0][0] - second[0][0])
    assert found.z == pytest.approx(found.difference / np.sqrt(sum(variances)))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.z), degrees))
    half = stats.t.ppf(0.975, degrees) * np.sqrt(sum(variances))
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half))


def test_exchange_permutes_ranks_within_strata():
    labels, strata = np.array([1, 0, 1, 0, 1, 0]), np.array([0, 0, 0, 0, 1, 1])
    first, second = np.array([9.0, 1, 8, 2, 0.3, 0.4]), np.array([1.0, 9, 5, 2, 0.9, 0.1])
    ranks = np.array([[4.0, 1, 3, 2, 1, 2], [1, 4, 3, 2, 2, 1]])
    drawn = []
    for number in range(1, 64):
        swap = np.array([number >> place & 1 for place in range(6)], bool)
        both = np.where(swap, ranks[::-1], ranks)
        drawn.append(np.subtract(*delong.within_areas(labels, both, strata)))
    found = delong.exchanged(labels, first, second, strata, rng(0, "x"), 64)
    assert found.difference == pytest.approx(np.subtract(*delong.within_areas(labels, ranks, strata)))
    assert found.p == pytest.approx((1 + np.sum(np.abs(drawn) >= abs(found.difference) - 1e-12)) / 64)
    fewer = delong.exchanged(labels, first, second, strata, rng(0, "x"), 63)  # drawn at random from here on
    assert fewer.p * 64 == pytest.approx(round(fewer.p * 64))
    sampled = delong.exchanged(labels, first, second, strata, rng(0, "x"), 50)
    swapped = rng(0, "x").random((50, 6)) < 0.5
    drawn = [np.subtract(*delong.within_areas(labels, np.where(swap, ranks[::-1], ranks), strata)) for swap in swapped]
    assert sampled.p == pytest.approx((1 + np.sum(np.abs(drawn) >= abs(found.difference) - 1e-12)) / 51)
