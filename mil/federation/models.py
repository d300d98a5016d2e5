"""Final models as they were sent -> a run, as `mil train` saves one, so that a hospital predicts with the same command."""

from collections.abc import Mapping, Sequence

import pandas as pd
from torch import Tensor

from mil.federation.config import FederationSpec
from mil.federation.forms import BALANCE, slots
from mil.federation.ledger import Ledger, parsed
from mil.training.artefact import Family, Run

ROUND_COLUMNS = ["model", "phase", "repeat", "fold", "round", "site", "train_loss", "val_loss", "val_auroc"]


def run_of(
    protocol: FederationSpec,
    tensors: Mapping[str, Tensor],
    rounds: Sequence[int],
    about: Mapping[str, object],
    patients: Sequence[int] | None = None,
    ledger: Ledger | None = None,
    run: str = "",
) -> Run:
    """The refit models and their scales (models, ...), with their rounds; patients and ledger only where they are known."""
    experiment, training = protocol.experiment, protocol.experiment.training
    weights = {name: value for name, value in tensors.items() if name != BALANCE}
    family = Family(experiment.model, weights)
    models = pd.DataFrame(
        [
            {
                "model": slot.name,
                "trained_on": slot.sites,
                "member": "",
                "repeat": slot.repeat,
                "fold": slot.fold,
                "family": 0,
                "row": number,
                "rounds": rounds[number],
                "lr": training.lr,
                "weight_decay": training.weight_decay,
                "patients": patients[number] if patients is not None else "",
                "sha256": family.digest(number),
            }
            for number, slot in enumerate(slots(protocol, "refit"))
        ]
    )
    record = ledger or Ledger()
    table = rounds_table(protocol, run, record)
    return Run(experiment, protocol.endpoint, [family], models, table, record, dict(about))


def rounds_table(protocol: FederationSpec, run: str, ledger: Ledger) -> pd.DataFrame:
    """A row a round, model and site from the ledger's lines of `run`; a round that was done again stands once."""
    rows: dict[tuple, dict[str, object]] = {}
    for entry in parsed(ledger.lines):
        if entry.get("run") != run or entry["event"] != "answered" or entry.get("kind") != "train":
            continue
        for site, told in entry["answered"].items():
            if "train_loss" not in told:  # under privacy
                continue
            live = [slots(protocol, entry["phase"])[number] for number in entry["slots"]]
            for slot, loss in zip(live, told["train_loss"], strict=True):
                place = (entry["phase"], entry["round"], slot.name, site)
                rows[place] = {
                    "model": slot.name,
                    "phase": entry["phase"],
                    "repeat": slot.repeat,
                    "fold": slot.fold,
                    "round": entry["round"],
                    "site": site,
                    "train_loss": loss,
                    "val_loss": None,
                    "val_auroc": None,
                }
    return pd.DataFrame(list(rows.values()), columns=ROUND_COLUMNS)
