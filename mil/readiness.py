"""Check settings and sheet before the workflow starts. Raise MilError for what would otherwise fail hours later."""

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from mil.bags.covariates import clinical_inputs, follow_up, refuse_mixture
from mil.bags.table import check_classes, deal_folds
from mil.config import Config
from mil.endpoints import build_endpoint
from mil.errors import CorruptFile, MilError, MissingColumn, nearest
from mil.slides.sheet import Cohort, read_cohort
from mil.tables import require_columns
from mil.training.cohort import TrainingCohort
from mil.training.protocol import check_groups, groups, teachers


def checked_cohort(config: Config) -> Cohort:
    """The cohort that the settings name, checked with them."""
    columns = {config.endpoints[name].column for name in config.used_endpoints}
    try:
        cohort = read_cohort(config.slides, sorted(columns))
    except MissingColumn as error:
        if (asked := _who_asks(config, error.column)) is None:
            raise
        raise MilError(f"{error}. {asked}") from error
    check_readiness(config, cohort)
    return cohort


def _who_asks(config: Config, column: str) -> str | None:
    """The endpoint whose label column this is, the experiments that use it, and where they are set; none if it is no label column."""
    for name in config.used_endpoints:
        if config.endpoints[name].column == column:
            users = [key for key, experiment in config.selected().items() if experiment.endpoint == name]
            others = sorted(set(config.endpoints) - {name}) or ["NAME"]
            return (
                f"It is the label of endpoint '{name}', which {', '.join(users)} use (configs/experiments.yaml, unless the cohort file "
                f"sets it): correct endpoints.{name}.column, or set another endpoint in the cohort file, e.g. "
                f"experiments: {{{users[0]}: {{endpoint: {others[0]}}}}}"
            )
    return None


def check_readiness(config: Config, cohort: Cohort) -> None:
    """Raise `MilError` for the first column, label, file or folder that a later step would miss."""
    for where, columns in _columns(config):
        require_columns(cohort.patients.drop(columns="patient_id"), columns, f"{where}: patient table {cohort.source}")
    _check_cells(config, cohort)
    _check_labels(config, cohort)
    if not any(config.slides.roles[site] == "train" for site in cohort.sites):
        raise MilError(
            f"slides.roles: none of the sites {', '.join(cohort.sites)} has the role train; give it to those that take part in "
            "training"
        )
    main = config.figures.main
    if main is not None and main not in config.run:
        raise MilError(f"figures.main: experiment '{main}' is not under run; {nearest(main, config.run)}")
    _check_writable(Path(config.results))
    _check_weights(config, cohort)
    for where, path in _paths(config):
        if not path.exists():
            raise MilError(f"{where}: {path} does not exist; correct the path (relative to the folder you run in)")
    _check_features(config)


def _check_cells(config: Config, cohort: Cohort) -> None:
    """What is to be a number is one, at every patient."""
    metrics, patients = config.metrics, cohort.patients
    numbers = {
        "metrics.clinical": metrics.clinical,
        "metrics.annotation": [metrics.annotation] * bool(metrics.annotation),
    }
    for where, columns in numbers.items():
        clinical_inputs(patients, [str(column) for column in columns], f"patient table {cohort.source}, {where}")
    for column in set(metrics.subgroups) - {"site"}:
        cells = patients.set_index("patient_id")[column]
        refuse_mixture(cells[cells != ""], column, f"patient table {cohort.source}, metrics.subgroups")
    if metrics.time is not None and metrics.event is not None:
        follow_up(patients, metrics.time, metrics.event, f"patient table {cohort.source}, ")


def _check_labels(config: Config, cohort: Cohort) -> None:
    """Labels are words of their endpoint, and enough for the folds if no slide is lost."""
    roles = config.slides.roles
    patients = cohort.slides.drop_duplicates("patient_id").set_index("patient_id")[["site"]]
    patients = patients.assign(role=patients["site"].map(dict(roles)))
    for name in config.used_endpoints:
        endpoint = config.endpoints[name]
        try:
            labelled = patients.join(build_endpoint(endpoint).read(cohort), how="inner")
        except MilError as error:
            raise MilError(f"endpoints.{name}: {error}") from error
        training = labelled[labelled["role"] == "train"].rename_axis("patient_id").reset_index()
        try:
            check_classes(labelled, roles, endpoint)
            if len(training):
                _check_groups(config, name, training.sort_values(["site", "patient_id"], ignore_index=True))
        except MilError as error:
            raise MilError(f"endpoints.{name}: patient table {cohort.source}: {error}") from error


def _check_groups(config: Config, name: str, training: pd.DataFrame) -> None:
    """Something can be learned from the training patients of each model of the experiments that predict endpoint `name`."""
    endpoint = config.endpoints[name]
    built = build_endpoint(endpoint)
    cohort = TrainingCohort.of(deal_folds(training, endpoint), endpoint, built)
    built.check(cohort.targets, "training sites")
    for key, experiment in config.selected().items():
        if experiment.endpoint == name:
            trained_on = teachers(cohort.sites, experiment.strategy.by_site, experiment.protocol)
            check_groups(cohort, groups(cohort, trained_on), built, f"experiment {key}")


def _check_weights(config: Config, cohort: Cohort) -> None:
    """The weights of every encoder that has slides to extract are on this machine."""
    from mil.encoders.sources import NoWeights, locate
    from mil.encoders.table import resolve

    if set(cohort.sites) <= set(config.slides.features):
        return
    for name in config.used_encoders:
        spec = config.encoders[name]
        if spec.weights == "random" or (spec.weights is not None and Path(spec.weights).is_file()):
            continue
        source = resolve(spec).source
        if isinstance(source, NoWeights):
            continue
        try:
            locate(spec.name, source, spec.weights)
        except MilError as error:
            raise MilError(f"encoders.{name}: {error}") from error


def _check_features(config: Config) -> None:
    """The first file of every folder of another tool's features is of the cohort's encoder: its name and numbers per tile."""
    if not config.slides.features:
        return
    from mil.convert import readers as _entered  # noqa: F401  the readers enter themselves into the registry
    from mil.convert.convert import read_expected
    from mil.convert.foreign import READERS, ForeignFeatures

    for site, source in config.slides.features.items():
        for name in config.used_encoders:
            folder, spec = Path(source.folder.replace("{encoder}", name)), config.encoders[name]
            files = READERS[source.layout].find(folder)
            if not files:
                tool = READERS[source.layout].tool
                raise MilError(
                    f"slides.features.{site}: {folder} holds no features of {tool}; correct layout or folder"
                )
            stated = (source.encoder or spec.name, source.mpp, source.tile_mpp, source.weights_sha256)
            try:
                read_expected(source.layout, next(iter(files.values())), ForeignFeatures(folder, *stated, (name, spec)))
            except CorruptFile:
                continue  # one slide that cannot be read is a row of the site's manifest
            except MilError as error:
                raise MilError(f"slides.features.{site}: {error}") from error


def _check_writable(results: Path) -> None:
    folder = next(path for path in [results, *results.absolute().parents] if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise MilError(
            f"results: {results} cannot be written, as {folder} is no folder that you may write to; name another"
        )


def _columns(config: Config) -> Iterator[tuple[str, list[str]]]:
    """Columns of the patient table by the key that names them."""
    metrics = config.metrics
    yield "metrics.clinical", list(metrics.clinical)
    yield "metrics.subgroups", [name for name in metrics.subgroups if name != "site"]
    for key in ("annotation", "time", "event"):
        yield f"metrics.{key}", [name for name in [getattr(metrics, key)] if name is not None]
    for name, experiment in config.selected().items():
        yield f"experiments.{name}.covariates", list(experiment.covariates)
        event = config.endpoints[experiment.endpoint].event
        yield f"endpoints.{experiment.endpoint}.event", [event] if event is not None else []


def _paths(config: Config) -> Iterator[tuple[str, Path]]:
    """Files and folders by the key that names them."""
    for site, source in config.slides.features.items():
        for encoder in config.used_encoders:
            yield f"slides.features.{site}.folder", Path(source.folder.replace("{encoder}", encoder))
    if config.truth is not None and config.truth.table is not None:
        table = Path(config.truth.table)
        beside = Path(config.slides.sheet).parent / table  # `mil.tiles.truth.find` looks at both
        yield "truth.table", beside if beside.is_file() and not table.is_file() else table
    for review in config.figures.reviews:
        yield "figures.reviews", Path(review)
