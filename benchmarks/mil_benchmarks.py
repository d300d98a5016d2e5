"""The data sets that multiple-instance learning grew up with, through our own training: accuracy beside the literature's.

    python benchmarks/mil_benchmarks.py ../shared/data/mil/bags [--sets musk1,fox,elephant] [--heads gated_attention,mean]
        [--repeats 10] [--out seeds.csv]

MUSK1 (92 molecules, 476 shapes), Fox and Elephant (200 pictures each, 1,320 and 1,391 regions). A bag is a patient of one site;
the folds are dealt as a cohort's are: 10 outer folds, `--repeats` times over (a seed each), 4 inner folds. A row of `--out` is a seed;
of `published` each is written when it is there, and seeds that stand in it already are not trained again. `mil.training.run.train`
chooses the number of epochs (and whatever a head's search names) on the inner folds only and refits;
`mil.predictions.predict.predict` gives each held-out bag its probability; accuracy is at 0.5.

`published` is the network and optimiser of Ilse et al. (three embedding layers of 256, 128, 64 with dropout, attention of 64,
Glorot's first weights; SGD with momentum 0.9, weight decay 0.005, one bag a step, 100 epochs, their learning rate of each set),
with nothing chosen here: all 100 epochs are used (`published_selected`: at most 100, their number chosen on the inner folds). The
other rows search learning rate, weight decay and dropout of a smaller network on the inner folds.
Literature: Ilse et al. 2018, table 1, attention and gated attention, mean of 5 runs of 10 folds.
"""

import argparse
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.io import loadmat
from scipy.special import expit

from mil.bags.table import deal_folds
from mil.endpoints import build_endpoint
from mil.predictions.predict import predict
from mil.progress import quiet
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec
from mil.statistics.ranking import auroc_of
from mil.tables import write_table
from mil.training.cohort import TrainingCohort
from mil.training.engine import one_thread_each
from mil.training.protocol import Candidate, Group, Task, candidates, groups
from mil.training.run import Trainer, train
from mil.training.store import FeatureStore

FILES = {
    "musk1": ("musk1_unscaled/X_musk_original.mat", "musk1_unscaled/Bag2_musk_original.mat", "musk1_unscaled/bagI_musk1_original.mat"),
    "fox": ("fox_original/X.mat", "fox_original/Bag2.mat", "fox_original/BagI.mat"),
    "elephant": ("elephant_original/X.mat", "elephant_original/Bag2.mat", "elephant_original/BagI.mat"),
}  # fmt: skip
LITERATURE = {"musk1": (0.892, 0.900), "fox": (0.615, 0.603), "elephant": (0.868, 0.857)}
"""Accuracy of attention and of gated attention."""
PUBLISHED = {"musk1": 5e-4, "fox": 5e-4, "elephant": 1e-4}
"""Their learning rates."""
HEADS = {
    "gated_attention": [{"name": "gated_attention", "hidden": 64, "attention": 64, "dropout": d} for d in (0.0, 0.5)],
    "attention": [{"name": "attention", "hidden": 64, "attention": 64, "dropout": d} for d in (0.0, 0.5)],
    "mean": [{"name": "mean", "hidden": 64, "dropout": d} for d in (0.0, 0.5)],
    "max": [{"name": "max", "hidden": (64,)}],
    "dsmil": ["dsmil"],
    "chowder": [{"name": "chowder", "top": 2, "bottom": 2}],
    "linear_probe": ["linear_probe"],
}
SEARCH = {"lr": (3e-4, 3e-3), "weight_decay": (1e-2, 1.0)}
TRAINING = {"rounds": 100, "patience": 15, "batch_size": 8}


def bags_of(folder: Path, name: str) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Instances by bag, and a row a bag as a table of one site's patients, without folds."""
    instances, owner, labels = (
        next(v for k, v in loadmat(folder / file).items() if k[0] != "_") for file in FILES[name]
    )
    owner, labels = owner[:, 0].astype(int), labels[:, 0].astype(int)
    bags = {f"b{number:03d}": instances[owner == number].astype(np.float32) for number in np.unique(owner)}
    table = pd.DataFrame({"patient_id": list(bags), "slides": list(bags), "site": "A", "role": "train"})
    return bags, table.assign(label=(labels == 1).astype(int))


def published(name: str, head: str = "ilse_gated_attention") -> ExperimentSpec:
    """Ilse et al.'s settings for a set."""
    base = {"encoder": "none", "endpoint": "label", "model": head, "strategy": "pooled"}
    steps = {"optimiser": "sgd", "momentum": 0.9, "lr": PUBLISHED[name], "weight_decay": 5e-3, "batch_size": 1}
    return ExperimentSpec.model_validate(base | {"training": {"rounds": 100} | steps})


def stanza(models: list, **training: object) -> ExperimentSpec:
    """A pooled experiment that searches over models, learning rates and weight decays."""
    base = {"encoder": "none", "endpoint": "label", "model": models[0], "strategy": "pooled"}
    search = SEARCH | {"model": models if len(models) > 1 else ()}
    return ExperimentSpec.model_validate(base | {"training": TRAINING | training, "search": search})


def held_out(
    bags: dict[str, np.ndarray], table: pd.DataFrame, wanted: ExperimentSpec, folds: int = 10, repeats: int = 5
) -> pd.DataFrame:
    """A row a bag and repeat: its label and the probability by the model that never saw its fold."""
    endpoint = EndpointSpec(folds=folds, repeats=repeats, inner_folds=4)
    dealt, store = deal_folds(table, endpoint), FeatureStore.of(bags)
    return predict(train(wanted, endpoint, dealt, store, quiet()), dealt, store).table


def without_selection(
    bags: dict[str, np.ndarray], table: pd.DataFrame, wanted: ExperimentSpec, repeat: int, folds: int = 10
) -> pd.DataFrame:
    """The same of one repeat, by models that were trained on all other folds for all rounds."""
    endpoint = EndpointSpec(folds=folds, repeats=repeat + 1)
    target, store = build_endpoint(endpoint), FeatureStore.of(bags)
    cohort = TrainingCohort.of(deal_folds(table, endpoint), endpoint, target)
    trainer = Trainer(wanted, target, cohort, store, quiet())
    (candidate,) = candidates(wanted)
    mine = [group for group in groups(cohort, [("A",)]) if group.repeat == repeat]
    tasks = [outer_task(cohort, group, candidate, wanted.training.rounds) for group in mine]
    with one_thread_each():
        trainer._run(candidate.model, tasks, "outer", "outer")
    patients = np.concatenate([task.watched for task in tasks])
    places = [(task.group.repeat, task.group.fold) for task in tasks for _ in task.watched]
    found = pd.DataFrame(places, columns=["repeat", "fold"])
    return found.assign(label=cohort.targets[patients, 0], score=expit(trainer.records.watched[-1, :, 0]))


def outer_task(cohort: TrainingCohort, group: Group, candidate: Candidate, rounds: int, choice: int = 0) -> Task:
    """A model of all patients but an outer fold's, whose logits of that fold are kept after every round."""
    held = np.flatnonzero(cohort.outer[:, group.repeat] == group.fold)
    seen = cohort.outer_train(group.trained_on, group.repeat, group.fold)
    return Task(group, candidate, seen, held, rounds, choice=choice)


def seeds(found: pd.DataFrame) -> pd.DataFrame:
    """A row a repeat: mean over the folds of the accuracy at 0.5, and the AUROC over all bags."""
    rows = []
    for repeat, own in found.groupby("repeat"):
        right = (own["score"] > 0.5) == (own["label"] == 1)
        area = auroc_of(own["score"].to_numpy(), own["label"].to_numpy() == 1)
        rows.append({"seed": repeat, "accuracy": right.groupby(own["fold"]).mean().mean(), "auroc": area})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", default="musk1,fox,elephant")
    parser.add_argument("--heads", default="published", help=f"published, published_selected, {', '.join(HEADS)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="table of seeds (CSV); continued if it is there")
    options = parser.parse_args()
    known = pd.read_csv(options.out) if options.out and options.out.is_file() else pd.DataFrame(columns=["set", "head"])
    print(f"{torch.get_num_threads()} threads; search of all but `published`: {SEARCH}, {TRAINING}")
    for name, head in product(options.sets.split(","), options.heads.split(",")):
        cpu, (bags, table) = time.process_time(), bags_of(options.folder, name)
        mine = (known["set"] == name) & (known["head"] == head)
        there = set(known.loc[mine, "seed"]) if mine.any() else set()
        wanted = published(name) if head.startswith("published") else stanza(HEADS[head])
        trained = (
            (without_selection(bags, table, wanted, seed) for seed in range(options.repeats) if seed not in there)
            if head == "published"
            else (held_out(bags, table, wanted, repeats=options.repeats) for _ in range(not there))
        )
        for found in trained:
            known = pd.concat([known, seeds(found).assign(set=name, head=head)], ignore_index=True)
            print(f"{name} {head}, CPU {time.process_time() - cpu:.0f} s: {described(known, name, head)}", flush=True)
            if options.out:
                write_table(known, options.out)


def described(known: pd.DataFrame, name: str, head: str) -> str:
    """Mean and spread over the seeds of a set, beside the literature's."""
    own = known[(known["set"] == name) & (known["head"] == head)].sort_values("seed")
    each = ", ".join(f"{value:.3f}" for value in own["accuracy"])
    attention, gated = LITERATURE[name]
    return (
        f"accuracy {own['accuracy'].mean():.3f} +- {own['accuracy'].std():.3f} over {len(own)} seeds ({each}), "
        f"AUROC {own['auroc'].mean():.3f}; Ilse et al.: attention {attention:.3f}, gated {gated:.3f}"
    )


if __name__ == "__main__":
    main()
