"""Final models as they were sent -> a run, as `mil train` saves one, so that a hospital predicts with the same command."""

from collections.abc import Mapping, Sequence

import pandas as pd
from torch import Tensor

from mil.federation.config import FederationSpec
from mil.federation.forms import slots
from mil.federation.ledger import Ledger, parsed
from mil.training.run import Run, model_digest

ROUND_COLUMNS = ["model", "phase", "repeat", "fold", "round", "site", "train_loss", "val_loss", "val_auroc"]


def run_of(
    protocol: FederationSpec,
    tensors: Mapping[str, Tensor],
    rounds: Sequence[int],
    about: Mapping[str, object],
    patients: Sequence[int] | None = None,
    table: pd.DataFrame | None = None,
) -> Run:
    """The refit models (models, ...) with their rounds; patients a model only where the server knows them."""
    trained_on = "+".join(protocol.training_sites)
    weights = dict(tensors)
    models = pd.DataFrame(
        [
            {
                "model": f"{trained_on}/{slot.name}",
                "trained_on": trained_on,
                "repeat": slot.repeat,
                "fold": slot.fold,
                "rounds": rounds[number],
                "patients": patients[number] if patients is not None else "",
                "sha256": model_digest(weights, number),
            }
            for number, slot in enumerate(slots(protocol, "refit"))
        ]
    )
    empty = pd.DataFrame(columns=ROUND_COLUMNS)
    rounds_of_run = empty if table is None else table
    return Run(protocol.experiment, protocol.endpoint, weights, models, rounds_of_run, Ledger(), dict(about))


def rounds_table(protocol: FederationSpec, run: str, ledger: Ledger) -> pd.DataFrame:
    """A row a round, model and site from the ledger's lines of `run`; a round that was done again stands once."""
    trained_on = "+".join(protocol.training_sites)
    rows: dict[tuple, dict[str, object]] = {}
    for entry in parsed(ledger.lines):
        if entry.get("run") != run or entry["event"] != "answered" or entry.get("kind") != "train":
            continue
        for site, told in entry["answered"].items():
            live = [slots(protocol, entry["phase"])[number] for number in entry["slots"]]
            for slot, loss in zip(live, told["train_loss"], strict=True):
                place = (entry["phase"], entry["round"], slot.name, site)
                rows[place] = {
                    "model": f"{trained_on}/{slot.name}",
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
