"""Final models -> a run, as `mil train` saves one, so that a hospital predicts with the same command."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from mil.hospital.config import FederationSpec
from mil.hospital.forms import BALANCE, slots
from mil.schemas import ROUNDS
from mil.training.artefact import Family, Run
from mil.training.ledger import Ledger, parsed
from mil.training.protocol import candidates


@dataclass(frozen=True)
class Refit:
    """What is known of the final models besides their tensors; of each: candidate (of its outer fold), rounds, patients."""

    choices: Sequence[int]
    rounds: Sequence[int]
    about: Mapping[str, object]
    patients: Sequence[int] | None = None
    member: str = ""
    """The site whose own models they are; blank: the models of all."""


def run_of(
    protocol: FederationSpec, tensors: Mapping[str, Tensor], refit: Refit, ledger: Ledger | None = None, run: str = ""
) -> Run:
    """The refit models and their scales (models, ...) as a run. Models of all are those of the strategy's rounds."""
    strategy = protocol.experiment.strategy if refit.member else protocol.strategy
    experiment = protocol.experiment.model_copy(update={"strategy": strategy})
    tried, refitted = candidates(experiment), slots(protocol, "refit", refit.choices)
    weights = {name: value for name, value in tensors.items() if name != BALANCE}
    family = Family(experiment.model, weights)
    models = pd.DataFrame(
        [
            {
                "model": slot.name + (f"/{refit.member}" if refit.member else ""),
                "trained_on": slot.sites,
                "member": refit.member,
                "repeat": slot.repeat,
                "fold": slot.fold,
                "family": 0,
                "row": number,
                "rounds": refit.rounds[number],
                "lr": tried[slot.choice].lr,
                "weight_decay": tried[slot.choice].weight_decay,
                "patients": refit.patients[number] if refit.patients is not None else "",
                "sha256": family.digest(number),
            }
            for number, slot in enumerate(refitted)
        ]
    )
    record = ledger or Ledger()
    table = rounds_table(protocol, run, record)
    return Run(experiment, protocol.endpoint, [family], models, table, record, dict(refit.about))


def rounds_table(protocol: FederationSpec, run: str, ledger: Ledger) -> pd.DataFrame:
    """A row a round, model and site from the ledger's lines of `run`; a round that was done again stands once."""
    rows: dict[tuple, dict[str, object]] = {}
    for entry in parsed(ledger.lines):
        if entry.get("run") != run or entry["event"] != "answered" or entry.get("kind") != "train":
            continue
        told_by = {"all sites": entry} if "train_loss" in entry else entry["answered"]
        for site, answer in told_by.items():
            if "train_loss" not in answer:  # under privacy
                continue
            everyone = slots(protocol, entry["phase"], entry["choices"])
            live = [everyone[number] for number in entry["slots"]]
            for slot, loss in zip(live, answer["train_loss"], strict=True):
                key = (entry["phase"], entry["round"], slot.name, site)
                rows[key] = {
                    "model": slot.name,
                    "phase": entry["phase"],
                    "repeat": slot.repeat,
                    "fold": slot.fold,
                    "round": entry["round"],
                    "site": site,
                    "train_loss": loss,
                    "val_loss": None,
                    "val_error": None,
                    "val_auroc": None,
                }
    return pd.DataFrame(list(rows.values()), columns=list(ROUNDS))
