"""Held-out AUROC and paired tests: which procedures keep their level? Simulated cohorts, every fold of which is trained.

    python benchmarks/held_out.py [cohorts] [candidates|settings|nothing]

A cohort has features (independent, a shift per site) in two blocks that are equally good; ridge regressions, five folds twice
over, within site and label. What is estimated is the expected AUROC within sites of such models on new patients, which is known
for every model in closed form. `candidates` compares procedures in a few settings, `settings` runs ours in all of them. Each line gives
the share of 95 % intervals that hold the truth, and the share of p < 0.05 for the difference of the two blocks, which is none.
`nothing`: how low the AUROC comes out by chance where there is nothing to learn, by number of patients.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import stats

from mil.rng import rng
from mil.statistics import held_out
from mil.statistics.differences import difference_of
from mil.statistics.folds import corrected_resampled_t
from mil.statistics.held_out import Pairs

FOLDS, STRENGTH, BATCH = 5, 5.0, 100
# patients, share of positives, sites, features, distance of the classes
SETTINGS = [
    (patients, share, sites, 6, apart)
    for patients in (40, 80)
    for share in (0.1, 0.2, 0.35, 0.5)
    for sites in (1, 2, 4)
    for apart in (0.0, 0.7, 1.3)
] + [(200, 0.35, 1, features, apart) for features in (2, 60) for apart in (0.0, 0.7, 1.3)]
FEW = [
    (40, 0.35, 1, 6, 0.0),
    (40, 0.35, 1, 6, 1.3),
    (80, 0.35, 1, 6, 0.0),
    (80, 0.35, 1, 6, 1.3),
    (200, 0.35, 4, 6, 0.0),
]
NOTHING = (10, 12, 16, 20, 30, 40, 60, 80, 120)
"""Patients."""
Setting = tuple[int, float, int, int, float]


@dataclass(frozen=True)
class Arm:
    """One block's models in one cohort."""

    pairs: Pairs
    scores: np.ndarray
    """Held-out scores (repeats, patients)."""
    by_fold: np.ndarray
    """AUROC of each fold (repeats * folds,)."""
    truth: float
    """Mean over its models of the AUROC on new patients."""


@dataclass(frozen=True)
class Cohort:
    """Labels, sites, folds (repeats, patients) and two arms."""

    labels: np.ndarray
    sites: np.ndarray
    arms: tuple[Arm, Arm]


def layout(setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Sites and labels; at least one patient of each class per site and fold, as `mil bag` asks for."""
    patients, share, count, _, _ = setting
    sites = np.arange(patients) % count
    labels = np.zeros(patients, int)
    for site in range(count):
        own = np.flatnonzero(sites == site)
        labels[own[: max(round(share * len(own)), FOLDS)]] = 1
    return sites, labels


def possible(setting: Setting) -> bool:
    """Whether every site has a patient of each class for every fold."""
    return setting[0] * (1 - setting[1]) / setting[2] >= FOLDS and setting[0] * setting[1] / setting[2] >= FOLDS * 0.8


def deal(stream: np.random.Generator, cohorts: int, sites: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Folds (cohorts, patients), dealt within site, label after label."""
    folds = np.empty((cohorts, len(labels)), int)
    for site in np.unique(sites):
        order = []
        for label in (0, 1):
            own = np.flatnonzero((sites == site) & (labels == label))
            order.append(own[np.argsort(stream.random((cohorts, len(own))), axis=1)])
        dealt = np.concatenate(order, axis=1)
        start = stream.integers(FOLDS, size=(cohorts, 1))
        np.put_along_axis(folds, dealt, (start + np.arange(dealt.shape[1])) % FOLDS, axis=1)
    return folds


def ridge(values: np.ndarray, labels: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (cohorts, features) and intercepts of one regression per cohort on its patients in `train`."""
    used = train.astype(float)
    number = used.sum(axis=1, keepdims=True)
    centre, rate = np.einsum("bn,bnp->bp", used, values) / number, used @ labels / number[:, 0]
    centred = (values - centre[:, None]) * used[..., None]
    gram = centred.transpose(0, 2, 1) @ centred + STRENGTH * np.eye(values.shape[2])
    right = centred.transpose(0, 2, 1) @ (labels - rate[:, None])[..., None]
    weights = np.linalg.solve(gram, right)[..., 0]
    return weights, rate - (weights * centre).sum(axis=1)


def cohorts_of(setting: Setting, count: int, repeats: int = 2) -> Iterator[Cohort]:
    """`count` cohorts with both arms trained on the same folds."""
    sites, labels = layout(setting)
    *_, features, apart = setting
    shift = np.full(features, apart / np.sqrt(features))
    stream = rng(0, "held out", *map(str, setting), repeats)
    for start in range(0, count, BATCH):
        number = min(BATCH, count - start)
        folds = [deal(stream, number, sites, labels) for _ in range(repeats)]
        arms = []
        for _ in range(2):
            level = 0.5 * stream.normal(size=(number, setting[2], features))
            values = stream.normal(size=(number, len(labels), features)) + level[:, sites] + shift * labels[:, None]
            scores, truth = np.empty((repeats, number, len(labels))), []
            for repeat, fold in enumerate(folds):
                for part in range(FOLDS):
                    weights, intercept = ridge(values, labels, fold != part)
                    judged = np.einsum("bnp,bp->bn", values, weights) + intercept[:, None]
                    scores[repeat] = np.where(fold == part, judged, scores[repeat])
                    truth.append(stats.norm.cdf(weights @ shift / np.sqrt(2 * (weights**2).sum(axis=1))))
            arms.append((scores, np.mean(truth, axis=0)))
        for one in range(number):
            dealt = np.stack([fold[one] for fold in folds])
            made = [arm_of(sites, labels, dealt, scores[:, one], float(truth[one])) for scores, truth in arms]
            yield Cohort(labels, sites, (made[0], made[1]))


def arm_of(sites: np.ndarray, labels: np.ndarray, folds: np.ndarray, scores: np.ndarray, truth: float) -> Arm:
    """`Pairs` as `held_out.pairs_of` makes them of a table, from arrays (repeats, patients)."""
    counts, wins = [], []
    for site in np.unique(sites):
        rows, columns = (np.flatnonzero((sites == site) & (labels == label)) for label in (1, 0))
        same = folds[:, rows, None] == folds[:, None, columns]
        gap = scores[:, rows, None] - scores[:, None, columns]
        counts.append(same.sum(axis=0).astype(float))
        wins.append((same * ((gap > 0) + 0.5 * (gap == 0))).sum(axis=0))
    by_fold = []
    for repeat in range(len(folds)):
        for part in range(FOLDS):
            own = folds[repeat] == part
            rows, columns = own & (labels == 1), own & (labels == 0)
            same = sites[rows][:, None] == sites[columns][None]
            right = (scores[repeat][rows][:, None] > scores[repeat][columns][None])[same]
            by_fold.append(right.mean() if len(right) else np.nan)
    noise = None if len(folds) < 2 else noise_of(sites, labels, scores)
    return Arm(Pairs(tuple(counts), tuple(wins), noise, len(folds)), scores, np.array(by_fold), truth)


def noise_of(sites: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> float:
    """`held_out.noise_share` from arrays."""
    centred = scores.copy()
    for site in np.unique(sites):
        for label in (0, 1):
            own = (sites == site) & (labels == label)
            centred[:, own] -= centred[:, own].mean(axis=1, keepdims=True)
    repeats, squares = len(scores), float((centred**2).mean())
    together = float((centred.sum(axis=0) ** 2).mean()) - repeats * squares
    return (1 - together / (repeats * (repeats - 1) * squares)) * FOLDS


def laid_together(cohort: Cohort, arm: Arm) -> Pairs:
    """Mean scores, folds laid together: every pair of one site."""
    once = np.zeros((1, len(cohort.labels)), int)
    return arm_of(cohort.sites, cohort.labels, once, arm.scores.mean(axis=0)[None], 0.0).pairs


def placements(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Share of the other class on the right side, of every positive and of every negative."""
    with np.errstate(invalid="ignore"):
        parts = [
            np.concatenate(
                [won.sum(axis) / number.sum(axis) for won, number in zip(pairs.wins, pairs.counts, strict=True)]
            )
            for axis in (1, 0)
        ]
    return parts[0], parts[1]


def by_placements(pairs: Pairs, other: Pairs | None = None) -> tuple[float, float]:
    """DeLong's estimate and variance from placements, of one arm or of a difference."""
    found = placements(pairs)
    if other is not None:
        found = tuple(one - two for one, two in zip(found, placements(other), strict=True))
    found = [side[np.isfinite(side)] for side in found]
    return float(np.mean([side.mean() for side in found])), sum(float(side.var(ddof=1)) / len(side) for side in found)


def logit(value: float, variance: float) -> tuple[float, float]:
    """Normal interval on the logit scale."""
    value = min(max(value, 1e-6), 1 - 1e-6)
    centre, half = np.log(value / (1 - value)), 1.96 * np.sqrt(variance) / (value * (1 - value))
    return 1 / (1 + np.exp(half - centre)), 1 / (1 + np.exp(-half - centre))


def plain(value: float, variance: float) -> tuple[float, float]:
    """Normal interval."""
    return value - 1.96 * np.sqrt(variance), value + 1.96 * np.sqrt(variance)


def candidates(cohort: Cohort) -> dict[str, tuple[float, tuple[float, float], float]]:
    """Name -> estimate, interval, p of the difference of the arms."""
    first, second = cohort.arms
    together = [laid_together(cohort, arm) for arm in cohort.arms]
    change = first.by_fold - second.by_fold
    share, k = 1 / (FOLDS - 1), len(change)
    mean, spread = float(first.by_fold.mean()), float(first.by_fold.var(ddof=1))
    error = np.sqrt((1 / k + share) * spread)
    many = stats.t.ppf(0.975, k - 1) * error
    p_many = 2 * stats.t.sf(abs(change.mean()) / np.sqrt((1 / k + share) * change.var(ddof=1)), k - 1)
    found = {}
    for name, pairs in {
        "folds laid together, DeLong": together,
        "within folds, DeLong": [first.pairs, second.pairs],
    }.items():
        found[name] = (pairs[0].auroc, logit(*by_placements(pairs[0])), difference_of(*by_placements(*pairs)).p)
    one = by_placements(first.pairs)
    found["influence functions within folds (LeDell 2015; Bayle 2020)"] = (one[0], plain(*one), np.nan)
    found["corrected resampled t, k - 1 degrees"] = (mean, (mean - many, mean + many), float(p_many))
    tested = corrected_resampled_t(change, share)
    few = corrected_resampled_t(first.by_fold, share, widest=np.inf)
    found["corrected resampled t, folds - 1 degrees"] = (mean, (few.low, few.high), tested.p)
    area, variance = first.pairs.auroc, first.pairs.variance()[0]
    deviations = [
        a - b - (area - second.pairs.auroc) * n
        for a, b, n in zip(first.pairs.wins, second.pairs.wins, first.pairs.counts, strict=True)
    ]
    differs = held_out.clustered(deviations, first.pairs.total)
    p_given = difference_of(area - second.pairs.auroc, differs[0], degrees=differs[1]).p
    found["pairs within folds, models given"] = (area, logit(area, variance), p_given)
    p_twice = difference_of(area - second.pairs.auroc, 2 * differs[0], degrees=differs[1]).p
    found["pairs within folds, twice the variance"] = (area, logit(area, 2 * variance), p_twice)
    _, low, high, _ = held_out.interval(first.pairs)
    found["pairs within folds, overlap counted (ours)"] = (
        area,
        (low, high),
        held_out.paired(first.pairs, second.pairs)[0].p,
    )
    return found


def compare_candidates(count: int) -> None:
    """Every candidate in a few settings."""
    for setting in FEW:
        rows: dict[str, list[tuple[float, float, float, float]]] = {}
        truth = []
        for cohort in cohorts_of(setting, count):
            truth.append(cohort.arms[0].truth)
            for name, (value, (low, high), p) in candidates(cohort).items():
                rows.setdefault(name, []).append((value, low, high, p))
        _show(setting, rows, float(np.mean(truth)))


def ours(count: int) -> None:
    """Our interval and test in every setting that can be trained, with two repeats and with one."""
    for setting in filter(possible, SETTINGS):
        trial = next(cohorts_of(setting, 1)).arms[0].pairs
        if trial.refusal:
            print(f"{setting[0]} patients, {setting[1]:.0%} positive, {setting[2]} sites: {trial.refusal}", flush=True)
            continue
        rows: dict[str, list[tuple[float, float, float, float]]] = {}
        truth = []
        for repeats in (2, 1):
            for cohort in cohorts_of(setting, count, repeats):
                first, second = (arm.pairs for arm in cohort.arms)
                truth.append(cohort.arms[0].truth)
                value, low, high, _ = held_out.interval(first)
                p = held_out.paired(first, second)[0].p
                rows.setdefault(f"{repeats} repeats", []).append((value, low, high, p))
        _show(setting, rows, float(np.mean(truth)))


def nothing(count: int) -> None:
    """Quantiles of the held-out AUROC of models that can learn nothing, and how often the interval lies below or above 0.5."""
    print("patients, positive, features, repeats: mean; 1, 5, 95 % quantiles; below 0.3; interval below 0.5, above")
    for patients, share, features, repeats in product(NOTHING, (0.5, 0.25), (6, 60), (1, 2)):
        setting = (patients, share, 1, features, 0.0)
        arms = [cohort.arms[0].pairs for cohort in cohorts_of(setting, count, repeats)]
        areas, bounds = np.array([one.auroc for one in arms]), np.array([held_out.interval(one)[1:3] for one in arms])
        low, middle, high = np.nanquantile(areas, [0.01, 0.05, 0.95])
        beyond = f"{np.mean(bounds[:, 1] < 0.5):.1%}, {np.mean(bounds[:, 0] > 0.5):.1%}"
        print(
            f"{patients}, {int(layout(setting)[1].sum())}, {features}, {repeats}: {np.nanmean(areas):.3f}; "
            f"{low:.2f}, {middle:.2f}, {high:.2f}; {np.mean(areas < 0.3):.1%}; {beyond if np.isfinite(bounds).any() else 'none'}",
            flush=True,
        )


def _show(setting: Setting, rows: dict[str, list[tuple[float, float, float, float]]], truth: float) -> None:
    patients, _, sites, features, _ = setting
    positives = int(layout(setting)[1].sum())
    print(f"{patients} patients, {positives} positive, {sites} sites, {features} features, expected AUROC {truth:.3f}")
    for name, found in rows.items():
        value, low, high, p = np.array(found).T
        if np.isnan(low).all():
            print(f"  {name:60s} mean {value.mean():.3f}; no interval, no test", flush=True)
            continue
        known, tested = np.isfinite(low), np.isfinite(p)
        held = np.mean((low <= truth)[known] & (truth <= high)[known])
        differ = f"{np.mean(p[tested] < 0.05):6.1%}" if tested.any() else "     –"
        print(f"  {name:60s} mean {value.mean():.3f}; holds {held:.1%}; p < 0.05 {differ}", flush=True)


if __name__ == "__main__":
    cohorts = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    parts = {"candidates": compare_candidates, "settings": ours, "nothing": nothing}
    for part in sys.argv[2:] or parts:
        parts[part](cohorts)
