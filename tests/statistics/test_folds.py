"""AUROC fold by fold, and the corrected resampled t-test, by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mil.statistics.arms import ENSEMBLE, EXTERNAL_SITES, OTHER_SITES, OWN_SITE, TRAINING_SITES
from mil.statistics.folds import corrected_resampled_t, fold_aurocs


def predictions(
    trained_on: str, split: str, role: str, fold: int, site: str, labels: str, scores: list[float]
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "trained_on": trained_on,
            "repeat": 0,
            "fold": fold,
            "patient_id": [f"{site}{fold}{split}{n}" for n in range(len(labels))],
            "site": site,
            "role": role,
            "split": split,
            "label": [int(one) for one in labels],
            "score": scores,
        }
    )


def area(table: pd.DataFrame, trained_on: str, split: str, site: str, fold: int) -> float:
    found = table[(table["trained_on"] == trained_on) & (table["split"] == split) & (table["site"] == site)]
    (value,) = found.loc[found["fold"] == fold, "auroc"]
    return value


def test_each_fold_is_judged_alone_and_groups_count_pairs_of_one_site():
    table = fold_aurocs(
        pd.concat(
            [
                predictions("A+B", "held_out", "train", 0, "A", "1100", [0.9, 0.4, 0.4, 0.1]),
                predictions("A+B", "held_out", "train", 0, "B", "10", [0.2, 0.7]),
                predictions("A+B", "held_out", "train", 1, "A", "100", [0.5, 0.1, 0.9]),
                predictions("A+B", "held_out", "train", 1, "B", "11", [0.5, 0.1]),
                predictions("A+B", "external", "external", 0, "X", "10", [0.5, 0.1]),
                predictions("A+B", "external", "external", 0, "Y", "1000", [0.5, 0.1, 0.6, 0.7]),
            ]
        )
    )
    assert list(table.columns) == ["trained_on", "split", "site", "repeat", "fold", "patients", "positives", "auroc"]
    assert area(table, "A+B", "held_out", "A", 0) == 3.5 / 4
    assert area(table, "A+B", "held_out", "B", 0) == 0
    assert area(table, "A+B", "held_out", TRAINING_SITES, 0) == 3.5 / 5
    assert area(table, "A+B", "held_out", "A", 1) == area(table, "A+B", "held_out", TRAINING_SITES, 1) == 0.5
    assert area(table, "A+B", "external", EXTERNAL_SITES, 0) == 2 / 4
    assert table[(table["site"] == "B") & (table["fold"] == 1)].empty  # one class
    both = table[(table["site"] == TRAINING_SITES) & (table["fold"] == 0)].iloc[0]
    assert (both["patients"], both["positives"]) == (6, 3)
    assert table.equals(table.sort_values(["repeat", "fold", "trained_on", "split", "site"], ignore_index=True))


def test_models_of_single_sites_form_the_derived_arms():
    parts = []
    for own, other in (("A", "B"), ("B", "A")):
        parts.append(predictions(own, "held_out", "train", 0, own, "1010", [0.9, 0.1, 0.8, 0.7]))
        parts.append(predictions(own, "transfer", "train", 0, other, "1010", [0.1, 0.9, 0.8, 0.7]).assign(
            patient_id=[f"{other}0held_out{n}" for n in range(4)]
        ))  # fmt: skip
        parts.append(predictions(own, "external", "external", 0, "X", "10", [0.9, 0.1]))
    table = fold_aurocs(pd.concat(parts))
    assert area(table, OWN_SITE, "held_out", TRAINING_SITES, 0) == 1.0
    assert set(table.loc[table["trained_on"] == OWN_SITE, "site"]) == {TRAINING_SITES}
    assert area(table, "A", "transfer", "B", 0) == 0.25
    assert table[
        (table["trained_on"] == "A") & (table["site"] == TRAINING_SITES)
    ].empty  # A's models judge half of the sites
    assert ((table["trained_on"] == ENSEMBLE) <= (table["split"] != "transfer")).all()
    assert OTHER_SITES not in set(table["trained_on"])
    assert area(table, ENSEMBLE, "external", "X", 0) == area(table, ENSEMBLE, "external", EXTERNAL_SITES, 0) == 1.0


def test_models_that_left_a_site_out_form_one_arm_over_all_sites():
    parts = [
        predictions("B+C", "transfer", "train", 0, "A", "10", [0.9, 0.1]),
        predictions("A+C", "transfer", "train", 0, "B", "10", [0.1, 0.9]),
        predictions("A+B", "transfer", "train", 0, "C", "110", [0.9, 0.8, 0.1]),
    ]
    table = fold_aurocs(pd.concat(parts))
    assert area(table, OTHER_SITES, "transfer", TRAINING_SITES, 0) == 3 / 4
    assert set(table.loc[table["trained_on"] == OTHER_SITES, "site"]) == {TRAINING_SITES}
    assert area(table, "A+C", "transfer", "B", 0) == 0
    assert not (table[table["trained_on"] == "A+B"]["site"] == TRAINING_SITES).any()


def test_no_fold_with_both_classes_is_an_empty_table():
    assert fold_aurocs(predictions("A", "held_out", "train", 0, "A", "11", [0.1, 0.2])).empty


DIFFERENCES = np.array([0.1, 0.02, -0.05, 0.2, 0.03, 0.08])


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_the_variance_counts_that_training_sets_overlap(share):
    found = corrected_resampled_t(np.append(DIFFERENCES, [np.nan, np.inf]), share)
    variance = (1 / 6 + share) * DIFFERENCES.var(ddof=1)
    degrees = round(1 / share)
    assert found.difference == pytest.approx(DIFFERENCES.mean())
    assert found.z == pytest.approx(DIFFERENCES.mean() / np.sqrt(variance))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.z), degrees))
    plain = corrected_resampled_t(DIFFERENCES, share, widest=np.inf)
    reach = stats.t.ppf(0.975, degrees) * np.sqrt(variance)
    assert (plain.low, plain.high) == pytest.approx((plain.difference - reach, plain.difference + reach))
    assert -1 < found.low < found.high < 1
    assert found.low != pytest.approx(plain.low, abs=1e-6)
    narrower = corrected_resampled_t(DIFFERENCES, share, 0.5, widest=np.inf)
    assert narrower.high - narrower.low < plain.high - plain.low


def test_degrees_are_never_more_than_the_folds_less_one_nor_none():
    two = corrected_resampled_t(DIFFERENCES[:2], 0.1)
    assert two.p == pytest.approx(2 * stats.t.sf(abs(two.z), 1))
    large = corrected_resampled_t(DIFFERENCES, 3.0)
    assert large.p == pytest.approx(2 * stats.t.sf(abs(large.z), 1))


def test_what_folds_cannot_tell_is_not_known():
    for differences in (DIFFERENCES[:1], np.full(4, 0.3)):
        found = corrected_resampled_t(differences, 0.5)
        assert found.difference == pytest.approx(differences[0])
        assert np.isnan([found.low, found.high, found.z, found.p]).all()
    assert np.isnan(corrected_resampled_t(np.array([np.nan]), 0.5).difference)
    assert np.isnan(corrected_resampled_t(np.zeros(1), 0.5).p)
    assert corrected_resampled_t(np.zeros(2), 0.5).p == 1
    equal = corrected_resampled_t(np.zeros(4), 0.5)
    assert (equal.difference, equal.p) == (0, 1)
    assert np.isnan([equal.low, equal.high]).all()
