"""From predictions to the report: `mil score`, `compare`, `baseline`, `localise`, `plot`, `report`, `view`, `crate`."""

import os
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from mil.commands.options import (
    LogOption,
    OutOption,
    PredictionsArgument,
    ResultsArgument,
    read_config,
    reporter_of,
    require_results,
    scored_line,
    spec_option,
)
from mil.errors import MilError
from mil.progress import Reporter


def score(
    predictions: PredictionsArgument,
    out: OutOption,
    experiment: Annotated[str, spec_option("ExperimentSpec", "--experiment", "The experiment's settings")],
    inner: Annotated[
        Path | None,
        typer.Option(
            help="inner.csv of the run: with it, thresholds are chosen and decisions are scored.", show_default=False
        ),
    ] = None,
    endpoint: Annotated[str, spec_option("EndpointSpec", "--endpoint", "The endpoint's settings")] = "{}",
    spec: Annotated[str, spec_option("MetricsSpec")] = "{}",
    log: LogOption = None,
) -> None:
    """Score the predictions of one experiment at each site, with intervals.

    Beside OUT, its name with `.curves` holds what figures draw as curves, and with `.folds` the primary measure of every fold.
    """
    from mil.config import EndpointSpec, ExperimentSpec, MetricsSpec, read_spec
    from mil.endpoints import build_endpoint
    from mil.metrics.score import curves_and_folds
    from mil.metrics.score import score as score_table
    from mil.statistics.thresholds import read_inner
    from mil.tables import has_label, read_table, write_table

    reporter = reporter_of(log)
    settings = read_spec(MetricsSpec, spec)
    held = read_inner(inner) if inner is not None else None
    kind = build_endpoint(read_spec(EndpointSpec, endpoint))
    everyone, known = read_table(predictions), read_table(predictions, only_labelled=True)
    if without := everyone.loc[~has_label(everyone), "patient_id"].nunique():
        reporter.say(f"score: patients without a label, who are left out: {without}")
    scored = known if len(known) else everyone
    table = score_table(scored, settings, read_spec(ExperimentSpec, experiment), held, kind)
    for name, further in curves_and_folds(scored, settings, held, kind).items():
        write_table(further, out.with_suffix(f".{name}.csv"))
    write_table(table, out)
    for row in table[table["metric"] == kind.primary.name].itertuples():
        reporter.note(scored_line(row, kind.primary.title))


def compare(
    results: ResultsArgument,
    out: OutOption,
    spec: Annotated[str | None, spec_option("MetricsSpec", show_default="the run's")] = None,
    log: LogOption = None,
) -> None:
    """Compare pairs of experiments on the same patients.

    Beside OUT, `strategies.csv` compares strategies with pooled and local models, `cohort.csv` the patients of the sites, `reviews.csv`
    holds the blind review, and `clinical/` the main experiment's AUROC in subgroups, its association with clinical columns, and
    survival by prediction.
    """
    from mil.config import MetricsSpec, read_spec
    from mil.metrics.agreement import reviewed
    from mil.metrics.clinical import clinical_tables
    from mil.metrics.cohort import characteristics
    from mil.metrics.comparison import compare as compare_tables
    from mil.metrics.strategies import strategies_of
    from mil.results.results import Results
    from mil.tables import write_table

    reporter_of(log)
    opened = Results.open(results)
    predictions = {name: opened.predictions(name) for name in opened.experiments}
    kinds = {name: opened.kind_of(name) for name in opened.experiments}
    settings = read_spec(MetricsSpec, spec) if spec else opened.config.metrics
    write_table(strategies_of(opened, settings), out.parent / "strategies.csv")
    write_table(characteristics(opened, settings.confidence), out.parent / "cohort.csv")
    write_table(reviewed(opened), out.parent / "reviews.csv")
    for name, table in clinical_tables(opened, settings).items():
        write_table(table, out.parent / "clinical" / f"{name}.csv")
    write_table(compare_tables(predictions, settings, opened.experiments, kinds), out)


def baseline(
    results: ResultsArgument,
    endpoint: Annotated[str, typer.Option(help="Endpoint to predict.")],
    folder: Annotated[Path, typer.Option(help="Folder for predictions.csv, inner.csv and metrics.csv.")],
    log: LogOption = None,
) -> None:
    """Train and score what a slide model must beat, on the same folds: clinical columns, annotation, colour, bag size, site."""
    from mil.baselines.write import write_baselines
    from mil.results.results import Results

    metrics = write_baselines(Results.open(results), endpoint, folder)
    names = ", ".join(metrics["experiment"].unique())
    reporter_of(log).say(f"baselines of {endpoint}: {names or 'none, since they are made for two classes'}")


def localise(
    results: ResultsArgument,
    experiment: Annotated[str, typer.Option(help="Experiment whose attention is scored.")],
    out: OutOption,
    spec: Annotated[str | None, spec_option("MetricsSpec", show_default="the run's")] = None,
    log: LogOption = None,
) -> None:
    """Score the attention of an experiment against the annotated truth of every tile.

    Beside OUT, `EXPERIMENT.slides.csv` holds the AUROC of each slide, of patients without a label as well.
    """
    from mil.config import MetricsSpec, read_spec
    from mil.metrics.localisation import by_slide, slides_with_truth
    from mil.metrics.localisation import localise as localise_slides
    from mil.results.results import Results
    from mil.tables import write_table

    reporter_of(log)
    opened = Results.open(results)
    slides = slides_with_truth(opened, experiment)
    each = [*slides, *slides_with_truth(opened, experiment, labelled=False)]
    write_table(by_slide(each), out.parent / f"{experiment}.slides.csv")
    settings = read_spec(MetricsSpec, spec) if spec else opened.config.metrics
    write_table(localise_slides(slides, settings, experiment, opened.experiments[experiment]), out)


def plot(
    names: Annotated[
        list[str], typer.Argument(help="Figures: names or numbers (`F2a`), `all`, or `list` to print them.")
    ],
    results: Annotated[Path, typer.Option(help="Results folder of the cohort.")] = Path("results"),
    site: Annotated[
        str | None, typer.Option(help="Site, for figures that are drawn per site.", show_default=False)
    ] = None,
    spec: Annotated[str | None, spec_option("FiguresSpec", show_default="the run's")] = None,
    log: LogOption = None,
) -> None:
    """Draw figures: each as PDF, SVG and PNG, with its values (CSV) and its caption (JSON)."""
    from mil.workflow.figures import figure_inputs, names_of, protocol_numbers

    known = figure_inputs()
    if names == ["list"]:
        for figure, number in protocol_numbers().items():
            suffix = " (one per site)" if known[figure].per_site else ""
            typer.echo(f"{number:8s} {figure:22s} {known[figure].title}{suffix}")
        return
    every = [name for name in known if known[name].per_site == (site is not None)]
    names = every if names == ["all"] else names_of(names)
    require_results(results)
    from mil.config import FiguresSpec, read_spec
    from mil.figures import draw_figure
    from mil.results.results import Results

    reporter = reporter_of(log)
    opened = Results.open(results)
    settings = read_spec(FiguresSpec, spec) if spec else opened.config.figures
    with reporter.steps(f"plot {site or 'the cohort'}", len(names), "figures") as steps:
        for name in names:
            for path in draw_figure(name, opened, settings, site):
                reporter.note(f"wrote {path}")
            steps.done()


def report(
    results: Annotated[
        list[Path],
        typer.Argument(help="Results folder of the cohort, e.g. results/demo; with --compare two or more."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File to write.", show_default="RESULTS/report/index.html or comparison.html"),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Write one page that compares runs: settings, cohorts, measures.")
    ] = False,
    spec: Annotated[str | None, spec_option("ReportSpec", show_default="the run's")] = None,
    log: LogOption = None,
) -> None:
    """Write the cohort's report: one HTML file that opens without a network.

    Beside it: a slide viewer, checklists of reporting guidelines, a model card per experiment; in the results folder `tables/`
    as CSV and LaTeX. `mil report --compare A B [C]` compares finished runs instead: what differs in their settings, and
    their measures side by side.
    """
    for folder in results:
        require_results(folder)
    if compare:
        from mil.files import write_text
        from mil.report.run_comparison import compare_runs

        page = out or Path("comparison.html")
        write_text(page, compare_runs(results, page))
        reporter_of(log).say(f"comparison: {page}")
        return
    if len(results) != 1:
        raise MilError(f"a report is of one results folder, not of {len(results)}; add --compare to compare runs")
    _write_report(results[0], out or results[0] / "report/index.html", spec, reporter_of(log))


def _write_report(results: Path, out: Path, spec: str | None, reporter: Reporter) -> None:
    from mil.config import ReportSpec, read_spec
    from mil.figures import FIGURES
    from mil.files import write_text
    from mil.report.build import build
    from mil.report.slide_viewer import write_viewer
    from mil.report.tables import TABLES
    from mil.results.results import Results

    opened = Results.open(results)
    settings = read_spec(ReportSpec, spec) if spec else opened.config.report
    in_viewer = write_viewer(opened, out.parent / "viewer", settings, reporter)
    figures_at = Path(os.path.relpath(opened.folder / "figures", out.parent)).as_posix()
    made = build(opened, settings, in_viewer, quote(figures_at))
    written = {results / "tables" / name for name in made.tables} | {out.parent / name for name in made.pages}
    known = [results / "tables" / f"{name}.{kind}" for name in (*TABLES, *FIGURES) for kind in ("csv", "tex")]
    earlier = [path for path in known if path.exists()]
    if out.parent == results / "report":  # another folder may hold pages of other runs
        earlier += out.parent.glob("model_cards/*.md")
    for path in {*earlier} - written:
        path.unlink()
    for name, text in made.tables.items():
        write_text(results / "tables" / name, text)
    for name, text in made.pages.items():
        if name != "index.html":
            write_text(out.parent / name, text)
    write_text(out, made.pages["index.html"])
    reporter.say(f"report: {out}")


def view(
    cohort: Annotated[
        Path, typer.Argument(help="Results folder, e.g. results/demo, or the cohort file of a run.", show_default=False)
    ],
    port: Annotated[
        int,
        typer.Option(help="Port on 127.0.0.1; annotations are kept by port in the browser. 0: any.", min=0, max=65535),
    ] = 8473,
) -> None:
    """Open the slide viewer on every slide at its full resolution, for the user of this machine alone; Ctrl+C ends it.

    It answers on 127.0.0.1 only, to addresses with the printed token, and writes nothing. From another machine:
    `ssh -L 8473:127.0.0.1:8473 HOST`.
    """
    folder = cohort
    if cohort.suffix in {".yaml", ".yml"}:
        folder = read_config([cohort]).results_folder
    require_results(folder)
    from mil.local_page import LocalPage, serve
    from mil.report.slide_server import SlidePages
    from mil.results.results import Results

    pages = SlidePages(Results.open(folder))
    page = LocalPage(pages, port)
    typer.echo(f"{len(pages)} slides of {folder}: {page.address}\nCtrl+C ends the viewer")
    try:
        serve(page)
    finally:
        pages.close()


def crate(results: ResultsArgument, log: LogOption = None) -> None:
    """Write ro-crate-metadata.json into the results: slides by fingerprint, settings, versions, and every output by digest."""
    from mil.report.crate import write_crate
    from mil.results.results import Results

    reporter_of(log).say(f"RO-Crate: {write_crate(Results.open(results))}")
