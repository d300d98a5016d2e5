"""What carries over to a site that nobody trained on: each site of a cohort left out once, by features and by colour.

    python benchmarks/leave_site_out.py results/idc [--seeds 2]

Gated attention, pooled over the other sites, features scaled by each site's own moments, rounds chosen on inner folds of the sites
trained on; a patient of the site left out has the mean probability of the fold models. Inputs: the encoder's features, the six
colour numbers of a tile, their parts (mean of red, green and blue; deviations), and the mean grey level alone. AUROC of patients
with DeLong's 95 % interval on the logit scale, and the spread over seeds of folds, first weights and order.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from mil.bags.table import deal_folds, read_bags
from mil.predictions.predict import predict
from mil.progress import quiet
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec
from mil.statistics.delong import within_interval
from mil.statistics.ranking import auroc_of
from mil.training.run import train
from mil.training.store import FeatureStore

GREY = np.array([0.299, 0.587, 0.114])
INPUTS = {
    "features": ("effnet", lambda tiles: tiles),
    "colour": ("colour", lambda tiles: tiles),
    "colour, means of RGB": ("colour", lambda tiles: tiles[:, :3]),
    "colour, deviations": ("colour", lambda tiles: tiles[:, 3:]),
    "mean grey level": ("colour", lambda tiles: tiles[:, :3] @ GREY[:, None]),
}


def scores(table: pd.DataFrame, bags: dict[str, np.ndarray], out: str, seed: int) -> pd.DataFrame:
    """A row a patient of site `out`: label, and the mean probability by the fold models of the other sites."""
    endpoint = EndpointSpec(folds=5, seed=seed)
    dealt = deal_folds(table.assign(role=np.where(table["site"] == out, "external", "train")), endpoint)
    base = {"encoder": "none", "endpoint": "label", "model": "gated_attention", "strategy": "pooled"}
    wanted = ExperimentSpec.model_validate(base | {"training": {"scaling": "site", "seed": seed}})
    known = dealt[dealt["role"] == "train"]
    run = train(wanted, endpoint, known, FeatureStore.of({one: bags[one] for one in known["patient_id"]}), quiet())
    found = predict(run, dealt, FeatureStore.of(bags)).table
    return found[found["split"] == "external"].groupby("patient_id")[["label", "score"]].mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    table = read_bags(next((options.folder / "bags").glob("*[!w].csv")))
    table = table[["patient_id", "slides", "site", "label"]].assign(role="train")
    for name, (encoder, part) in INPUTS.items():
        store = FeatureStore.open(table, options.folder / "sites", encoder)
        bags = {one: part(store.bag(k).astype(np.float32)).astype(np.float32) for k, one in enumerate(store.patients)}
        for site in sorted(set(table["site"])):
            own = [scores(table, bags, site, seed) for seed in range(options.seeds)]
            areas = [auroc_of(one["score"].to_numpy(), one["label"].to_numpy() == 1) for one in own]
            first = own[0]
            low, high = within_interval(
                first["label"].to_numpy(), first["score"].to_numpy(), np.zeros(len(first)), 0.95
            )[-2:]
            told = ", ".join(f"{area:.3f}" for area in areas)
            print(
                f"{name:22} {site}: {areas[0]:.2f} [{low:.2f}, {high:.2f}]; seeds {told}; {len(first)} patients",
                flush=True,
            )


if __name__ == "__main__":
    main()
