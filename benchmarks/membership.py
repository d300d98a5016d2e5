"""Does a federated model tell who was in its training set? Two membership attacks, with and without differential privacy.

    python benchmarks/membership.py [--patients 50 200] [--repeats 16] [--epsilons 30 8 2]

Two hospitals with made cohorts (`made_hospitals.py`). Two folds, `--repeats` times over: each model learns from half of the patients of
both hospitals, and each patient is in half of the models. The attacker has the final model, the features and the label of a patient, and
says whether the patient was in the training set.

- Loss threshold (Yeom et al. 2018): the smaller the patient's loss, the more likely a member.
- LiRA (Carlini et al. 2022, doi 10.1109/SP46214.2022.9833649): the attacker trains shadow models, here all other models of the table,
  and compares the likelihood of the patient's logit under those that saw the patient and those that did not (normal distributions with a
  mean for each patient and one variance, as there are few shadow models). This attacker knows nearly all patients: a worst case.

AUROC of each attack, mean over the models; 0.5 is guessing. Intervals by bootstrap of patients. "found at 1 %" is the share of members that
LiRA names while it names 1 % of the others. Epsilon is that of one model.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
import torch
from made_hospitals import Made, confidences, federated, folded, logits, make, noise_for, simulated, work_of

from mil.endpoints import build_endpoint
from mil.hospital.config import FederationSpec
from mil.progress import quiet
from mil.statistics import delong
from mil.statistics.ranking import auroc
from mil.training.cohort import TrainingCohort
from mil.training.engine import one_thread_each
from mil.training.run import Trainer
from mil.training.store import FeatureStore

ROUNDS, RESAMPLES, ALLOWED = 30, 200, 0.01
FRESH = 400
"""New patients, on whom each model's use is measured."""


def lira(scores: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Logits of the true label and membership (models, patients) -> log-likelihood ratios (models, patients).

    Of each model all others are the shadow models.
    """
    found = np.empty_like(scores)
    for target in range(len(scores)):
        others = np.arange(len(scores)) != target
        logs = []
        for inside in (True, False):
            chosen = np.where(member[others] == inside, scores[others], np.nan)
            mean, deviation = np.nanmean(chosen, axis=0), np.sqrt(np.nanmean(np.nanvar(chosen, axis=0, ddof=1)))
            logs.append(-0.5 * ((scores[target] - mean) / deviation) ** 2 - np.log(deviation))
        found[target] = logs[0] - logs[1]
    return found


def attack(scores: np.ndarray, member: np.ndarray) -> tuple[float, float, float]:
    """Mean over models of the attack's AUROC, with the 95 % bootstrap interval over patients; (models, patients) each."""
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(scores.shape[1], np.full(scores.shape[1], 1 / scores.shape[1]), size=RESAMPLES)
    weights = np.concatenate([np.ones((1, scores.shape[1])), drawn])
    areas = np.mean([auroc(own, found, weights) for own, found in zip(member, scores, strict=True)], axis=0)
    return float(areas[0]), *np.quantile(areas[1:], [0.025, 0.975]).tolist()


def found_at(scores: np.ndarray, member: np.ndarray) -> float:
    """Share of members above the threshold that `ALLOWED` of all others exceed."""
    return float(np.mean(scores[member == 1] > np.quantile(scores[member == 0], 1 - ALLOWED)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, nargs="+", default=[50, 200], help="patients per site")
    parser.add_argument("--repeats", type=int, default=16, help="half the number of models")
    parser.add_argument("--epsilons", type=float, nargs="*", default=[30.0, 8.0, 2.0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| patients per site (per model) | model | AUROC, new patients | loss threshold [95 %] | LiRA [95 %] | found at 1 % |"
    )
    print("|---|---|---|---|---|---|")
    for patients in options.patients:
        rows(patients, options.repeats, options.epsilons)


def plain_models(protocol: FederationSpec, bags: pd.DataFrame, made: Mapping[str, Made]) -> dict[str, dict]:
    """Weights of the models without privacy, all trained at once: with rounds that inner folds select, and with all rounds."""
    store = FeatureStore.of({name: bag for one in made.values() for name, bag in one.tiles.items()})
    target = build_endpoint(protocol.endpoint)
    cohort = TrainingCohort.of(bags, protocol.endpoint, target, protocol.experiment.covariates)

    def trainer() -> Trainer:
        return Trainer(protocol.experiment, target, cohort, store, quiet())

    with one_thread_each():
        chosen = trainer().selected()
        everything = [replace(task, rounds=ROUNDS) for task in chosen]
        median = int(np.median([task.rounds for task in chosen]))
        names = {
            f"no privacy, rounds selected (median {median})": chosen,
            f"no privacy, all {ROUNDS} rounds": everything,
        }
        found = {name: trainer().refitted(tasks) for name, tasks in names.items()}
    for _, table in found.values():
        assert list(table["fold"]) == [0, 1] * protocol.endpoint.repeats
    return {name: dict(families[0].weights) for name, (families, _) in found.items()}


def rows(patients: int, repeats: int, epsilons: list[float]) -> None:
    """Print the rows of one size of cohort."""
    made = {site: make(site, "train", patients) for site in "AB"}
    endpoint, inside = {"folds": 2, "inner_folds": 2, "repeats": repeats}, patients // 2
    plain = simulated(endpoint, {"rounds": ROUNDS}, None)
    bags = pd.concat([folded(one, plain) for one in made.values()], ignore_index=True)
    member = np.stack([(bags[f"repeat{k}"].to_numpy() != fold).astype(int) for k in range(repeats) for fold in (0, 1)])
    models = {name: (plain, weights) for name, weights in plain_models(plain, bags, made).items()}
    for epsilon in epsilons:
        private = {"clip": 1.0, "expected_batch": 8.0, "delta": 0.2 / patients}
        noise = noise_for(epsilon, private, inside, ROUNDS)
        protocol = simulated(endpoint, {"rounds": ROUNDS}, {**private, "noise": noise, "epsilon": epsilon})
        name = f"epsilon {epsilon:g}, noise {noise:.2f}"
        models[name] = (protocol, federated(protocol, work_of(protocol, made), ROUNDS, 0))
    fresh = {"C": make("C", "external", FRESH)}
    for name, (protocol, weights) in models.items():
        scores = confidences(protocol, weights, made)
        labels = fresh["C"].bags["label"].to_numpy()
        use = np.mean([delong.auroc(labels, own) for own in logits(protocol, weights, fresh)])
        ratios = lira(scores, member)
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*attack(own, member)) for own in (scores, ratios)]
        cells = [f"{patients} ({inside})", name, f"{use:.2f}", *cells, f"{100 * found_at(ratios, member):.0f} %"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
