"""Arguments that several commands share. Each is checked when it is parsed, before a command imports torch or pandas."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mil.errors import MilError
from mil.files import require_file
from mil.progress import Reporter

if TYPE_CHECKING:
    from mil.config import Config, EncoderSpec

EncoderOption = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        help="Settings of the encoder, as under `encoders:`; features of another encoder are refused.",
        show_default=False,
    ),
]


def encoder_of(text: str) -> "tuple[str, EncoderSpec]":
    """`KEY=SETTINGS` -> a cohort's name for an encoder, and its settings; SETTINGS are JSON, a file, or a registered name."""
    from mil.config import EncoderSpec, read_spec

    key, sign, settings = text.partition("=")
    if not sign:
        raise MilError(f"'{text}' is not KEY=SETTINGS, as in uni2=uni2_h")
    named = settings.lstrip().startswith("{") or Path(settings).suffix in {".yaml", ".yml", ".json"}
    return key, read_spec(EncoderSpec, settings) if named else EncoderSpec(name=settings)


reporters: list[Reporter] = []
"""Of the commands of this process, the last one last."""


def reporter_of(log: Path | None) -> Reporter:
    """The command's reporter; `report_failure` writes to it, too."""
    if log is None or not reporters or reporters[-1].path != log:
        reporters.append(Reporter(log))
    return reporters[-1]


def report_failure(line: str) -> None:
    """Say a failure where the command has said the rest: on standard error, and in its log."""
    if reporters:
        reporters[-1].say(line)
    else:
        print(line, file=sys.stderr)


def checked_by(check: Callable[[Any], object]) -> Callable[[typer.Context, Any], Any]:
    """A callback of typer: `check` raises for a wrong value; nothing is checked while the shell completes a line."""

    def callback(context: typer.Context, value: Any) -> Any:
        if value is not None and not context.resilient_parsing:
            check(value)
        return value

    return callback


def spec_option(
    kind: str, name: str = "--spec", what: str = "The stage's settings", show_default: str | bool = True
) -> Any:
    """An option that holds a spec of `mil.config`, by its class name."""

    def check(text: str) -> None:
        import mil.config

        try:
            mil.config.read_spec(getattr(mil.config, kind), text)
        except MilError as error:
            raise MilError(str(error).replace("--spec", name, 1)) from error

    help = f"{what}: JSON text, or a YAML or JSON file."
    return typer.Option(name, help=help, callback=checked_by(check), show_default=show_default)


def scored_line(row: Any, title: str) -> str:
    """A row of a metrics table for a person; a value or an interval that does not exist is left out, and the reason stays."""
    value = "none" if row.value != row.value else f"{row.value:.3f}"
    bounds = "" if row.low != row.low else f" [{row.low:.3f}, {row.high:.3f}]"
    return f"{row.experiment} trained on {row.trained_on}, {row.site}: {title} {value}{bounds} ({row.method})"


def require_results(folder: Path) -> None:
    """Raise a `MilError` where `folder` is not the results folder of a cohort."""
    require_file(folder / "config.json", "", "name a cohort's results folder, e.g. results/demo, after a run")


def read_config(files: "Sequence[Path]") -> "Config":
    """The settings of config files, over those of `configs/experiments.yaml` here, or beside the workflow as from any folder."""
    from mil.config import load

    name = "configs/experiments.yaml"
    named = [path for path in (Path(name), Path(__file__).parents[2] / name) if path.is_file()]
    return load(*named[:1], *files)


_table = checked_by(lambda path: require_file(path, "table", "run the step that writes it"))
LogOption = Annotated[
    Path | None,
    typer.Option(
        "--log",
        help="File that gets every message with its time.",
        show_default=False,
        is_eager=True,
        callback=checked_by(reporter_of),
    ),
]
OutOption = Annotated[Path, typer.Option("--out", help="File to write.")]
SlidesArgument = Annotated[Path, typer.Argument(help="Slide table of one site, from `mil check`.", callback=_table)]
BagsArgument = Annotated[Path, typer.Argument(help="Bag table of the experiment's endpoint.", callback=_table)]
BagsOption = Annotated[Path, typer.Option("--bags", help="Bag table of the experiment's endpoint.", callback=_table)]
PredictionsArgument = Annotated[Path, typer.Argument(help="Predictions of one experiment.", callback=_table)]
ResultsArgument = Annotated[
    Path, typer.Argument(help="Results folder of the cohort, e.g. results/demo.", callback=checked_by(require_results))
]
ConfigsArgument = Annotated[
    list[Path],
    typer.Argument(
        help="Config files of the cohort; a later one overrides an earlier one.", callback=checked_by(read_config)
    ),
]
