"""Candidates for held-out intervals and tests that train many more models: too dear for a run, measured for comparison.

    python benchmarks/held_out_retrained.py [cohorts] [dear|networks]

The cohorts of `held_out.py`: 40 patients of one site, 14 positive. Leave-pair-out: every pair of a positive and a negative is
judged by a model of all others. Ten repeats: ours with more repeats. Permutation: the whole cross-validation of permuted labels
gives p of "no signal". Bootstrap: patients drawn with replacement within class, all folds trained again, a patient's copies in one
fold; percentiles of the AUROC and of the difference of both blocks. `networks`: ours with small neural networks as learners.
"""

import sys

import numpy as np
import torch
from held_out import FOLDS, STRENGTH, arm_of, deal, layout, logit, ridge
from scipy import stats

from mil.rng import rng
from mil.statistics import held_out

AGAIN = 200
"""Permutations and resamples of a cohort."""
SETTING = (40, 0.35, 1, 6)


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


def networks(cohorts: int) -> None:
    """The same level for learners that are not linear and start at random: a hidden layer of eight, Adam, 60 steps."""
    for patients, apart in ((40, 0.0), (40, 1.3), (80, 0.0), (80, 1.3)):
        sites, labels = layout((patients, 0.35, 1, 6, apart))
        shift, stream = np.full(6, apart / np.sqrt(6)), rng(0, "networks", str(patients), str(apart))
        new = np.tile([0, 1], 1000)
        fresh = stream.normal(size=(2000, 6)) + shift * new[:, None]
        truths, rows = [], []
        for _ in range(cohorts):
            folds, made = deal(stream, 2, sites, labels), []
            for _ in range(2):
                values = stream.normal(size=(patients, 6)) + shift * labels[:, None]
                train = np.stack([fold != part for fold in folds for part in range(FOLDS)])
                judged, later = fitted(values, labels, train, fresh, int(stream.integers(2**31)))
                judged = judged.reshape(2, FOLDS, patients)
                scores = np.take_along_axis(judged, folds[:, None], axis=1)[:, 0]
                ranks = stats.rankdata(later, axis=1)[:, new == 1].sum(axis=1)
                truths.append(float(((ranks - 1000 * 1001 / 2) / 1e6).mean()))
                made.append(arm_of(sites, labels, folds, scores, 0.0).pairs)
            _, low, high, _ = held_out.interval(made[0])
            rows.append((low, high, held_out.paired(*made)[0].p))
        low, high, p = np.array(rows).T
        truth = float(np.mean(truths))
        held = np.mean((low <= truth) & (truth <= high))
        print(
            f"networks, {patients} patients, expected AUROC {truth:.3f}: holds {held:.1%}; p < 0.05 {np.mean(p < 0.05):.1%}",
            flush=True,
        )


def fitted(
    values: np.ndarray, labels: np.ndarray, train: np.ndarray, fresh: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the cohort (fits, patients) and of new patients (fits, new) by one network per row of `train`."""
    generator, fits = torch.Generator().manual_seed(seed), len(train)
    shapes = (values.shape[1], 8), (1, 8), (8, 1)
    weights = [(0.5 * torch.randn(fits, *shape, generator=generator)).requires_grad_() for shape in shapes]
    optimiser = torch.optim.Adam(weights, lr=0.05, weight_decay=1e-3)
    x, y, used = (torch.as_tensor(part, dtype=torch.float32) for part in (values, labels, train))

    def score(given: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(given @ weights[0] + weights[1]) @ weights[2])[..., 0]

    for _ in range(60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(score(x), y.expand(fits, -1), weight=used)
        optimiser.zero_grad()
        (loss * fits).backward()
        optimiser.step()
    with torch.no_grad():
        return score(x).numpy(), score(torch.as_tensor(fresh, dtype=torch.float32)).numpy()


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
    for part in sys.argv[2:] or ("dear", "networks"):
        {"dear": main, "networks": networks}[part](number)
