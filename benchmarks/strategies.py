"""A results folder with many strategies -> its tables in Markdown: AUROC by site, differences, rounds, rates, traffic.

    snakemake --configfile configs/cohorts/idc.yaml configs/strategies.yaml --workflow-profile configs/profiles/local
    python benchmarks/strategies.py results/strategies/idc

Only reads what the run left: the same numbers as the figures `auroc_by_strategy`, `strategy_differences` and `communication`.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd

from mil.figures.arms import arm
from mil.figures.communication import features_mb, traffic
from mil.metrics.score import GROUPS
from mil.metrics.strategies import strategy_table
from mil.results.results import Absent, Results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results")
    parser.add_argument("--by", choices=("strategy", "experiment"), default="strategy", help="What names a row.")
    options = parser.parse_args()
    results = Results.open(options.results)
    predictions, first = {}, {}
    for name, experiment in results.family().items():
        try:
            predictions[name] = results.predictions(name)
        except Absent:
            print(f"{name}: not run", file=sys.stderr)
            continue
        first.setdefault(experiment.strategy.name, name)
    table = strategy_table(predictions, results.config.metrics, first.get("pooled"), first.get("local"))
    pairs = table[["experiment", "trained_on"]].drop_duplicates().itertuples(index=False)
    arms = sorted((arm(results, name, on) for name, on in pairs), key=lambda one: one.order)
    names = {(one.experiment, one.trained_on): one.name if options.by == "strategy" else one.experiment for one in arms}
    sites = [site for site in [*results.sites, *GROUPS] if site in set(table["site"])]
    numbers = table.groupby("site")[["positives", "patients"]].max()
    heads = [f"{site} ({numbers.loc[site, 'positives']}/{numbers.loc[site, 'patients']})" for site in sites]
    print(f"AUROC [95 %] ({_methods(table[table['against'] == ''])}); positives/patients\n")
    rows = [[name, *(_cell(table, key, site, "", "value") for site in sites)] for key, name in names.items()]
    _print(["", *heads], rows)
    for against in table["against"].unique():
        part = table[table["against"] == against]
        if not against:
            continue
        there = [site for site in sites if site in set(part["site"])]
        print(
            f"\nMinus {against} ({_methods(part)}; intervals and p after {' and '.join(part['correction'].unique())})\n"
        )
        rows = [
            [name, *(_cell(part, key, site, against, "difference") for site in there)] for key, name in names.items()
        ]
        _print(["", *there], [row for row in rows if any(row[1:])])
    print("\nRounds, learning rates and traffic\n")
    heads = ["rounds", "lr", "server lr", "kB down", "kB up", "MB a round", "MB a model", "MB the run"]
    _print(
        ["", *heads],
        [
            [arm(results, name, "").name.rstrip(", ") if options.by == "strategy" else name, *_training(results, name)]
            for name in predictions
        ],
    )
    print(f"\nFeatures of the training sites' patients: {features_mb(results):.2f} MB")


def _cell(table: pd.DataFrame, key: tuple[str, str], site: str, against: str, what: str) -> str:
    found = table[
        (table["experiment"] == key[0])
        & (table["trained_on"] == key[1])
        & (table["site"] == site)
        & (table["against"] == against)
    ]
    if found.empty:
        return ""
    row = found.iloc[0]
    if what == "value":
        return f"{row['value']:.3f} [{row['low']:.2f}, {row['high']:.2f}]"
    return (
        f"{row['difference']:+.3f} [{row['low_adjusted']:+.2f}, {row['high_adjusted']:+.2f}], p {row['p_adjusted']:.2f}"
    )


def _methods(table: pd.DataFrame) -> str:
    return ", ".join(f"{one}: {' or '.join(part.unique())}" for one, part in table.groupby("split")["method"])


def _training(results: Results, name: str) -> list[str]:
    models = results.models(name)
    rounds = models["rounds"]
    cells = [f"{rounds.median():g} ({rounds.min()}-{rounds.max()})"]
    cells += [_counted(models[column]) if column in models else "" for column in ("lr", "server_lr")]
    told = traffic(results.ledger(name))
    if not told:
        return [*cells, "0", "0", "0", "0", "0"]
    ways = [f"{told[way] * 1e3:.0f}" for way in ("site_down_mb", "site_up_mb")]
    return [*cells, *ways, *(f"{told[key]:.3g}" for key in ("round_mb", "model_mb", "run_mb"))]


def _counted(values: pd.Series) -> str:
    """Values and how many models have each, the most frequent first."""
    return ", ".join(f"{value:g} ({count})" for value, count in pd.to_numeric(values).dropna().value_counts().items())


def _print(heads: list[str], rows: Iterable[list[str]]) -> None:
    print(f"| {' | '.join(heads)} |")
    print("|" + "---|" * len(heads))
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
