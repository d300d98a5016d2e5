"""Experiments and what they were trained on -> the arms that figures draw: name, colour and line, the same everywhere."""

from contextlib import suppress
from dataclasses import dataclass

from mil.baselines.inputs import NAMES as BASELINE_NAMES
from mil.config import ExperimentSpec
from mil.figures.style import (
    BASELINE_COLOUR,
    BASELINE_COLOURS,
    ENSEMBLE_COLOUR,
    ENSEMBLE_NAME,
    encoder_name,
    model_name,
    strategy_colour,
    strategy_name,
)
from mil.results.results import Absent, Results
from mil.specs.models import ClinicalSpec
from mil.statistics.arms import ENSEMBLE, OWN_SITE, Scope
from mil.statistics.delong import both_classes
from mil.strategies import STRATEGIES

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
        colour, line, name, rank = ENSEMBLE_COLOUR, "-", ENSEMBLE_NAME, 1
    elif trained_on == OWN_SITE:
        colour, line, name, rank = strategy_colour(strategy), "-", f"{strategy_name(strategy)}, own site", 0
    elif spec.strategy.by_site:
        number = results.training_sites.index(trained_on) if trained_on in results.training_sites else 0
        colour, line = strategy_colour(strategy), LINES[number % len(LINES)]
        name, rank = f"{strategy_name(strategy)}, {trained_on}", 0
    else:
        colour, line, name = strategy_colour(strategy), "-", strategy_name(strategy) + _optimiser(results, spec)
        rank = 1 + spec.strategy.collaboration
    number = list(results.experiments).index(experiment)
    return Arm(experiment, trained_on, name, colour, line, (rank, number, trained_on == OWN_SITE, trained_on))


def _optimiser(results: Results, spec: ExperimentSpec) -> str:
    """The optimiser, where one strategy was run with several."""
    same = [experiment for experiment in results.experiments.values() if experiment.strategy == spec.strategy]
    several = len({experiment.training.optimiser for experiment in same}) > 1
    return f", {spec.training.optimiser.upper().replace('ADAMW', 'AdamW')}" if several else ""


def input_name(spec: ExperimentSpec) -> str:
    """Encoder, model and covariates of an experiment in words: what stays the same when strategies are compared."""
    if isinstance(spec.model, ClinicalSpec):  # reads no slide
        return model_name(spec.model.name)
    names = spec.covariates if len(spec.covariates) <= 2 else (f"{len(spec.covariates)} covariates",)
    joined = f" with {' and '.join(names)}" if names else ""
    return f"{encoder_name(spec.encoder)}, {model_name(spec.model.name)}{joined}"


def arms_by_site(results: Results) -> dict[str, list[tuple[Arm, Scope]]]:
    """Every model of the main experiment's family at each site that has patients of both classes, least collaborative first."""
    by_site: dict[str, list[tuple[Arm, Scope]]] = {site: [] for site in results.sites}
    for name in results.family():
        with suppress(Absent):
            for scope in results.scopes(name):
                wanted = scope.split != "transfer" and scope.trained_on not in {OWN_SITE, ENSEMBLE}
                if wanted and scope.site in by_site and both_classes(scope.labels):
                    by_site[scope.site].append((arm(results, name, scope.trained_on), scope))
    by_site = {site: sorted(arms, key=lambda pair: pair[0].order) for site, arms in by_site.items() if arms}
    if not by_site:
        raise Absent("no site has patients of both classes with predictions")
    return by_site


def main_scopes(results: Results, both: bool = False) -> dict[str, Scope]:
    """The main experiment's scores at every site that has any, by site; with `both` only where patients are of both classes."""
    there = {site: results.main_scope(site) for site in results.sites if results.has_scores(site)}
    if not there:
        raise Absent(f"{results.main} judges no patient who is held out or at an external site")
    if both:
        there = {site: scope for site, scope in there.items() if both_classes(scope.labels)}
    if not there:
        raise Absent("no site has patients of both classes with predictions")
    return there


def baseline_arm(results: Results, name: str) -> Arm:
    """A baseline's looks: grey for controls, its strategy's colour for models a hospital could use, hollow in either case."""
    kind, strategy = name.rsplit("_", 1)
    title = BASELINE_NAMES.get(kind, kind.replace("_", " ").capitalize())
    rank = list(BASELINE_NAMES).index(kind) if kind in BASELINE_NAMES else len(BASELINE_NAMES)
    return Arm(
        name,
        "",
        title,
        BASELINE_COLOURS.get(kind, BASELINE_COLOUR),
        "-",
        (rank, STRATEGIES[strategy].collaboration if strategy in STRATEGIES else 2, False, strategy),
    )
