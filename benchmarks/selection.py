"""Rules that choose the number of rounds (and the candidate) on inner folds, side by side on the same trained models.

    python benchmarks/selection.py TRACES --mil ../shared/data/mil/bags [--demo results/demo] [--tissue results/idc]

Every model of every outer fold is trained once for all rounds, on the inner folds and on all outer training patients, and its
logits are kept in TRACES after each round. What a rule would have chosen is then read off, and the outer fold's patients are
scored by the model after that many rounds: no rule sees them.

Criterion (after MUSK1 was seen; the first was AUROC for all sets): the mean over sets of the difference to `loss` (the rule until then) in
what the set is judged by, accuracy at 0.5 for the MIL sets and AUROC (pairs of one fold and site) for cohorts, with its standard
error over sets. A rule must be computable between hospitals from sums over patients, so the rows of AUROC only stand beside the
others. Where differences are within noise: the simplest rule that is not worse.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from mil_benchmarks import FILES, HEADS, SEARCH, bags_of, outer_task
from scipy.special import expit

from mil.bags.table import deal_folds, read_bags
from mil.endpoints import build_endpoint
from mil.progress import quiet
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec
from mil.statistics.ranking import auroc_of
from mil.training.cohort import TrainingCohort
from mil.training.engine import one_thread_each
from mil.training.protocol import candidates, groups, inner_tasks, teachers
from mil.training.run import Trainer
from mil.training.store import FeatureStore

TEMPERATURES = 2.0 ** np.arange(-1, 5)
ROUNDS, ROUNDS_OF_COHORTS = 60, 30
TRAINING = {"lr": 1e-3, "weight_decay": 1e-2, "batch_size": 8}


def trace(
    wanted: ExperimentSpec, endpoint: EndpointSpec, dealt: pd.DataFrame, store: FeatureStore
) -> dict[str, np.ndarray]:
    """Logits after every round (rounds, patients) of inner and outer folds, and for each patient its label, site, group and candidate."""
    target = build_endpoint(endpoint)
    cohort = TrainingCohort.of(dealt, endpoint, target)
    trainer = Trainer(wanted, target, cohort, store, quiet())
    every = groups(cohort, teachers(cohort.sites, wanted.strategy.by_site, wanted.protocol))
    inner = inner_tasks(cohort, every, candidates(wanted), wanted.training.rounds)
    every_choice = {(task.group, task.choice): task.candidate for task in inner}
    outer = [
        outer_task(cohort, group, one, wanted.training.rounds, choice) for (group, choice), one in every_choice.items()
    ]
    found: dict[str, np.ndarray] = {}
    for name, tasks in {"inner": inner, "outer": outer}.items():
        models = list(dict.fromkeys(task.candidate.model.to_json() for task in tasks))
        parts = []
        for number, model in enumerate(models):
            own = [task for task in tasks if task.candidate.model.to_json() == model]
            with one_thread_each():
                trainer._run(own[0].candidate.model, own, f"{name}{number}", "inner")
            parts += [(trainer.records.watched[..., 0], own)]
        flat = [task for _, own in parts for task in own]
        patients = np.concatenate([task.watched for task in flat])
        sizes = [len(task.watched) for task in flat]
        found[f"{name}_logits"] = np.concatenate([logits for logits, _ in parts], axis=1)
        found[f"{name}_label"] = cohort.targets[patients, 0]
        found[f"{name}_site"] = cohort.site[patients]
        for what in ("repeat", "fold"):
            found[f"{name}_{what}"] = np.repeat([getattr(task.group, what) for task in flat], sizes)
        found[f"{name}_choice"] = np.repeat([task.choice for task in flat], sizes)
    return found


def losses_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy of every patient after every round (rounds, patients)."""
    return np.logaddexp(0, np.where(labels > 0.5, -1, 1) * logits.astype(float))


def loss(logits: np.ndarray, labels: np.ndarray, sites: np.ndarray) -> np.ndarray:
    """Mean cross-entropy after every round."""
    return losses_of(logits, labels).mean(1)


def squares_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Squared error of every patient's probability after every round (rounds, patients)."""
    return (expit(logits.astype(float)) - labels) ** 2


def brier(logits: np.ndarray, labels: np.ndarray, sites: np.ndarray) -> np.ndarray:
    """Mean squared error of the probabilities."""
    return squares_of(logits, labels).mean(1)


def calibrated(logits: np.ndarray, labels: np.ndarray, sites: np.ndarray) -> np.ndarray:
    """Mean cross-entropy at the best of some temperatures: a sum over patients for each of them."""
    return np.min([losses_of(logits / t, labels).mean(1) for t in TEMPERATURES], axis=0)


def errors(logits: np.ndarray, labels: np.ndarray, sites: np.ndarray) -> np.ndarray:
    """Share of patients on the wrong side of 0.5."""
    return ((logits > 0) != (labels > 0.5)).mean(1)


def disorder(logits: np.ndarray, labels: np.ndarray, sites: np.ndarray) -> np.ndarray:
    """1 - AUROC within sites: needs ranks."""
    return np.array([1 - within(row, labels, sites) for row in logits])


def within(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    """AUROC over pairs of one group."""
    right, pairs = 0.0, 0
    for group in np.unique(groups):
        own = groups == group
        positive = labels[own] > 0.5
        number = int(positive.sum() * (~positive).sum())
        if number:
            right, pairs = right + number * auroc_of(scores[own], positive), pairs + number
    return right / pairs


def smooth(curve: np.ndarray, width: int) -> np.ndarray:
    """Mean of each round and its neighbours, fewer at the ends."""
    kernel = np.ones(width)
    return np.convolve(curve, kernel, "same") / np.convolve(np.ones_like(curve), kernel, "same")


Curve = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def least(curve: Curve, width: int = 1) -> Callable[..., tuple[int, float]]:
    """The round after which a (smoothed) curve is least, and its value there."""

    def rule(*inner: np.ndarray) -> tuple[int, float]:
        values = smooth(curve(*inner), width)
        return int(np.argmin(values)), float(values.min())

    return rule


def latest(
    each: Callable[[np.ndarray, np.ndarray], np.ndarray], width: int = 1, paired: bool = False
) -> Callable[..., tuple[int, float]]:
    """The last round whose value is at most one standard error over patients (of the value, or of the difference) above the least."""

    def rule(logits: np.ndarray, labels: np.ndarray, sites: np.ndarray) -> tuple[int, float]:
        found = each(logits, labels)
        values = smooth(found.mean(1), width)
        best = int(np.argmin(values))
        spread = (found - found[best] if paired else found[[best]]).std(1, ddof=1)
        within_one = values <= values[best] + spread / np.sqrt(found.shape[1])
        return int(np.flatnonzero(within_one)[-1]), float(values[best])

    return rule


def last(curve: Curve) -> Callable[..., tuple[int, float]]:
    """No choice of rounds; candidates by the curve's mean over the last tenth of them."""
    return lambda *inner: (len(inner[0]) - 1, float(curve(*inner)[-max(1, len(inner[0]) // 10) :].mean()))


RULES: dict[str, Callable[..., tuple[int, float]]] = {
    "loss": least(loss),
    "loss, mean of 3 rounds": least(loss, 3),
    "loss, mean of 5 rounds": least(loss, 5),
    "loss, mean of 9 rounds": least(loss, 9),
    "loss, last within 1 SE": latest(losses_of),
    "Brier": least(brier),
    "Brier, mean of 5 rounds": least(brier, 5),
    "Brier, mean of 9 rounds": least(brier, 9),
    "Brier, last within 1 SE": latest(squares_of),
    "the same, mean of 5 rounds": latest(squares_of, 5),
    "the same, SE of the difference": latest(squares_of, paired=True),
    "calibrated loss": least(calibrated),
    "calibrated loss, mean of 5": least(calibrated, 5),
    "errors, mean of 5 rounds": least(errors, 5),
    "AUROC": least(disorder),
    "AUROC, mean of 5 rounds": least(disorder, 5),
    "last round, by loss": last(loss),
    "last round, by Brier": last(brier),
    "last round, by calibrated loss": last(calibrated),
}


def judged(kept: dict[str, np.ndarray], rule: Callable[..., tuple[int, float]]) -> pd.DataFrame:
    """A row a seed: AUROC, accuracy and loss of the outer folds at the rounds that the rule chose, and the median of these."""
    rows = []
    for repeat in np.unique(kept["inner_repeat"]):
        scores, labels, sites, rounds, right = [], [], [], [], []
        for fold in np.unique(kept["inner_fold"]):
            found = []
            for choice in np.unique(kept["inner_choice"]):
                own = _own(kept, "inner", repeat, fold, choice)
                found.append(
                    (rule(kept["inner_logits"][:, own], kept["inner_label"][own], kept["inner_site"][own]), choice)
                )
            (best, _), choice = min(found, key=lambda one: one[0][1])
            own = _own(kept, "outer", repeat, fold, choice)
            scores.append(kept["outer_logits"][best, own])
            labels.append(kept["outer_label"][own])
            sites.append(np.char.add(kept["outer_site"][own].astype(str), f"/{fold}"))
            right.append(np.mean((scores[-1] > 0) == (labels[-1] > 0.5)))
            rounds.append(best + 1)
        flat = np.concatenate(scores), np.concatenate(labels)
        cost = float(losses_of(flat[0][None], flat[1]).mean())
        area = within(*flat, np.concatenate(sites))
        rows.append((repeat, area, float(np.mean(right)), cost, float(np.median(rounds))))
    return pd.DataFrame(rows, columns=["seed", "auroc", "accuracy", "loss", "rounds"]).set_index("seed")


def _own(kept: dict[str, np.ndarray], part: str, repeat: int, fold: int, choice: int) -> np.ndarray:
    asked = {"repeat": repeat, "fold": fold, "choice": choice}
    return np.logical_and.reduce([kept[f"{part}_{name}"] == value for name, value in asked.items()])


def settings(options: argparse.Namespace) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """By name what is trained: the MIL sets with one candidate and with several, the cohorts' arms."""
    found: dict[str, Callable[[], dict[str, np.ndarray]]] = {}
    for name in FILES if options.mil else ():
        found[name] = partial(_mil, options.mil, name, None, options.repeats)
    for folder in filter(None, (options.tissue, options.demo)):
        for encoder, strategy in product(("effnet", "colour"), ("fedavg", "pooled")):
            found[f"{folder.name} {encoder} {strategy}"] = partial(_cohort, folder, encoder, strategy, options.repeats)
    for name in FILES if options.mil else ():
        found[f"{name}, search"] = partial(_mil, options.mil, name, SEARCH, 1)
    return found


def _mil(folder: Path, name: str, search: dict | None, repeats: int) -> dict[str, np.ndarray]:
    bags, table = bags_of(folder, name)
    endpoint = EndpointSpec(folds=10, repeats=repeats, inner_folds=4)
    base = {"encoder": "none", "endpoint": "label", "model": HEADS["gated_attention"][1], "strategy": "pooled"}
    wanted = ExperimentSpec.model_validate(base | {"training": TRAINING | {"rounds": ROUNDS}, "search": search})
    return trace(wanted, endpoint, deal_folds(table, endpoint), FeatureStore.of(bags))


def _cohort(folder: Path, encoder: str, strategy: str, repeats: int) -> dict[str, np.ndarray]:
    table = read_bags(next((folder / "bags").glob("*[!w].csv")))
    table = table[table["role"] == "train"][["patient_id", "slides", "site", "role", "label"]]
    endpoint = EndpointSpec(folds=5, repeats=repeats, inner_folds=4)
    base = {"encoder": encoder, "endpoint": "label", "model": "gated_attention", "strategy": strategy}
    wanted = ExperimentSpec.model_validate(base | {"training": {"scaling": "site", "rounds": ROUNDS_OF_COHORTS}})
    return trace(wanted, endpoint, deal_folds(table, endpoint), FeatureStore.open(table, folder / "sites", encoder))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("traces", type=Path)
    for name in ("mil", "demo", "tissue"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.traces.mkdir(parents=True, exist_ok=True)
    for name, made in settings(options).items():
        path = options.traces / f"{name.replace(', ', '-').replace(' ', '-')}.npz"
        if not path.exists():
            began = time.process_time()
            np.savez(path, allow_pickle=False, **made())
            print(f"{name}: {time.process_time() - began:.0f} s of CPU", flush=True)
    found = {path.stem: dict(np.load(path)) for path in sorted(options.traces.glob("*.npz"))}
    table = pd.concat({(name, rule): judged(kept, RULES[rule]) for name, kept in found.items() for rule in RULES})
    print(report(table))


def report(table: pd.DataFrame) -> str:
    """Rules by sets: the gain in what each is judged by, over sets; then AUROC, accuracy, loss and rounds, mean over seeds."""
    by_set = {
        column: part.unstack(0).reindex(list(RULES)) for column, part in table.groupby(level=[0, 1]).mean().items()
    }
    judged = pd.concat(
        [by_set["accuracy" if name.split("-")[0] in FILES else "auroc"][name] for name in by_set["auroc"]], axis=1
    )
    parts = []
    for name, values in {"what sets are judged by": judged, **by_set}.items():
        change = values - values.loc["loss"]
        error = change.std(axis=1, ddof=1) / np.sqrt(change.shape[1])
        summary = {"gain": change.mean(axis=1), "SE": error, "worst": change.min(axis=1)}
        parts += [str(name), values.assign(**summary).round(0 if name == "rounds" else 4).to_string()]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
