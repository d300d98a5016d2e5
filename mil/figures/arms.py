"""Experiments and what they were trained on -> the arms that figures draw: name, colour and line, the same everywhere."""

from dataclasses import dataclass

import pandas as pd

from mil.config import ExperimentSpec
from mil.figures.results import Results
from mil.figures.style import model_name, strategy_colour, strategy_name
from mil.metrics.arms import ENSEMBLE, OWN_SITE

LINES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (5, 1, 1, 1)))


@dataclass(frozen=True)
class Arm:
    """One model of one experiment as figures draw it; `order` sorts arms from the least to the most collaborative."""

    experiment: str
    trained_on: str
    name: str
    colour: str
    line: object
    order: tuple[int, int, bool, str]


def arm(results: Results, experiment: str, trained_on: str) -> Arm:
    """The arm's looks. Local models share a colour and differ in line; their ensemble has a colour of its own."""
    spec = results.experiments[experiment]
    strategy = spec.strategy.name
    if trained_on == ENSEMBLE:
        colour, line, name, rank = strategy_colour("ensemble"), "-", strategy_name("ensemble"), 1
    elif trained_on == OWN_SITE:
        colour, line, name, rank = strategy_colour(strategy), "-", f"{strategy_name(strategy)}, own site", 0
    elif strategy == "local":
        place = results.training_sites.index(trained_on) if trained_on in results.training_sites else 0
        colour, line = strategy_colour(strategy), LINES[place % len(LINES)]
        name, rank = f"{strategy_name(strategy)}, {trained_on}", 0
    else:
        colour, line, name = strategy_colour(strategy), "-", strategy_name(strategy)
        rank = 2 if strategy == "pooled" else 3
    place = list(results.experiments).index(experiment)
    return Arm(experiment, trained_on, name, colour, line, (rank, place, trained_on == OWN_SITE, trained_on))


def input_name(spec: ExperimentSpec) -> str:
    """Encoder and model of an experiment in words: what stays the same when strategies are compared."""
    return f"{spec.encoder}, {model_name(spec.model.name)}"


def shown(table: pd.DataFrame, role: str) -> pd.DataFrame:
    """The rows of a metrics table to draw for sites of `role`: at training sites local models stand for their own site."""
    if role == "train":
        held_out = table[table["split"] == "held_out"]
        return held_out[~held_out["trained_on"].isin([OWN_SITE])]
    return table[table["split"] == "external"]
