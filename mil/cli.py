"""The command line: every stage by hand, the same code that the workflow's rules call.

A command opens, calls and writes. Arguments are checked when they are parsed; torch, pandas and matplotlib are imported
after that, inside the command. Errors of data or settings are one line and exit code 1.
"""

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mil.commands import bench, clinical, encoders, evaluation, files, models, planning, slides
from mil.commands import hospital as hospitals
from mil.commands.examples import add_examples
from mil.commands.options import ConfigsArgument, LogOption, read_config, report_failure, reporter_of
from mil.errors import MilError, Stopped
from mil.files import reason_of, way_out
from mil.version import __version__

STOPPED = {
    signal.SIGTERM: "error: terminated (SIGTERM): time limit, cancelled, or the node was taken away; what is finished is kept, the same "
    "command goes on from there",
    signal.SIGINT: "interrupted; what is finished is kept, run the same command again to go on",
}
STOP_AGAIN_S = 0.5  # Slurm waits 30 s (KillWait) between SIGTERM and SIGKILL
HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    no_args_is_help=True,
    context_settings=HELP,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="From whole-slide images to the figures of a multi-hospital study. Each command is one stage of the workflow.",
    epilog="Example: [bold]mil init mine[/bold]\n\nDocumentation: README.md and docs/",
)


def main() -> None:
    """Entry point: a `MilError`, or a file that cannot be read or written, becomes one line on standard error and in the log, exit code 1.

    SIGTERM (Slurm: time limit, `scancel`, preemption) and SIGINT (Ctrl-C) become one line and exit code 143 or 130, whatever
    exception arrives here after them: C libraries that were calling Python when the signal came (h5py, matplotlib) raise another
    error in place of `Stopped`. Python drops an exception that a signal raises in the callback of a weak reference or in `__del__`:
    a timer raises it again until the command ends, never while another exception is handled, so that files are still cleaned up.
    """
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        first = not received
        if number in STOPPED:
            received.append(number)
        sys.unraisablehook = lambda _: None  # a dropped `Stopped` is no news: the command ends
        if first and sys.platform != "win32":
            signal.signal(signal.SIGALRM, stop)
            signal.setitimer(signal.ITIMER_REAL, STOP_AGAIN_S, STOP_AGAIN_S)
        if first or number == signal.SIGINT or sys.exc_info()[0] is None:
            raise Stopped

    handled = [number for number in STOPPED if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGINT
    for number in handled:
        signal.signal(number, stop)
    try:
        try:
            app()
        finally:
            try:
                for number in handled:
                    signal.signal(number, signal.SIG_DFL)  # calls `stop` first if a signal is still pending
            finally:
                if received and sys.platform != "win32":
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    except BaseException as error:  # noqa: BLE001  raised again unless it has a line
        if received and not (isinstance(error, SystemExit) and error.code in {0, None}):
            report_failure(STOPPED[signal.Signals(received[0])])
            sys.exit(128 + received[0])
        _end(error)


def _end(error: BaseException) -> NoReturn:
    """Say an error of data, settings or disk in one line; a fault of the program keeps its traceback."""
    if isinstance(error, MilError):
        line = " ".join(f"error: {error}".split())
    elif isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        line = f"error: {where}{reason_of(error)}{way_out(error)}"
    elif type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
        line = f"error: {str(error).split('. ')[0]}; end what else runs on the GPU, and run the same command again to go on"
    else:
        raise error
    report_failure(line)
    sys.exit(1)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"mil {__version__}")
        raise typer.Exit


@app.callback(context_settings=HELP)
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """From whole-slide images to the figures of a multi-hospital study."""


@app.command(rich_help_panel="To begin")
def init(
    name: Annotated[str, typer.Argument(help="Name of the cohort.")],
    folder: Annotated[Path, typer.Option(help="Folder for the sheets.")] = Path("data"),
) -> None:
    """Write a commented cohort file and empty sheets to start from."""
    from mil.scaffold import write_cohort

    for path in write_cohort(name, folder):
        typer.echo(f"wrote {path}")


@app.command(rich_help_panel="To begin")
def demo(
    folder: Annotated[Path, typer.Argument(help="Folder for the demo cohort.")] = Path("data/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.")] = 0,
    patients: Annotated[
        int, typer.Option(help="Patients per site; the three folds of configs/cohorts/demo.yaml need 10 or more.")
    ] = 24,
    log: LogOption = None,
) -> None:
    """Make the demo cohort: synthetic slides of four hospitals, with the faults of real ones."""
    from mil.synthetic import make_cohort

    make_cohort(folder, seed=seed, patients_per_site=patients, reporter=reporter_of(log))
    typer.echo(f"demo cohort: {folder / 'slides.csv'}")


config_app = typer.Typer(no_args_is_help=True, help="The settings: defaults, schema and the values in force.")
app.add_typer(config_app, name="config", rich_help_panel="To begin")

STAGES = {
    "To begin": (planning.doctor, planning.plan, planning.cohort),
    "Slides to features": (slides.check, slides.tile, slides.contact, slides.extract, slides.census),
    "Features to predictions": (models.bag, models.train, models.predict),
    "Predictions to the report": (
        *(evaluation.score, evaluation.compare, evaluation.baseline, evaluation.localise),
        *(evaluation.plot, evaluation.report, evaluation.view, evaluation.crate, clinical.clinical),
    ),
    "Feature files and encoders": (files.validate, files.convert, files.licences, bench.bench),
}
for panel, commands in STAGES.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(encoders.app, name="encoders", rich_help_panel="Feature files and encoders")
app.add_typer(hospitals.server, name="server", rich_help_panel="Between hospitals")
app.add_typer(hospitals.site, name="site", rich_help_panel="Between hospitals")
app.add_typer(hospitals.ledger, name="ledger", rich_help_panel="Between hospitals")


@config_app.command("write")
def config_write(folder: Annotated[Path, typer.Argument()] = Path("configs")) -> None:
    """Write default.yaml and schema.json from the defaults in the code."""
    from mil.files import write_text
    from mil.scaffold import default_yaml, schema_json

    write_text(folder / "default.yaml", default_yaml())
    write_text(folder / "schema.json", schema_json())


@config_app.command("show")
def config_show(
    files: ConfigsArgument,
) -> None:
    """Check config files and print every value in force, as JSON."""
    typer.echo(json.dumps(read_config(files).model_dump(mode="json"), indent=2))


add_examples(app)


if __name__ == "__main__":
    main()
