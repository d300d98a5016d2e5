"""Experiments of a cohort over several seeds: the AUROC's interval over patients beside its spread over seeds.

    python benchmarks/seeds.py results/idc seeds/idc --experiments attention_pooled,attention_fedavg [--seeds 4]
        [--changes batch_size=8 batch_size=32]

A seed deals the folds and draws first weights and order; one repeat of the folds each, rounds and candidates chosen on inner folds.
The cohort's settings are those in `config.json` of the results (experiments need not stand under `run`); its bag table and features
must be there. `--changes` runs all experiments once with each of these settings of `training`. Predictions are kept in the second
folder, a file per experiment, change and seed, and what is there already is not trained again.

A line per experiment and arm: mean AUROC within sites over the seeds with its 95 % interval over patients, standard deviation and
range of seeds; the same of the difference to the first arm; rounds chosen. Held out: pairs within folds, overlap of training sets
counted, the seeds as repeats. External: DeLong's of the mean over seeds, logit scale. Intervals are not corrected for their number.
"""

import argparse
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from leave_site_out import described

from mil.bags.table import deal_folds, read_bags
from mil.predictions.predict import predict
from mil.progress import quiet
from mil.results.results import Results
from mil.specs.experiments import ExperimentSpec
from mil.statistics.arms import EXTERNAL_SITES, TRAINING_SITES, Scope, scopes
from mil.statistics.held_out import interval, paired, pairs_of
from mil.tables import read_table, write_table
from mil.training.run import train
from mil.training.store import FeatureStore


def changed(experiment: ExperimentSpec, change: str, seed: int) -> ExperimentSpec:
    """The experiment with `change` (key=value, or nothing) and the seed laid over its training."""
    key, _, value = change.partition("=")
    training = {"seed": seed} | ({key: yaml.safe_load(value)} if key else {})
    given = experiment.model_dump()
    return ExperimentSpec.model_validate(given | {"training": given["training"] | training})


def predicted(results: Results, name: str, change: str, seed: int) -> pd.DataFrame:
    """Predictions of one seed, with the rounds of each row's model where it has one model."""
    given = results.config.experiments[name]
    endpoint = results.config.endpoints[given.endpoint].model_copy(update={"seed": seed, "repeats": 1})
    table = read_bags(results.folder / "bags" / f"{given.endpoint}.csv")
    dealt = deal_folds(table[[name for name in table if not name.startswith("repeat")]], endpoint)
    known = dealt[dealt["role"] == "train"].reset_index(drop=True)
    sites = results.folder / "sites"
    run = train(changed(given, change, seed), endpoint, known, FeatureStore.open(known, sites, given.encoder), quiet())
    found = predict(run, dealt, FeatureStore.open(dealt, sites, given.encoder)).table
    keys = ["trained_on", "repeat", "fold"]
    return found.merge(run.models.groupby(keys, as_index=False)["rounds"].first(), on=keys, how="left")


def arms(tables: list[pd.DataFrame], name: str) -> dict[tuple[str, str], list[Scope]]:
    """(trained on, group of sites) -> the arm in each seed."""
    found: dict[tuple[str, str], list[Scope]] = {}
    for table in tables:
        for scope in scopes(table.drop(columns="rounds").assign(experiment=name)):
            if scope.split != "transfer" and scope.site in (TRAINING_SITES, EXTERNAL_SITES):
                found.setdefault((scope.trained_on, scope.site), []).append(scope)
    return found


def line(own: list[Scope], first: list[Scope]) -> str:
    """Of an arm in every seed: AUROC, interval and spread, and the difference to the first arm."""
    if own[0].folds is None:
        table = own[0].table
        scores = [np.stack([one.table["score"] for one in arm]) for arm in (own, first)]
        return described(table["label"].to_numpy(int), *scores, strata=table["site"].to_numpy())
    pairs = [pairs_of(pd.concat([one.folds.assign(repeat=k) for k, one in enumerate(arm)])) for arm in (own, first)]
    areas, others = (np.array([pairs_of(one.folds).auroc for one in arm]) for arm in (own, first))
    area, low, high, _ = interval(pairs[0])
    text = f"{area:.3f} [{low:.2f}, {high:.2f}], SD of seeds {_spread(areas)} ({areas.min():.3f} to {areas.max():.3f})"
    if own is first:
        return text
    less = paired(*pairs)[0]
    return f"{text}; less the first {less.difference:+.3f} [{less.low:+.2f}, {less.high:+.2f}], SD of seeds {_spread(areas - others)}"


def _spread(values: np.ndarray) -> str:
    return f"{values.std(ddof=1):.3f}" if len(values) > 1 else "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("kept", type=Path, help="Folder of predictions; continued if it is there.")
    parser.add_argument("--experiments", help="Comma-separated; default: those under `run`.")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--changes", nargs="*", default=[""], help="key=value of `training`, e.g. batch_size=8")
    options = parser.parse_args()
    results = Results.open(options.results)
    names = options.experiments.split(",") if options.experiments else list(results.experiments)
    tables: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for seed, change, name in product(range(options.seeds), options.changes, names):
        path = options.kept / f"{'.'.join(filter(None, (name, change)))}.seed{seed}.csv"
        if not path.is_file():
            began = time.process_time()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_table(predicted(results, name, change, seed), path)
            print(f"{path.stem}: {time.process_time() - began:.0f} s of CPU", flush=True)
        tables.setdefault((name, change), []).append(read_table(path))
    every: dict[tuple[str, str, str], list[Scope]] = {}
    for change in options.changes:
        found = {name: arms(tables[name, change], name) for name in names}
        for name in names:
            rounds = pd.concat(tables[name, change])["rounds"].dropna()
            print(f"{name} {change}: rounds {rounds.median():g} ({rounds.min():g} to {rounds.max():g})")
            for (trained_on, group), own in found[name].items():
                first = next(arm for (_, there), arm in found[names[0]].items() if there == group)
                print(f"  {group}, {trained_on}: {line(own, first)}")
                every.setdefault((name, trained_on, group), []).extend(own)
    if len(options.changes) < 2:
        return
    print("over all changes (spread over seeds and changes)")
    for (name, trained_on, group), own in every.items():
        first = next(arm for (there, _, other), arm in every.items() if (there, other) == (names[0], group))
        if group == EXTERNAL_SITES:
            print(f"{name}, {trained_on}: {line(own, first)}")


if __name__ == "__main__":
    main()
