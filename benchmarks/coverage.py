"""Do the intervals keep their level, and are p values uniform when nothing differs? 2,000 simulated cohorts each.

    python benchmarks/coverage.py [cohorts] [single|kinds|tiles|paired ...]

`single`: scores of a binormal model, calibrated or too sure of themselves, patients drawn at random from a population; the share
of 95 % intervals that hold the population's value, for every metric that the tables print. `kinds`: the same of the measures
of several classes, times to an event and numbers. `tiles`: attention against truth.
`paired`: two scores that are equally good; how uniform the p values are (Kolmogorov-Smirnov), and the intervals of the
difference. Held-out patients: `benchmarks/held_out.py`.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd
from scipy import stats

from mil.config import EndpointSpec, MetricsSpec
from mil.endpoints import Endpoint, build_endpoint
from mil.metrics.added_value import added_value
from mil.metrics.localisation import SlideAttention, by_slide, localise
from mil.rng import rng
from mil.statistics import calibration, classification, decision, delong, intervals, ranking
from mil.statistics.arms import Scope
from mil.statistics.bootstrap import point, resamples
from mil.statistics.differences import difference_of
from mil.statistics.survival import c_index, c_index_interval

# patients, prevalence, AUROC, shift and slope of the score's logits against the true ones
COHORTS = (
    (30, 0.2, 0.75, 0.0, 1.0),
    (30, 0.2, 0.90, 0.0, 1.6),
    (60, 0.4, 0.75, 0.5, 1.6),
    (60, 0.4, 0.90, 0.0, 1.0),
    (100, 0.4, 0.75, 0.0, 1.0),
    (200, 0.3, 0.75, 0.5, 1.6),
)
PAIRS = ((30, 0.3, 0.75), (60, 0.4, 0.75), (60, 0.4, 0.90), (200, 0.3, 0.75))
RESAMPLES, THRESHOLD, CUT = 500, 0.35, 0.5
Metrics = dict[str, tuple[float, float, float]]


def draw(stream: np.random.Generator, cohort: tuple[float, ...], patients: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of patients from the cohort's population; at least two of either class."""
    _, prevalence, auroc, shift, slope = cohort
    apart = stats.norm.ppf(auroc) * np.sqrt(2)
    labels = np.zeros(patients, int)
    while not 2 <= labels.sum() <= patients - 2:
        labels = (stream.random(patients) < prevalence).astype(int)
    value = stream.normal(size=patients) + apart * labels
    logits = apart * value - apart**2 / 2 + np.log(prevalence / (1 - prevalence))
    return labels, 1 / (1 + np.exp(-(shift + slope * logits)))


def percentile_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentile bounds of the resamples' values; resamples where the metric is not defined (nan) are left out."""
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan, np.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def measured(labels: np.ndarray, scores: np.ndarray, stream: np.random.Generator) -> Metrics:
    """Value and interval of every metric of one cohort, as the tables have them."""
    found: Metrics = {
        "AUROC, DeLong": delong.interval(labels, scores),
        "AUROC, DeLong on the logit scale": delong.logit_interval(labels, scores),
        "AUROC, Newcombe": (0.0, *delong.newcombe_interval(delong.auroc(labels, scores), *np.bincount(labels)[::-1])),
    }
    weights = resamples(labels, RESAMPLES, stream)
    found["AUROC, percentile bootstrap (not used)"] = (
        0.0, *percentile_interval(ranking.auroc(labels, scores, weights), 0.95),
    )  # fmt: skip
    sites = np.arange(len(labels)) % 3
    if any(delong.both_classes(labels[sites == site]) for site in range(3)):
        apart = stats.norm.cdf(stats.norm.ppf(scores) + sites)
        found["AUROC within 3 sites"] = delong.logit_interval(labels, apart, strata=sites)
    for name in intervals.INTERVALS:
        found[name] = _of(intervals.INTERVALS[name](labels, scores, 0.95))
    found[f"net benefit at {THRESHOLD}"] = _of(intervals.net_benefit(labels, scores, THRESHOLD, 0.95))
    called = (scores >= CUT).astype(float)
    votes = called[labels == 1], 1 - called[labels == 0]
    bounds = [intervals.votes(own, 0.95) for own in votes]
    found["sensitivity"], found["specificity"] = _of(bounds[0]), _of(bounds[1])
    both = intervals.mean_of_two((votes[0].mean(), bounds[0]), (votes[1].mean(), bounds[1]))
    found["balanced accuracy"] = _of(both)
    return found


def _of(bounds: intervals.Bounds) -> tuple[float, float, float]:
    return 0.0, bounds.low, bounds.high


def truths(cohort: tuple[float, ...]) -> dict[str, float]:
    """The population's values, from two million patients."""
    labels, scores = draw(rng(0, "population", *cohort), cohort, 2_000_000)
    known = {
        "auprc": classification.auprc,
        "brier": classification.brier,
        "calibration_slope": calibration.slope,
        "calibration_intercept": calibration.intercept,
        "ece": calibration.expected_calibration_error,
        f"net benefit at {THRESHOLD}": partial(decision.net_benefit, threshold=THRESHOLD),
    }
    found = {name: point(metric, labels, scores) for name, metric in known.items()}
    found["sensitivity"] = float(np.mean(scores[labels == 1] >= CUT))
    found["specificity"] = float(np.mean(scores[labels == 0] < CUT))
    found["balanced accuracy"] = (found["sensitivity"] + found["specificity"]) / 2
    if cohort[3] == 0 and cohort[4] == 1:
        found["ece"] = 0.0  # calibrated by construction
    return found


def survivors(stream: np.random.Generator, patients: int) -> pd.DataFrame:
    """time, event and score, of which a higher one lives longer; about 60 % have an event."""
    score = stream.normal(size=patients)
    time, end = stream.exponential(np.exp(0.7 * score)), stream.uniform(0.3, 3.5, patients)
    return pd.DataFrame({"time": np.minimum(time, end), "event": time < end, "score": score})


def single(cohorts: int) -> None:
    """Single metrics of one score."""
    print("Share of 95 % intervals that hold the population's value; patients, prevalence, AUROC")
    stream = rng(0, "survival population")
    people = [survivors(stream, 3000) for _ in range(20)]
    concordance = np.mean([c_index(*(t[c].to_numpy() for c in t), np.ones((1, len(t))))[0] for t in people])
    for cohort in COHORTS:
        patients, prevalence, auroc, _, slope = cohort
        truth, stream = truths(cohort) | {"c-index": float(concordance)}, rng(0, "coverage", *cohort)
        held: dict[str, list[float]] = {}
        for _ in range(cohorts):
            found = measured(*draw(stream, cohort, patients), stream)
            found["c-index"] = c_index_interval(survivors(stream, patients), 0.95)
            for name, (_, low, high) in found.items():
                value = truth.get(name, auroc)
                held.setdefault(name, []).append(np.nan if np.isnan(low) else float(low <= value <= high))
        title = f"{patients}, {prevalence:.0%}, {auroc}" + ("" if slope == 1 else ", too sure")
        shares = {name: f"{np.nanmean(own):.1%}" for name, own in held.items()}
        for name, own in held.items():
            if np.isnan(own).any():
                shares[name] += f" ({np.isnan(own).mean():.1%} undefined)"
        print(f"{title}: " + "; ".join(f"{name} {share}" for name, share in shares.items()), flush=True)


CLASSES = ("a", "b", "c")


def of_kind(kind: str, stream: np.random.Generator, patients: int) -> pd.DataFrame:
    """Predictions of one site as `Endpoint.rows` takes them."""
    value, noise = stream.normal(size=(2, patients))
    table = pd.DataFrame({"patient_id": np.arange(patients), "site": "S", "score": 0.7 * value + 0.7 * noise})
    if kind == "multiclass":
        logits = np.stack([-table["score"], 0.2 - 0 * noise, table["score"]], axis=1)
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        label = np.digitize(value, [-0.5, 0.5])
        return table.assign(label=label, **{f"score_{name}": shares[:, k] for k, name in enumerate(CLASSES)})
    if kind == "survival":
        lived = survivors(stream, patients)
        return table.assign(time=lived["time"], label=lived["event"].astype(int), score=-lived["score"])
    return table.assign(label=value + 0.5 * stream.normal(size=patients))


def kinds(cohorts: int) -> None:
    """Measures of the kinds of endpoint that are not yes or no; their intervals are the patient bootstrap's."""
    settled = {"multiclass": {"classes": CLASSES}, "survival": {"event": "event"}, "regression": {}}
    for name, settings in settled.items():
        kind = build_endpoint(EndpointSpec.model_validate({"kind": name, **settings}))
        stream = rng(0, "kinds", name)
        people = [_values(kind, of_kind(name, stream, 2000), 100)["value"] for _ in range(20)]
        truth = pd.concat(people, axis=1).mean(axis=1)
        for patients in (30, 60):
            found = [_values(kind, of_kind(name, stream, patients), RESAMPLES) for _ in range(cohorts)]
            shares = []
            for metric, value in truth.items():
                own = [table.loc[metric] for table in found if metric in table.index]
                known = [row for row in own if np.isfinite(row["low"])]
                held = np.mean([row["low"] <= value <= row["high"] for row in known])
                shares.append(
                    f"{metric} {held:.1%}"
                    + (f" ({1 - len(known) / cohorts:.1%} undefined)" if len(known) < cohorts else "")
                )
            print(f"{name}, {patients}: {'; '.join(shares)}", flush=True)


def _values(kind: Endpoint, table: pd.DataFrame, resamples: int) -> pd.DataFrame:
    rows = list(kind.rows(Scope("S", "external", "S", table), MetricsSpec(bootstrap=resamples)))
    return pd.DataFrame(rows).set_index("metric")


def tiles(cohorts: int) -> None:
    """Attention against truth: mean over slides of the AUROC within the slide, and all tiles pooled, by patient."""
    for patients in (8, 15, 40):
        stream, spec, held = rng(0, "tiles", patients), MetricsSpec(bootstrap=RESAMPLES), {}
        everyone = list(_slides(rng(0, "tile population"), 4000))
        truth = {
            "tile_auroc_mean": float(by_slide(everyone)["auroc"].mean()),
            "tile_auroc_pooled": delong.auroc(
                np.concatenate([one.truth for one in everyone]).astype(int),
                np.concatenate([one.relative for one in everyone]),
            ),
        }
        for _ in range(max(cohorts // 4, 1)):
            table = localise(_slides(stream, patients), spec, "x")
            for row in table[table["site"] == "A"].itertuples():
                held.setdefault(row.metric, []).append(row.low <= truth[row.metric] <= row.high)
        print(f"{patients} patients' slides: " + ", ".join(f"{name} {np.mean(own):.1%}" for name, own in held.items()))


def _slides(stream: np.random.Generator, patients: int) -> Iterator[SlideAttention]:
    """Slides of 40 tiles, whose attention finds the truth better in some patients than in others."""
    for number in range(patients):
        truth = stream.random(40) < 0.3
        truth[0], truth[1] = True, False
        attention = stream.normal(1.2 + 0.5 * stream.normal(), 1, 40) * truth + stream.normal(size=40) * ~truth
        weights = np.exp(attention - attention.max())
        name = f"p{number:04d}"
        yield SlideAttention(name, name, "A", "train", weights / weights.sum(), truth, 40)


def paired(cohorts: int) -> None:
    """Two scores that are equally good, on the same patients: DeLong's test, the bootstrap, within three sites, and added value."""
    for patients, prevalence, auroc in PAIRS:
        stream, p, held = rng(0, "paired", patients, auroc), {}, {}
        apart = stats.norm.ppf(auroc) * np.sqrt(2)
        for _ in range(cohorts):
            labels = np.zeros(patients, int)
            while not 2 <= labels.sum() <= patients - 2:
                labels = (stream.random(patients) < prevalence).astype(int)
            common, sites = stream.normal(size=patients), np.arange(patients) % 3
            pair = [np.sqrt(0.5) * (common + stream.normal(size=patients)) + apart * labels for _ in range(2)]
            tests = {"DeLong": delong.paired(labels, *pair)}
            if min(labels.sum(), patients - labels.sum()) < 20:
                tests["exchange"] = delong.exchanged(labels, *pair, np.zeros(patients), stream, RESAMPLES)
            if sum(delong.both_classes(labels[sites == site]) for site in range(3)) > 1:
                tests["DeLong within sites"] = delong.paired(labels, *pair, strata=sites)
            for name, found in tests.items():
                p.setdefault(name, []).append(found.p)
                held.setdefault(name, []).append(found.low <= 0 <= found.high)
            weights = resamples(labels, RESAMPLES, stream)
            drawn = np.subtract(*(ranking.auroc(labels, score, weights) for score in pair))
            again = difference_of(tests["DeLong"].difference, float(np.var(drawn)))
            p.setdefault("bootstrap", []).append(again.p)
            held.setdefault("bootstrap", []).append(again.low <= 0 <= again.high)
            if patients >= 60:
                p.setdefault("likelihood ratio of a useless score", []).append(_useless(stream, labels, pair[0]))
        print(f"{patients} patients, prevalence {prevalence:.0%}, AUROC {auroc}")
        _show(p, held)


def unequal(cohorts: int) -> None:
    """Differences of two models of few external patients, equal and unequal, alike and not: share of 95 % intervals that hold the truth."""
    for positives, patients in ((3, 10), (5, 12), (4, 40), (8, 20), (16, 40)):
        labels, shares, given = np.repeat([1, 0], [positives, patients - positives]), [], []
        for alike in (0.3, 0.9, 0.98):
            for apart in ((1.0, 1.0), (1.5, 0.7), (2.0, 0.5)):
                stream = rng(0, "unequal", positives, patients, alike, *apart)
                truth = float(np.subtract(*stats.norm.cdf(np.array(apart) / np.sqrt(2))))
                held = []
                for _ in range(cohorts):
                    noise = np.sqrt(alike) * stream.normal(size=patients)
                    pair = [
                        height * labels + noise + np.sqrt(1 - alike) * stream.normal(size=patients) for height in apart
                    ]
                    found = delong.exchanged(labels, *pair, np.zeros(patients), stream, RESAMPLES)
                    held.append(np.nan if np.isnan(found.low) else found.low <= truth <= found.high)
                shares.append(np.nanmean(held))
                given.append(np.mean(np.isfinite(held)))
        print(
            f"{positives} of {patients} positive, 9 settings: interval of the difference holds the truth in {min(shares):.1%} to "
            f"{max(shares):.1%}; given in {min(given):.0%} to {max(given):.0%}"
        )


def _useless(stream: np.random.Generator, labels: np.ndarray, column: np.ndarray) -> float:
    ids = [str(number) for number in range(len(labels))]
    patients = pd.DataFrame({"patient_id": ids, "column": column.astype(str)})
    scores = pd.DataFrame({"label": labels, "score": stream.random(len(labels))}, index=ids)
    return added_value(scores, patients, ["column"], 0.95).p


def _show(p: dict[str, list[float]], held: dict[str, list[bool]]) -> None:
    for name, values in p.items():
        found = np.array(values)
        found = found[np.isfinite(found)]
        uniform = stats.kstest(found, "uniform")
        covered = f"interval holds 0 in {np.mean(held[name]):.1%}; " if name in held else ""
        print(
            f"  {name:36s} {covered}p < 0.05 in {np.mean(found < 0.05):.1%}; Kolmogorov-Smirnov D {uniform.statistic:.3f}, "
            f"p {uniform.pvalue:.2g}"
        )


PARTS: dict[str, Callable[[int], None]] = {
    "single": single,
    "kinds": kinds,
    "tiles": tiles,
    "paired": paired,
    "unequal": unequal,
}

if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    for part in sys.argv[2:] or PARTS:
        PARTS[part](number)
