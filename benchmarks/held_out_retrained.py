"""Candidates for held-out intervals and tests that train many more models: too dear for a run, measured for comparison.

    python benchmarks/held_out_retrained.py [cohorts] [dear|engine]

The cohorts of `held_out.py`: 40 patients of one site, 14 positive. Leave-pair-out: every pair of a positive and a negative is
judged by a model of all others. Ten repeats: ours with more repeats. Permutation: the whole cross-validation of permuted labels
gives p of "no signal". Bootstrap: patients drawn with replacement within class, all folds trained again, a patient's copies in one
fold; percentiles of the AUROC and of the difference of both blocks. `engine`: ours with models that start at random and are trained as
`mil train` trains them, without the choice of rounds by inner folds.
"""

import sys
from itertools import product

import numpy as np
import torch
from held_out import FOLDS, STRENGTH, arm_of, deal, layout, logit, ridge
from scipy import stats

from mil.endpoints import build_endpoint
from mil.models import build
from mil.rng import rng
from mil.specs.endpoints import EndpointSpec
from mil.specs.models import GatedAttentionSpec
from mil.statistics import held_out
from mil.training.engine import Data, Engine, Learners, Method, Plan
from mil.training.packing import Places
from mil.training.store import FeatureStore

AGAIN = 200
"""Permutations and resamples of a cohort."""
SETTING = (40, 0.35, 1, 6)
WIDTH, EPOCHS, RATE, TOGETHER = 8, 30, 1e-2, 25
ENGINE = (
    *((patients, 0.35, 1, apart) for patients in (40, 80) for apart in (0.0, 1.5, 3.0)),
    *((200, 0.2, 4, apart) for apart in (0.0, 3.0)),
)
"""Patients, share of positives, sites, distance of the tiles that carry the class."""
MODEL = GatedAttentionSpec(hidden=8, attention=8)
NEW = np.tile([0, 1], 100)
"""Labels of new patients, on whom the expected AUROC is measured."""


def cross_validated(values: np.ndarray, labels: np.ndarray, folds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC within folds (fits,) of many weightings or labellings (fits, patients) of one cohort."""
    wins, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for part in range(FOLDS):
        test = folds == part
        used = weights * ~test
        number = used.sum(axis=1, keepdims=True)
        centre, rate = used @ values / number, (used * labels).sum(axis=1, keepdims=True) / number
        centred = (values[None] - centre[:, None]) * np.sqrt(used)[..., None]
        right = ((values[None] - centre[:, None]) * (used * (labels - rate))[..., None]).sum(axis=1)
        gram = centred.transpose(0, 2, 1) @ centred + STRENGTH * np.eye(values.shape[1])
        scores = np.linalg.solve(gram, right[..., None])[..., 0] @ values[test].T
        positive, negative = weights[:, test] * labels[:, test], weights[:, test] * (1 - labels[:, test])
        gap = scores[:, :, None] - scores[:, None]
        wins += (((gap > 0) + 0.5 * (gap == 0)) * positive[:, :, None] * negative[:, None]).sum(axis=(1, 2))
        pairs += positive.sum(axis=1) * negative.sum(axis=1)
    return wins / pairs


def leave_pair_out(values: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Share of pairs in the right order, and DeLong's variance of placements."""
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    pairs = np.array([(one, other) for one in positive for other in negative])
    train = np.ones((len(pairs), len(labels)), bool)
    np.put_along_axis(train, pairs, False, axis=1)
    weights, _ = ridge(np.broadcast_to(values, (len(pairs), *values.shape)), labels.astype(float), train)
    gap = ((values[pairs[:, 0]] - values[pairs[:, 1]]) * weights).sum(axis=1)
    right = (gap > 0).reshape(len(positive), len(negative))
    sides = right.mean(axis=1), right.mean(axis=0)
    return float(right.mean()), sum(float(side.var(ddof=1)) / len(side) for side in sides)


def pairs_of(values: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> tuple[held_out.Pairs, float]:
    """Ours of `folds` (repeats, patients), and the share of noise."""
    scores = np.empty(folds.shape)
    for repeat, fold in enumerate(folds):
        for part in range(FOLDS):
            weights, intercept = ridge(values[None], labels.astype(float), (fold != part)[None])
            scores[repeat, fold == part] = values[fold == part] @ weights[0] + intercept[0]
    pairs = arm_of(np.zeros(len(labels)), labels, folds, scores, 0.0).pairs
    return pairs, pairs.noise or 0.0


def main(cohorts: int) -> None:
    """Shares of intervals that hold the truth, and of p < 0.05 where there is no difference (and no signal)."""
    for apart in (0.0, 1.3):
        sites, labels = layout((*SETTING, apart))
        shift, stream = np.full(SETTING[3], apart / np.sqrt(SETTING[3])), rng(0, "retrained", str(apart))
        truth = _truth(shift, labels, stream)
        found: dict[str, list[float]] = {}
        for _ in range(cohorts):
            blocks = [stream.normal(size=(len(labels), SETTING[3])) + shift * labels[:, None] for _ in range(2)]
            folds = deal(stream, 10, sites, labels)
            area, variance = leave_pair_out(blocks[0], labels)
            low, high = logit(area, variance)
            _add(found, "leave-pair-out, DeLong: holds", low <= truth <= high)
            ours = [pairs_of(block, labels, folds)[0] for block in blocks]
            _, low, high, _ = held_out.interval(ours[0])
            _add(found, "ten repeats, overlap counted: holds", low <= truth <= high)
            _add(found, "ten repeats, overlap counted: p < 0.05", held_out.paired(*ours)[0].p < 0.05)
            drawn = np.ones((AGAIN, len(labels)))
            for label in (0, 1):
                own = np.flatnonzero(labels == label)
                drawn[:, own] = stream.multinomial(len(own), np.full(len(own), 1 / len(own)), AGAIN)
            given = np.broadcast_to(labels, drawn.shape).astype(float)
            again = [cross_validated(block, given, folds[0], drawn) for block in blocks]
            low, high = np.nanquantile(again[0], [0.025, 0.975])
            _add(found, "bootstrap with training: holds", low <= truth <= high)
            low, high = np.nanquantile(again[0] - again[1], [0.025, 0.975])
            _add(found, "bootstrap with training: p < 0.05", not low <= 0 <= high)
            if apart == 0:
                permuted = stream.permuted(given, axis=1)
                once = np.ones((1, len(labels)))
                observed = cross_validated(blocks[0], given[:1], folds[0], once)[0]
                null = cross_validated(blocks[0], permuted, folds[0], np.ones_like(permuted))
                _add(
                    found,
                    "permuted labels, p of no signal: p < 0.05",
                    (1 + (null >= observed).sum()) <= 0.05 * (1 + AGAIN),
                )
        print(f"{SETTING[0]} patients, {labels.sum()} positive, expected AUROC {truth:.3f}, {cohorts} cohorts")
        for name, values in found.items():
            print(f"  {name:48s} {np.mean(values):.1%}", flush=True)


def engine(cohorts: int) -> None:
    """Ours with what `mil train` trains: gated attention by the engine, bags of eight tiles of which a third carry the class."""
    for patients, share, count, apart in ENGINE:
        setting = (patients, share, count, WIDTH, apart)
        sites, labels = layout(setting)
        shift, stream = np.full(WIDTH, apart / np.sqrt(WIDTH)), rng(0, "engine", *map(str, setting))
        truths, rows = [], []
        for start in range(0, cohorts, TOGETHER):
            number = min(TOGETHER, cohorts - start)
            folds = np.stack([deal(stream, number, sites, labels) for _ in range(2)], axis=1)
            arms = []
            for _ in range(2):
                bags = _bags(np.append(np.tile(labels, number), NEW), shift, stream)
                judged, later = fitted(bags, np.tile(labels, number), folds, stream)
                ranks = stats.rankdata(later, axis=1)[:, NEW == 1].sum(axis=1)
                half = len(NEW) // 2
                truths.append(float(((ranks - half * (half + 1) / 2) / half**2).mean()))
                arms.append([arm_of(sites, labels, *made, 0.0).pairs for made in zip(folds, judged, strict=True)])
            for first, second in zip(*arms, strict=True):
                value, low, high, _ = held_out.interval(first)
                rows.append(
                    (value, low, high, held_out.paired(first, second)[0].p, first.variance()[0], first.inflation())
                )
        value, low, high, p, given, factor = np.array(rows).T
        truth = float(np.mean(truths))
        held = np.mean((low <= truth) & (truth <= high))
        print(
            f"engine, {patients} patients, {labels.sum()} positive, {count} sites, expected AUROC {truth:.3f}, {len(rows)} cohorts: "
            f"mean {value.mean():.3f}, holds {held:.1%}; p < 0.05 {np.mean(p < 0.05):.1%}; variance is {value.var(ddof=1) / given.mean():.2f} "
            f"times that of given models, {np.median(factor):.2f} assumed",
            flush=True,
        )


def fitted(
    bags: np.ndarray, labels: np.ndarray, folds: np.ndarray, stream: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Held-out scores (cohorts, repeats, patients), and scores of new patients (models, new), of one model per fold.

    `bags` (patients of all cohorts, then the new, tiles, width), `labels` of the cohorts' patients, `folds` (cohorts, repeats, patients).
    """
    number, repeats, patients = folds.shape
    store = FeatureStore.of({f"p{place:06d}": bag for place, bag in enumerate(bags)})
    endpoint = build_endpoint(EndpointSpec())
    targets = np.append(labels, NEW).astype(np.float32)[:, None]
    head = build(MODEL, WIDTH, endpoint.outputs, 0)
    data = Data(store.source(torch.device("cpu")), WIDTH, torch.from_numpy(targets), store.patient_keys())
    trained = Engine(head, endpoint, data, Method("adamw"))
    trained.budget = 256  # tiles of a call: with so few numbers a tile, the mask of bags and tiles is what costs
    own = [
        cohort * patients + np.flatnonzero(folds[cohort, repeat] != part)
        for cohort, repeat, part in product(range(number), range(repeats), range(FOLDS))
    ]
    rows = [trained.layout.flat(head.initial(stream)) for _ in own]
    still = torch.zeros(len(own), WIDTH), torch.ones(len(own), WIDTH)
    learners = Learners(
        torch.from_numpy(np.stack(rows)),
        {"features.mean": still[0], "features.deviation": still[1]},
        torch.full((len(own), 1), RATE),
        torch.full((len(own), 1), 1e-3),
        torch.ones(len(own), endpoint.classes),
    )
    places, state = Places.of(store.starts, store.sizes), trained.fresh(learners.rows)
    for _ in range(EPOCHS):
        plans = [Plan(np.array_split(stream.permutation(some), -(-len(some) // 16))) for some in own]
        trained.train(learners, state, plans, places)
    everyone = np.arange(number * patients, len(bags))
    asked = [np.append(np.arange(patients) + cohort * patients, everyone) for cohort in range(number)]
    found = trained.logits(learners, [asked[row // (repeats * FOLDS)] for row in range(len(own))], places)
    logits = np.stack(found)[..., 0].reshape(number, repeats, FOLDS, -1)
    judged = np.take_along_axis(logits[..., :patients], folds[:, :, None], axis=2)[:, :, 0]
    return judged, logits[..., patients:].reshape(len(own), -1)


def _bags(labels: np.ndarray, shift: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """Bags (patients, 8, width) float32: a third of a positive patient's tiles are moved by `shift`."""
    tiles = stream.normal(size=(len(labels), 8, len(shift)))
    carry = (stream.random((len(labels), 8)) < 1 / 3) & (labels[:, None] == 1)
    return (tiles + carry[..., None] * shift).astype(np.float32)


def _truth(shift: np.ndarray, labels: np.ndarray, stream: np.random.Generator) -> float:
    """Expected AUROC on new patients of models of four fifths of a cohort."""
    values = stream.normal(size=(4000, len(labels), len(shift))) + shift * labels[:, None]
    folds = deal(stream, len(values), np.zeros(len(labels), int), labels)
    weights, _ = ridge(values, labels.astype(float), folds != 0)
    return float(stats.norm.cdf(weights @ shift / np.sqrt(2 * (weights**2).sum(axis=1))).mean())


def _add(found: dict[str, list[float]], name: str, value: bool) -> None:
    found.setdefault(name, []).append(float(value))


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    for part in sys.argv[2:] or ("dear", "engine"):
        {"dear": main, "engine": engine}[part](number)
