"""A run on disk: weights.safetensors, models.csv, rounds.csv, inner.csv, folds.csv, ledger.jsonl and spec.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as packed

from mil.config import parse
from mil.endpoints import Endpoint
from mil.errors import CorruptFile, MilError
from mil.files import digest_of, sha256_of, write_bytes, write_text
from mil.schemas import INNER
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec
from mil.specs.models import ModelSpec
from mil.strategies.strategy import Strategy
from mil.tables import read_table, require_columns, write_table
from mil.training.clients import Clients
from mil.training.cohort import TrainingCohort
from mil.training.ledger import Ledger, digest
from mil.training.protocol import Task
from mil.version import __version__

MODELS = ("model", "trained_on", "member", "repeat", "fold", "family", "row", "rounds", "patients", "sha256")
FILES = ("weights.safetensors", "models.csv", "rounds.csv", "inner.csv", "folds.csv", "ledger.jsonl")
DAMAGED = "the run is damaged, run `mil train` again"
MODEL: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)


@dataclass(frozen=True)
class Family:
    """Models with the same head: their weights and scales by name (models, ...)."""

    model: ModelSpec
    weights: dict[str, torch.Tensor]

    def digest(self, row: int) -> str:
        """SHA-256 of one model's tensors, scales included, names sorted."""
        return digest(self.weights[name][row].numpy().tobytes() for name in sorted(self.weights))


@dataclass(frozen=True)
class Run:
    """The trained models and how they came about."""

    experiment: ExperimentSpec
    endpoint: EndpointSpec
    families: list[Family]
    """One, unless a search chose between heads."""
    models: pd.DataFrame
    """model, trained_on, member, repeat, fold, family, row, rounds, lr, weight_decay, server_lr (of strategies
    whose server has one), patients, sha256.

    `member` names the site whose own model it is, where a prediction takes several; otherwise it is blank.
    """
    rounds: pd.DataFrame
    """model, phase, repeat, fold, round, site, train_loss, val_loss, val_error, val_auroc."""
    ledger: Ledger
    """Without a line at a hospital, whose ledger of all runs is a file of its own."""
    about: dict[str, object]
    """What the features say of their encoder."""
    inner: pd.DataFrame | None = None
    """trained_on, repeat, fold, inner, patient_id, site, label, score of inner folds, which thresholds are chosen on; none:
    hospitals keep it to themselves."""
    folds: pd.DataFrame | None = None
    """patient_id, site, targets and outer folds of the training patients, as they were then; none: hospitals keep them."""
    computed: Mapping[str, str] = field(default_factory=dict)
    """`device` and `precision` of the training; empty in runs of hospitals and of versions that did not record it."""

    def save(self, folder: str | Path) -> None:
        """Write the files; spec.json, the last, holds their digests and completes them, and an older run's goes first."""
        folder = Path(folder)
        for name in ("spec.json", "folds.csv", "ledger.jsonl"):
            (folder / name).unlink(missing_ok=True)
        tensors = {
            f"{number}/{name}": value.contiguous()
            for number, family in enumerate(self.families)
            for name, value in sorted(family.weights.items())
        }
        write_bytes(folder / "weights.safetensors", packed(tensors))
        write_table(self.models, folder / "models.csv")
        write_table(self.rounds, folder / "rounds.csv")
        write_table(pd.DataFrame(columns=list(INNER)) if self.inner is None else self.inner, folder / "inner.csv")
        if self.folds is not None:
            write_table(self.folds, folder / "folds.csv")
        if self.ledger.lines:
            self.ledger.save(folder / "ledger.jsonl")
        written = [name for name in FILES if (folder / name).is_file()]
        spec = {
            "experiment": self.experiment.model_dump(mode="json"),
            "endpoint": self.endpoint.model_dump(mode="json"),
            "heads": [family.model.model_dump(mode="json") for family in self.families],
            "features": self.about,
            "computed": dict(self.computed),
            "mil_version": __version__,
            "sha256": {name: sha256_of(folder / name) for name in written},
        }
        spec["self_sha256"] = _self_digest(spec)
        write_text(folder / "spec.json", json.dumps(spec, indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """Read what `save` wrote; a file that differs from its digest in spec.json is refused."""
        folder = Path(folder)
        spec = check_run(folder)
        try:
            heads = [MODEL.validate_python(head) for head in spec["heads"]]
            stated = spec["experiment"], spec["endpoint"], spec["features"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFile(
                f"{folder}/spec.json cannot be read ({str(error).splitlines()[0][:80]}); {DAMAGED}"
            ) from error
        try:
            tensors = load_file(folder / "weights.safetensors")
        except SafetensorError as error:
            raise CorruptFile(f"{folder}/weights.safetensors cannot be read ({error}); {DAMAGED}") from error
        models = read_table(folder / "models.csv")
        require_columns(models, MODELS, f"{folder}/models.csv ({DAMAGED})")
        families = []
        for number, head in enumerate(heads):
            weights = {name.split("/", 1)[1]: value for name, value in tensors.items() if name.startswith(f"{number}/")}
            families.append(Family(head, weights))
        _check_models(models, families, folder)
        inner = read_table(folder / "inner.csv")
        folds, lines, ledger = folder / "folds.csv", folder / "ledger.jsonl", Ledger()
        ledger.lines = lines.read_text(encoding="utf-8").splitlines() if lines.is_file() else []
        experiment = parse(ExperimentSpec, stated[0], f"{folder}/spec.json")
        if experiment.search is None and heads != [experiment.model]:
            raise CorruptFile(f"{folder}/spec.json: its head is not its experiment's model; {DAMAGED}")
        return cls(
            experiment,
            parse(EndpointSpec, stated[1], f"{folder}/spec.json"),
            families,
            models,
            read_table(folder / "rounds.csv"),
            ledger,
            stated[2],
            inner if len(inner) else None,
            read_table(folds) if folds.is_file() else None,
            spec.get("computed", {}),
        )


def check_run(folder: Path) -> dict[str, Any]:
    """What spec.json says, once every file of the run has the digest that stands there; a `MilError` names the one that has not."""
    if not (folder / "spec.json").is_file():
        raise MilError(f"run {folder} is not there or not finished; run `mil train`")
    try:
        spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        whole = spec["self_sha256"] == _self_digest(spec)
        digests = dict(spec["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFile(
            f"{folder}/spec.json cannot be read ({str(error).splitlines()[0][:80]}); {DAMAGED}"
        ) from error
    if not whole:
        raise CorruptFile(f"{folder}/spec.json is not as it was written; {DAMAGED}")
    for name in FILES:
        path = folder / name
        if path.is_file() != (name in digests):
            raise CorruptFile(f"{path} is {'of another run' if path.is_file() else 'missing'}; {DAMAGED}")
        if name in digests and sha256_of(path) != digests[name]:
            raise CorruptFile(f"{path} is not as it was written (its SHA-256 is not the one in spec.json); {DAMAGED}")
    return spec


def _self_digest(spec: Mapping[str, Any]) -> str:
    stated = {key: value for key, value in spec.items() if key != "self_sha256"}
    return digest_of(stated)


def _check_models(models: pd.DataFrame, families: Sequence[Family], folder: Path) -> None:
    """Every row of the table has its tensors, and these have the row's digest."""
    for model in models.itertuples():
        try:
            right = families[int(model.family)].digest(int(model.row)) == model.sha256
        except (ValueError, IndexError):
            right = False
        if not right:
            raise CorruptFile(f"{folder}/weights.safetensors: {model.model} differs from models.csv; {DAMAGED}")
    held = sum(len(next(iter(family.weights.values()))) for family in families if family.weights)
    if held != len(models):
        raise CorruptFile(f"{folder}/models.csv names {len(models)} models, the weights hold {held}; {DAMAGED}")


def inner_scores(
    tasks: Sequence[Task],
    held: Sequence[np.ndarray],
    chosen: Sequence[Task],
    cohort: TrainingCohort,
    endpoint: Endpoint,
) -> pd.DataFrame | None:
    """`INNER` of the chosen candidates, from the logits of each task's watched patients; none where there is nothing to choose thresholds for."""
    if not endpoint.thresholds:
        return None
    best = {(task.group, task.choice) for task in chosen}
    parts = [
        pd.DataFrame(
            {
                "trained_on": "+".join(task.group.trained_on),
                "repeat": task.group.repeat,
                "fold": task.group.fold,
                "inner": task.inner,
                "patient_id": [cohort.patients[number] for number in task.watched],
                "site": cohort.site[task.watched],
                "label": cohort.targets[task.watched, -1].astype(int),
                "score": endpoint.scores(logits)["score"],
            }
        )
        for task, logits in zip(tasks, held, strict=True)
        if (task.group, task.choice) in best
    ]
    return pd.concat(parts, ignore_index=True)[list(INNER)]


def model_table(
    tasks: Sequence[Task], clients: Clients, strategy: Strategy, family: Family, number: int
) -> pd.DataFrame:
    """A row for each model of family `number`: one for each task, or for each task and site where models are personal."""
    own_rate = strategy.of_rounds.server_rate or float("nan")
    rows = []
    for k, task in enumerate(tasks):
        members = task.group.trained_on if strategy.personal else ("",)
        for offset, member in enumerate(members):
            row = k * len(members) + offset
            patients = clients.patients[row] if member else task.train
            name = task.name + (f"/{member}" if member else "")
            rows.append(
                {
                    "model": name,
                    "trained_on": "+".join(task.group.trained_on),
                    "member": member,
                    "repeat": task.group.repeat,
                    "fold": task.group.fold,
                    "family": number,
                    "row": row,
                    "rounds": task.rounds,
                    "lr": task.candidate.lr,
                    "weight_decay": task.candidate.weight_decay,
                    "server_lr": task.candidate.server_lr or own_rate,
                    "patients": len(patients),
                    "sha256": family.digest(row),
                }
            )
    return pd.DataFrame(rows)
