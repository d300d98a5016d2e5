"""Options that several commands share, and the reporter that a failure is told to."""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from mil.progress import Reporter

SpecOption = Annotated[
    str, typer.Option("--spec", help="The stage's settings: JSON text, or a YAML/JSON file.", show_default="defaults")
]
LogOption = Annotated[Optional[Path], typer.Option("--log", help="Write plain lines here too.", show_default=False)]  # noqa: UP045
OutOption = Annotated[Path, typer.Option("--out", help="File to write.")]

reporters: list[Reporter] = []
"""Of the commands of this process, the last one last."""


def reporter_of(log: Path | None) -> Reporter:
    """The command's reporter; `report_failure` writes to it, too."""
    reporters.append(Reporter(log))
    return reporters[-1]


def report_failure(line: str) -> None:
    """Say a failure where the command has said the rest: on standard error, and in its log."""
    if reporters:
        reporters[-1].say(line)
    else:
        print(line, file=sys.stderr)
