"""Do the intervals keep their level, and are p values uniform when nothing differs? 2,000 simulated cohorts each.

    python benchmarks/coverage.py [cohorts]

Binormal scores of known AUROC. Prints, for each cohort, the share of 95 % intervals that hold the truth (DeLong's normal
interval, DeLong on the logit scale, which the tables lead with, and the patient bootstrap), then the same for AUROC within
three sites, for paired differences, and the shares of null p values below 0.05 with a Kolmogorov-Smirnov test.
"""

import sys

import numpy as np
from scipy import stats

from mil.metrics import delong, ranking
from mil.metrics.bootstrap import percentile_interval, resamples
from mil.metrics.folds import corrected_resampled_t
from mil.rng import rng

COHORTS = ((40, 0.4, 0.70), (60, 0.4, 0.75), (60, 0.4, 0.90), (100, 0.4, 0.75), (200, 0.3, 0.75))
RESAMPLES = 1000


def scores_of(stream: np.random.Generator, labels: np.ndarray, auroc: float) -> np.ndarray:
    """Normal scores whose true AUROC is `auroc`."""
    return stream.normal(size=len(labels)) + labels * stats.norm.ppf(auroc) * np.sqrt(2)


def labels_of(patients: int, prevalence: float) -> np.ndarray:
    """As many positives as the prevalence says."""
    return (np.arange(patients) < round(patients * prevalence)).astype(int)


def coverage(cohorts: int) -> None:
    """Single AUROCs, as a whole and within sites."""
    print("patients  prevalence  AUROC   normal   logit   bootstrap   within 3 sites")
    for patients, prevalence, truth in COHORTS:
        stream, hits = rng(0, "coverage", patients, truth), np.zeros(4)
        labels = labels_of(patients, prevalence)
        for _ in range(cohorts):
            scores = scores_of(stream, labels, truth)
            sites = stream.permutation(np.arange(patients) % 3)
            bounds = [
                delong.interval(labels, scores)[1:],
                delong.logit_interval(labels, scores)[1:],
                percentile_interval(ranking.auroc(labels, scores, resamples(labels, RESAMPLES, stream)), 0.95),
                delong.within_interval(labels, scores + 2 * sites, sites)[1:],
            ]
            hits += [low <= truth <= high for low, high in bounds]
        shares = "   ".join(f"{share:.1%}" for share in hits / cohorts)
        print(f"{patients:8d}  {prevalence:10.1f}  {truth:5.2f}   {shares}")


def differences(cohorts: int) -> None:
    """Paired tests of two scores that are equally good."""
    for patients, prevalence, truth in COHORTS[1::2]:
        stream, found, folds, hits = rng(0, "paired", patients), [], [], 0
        labels = labels_of(patients, prevalence)
        for _ in range(cohorts):
            common = stream.normal(size=patients)
            pair = [scores_of(stream, labels, truth) + common for _ in range(2)]
            tested = delong.paired(labels, *pair)
            hits += tested.low <= 0 <= tested.high
            found.append(tested.p)
            parts = np.array_split(stream.permutation(patients), 5)
            usable = [part for part in parts if 0 < labels[part].sum() < len(part)]
            drawn = [
                delong.auroc(labels[part], pair[0][part]) - delong.auroc(labels[part], pair[1][part]) for part in usable
            ]
            folds.append(corrected_resampled_t(np.array(drawn), 1 / 4).p)
        uniform = stats.kstest(found, "uniform").pvalue
        print(
            f"{patients} patients, paired differences: interval holds 0 in {hits / cohorts:.1%}; p < 0.05 in "
            f"{np.mean(np.array(found) < 0.05):.1%} (Kolmogorov-Smirnov p = {uniform:.2f}); corrected resampled t-test p < 0.05 in "
            f"{np.mean(np.array(folds) < 0.05):.1%}"
        )


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    coverage(number)
    differences(number)
