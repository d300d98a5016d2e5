"""From features to predictions: `mil bag`, `train`, `predict`."""

from pathlib import Path
from typing import Annotated

import typer

from mil.commands.options import LogOption, OutOption, SpecOption, reporter_of


def bag(
    census_tables: Annotated[list[Path], typer.Argument(metavar="CENSUS...", help="The sites' censuses.")],
    slides: Annotated[str, typer.Option(help="The cohort's slides settings: JSON text or a file.")],
    out: OutOption,
    flow: Annotated[Path, typer.Option(help="Flow table to write: patients and slides in -> used.")],
    spec: SpecOption = "{}",
    covariates: Annotated[
        str, typer.Option(help="Comma-separated columns of the patient table that experiments read besides the slides.")
    ] = "",
    log: LogOption = None,
) -> None:
    """Form the bags of an endpoint: patients with their slides, label and folds."""
    from mil.bags.census import read_census
    from mil.bags.table import make_bags
    from mil.config import EndpointSpec, SlidesSpec, read_spec
    from mil.slides.sheet import read_cohort
    from mil.tables import write_table

    reporter = reporter_of(log)
    sheet, endpoint = read_spec(SlidesSpec, slides), read_spec(EndpointSpec, spec)
    cohort = read_cohort(sheet, [endpoint.column])
    names = [name for name in covariates.split(",") if name]
    bags, table = make_bags(cohort, read_census(census_tables), sheet.roles, endpoint, names)
    write_table(table, flow)
    write_table(bags, out)
    positive = f", {int(bags['label'].sum())} positive" if endpoint.kind == "binary" else ""
    reporter.note(f"bag {endpoint.column}: {len(bags)} patients{positive}")


def train(
    bags: Annotated[Path, typer.Argument(help="Bag table of the experiment's endpoint.")],
    sites: Annotated[Path, typer.Option(help="Folder of the sites.")],
    folder: Annotated[Path, typer.Option(help="Folder of the run.")],
    endpoint: Annotated[str, typer.Option(help="The endpoint's settings: JSON text or a file.")],
    spec: SpecOption = "{}",
    log: LogOption = None,
) -> None:
    """Train an experiment over all its folds; rows of external sites are dropped before anything is read.

    What was interrupted goes on from its last checkpoint when the same command is given again.
    """
    from mil.bags.table import read_bags
    from mil.config import EndpointSpec, ExperimentSpec, read_spec
    from mil.training.run import train_into
    from mil.training.store import FeatureStore

    reporter = reporter_of(log)
    experiment = read_spec(ExperimentSpec, spec)
    table = read_bags(bags)
    table = table[table["role"] == "train"].reset_index(drop=True)
    features = FeatureStore.open(table, sites, experiment.encoder)
    wanted = read_spec(EndpointSpec, endpoint)
    train_into(folder, experiment, wanted, table, features, reporter)


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    bags: Annotated[Path, typer.Option(help="Bag table of the experiment's endpoint.")],
    sites: Annotated[Path, typer.Option(help="Folder of the sites; attention is written into each.")],
    out: OutOption,
    log: LogOption = None,
) -> None:
    """Predict every patient with the models that never saw them, and write the attention of every tile."""
    from mil.bags.table import read_bags
    from mil.predictions.attention import write_attention
    from mil.predictions.predict import predict as predict_run
    from mil.tables import write_table
    from mil.training.run import Run
    from mil.training.store import FeatureStore

    reporter = reporter_of(log)
    trained = Run.load(run)
    table = read_bags(bags)
    features = FeatureStore.open(table, sites, trained.experiment.encoder)
    predictions = predict_run(trained, table, features)
    name = out.stem
    predictions.table.insert(0, "experiment", name)
    write_attention(predictions.attention, table, sites, trained.experiment.encoder, name)
    write_table(predictions.table, out)
    reporter.note(
        f"predict {name}: {predictions.table['patient_id'].nunique()} patients, {len(predictions.table)} predictions"
    )
