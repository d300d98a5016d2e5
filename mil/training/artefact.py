"""A run on disk: weights.safetensors, models.csv, rounds.csv, ledger.jsonl and spec.json."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

import mil
from mil.config import parse
from mil.errors import CorruptFile, MilError
from mil.federation.clients import Clients
from mil.federation.ledger import Ledger, digest
from mil.federation.strategies import Strategy
from mil.files import replacing, write_text
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec
from mil.specs.models import ModelSpec
from mil.tables import read_table, write_table
from mil.training.protocol import Task

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
    """model, phase, repeat, fold, round, site, train_loss, val_loss, val_auroc."""
    ledger: Ledger
    about: dict[str, object]
    """What the features say of their encoder."""

    def save(self, folder: str | Path) -> None:
        """Write the five files; spec.json, the last, completes them."""
        folder = Path(folder)
        tensors = {
            f"{number}/{name}": value.contiguous()
            for number, family in enumerate(self.families)
            for name, value in sorted(family.weights.items())
        }
        with replacing(folder / "weights.safetensors") as partial:
            save_file(tensors, partial)
        write_table(self.models, folder / "models.csv")
        write_table(self.rounds, folder / "rounds.csv")
        self.ledger.save(folder / "ledger.jsonl")
        spec = {
            "experiment": self.experiment.model_dump(mode="json"),
            "endpoint": self.endpoint.model_dump(mode="json"),
            "heads": [family.model.model_dump(mode="json") for family in self.families],
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
        models = read_table(folder / "models.csv", text=("model", "trained_on", "member", "sha256"))
        tensors = load_file(folder / "weights.safetensors")
        families = []
        for number, head in enumerate(spec["heads"]):
            own = {name.split("/", 1)[1]: value for name, value in tensors.items() if name.startswith(f"{number}/")}
            families.append(Family(MODEL.validate_python(head), own))
        for model in models.itertuples():
            if families[model.family].digest(model.row) != model.sha256:
                raise CorruptFile(
                    f"{folder}/weights.safetensors: {model.model} differs from models.csv; run `mil train` again"
                )
        ledger = Ledger()
        ledger.lines = (folder / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
        return cls(
            parse(ExperimentSpec, spec["experiment"], f"{folder}/spec.json"),
            parse(EndpointSpec, spec["endpoint"], f"{folder}/spec.json"),
            families,
            models,
            read_table(folder / "rounds.csv", text=("model", "phase", "site")),
            ledger,
            spec["features"],
        )


def model_table(
    tasks: Sequence[Task], clients: Clients, strategy: Strategy, family: Family, number: int, sites: Sequence[str]
) -> pd.DataFrame:
    """A row a model of family `number`: one a task, or one a task and site where models are personal.

    `sites` are all training sites: what models that are judged together are trained on.
    """
    own_rate = getattr(getattr(strategy.spec, "base", strategy.spec), "server_lr", float("nan"))
    rows = []
    for k, task in enumerate(tasks):
        members = task.group.trained_on if strategy.personal else ("",)
        for place, member in enumerate(members):
            row = k * len(members) + place
            own = clients.patients[row] if member else task.train
            name = task.name + (f"/{member}" if member else "")
            rows.append(
                {
                    "model": name,
                    "trained_on": "+".join(sites if strategy.together else task.group.trained_on),
                    "member": "+".join(task.group.trained_on) if strategy.together else member,
                    "repeat": task.group.repeat,
                    "fold": task.group.fold,
                    "family": number,
                    "row": row,
                    "rounds": task.rounds,
                    "lr": task.candidate.lr,
                    "weight_decay": task.candidate.weight_decay,
                    "server_lr": task.candidate.server_lr or own_rate,
                    "patients": len(own),
                    "sha256": family.digest(row),
                }
            )
    return pd.DataFrame(rows)
