"""From features to predictions: `mil bag`, `train`, `predict`."""

from pathlib import Path
from typing import Annotated

import typer

from mil.commands.options import (
    BagsArgument,
    BagsOption,
    EncoderOption,
    LogOption,
    OutOption,
    encoder_of,
    reporter_of,
    spec_option,
)
from mil.errors import MilError


def bag(
    census_tables: Annotated[
        list[Path], typer.Argument(metavar="CENSUS...", help="Census tables of the sites, from `mil census`.")
    ],
    slides: Annotated[str, spec_option("SlidesSpec", "--slides", "The slide settings")],
    out: OutOption,
    flow: Annotated[Path, typer.Option(help="Flow table to write: patients and slides given and used.")],
    spec: Annotated[str, spec_option("EndpointSpec", what="The endpoint's settings")] = "{}",
    covariates: Annotated[
        str, typer.Option(help="Comma-separated columns of the patient table that experiments read besides the slides.")
    ] = "",
    sites: Annotated[
        Path | None,
        typer.Option(help="Folder of the sites, whose features are compared with --encoder.", show_default=False),
    ] = None,
    encoder: Annotated[
        list[str],
        typer.Option(
            help="KEY=SETTINGS of an encoder of the cohort; features of another one, or another slide's, are refused."
        ),
    ] = [],  # noqa: B006  typer copies it
    log: LogOption = None,
) -> None:
    """Make the bag table of an endpoint: each patient with its slides, label and fold."""
    if encoder and sites is None:
        raise MilError("--encoder compares the features under --sites; give both")
    encoders = dict(map(encoder_of, encoder))
    from mil.bags.census import read_census
    from mil.bags.table import make_bags
    from mil.config import EndpointSpec, SlidesSpec, read_spec
    from mil.endpoints import build_endpoint
    from mil.features.identity import check_bags
    from mil.slides.sheet import read_cohort
    from mil.tables import labelled, write_table

    reporter = reporter_of(log)
    sheet, endpoint = read_spec(SlidesSpec, slides), read_spec(EndpointSpec, spec)
    cohort = read_cohort(sheet, [endpoint.column])
    names = [name for name in covariates.split(",") if name]
    bags, table = make_bags(cohort, read_census(census_tables), sheet.roles, endpoint, names)
    for key, made_by in encoders.items():
        check_bags(bags, sites or Path(), key, made_by)
    write_table(table, flow)
    write_table(bags, out)
    target = build_endpoint(endpoint)
    known = labelled(bags)
    counted = f", {target.positives(known)} {target.outcome}" if target.outcome else ""
    further = f"; {len(bags) - len(known)} without a label" if len(bags) > len(known) else ""
    reporter.note(f"bag {endpoint.column}: {len(known)} patients{counted}{further}")


def train(
    bags: BagsArgument,
    sites: Annotated[Path, typer.Option(help="Folder of the sites.")],
    folder: Annotated[Path, typer.Option(help="Folder of the run.")],
    endpoint: Annotated[str, spec_option("EndpointSpec", "--endpoint", "The endpoint's settings")],
    spec: Annotated[str, spec_option("ExperimentSpec", what="The experiment's settings")] = "{}",
    encoder: EncoderOption = None,
    log: LogOption = None,
) -> None:
    """Train an experiment over all its folds. Rows of external sites are dropped before any feature is read.

    An interrupted run continues from its last checkpoint when you repeat the command.
    """
    from mil.bags.table import read_bags
    from mil.config import EncoderSpec, EndpointSpec, ExperimentSpec, read_spec
    from mil.training.run import train_into
    from mil.training.store import FeatureStore

    reporter = reporter_of(log)
    experiment = read_spec(ExperimentSpec, spec)
    table = read_bags(bags)
    table = table[table["role"] == "train"].reset_index(drop=True)
    made_by = None if encoder is None else read_spec(EncoderSpec, encoder)
    features = FeatureStore.open(table, sites, experiment.encoder, spec=made_by)
    wanted = read_spec(EndpointSpec, endpoint)
    train_into(folder, experiment, wanted, table, features, reporter)


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    bags: BagsOption,
    sites: Annotated[Path, typer.Option(help="Folder of the sites; attention is written into each.")],
    out: OutOption,
    encoder: EncoderOption = None,
    log: LogOption = None,
) -> None:
    """Predict every patient with the models that were not trained on it, and write the attention of every tile.

    Beside OUT, NAME.patients.csv has a row per patient: the mean over the models. A patient without a label is predicted, too.
    """
    from mil.bags.table import read_bags
    from mil.config import EncoderSpec, read_spec
    from mil.endpoints import build_endpoint
    from mil.predictions.attention import write_attention
    from mil.predictions.patients import by_patient
    from mil.predictions.predict import predict as predict_run
    from mil.specs.models import UserHeadSpec
    from mil.tables import has_label, write_table
    from mil.training.run import Run
    from mil.training.store import FeatureStore

    reporter = reporter_of(log)
    trained = Run.load(run)
    table = read_bags(bags, everyone=True)
    made_by = None if encoder is None else read_spec(EncoderSpec, encoder)
    features = FeatureStore.open(table, sites, trained.experiment.encoder, spec=made_by)
    for model in (family.model for family in trained.families):
        if isinstance(model, UserHeadSpec):
            reporter.note(model.notice)
    predictions = predict_run(trained, table, features)
    for warning in predictions.warnings:
        reporter.say(f"warning: {warning}")
    name = out.stem
    predictions.table.insert(0, "experiment", name)
    write_attention(predictions.attention, table, sites, trained.experiment.encoder, name)
    patients = by_patient(predictions.table, build_endpoint(trained.endpoint))
    write_table(patients, out.with_name(f"{name}.patients.csv"))
    write_table(predictions.table, out)
    without = int((~has_label(patients)).sum())
    further = f", {without} of them without a label" if without else ""
    reporter.note(f"predict {name}: {len(patients)} patients{further}, {len(predictions.table)} predictions")
