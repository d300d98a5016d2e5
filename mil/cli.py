"""The command line: every stage by hand, the same code that the workflow's rules call.

A command opens, calls and writes; heavy imports happen inside it. Errors of data or settings are one line and exit 1.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from mil import __version__
from mil.commands import encoders, files
from mil.errors import MilError
from mil.federation import commands as hospitals
from mil.progress import Reporter

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Whole-slide images in, the figures of a federated study out. Each command is one stage of the workflow.",
)

SpecOption = Annotated[
    str, typer.Option("--spec", help="The stage's settings: JSON text, or a YAML/JSON file.", show_default="defaults")
]
LogOption = Annotated[Optional[Path], typer.Option("--log", help="Write plain lines here too.", show_default=False)]  # noqa: UP045
ShardOption = Annotated[int, typer.Option("--shard", help="Which run of SHARD_SIZE rows of the slide table.")]
ShardSizeOption = Annotated[int, typer.Option("--shard-size", help="Slides a shard.")]
OutOption = Annotated[Path, typer.Option("--out", help="File to write.")]


def main() -> None:
    """Entry point: `MilError` becomes one line on standard error (and in the log) and exit code 1."""
    try:
        app()
    except MilError as error:
        _report_failure(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        _report_failure("interrupted; finished slides are kept, run the same command again to go on")
        sys.exit(130)


_open_reporters: list[Reporter] = []


def _reporter(log: Path | None) -> Reporter:
    reporter = Reporter(log)
    _open_reporters.append(reporter)
    return reporter


def _report_failure(line: str) -> None:
    if _open_reporters:
        _open_reporters[-1].say(line)
    else:
        print(line, file=sys.stderr)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"mil {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Whole-slide images in, the figures of a federated study out."""


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Name of the cohort.")],
    folder: Annotated[Path, typer.Option(help="Folder for the sheets.")] = Path("data"),
) -> None:
    """Write a commented cohort file and empty sheets to start from."""
    from mil.scaffold import write_cohort

    for path in write_cohort(name, folder):
        typer.echo(f"wrote {path}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the demo cohort goes.")] = Path("data/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the cohort.")] = 0,
    log: LogOption = None,
) -> None:
    """Make the demo cohort: synthetic slides of four hospitals, with flaws on purpose."""
    from mil.synthetic import make_cohort

    make_cohort(folder, seed=seed, reporter=_reporter(log))
    typer.echo(f"demo cohort: {folder / 'slides.csv'}")


@app.command()
def check(
    spec: SpecOption = "{}",
    site: Annotated[Optional[str], typer.Option(help="Only this site.", show_default="all")] = None,  # noqa: UP045
    labels: Annotated[
        str, typer.Option(help="Comma-separated label columns; a patient without any is `no_label`.")
    ] = "",
    out: Annotated[Optional[Path], typer.Option("--out", help="Slide table to write.", show_default=False)] = None,  # noqa: UP045
    strict: Annotated[bool, typer.Option(help="Exit with 1 if any slide cannot be used.")] = False,
    deep: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Results folder of a run: look for leaks in its folds, inputs and training instead.",
            show_default=False,
        ),
    ] = None,
    log: LogOption = None,
) -> None:
    """Open every slide of the sheet; say which can be used, and why the others cannot."""
    if deep is not None:
        _deep_check(deep, out, log)
        return
    from mil.config import SlidesSpec, read_spec
    from mil.slides.check import check_slides
    from mil.slides.sheet import read_cohort
    from mil.tables import write_table

    reporter = _reporter(log)
    settings = read_spec(SlidesSpec, spec)
    cohort = read_cohort(settings, [column for column in labels.split(",") if column])
    table = check_slides(cohort.at(site) if site else cohort.slides, settings, reporter)
    if out is not None:
        write_table(table, out)
    bad = table[table["state"] != "ok"]
    for row in bad.itertuples():
        reporter.note(f"slide {row.slide_id} ({row.path}): {row.state}: {row.reason}")
    counts = ", ".join(f"{number} {state}" for state, number in table["state"].value_counts().items())
    reporter.say(f"check {site or 'all sites'}: {len(table)} slides: {counts}")
    if len(bad) and (strict or settings.on_bad_slide == "stop"):
        first = bad.iloc[0]
        raise MilError(
            f"{len(bad)} slides cannot be used; the first: slide {first['slide_id']} ({first['path']}): {first['state']}: {first['reason']}"
        )


def _deep_check(results: Path, out: Path | None, log: Path | None) -> None:
    """Print what the leak checks found; a leak is an error."""
    from mil.figures.results import Results
    from mil.metrics.deep_check import deep_check
    from mil.tables import write_table

    reporter = _reporter(log)
    found = deep_check(Results.open(results), reporter)
    if out is not None:
        write_table(found, out)
    for row in found.itertuples():
        (reporter.note if row.state == "ok" else reporter.say)(f"{row.state}: {row.check}: {row.subject} {row.reason}")
    counts = ", ".join(f"{number} {state}" for state, number in found["state"].value_counts().items())
    reporter.say(f"leak checks: {counts}")
    leaks = found[found["state"] == "leak"]
    if len(leaks):
        first = leaks.iloc[0]
        raise MilError(f"{len(leaks)} leaks; the first: {first['check']}: {first['subject']} {first['reason']}")


def _shard(slides: Path, shard: int, shard_size: int):
    from mil.tables import read_table

    text = (
        "slide_id",
        "patient_id",
        "site",
        "path",
        "state",
        "reason",
        "format",
        "mpp_source",
        "fingerprint",
        "levels",
    )
    table = read_table(slides, text=text)
    return table.iloc[shard * shard_size : (shard + 1) * shard_size]


@app.command()
def tile(
    slides: Annotated[Path, typer.Argument(help="Slide table of one site, from `mil check`.")],
    folder: Annotated[Path, typer.Option(help="Folder for the tile files.")],
    thumbnails: Annotated[Path, typer.Option(help="Folder for the thumbnails.")],
    out: OutOption,
    spec: SpecOption = "{}",
    shard: ShardOption = 0,
    shard_size: ShardSizeOption = 1_000_000,
    log: LogOption = None,
) -> None:
    """Find the tissue of a shard's slides and lay tiles over it."""
    from mil.config import TileSpec, read_spec
    from mil.tables import write_table
    from mil.tiles import tile_shard

    reporter = _reporter(log)
    manifest = tile_shard(_shard(slides, shard, shard_size), read_spec(TileSpec, spec), folder, thumbnails, reporter)
    write_table(manifest, out)


@app.command()
def contact(
    slides: Annotated[Path, typer.Argument(help="Slide table of one site, from `mil check`.")],
    tiles: Annotated[Path, typer.Option(help="Folder with the tile files and their manifests.")],
    thumbnails: Annotated[Path, typer.Option(help="Folder with the thumbnails.")],
    out: OutOption,
    log: LogOption = None,
) -> None:
    """One page of a site's thumbnails with tissue and grid, to check by eye; unusual slides are framed and named."""
    from mil.tiles.contact import write_contact_sheet

    reporter = _reporter(log)
    for line in write_contact_sheet(_shard(slides, 0, 1_000_000), tiles, thumbnails, out):
        reporter.note(line)


@app.command()
def extract(
    slides: Annotated[Path, typer.Argument(help="Slide table of one site, from `mil check`.")],
    tiles: Annotated[Path, typer.Option(help="Folder with the tile files.")],
    folder: Annotated[Path, typer.Option(help="Folder for the feature files.")],
    out: OutOption,
    spec: SpecOption = "{}",
    shard: ShardOption = 0,
    shard_size: ShardSizeOption = 1_000_000,
    log: LogOption = None,
) -> None:
    """Turn the tiles of a shard's slides into features with a frozen encoder."""
    from mil.config import EncoderSpec, read_spec
    from mil.features import extract_shard
    from mil.tables import write_table

    reporter = _reporter(log)
    manifest = extract_shard(_shard(slides, shard, shard_size), tiles, read_spec(EncoderSpec, spec), folder, reporter)
    write_table(manifest, out)


@app.command()
def census(
    slides: Annotated[Path, typer.Argument(help="Slide table of one site, from `mil check`.")],
    manifests: Annotated[
        list[Path], typer.Argument(help="Manifests of the stages, in their order; a stage is named by its folder.")
    ],
    out: OutOption,
) -> None:
    """One site's slides with their states and counts: the only slide table that leaves the site's folder."""
    from mil.census import TEXT, read_manifests, take_census
    from mil.tables import read_table, write_table

    stages: dict[str, list[Path]] = {}
    for path in manifests:
        stages.setdefault(path.parent.name, []).append(path)
    table = read_table(slides, text=(*TEXT, "path", "fingerprint", "levels"))
    write_table(take_census(table, {stage: read_manifests(paths) for stage, paths in stages.items()}), out)


@app.command()
def bag(
    census_tables: Annotated[list[Path], typer.Argument(metavar="CENSUS...", help="The sites' censuses.")],
    slides: Annotated[str, typer.Option(help="The cohort's slides settings: JSON text or a file.")],
    out: OutOption,
    flow: Annotated[Path, typer.Option(help="Flow table to write: patients and slides in -> used.")],
    spec: SpecOption = "{}",
    log: LogOption = None,
) -> None:
    """Form the bags of an endpoint: patients with their slides, label and folds."""
    from mil.bags import make_bags
    from mil.census import read_census
    from mil.config import EndpointSpec, SlidesSpec, read_spec
    from mil.slides.sheet import read_cohort
    from mil.tables import write_table

    reporter = _reporter(log)
    sheet, endpoint = read_spec(SlidesSpec, slides), read_spec(EndpointSpec, spec)
    cohort = read_cohort(sheet, [endpoint.column])
    bags, table = make_bags(cohort, read_census(census_tables), sheet.roles, endpoint)
    write_table(table, flow)
    write_table(bags, out)
    reporter.note(f"bag {endpoint.column}: {len(bags)} patients, {int(bags['label'].sum())} positive")


@app.command()
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
    from mil.bags import TEXT
    from mil.config import EndpointSpec, ExperimentSpec, read_spec
    from mil.tables import read_table
    from mil.training.run import train as train_run
    from mil.training.store import FeatureStore

    reporter = _reporter(log)
    experiment = read_spec(ExperimentSpec, spec)
    table = read_table(bags, text=TEXT)
    table = table[table["role"] == "train"].reset_index(drop=True)
    features = FeatureStore.open(table, sites, experiment.encoder)
    wanted = read_spec(EndpointSpec, endpoint)
    train_run(experiment, wanted, table, features, reporter, checkpoint=folder / "checkpoint").save(folder)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    bags: Annotated[Path, typer.Option(help="Bag table of the experiment's endpoint.")],
    sites: Annotated[Path, typer.Option(help="Folder of the sites; attention is written into each.")],
    out: OutOption,
    log: LogOption = None,
) -> None:
    """Predict every patient with the models that never saw them, and write the attention of every tile."""
    from mil.attention import write_attention
    from mil.bags import TEXT
    from mil.predictions import predict as predict_run
    from mil.tables import read_table, write_table
    from mil.training.run import Run
    from mil.training.store import FeatureStore

    reporter = _reporter(log)
    trained = Run.load(run)
    table = read_table(bags, text=TEXT)
    features = FeatureStore.open(table, sites, trained.experiment.encoder)
    predictions = predict_run(trained, table, features)
    name = out.stem
    predictions.table.insert(0, "experiment", name)
    write_attention(predictions.attention, table, sites, trained.experiment.encoder, name)
    write_table(predictions.table, out)
    reporter.note(
        f"predict {name}: {predictions.table['patient_id'].nunique()} patients, {len(predictions.table)} predictions"
    )


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(help="Predictions of one experiment.")],
    out: OutOption,
    experiment: Annotated[str, typer.Option(help="The experiment's settings: JSON text or a file.")],
    spec: SpecOption = "{}",
    log: LogOption = None,
) -> None:
    """Score one experiment's predictions, by site, with intervals."""
    from mil.config import ExperimentSpec, MetricsSpec, read_spec
    from mil.metrics.score import read_predictions
    from mil.metrics.score import score as score_table
    from mil.tables import write_table

    reporter = _reporter(log)
    settings = read_spec(MetricsSpec, spec)
    table = score_table(read_predictions(predictions), settings, read_spec(ExperimentSpec, experiment))
    write_table(table, out)
    for row in table[table["metric"] == "auroc"].itertuples():
        reporter.note(
            f"{row.experiment} trained on {row.trained_on}, {row.site}: "
            f"AUROC {row.value:.3f} [{row.low:.3f}, {row.high:.3f}] ({row.method})"
        )


@app.command()
def compare(
    results: Annotated[Path, typer.Argument(help="Results folder of the cohort.")],
    out: OutOption,
    spec: SpecOption = "{}",
    log: LogOption = None,
) -> None:
    """Compare the experiments that differ in one thing, on the same patients, pairwise."""
    from mil.config import MetricsSpec, read_spec
    from mil.figures.results import Results
    from mil.metrics.comparison import compare as compare_tables
    from mil.tables import write_table

    _reporter(log)
    opened = Results.open(results)
    predictions = {name: opened.predictions(name) for name in opened.experiments}
    write_table(compare_tables(predictions, read_spec(MetricsSpec, spec), opened.experiments), out)


@app.command()
def baseline(
    results: Annotated[Path, typer.Argument(help="Results folder of the cohort.")],
    endpoint: Annotated[str, typer.Option(help="Endpoint to predict.")],
    folder: Annotated[Path, typer.Option(help="Folder for predictions.csv, inner.csv and metrics.csv.")],
    log: LogOption = None,
) -> None:
    """What a slide model has to beat, on the same folds: clinical columns, annotation, colour, bag size, site."""
    from mil.figures.results import Results
    from mil.metrics.baselines import write_baselines

    metrics = write_baselines(Results.open(results), endpoint, folder)
    names = ", ".join(metrics["experiment"].unique())
    _reporter(log).say(f"baselines of {endpoint}: {names}")


@app.command()
def localise(
    results: Annotated[Path, typer.Argument(help="Results folder of the cohort.")],
    experiment: Annotated[str, typer.Option(help="Experiment whose attention is scored.")],
    out: OutOption,
    spec: SpecOption = "{}",
    log: LogOption = None,
) -> None:
    """Score an experiment's attention against the truth of every tile, where there is one."""
    from mil.config import MetricsSpec, read_spec
    from mil.figures.results import Results
    from mil.metrics.localisation import localise as localise_slides
    from mil.tables import write_table

    _reporter(log)
    opened = Results.open(results)
    slides = opened.slides_with_truth(experiment)
    write_table(localise_slides(slides, read_spec(MetricsSpec, spec), experiment, opened.experiments[experiment]), out)


@app.command()
def plot(
    names: Annotated[
        list[str], typer.Argument(help="Figures; `mil plot list` names them, `all` draws all of the kind.")
    ],
    results: Annotated[Path, typer.Option(help="Results folder of the cohort.")] = Path("results"),
    site: Annotated[
        str | None, typer.Option(help="Site, for figures that are drawn a site.", show_default=False)
    ] = None,
    spec: SpecOption = "{}",
    log: LogOption = None,
) -> None:
    """Draw figures: vector, raster, the plotted values, and the caption of each."""
    from mil.figures import FIGURES, draw_figure

    if names == ["list"]:
        for figure in FIGURES:
            typer.echo(f"{figure:28s} {FIGURES[figure].title}{' (a site)' if FIGURES[figure].per_site else ''}")
        return
    from mil.config import FiguresSpec, read_spec
    from mil.figures.results import Results

    reporter = _reporter(log)
    opened, settings = Results.open(results), read_spec(FiguresSpec, spec)
    if names == ["all"]:
        names = [name for name in FIGURES if FIGURES[name].per_site == (site is not None)]
    with reporter.steps(f"plot {site or 'the cohort'}", len(names), "figures") as steps:
        for name in names:
            for path in draw_figure(name, opened, settings, site):
                reporter.note(f"wrote {path}")
            steps.done()


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="Results folder of the cohort.")],
    out: OutOption,
    spec: SpecOption = "{}",
    log: LogOption = None,
) -> None:
    """Write the cohort's report: one HTML file that opens without a network, and a slide viewer beside it."""
    from mil.config import ReportSpec, read_spec
    from mil.figures.results import Results
    from mil.files import write_text
    from mil.report import build, write_viewer

    reporter = _reporter(log)
    opened, settings = Results.open(results), read_spec(ReportSpec, spec)
    in_viewer = write_viewer(opened, out.parent / "viewer", settings, reporter)
    write_text(out, build(opened, settings, in_viewer))
    reporter.say(f"report: {out}")


app.command()(files.validate)
app.command()(files.convert)
app.add_typer(encoders.app, name="encoders")
app.add_typer(hospitals.server, name="server")
app.add_typer(hospitals.site, name="site")
app.add_typer(hospitals.ledger, name="ledger")

config_app = typer.Typer(no_args_is_help=True, help="The settings: their defaults, schema and values.")
app.add_typer(config_app, name="config")


@config_app.command("write")
def config_write(folder: Annotated[Path, typer.Argument()] = Path("configs")) -> None:
    """Write default.yaml and schema.json anew, from the code's defaults."""
    from mil.files import write_text
    from mil.scaffold import default_yaml, schema_json

    write_text(folder / "default.yaml", default_yaml())
    write_text(folder / "schema.json", schema_json())


@config_app.command("show")
def config_show(
    files: Annotated[list[Path], typer.Argument(help="Config files, later ones over earlier ones.")],
) -> None:
    """Check the config and print every value in force, as JSON."""
    from mil.config import load

    typer.echo(json.dumps(load(*files).model_dump(mode="json"), indent=2))


if __name__ == "__main__":
    main()
