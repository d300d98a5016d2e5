"""experiment + bags + features -> a run: one model for every choice of sites, repeat and outer fold."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

import mil
from mil.config import EndpointSpec, ExperimentSpec, parse
from mil.endpoints import build_endpoint
from mil.errors import CorruptFile, MilError
from mil.federation.ledger import Ledger, digest
from mil.federation.rounds import Driver
from mil.federation.strategies import build_strategy
from mil.files import replacing, write_text
from mil.models import build
from mil.progress import Reporter
from mil.tables import read_table, write_table
from mil.training.cohort import Cohort
from mil.training.engine import Engine
from mil.training.protocol import Task, choose_rounds, inner_tasks, refit_tasks
from mil.training.scaling import Moments
from mil.training.store import FeatureStore

SCALE = ("scaling.mean", "scaling.deviation")


@dataclass(frozen=True)
class Run:
    """The trained models: weights by name (models, ...), scaling included, and a table with a row each."""

    experiment: ExperimentSpec
    endpoint: EndpointSpec
    weights: dict[str, torch.Tensor]
    models: pd.DataFrame
    """model, trained_on, repeat, fold, rounds, patients, sha256."""
    rounds: pd.DataFrame
    """model, phase, repeat, fold, round, site, train_loss, val_loss, val_auroc."""
    ledger: Ledger
    about: dict[str, object]
    """What the features say of their encoder."""

    def save(self, folder: str | Path) -> None:
        """Write weights.safetensors, models.csv, rounds.csv, ledger.jsonl and spec.json; spec.json, the last, completes it."""
        folder = Path(folder)
        with replacing(folder / "weights.safetensors") as partial:
            save_file({name: value.contiguous() for name, value in sorted(self.weights.items())}, partial)
        write_table(self.models, folder / "models.csv")
        write_table(self.rounds, folder / "rounds.csv")
        self.ledger.save(folder / "ledger.jsonl")
        spec = {
            "experiment": self.experiment.model_dump(mode="json"),
            "endpoint": self.endpoint.model_dump(mode="json"),
            "features": self.about,
            "mil_version": mil.__version__,
        }
        write_text(folder / "spec.json", json.dumps(spec, indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """Read what `save` wrote; weights that differ from the table's digests are refused."""
        folder = Path(folder)
        if not (folder / "spec.json").is_file():
            raise MilError(f"run {folder} is not there or not finished; run `mil train`")
        spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        models = read_table(folder / "models.csv", text=("model", "trained_on", "sha256"))
        weights = load_file(folder / "weights.safetensors")
        for row, (name, stated) in enumerate(zip(models.model, models.sha256, strict=True)):
            if model_digest(weights, row) != stated:
                raise CorruptFile(
                    f"{folder}/weights.safetensors: {name} differs from models.csv; run `mil train` again"
                )
        ledger = Ledger()
        ledger.lines = (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
        return cls(
            parse(ExperimentSpec, spec["experiment"], f"{folder}/spec.json"),
            parse(EndpointSpec, spec["endpoint"], f"{folder}/spec.json"),
            weights,
            models,
            read_table(folder / "rounds.csv", text=("model", "phase", "site")),
            ledger,
            spec["features"],
        )


def train(
    experiment: ExperimentSpec, endpoint: EndpointSpec, bags: pd.DataFrame, features: FeatureStore, reporter: Reporter
) -> Run:
    """Select the number of rounds on the inner folds, refit on all outer training patients, for every fold at once.

    `bags` and `features` hold training sites only; a row of another role, or features of anybody else, is an error.
    """
    target = build_endpoint(endpoint)
    cohort = Cohort.of(bags, endpoint, target)
    strangers = sorted(set(features.patients) - set(cohort.patients))
    if strangers:
        raise MilError(
            f"features: patient {strangers[0]} is not in the training rows; training is given training sites only"
        )
    strategy = build_strategy(experiment.strategy)
    head = build(experiment.model, features.width, target.outputs)
    store = features.only(cohort.patients)
    moments = Moments.of(store)
    if head.only_mean and experiment.training.max_tiles is None:
        store = store.means()
    engine = Engine(head, target, experiment.training, store, cohort.targets)
    ledger = Ledger()
    driver = Driver(engine, cohort, moments, strategy, ledger)
    trained_on = [(site,) for site in cohort.sites] if strategy.by_site else [tuple(cohort.sites)]
    inner = inner_tasks(cohort, trained_on, experiment.training.rounds)
    with reporter.steps(f"select rounds, {len(inner)} models", experiment.training.rounds, "rounds") as steps:
        selection = driver.run(inner, "inner", steps)
    chosen = choose_rounds(inner, selection.losses, selection.counts)
    refits = refit_tasks(cohort, chosen)
    with reporter.steps(f"refit, {len(refits)} models", max(chosen.values()), "rounds") as steps:
        final = driver.run(refits, "refit", steps)
    weights = {name: view.clone() for name, view in engine.layout.views(final.rows).items()}
    weights |= dict(zip(SCALE, (final.mean, final.deviation), strict=True))
    models = _model_table(refits, weights)
    rounds = pd.DataFrame(selection.table + final.table)
    return Run(experiment, endpoint, weights, models, rounds, ledger, dict(features.about))


def model_digest(weights: dict[str, torch.Tensor], row: int) -> str:
    """SHA-256 of one model's tensors, scaling included, names sorted."""
    return digest(weights[name][row].numpy().tobytes() for name in sorted(weights))


def _model_table(tasks: list[Task], weights: dict[str, torch.Tensor]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "model": task.name,
                "trained_on": "+".join(task.trained_on),
                "repeat": task.repeat,
                "fold": task.fold,
                "rounds": task.rounds,
                "patients": len(task.train),
                "sha256": model_digest(weights, row),
            }
            for row, task in enumerate(tasks)
        ]
    )
