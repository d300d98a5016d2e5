"""`mil bench`: how fast this machine is at each stage."""

from pathlib import Path
from typing import Annotated

import typer

from mil.errors import MilError


def bench(
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            help="Encoder to measure, with untrained weights; may be repeated.", show_default="efficientnet_lite0"
        ),
    ] = None,
    cores: Annotated[
        int | None,
        typer.Option(help="Cores to use.", show_default="all that this job was given"),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds per measurement.")] = 2.5,
    out: Annotated[Path | None, typer.Option(help="Write the rates as JSON.", show_default=False)] = None,
) -> None:
    """Measure tiles/s of reading, decoding, encoder and extraction, and model-bags/s of training, on made data."""
    if seconds <= 0:
        raise MilError(f"--seconds {seconds:g}: give a positive number of seconds")
    from mil.bench.rates import measure, table_of
    from mil.config import EncoderSpec
    from mil.files import write_text

    names = encoder or ["efficientnet_lite0"]
    specs = [EncoderSpec(name=name, weights=None if name == "efficientnet_lite0" else "random") for name in names]
    rates = measure(specs, cores, seconds, lambda line: typer.echo(line, err=True))
    typer.echo(table_of(rates["rates"]))
    if out is not None:
        import json

        write_text(out, json.dumps(rates, indent=1) + "\n")
