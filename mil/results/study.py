"""The settings -> what the study is about: its main experiment, and the experiments that are compared with it."""

from collections.abc import Mapping

from mil.config import Config, ExperimentSpec
from mil.errors import Absent


def main_experiment(config: Config) -> str:
    """`figures.main`, or the first experiment under `run` whose model has attention; without such a model the first.

    Cross-validation goes before leaving out a site, of which external sites have no prediction and most figures nothing to show.
    """
    if config.figures.main is not None:
        return config.figures.main
    if not config.run:
        raise Absent("no experiment was run")
    return min(config.run, key=lambda name: _rank(config.experiments[name]))


def _rank(experiment: ExperimentSpec) -> tuple[bool, bool]:
    return not experiment.model.attends, experiment.protocol != "cross_validation"


def family_of(main: str, experiments: Mapping[str, ExperimentSpec]) -> dict[str, ExperimentSpec]:
    """`main` and the experiments that share its encoder, model, endpoint, protocol and covariates.

    They differ in the strategy and, where a strategy needs other ones, in the settings of training.
    """
    return {name: experiment for name, experiment in experiments.items() if same_input(experiment, experiments[main])}


def federated_experiment(main: str, experiments: Mapping[str, ExperimentSpec]) -> str:
    """The experiment that findings compare with pooled, local and baselines: `main`, or the first of its family that is federated."""
    federated = [name for name in family_of(main, experiments) if experiments[name].strategy.of_rounds.federated]
    return main if main in federated or not federated else federated[0]


def same_input(experiment: ExperimentSpec, other: ExperimentSpec) -> bool:
    """Whether two experiments read the same and are of the same model."""
    parts = ("encoder", "model", "endpoint", "protocol", "covariates")
    return all(getattr(experiment, part) == getattr(other, part) for part in parts)
