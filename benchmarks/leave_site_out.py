"""What carries over to a site that nobody trained on: each site of a cohort left out once, by features and by colour.

    python benchmarks/leave_site_out.py results/idc [--seeds 8]

Gated attention, pooled over the other sites (or `--strategies pooled,fedavg,local`), features scaled by each site's own moments, rounds chosen on inner folds of the sites
trained on; a patient of the site left out has the mean probability of the fold models. Inputs: the encoder's features (of tiles as
they are, stain-normalised, and grey), the six colour numbers of a tile, their parts, and the mean grey level alone.

For every site: mean over seeds (folds, first weights, order) of the AUROC of its patients, with DeLong's 95 % interval of that mean
over patients on the logit scale; standard deviation and range over the seeds; and the same of the difference to the first input and strategy.
Inputs whose features are not there are left out. They come from the run's tiles, for every shard (`N`) of every site (`S`):

    mil extract R/sites/S/slides/N.csv --tiles R/sites/S/tiles --spec SPEC --folder R/sites/S/features/NAME \\
        --out R/sites/S/features/NAME/shardN.csv

with NAME effnet_macenko and SPEC '{"name": "efficientnet_lite0", "stain": "macenko"}', effnet_reinhard and the like, effnet_grey and
'{"name": "python:benchmarks/grey_effnet.py:effnet", "input_px": 128, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}'.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from mil.bags.table import deal_folds, read_bags
from mil.predictions.predict import predict
from mil.progress import quiet
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec
from mil.statistics.delong import logit_bounds, numbers_in_pairs, within
from mil.statistics.differences import difference_of
from mil.training.run import train
from mil.training.store import FeatureStore

GREY = np.array([0.299, 0.587, 0.114])
INPUTS = {
    "features": ("effnet", lambda tiles: tiles),
    "features, Macenko": ("effnet_macenko", lambda tiles: tiles),
    "features, Reinhard": ("effnet_reinhard", lambda tiles: tiles),
    "features, grey": ("effnet_grey", lambda tiles: tiles),
    "colour": ("colour", lambda tiles: tiles),
    "colour, means of RGB": ("colour", lambda tiles: tiles[:, :3]),
    "colour, deviations": ("colour", lambda tiles: tiles[:, 3:]),
    "mean grey level": ("colour", lambda tiles: tiles[:, :3] @ GREY[:, None]),
}


def scores(table: pd.DataFrame, bags: dict[str, np.ndarray], out: str, seed: int, strategy: str) -> pd.DataFrame:
    """A row a patient of site `out`: label, and the mean probability by the fold models of the other sites."""
    endpoint = EndpointSpec(folds=5, seed=seed)
    dealt = deal_folds(table.assign(role=np.where(table["site"] == out, "external", "train")), endpoint)
    base = {"encoder": "none", "endpoint": "label", "model": "gated_attention", "strategy": strategy}
    wanted = ExperimentSpec.model_validate(base | {"training": {"scaling": "site", "seed": seed}})
    known = dealt[dealt["role"] == "train"]
    run = train(wanted, endpoint, known, FeatureStore.of({one: bags[one] for one in known["patient_id"]}), quiet())
    found = predict(run, dealt, FeatureStore.of(bags)).table
    return found[found["split"] == "external"].groupby("patient_id")[["label", "score"]].mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--inputs", help="Separated by semicolons; default: all.")
    parser.add_argument("--strategies", default="pooled", help="Comma-separated.")
    parser.add_argument("--sites", help="Comma-separated; default: each is left out once.")
    options = parser.parse_args()
    table = read_bags(next((options.folder / "bags").glob("*[!w].csv")))
    table = table[["patient_id", "slides", "site", "label"]].assign(role="train")
    wanted = options.inputs.split(";") if options.inputs else list(INPUTS)
    there = [name for name in wanted if _has(options.folder, table.iloc[0], INPUTS[name][0], folder=True)]
    print(f"without features: {', '.join(set(wanted) - set(there)) or 'none'}")
    encoders = sorted({INPUTS[name][0] for name in there})
    whole = [all(_has(options.folder, row, encoder) for encoder in encoders) for _, row in table.iterrows()]
    print(
        f"left out, since a slide has not the features of all inputs: {', '.join(table['patient_id'][~np.array(whole)])}"
    )
    table = table[whole].reset_index(drop=True)
    reference: dict[str, np.ndarray] = {}
    for name in there:
        encoder, part = INPUTS[name]
        store = FeatureStore.open(table, options.folder / "sites", encoder)
        bags = {one: part(store.bag(k).astype(np.float32)).astype(np.float32) for k, one in enumerate(store.patients)}
        sites = options.sites.split(",") if options.sites else sorted(set(table["site"]))
        for strategy, site in product(options.strategies.split(","), sites):
            own = [scores(table, bags, site, seed, strategy) for seed in range(options.seeds)]
            labels, found = own[0]["label"].to_numpy(int), np.stack([one["score"] for one in own])
            reference.setdefault(site, found)
            print(f"{name:22} {strategy} {site}: {described(labels, found, reference[site])}", flush=True)


def _has(results: Path, row: pd.Series, encoder: str, folder: bool = False) -> bool:
    """Whether all slides of a patient (the site's folder) have features of the encoder."""
    features = results / "sites" / row["site"] / "features" / encoder
    return features.is_dir() if folder else all((features / f"{one}.h5").is_file() for one in row["slides"].split(";"))


def described(labels: np.ndarray, found: np.ndarray, reference: np.ndarray, strata: np.ndarray | None = None) -> str:
    """Of scores (seeds, patients): the mean AUROC (within `strata`) with its interval, the spread of seeds, and both of the difference."""
    seeds, strata = len(found), np.zeros(len(labels)) if strata is None else strata
    placed = within(labels, np.concatenate([found, reference]), strata)
    areas, others = placed.auroc[:seeds], placed.auroc[seeds:]
    of_mean = np.repeat([1.0, 0.0], seeds) / seeds
    of_difference = np.repeat([1.0, -1.0], seeds) / seeds
    variance = float(of_mean @ placed.covariance @ of_mean)
    area, low, high = logit_bounds(float(areas.mean()), variance, *numbers_in_pairs(labels, strata), 0.95)
    text = f"{area:.3f} [{low:.2f}, {high:.2f}], SD of seeds {_spread(areas)} ({areas.min():.3f} to {areas.max():.3f})"
    variance = float(of_difference @ placed.covariance @ of_difference)
    if not variance > 1e-12:
        return text
    less = difference_of(float((areas - others).mean()), variance)
    return f"{text}; less the first {less.difference:+.3f} [{less.low:+.2f}, {less.high:+.2f}], SD of seeds {_spread(areas - others)}"


def _spread(values: np.ndarray) -> str:
    return f"{values.std(ddof=1):.3f}" if len(values) > 1 else "unknown"


if __name__ == "__main__":
    main()
