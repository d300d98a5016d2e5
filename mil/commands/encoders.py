"""`mil encoders`: what is in the registry, and weights for machines without a network."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from mil.commands.options import reporter_of
from mil.errors import MilError

app = typer.Typer(no_args_is_help=True, help="Frozen encoders: what there is, their terms and weights.")
Folder = Annotated[Path, typer.Option("--weights", help="Folder of bundled weights.")]


@app.command("list")
def list_all() -> None:
    """Every encoder with its width, input, terms and source."""
    from mil.encoders.bundle import list_encoders

    table = list_encoders()[["name", "width", "input_px", "mpp", "gated", "pinned", "weights_licence", "source"]]
    typer.echo(table.to_string(index=False))
    typer.echo("besides these: any timm or torchvision model, and a file of your own; see `mil encoders show NAME`")


@app.command()
def show(name: Annotated[str, typer.Argument(help="An encoder, e.g. efficientnet_lite0.")]) -> None:
    """One encoder's card."""
    from mil.encoders.bundle import show_encoder

    typer.echo(show_encoder(name))


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="Encoders to bundle.")],
    weights: Folder = Path("weights"),
    endpoint: Annotated[Optional[str], typer.Option(help="Another hub.", show_default=False)] = None,  # noqa: UP045
) -> None:
    """Bundle weights into a folder, on a machine that has a network."""
    from mil.encoders.bundle import fetch as fetch_all

    fetch_all(names, weights, reporter_of(None), endpoint)


@app.command()
def check(
    names: Annotated[Optional[list[str]], typer.Argument(help="Encoders; none: all in the bundle.")] = None,  # noqa: UP045
    weights: Folder = Path("weights"),
) -> None:
    """Say of every encoder whether its weights are there and whole; exit with 1 if some are not."""
    from mil.encoders.bundle import check as check_all

    table = check_all(weights, names or ())
    typer.echo(table.to_string(index=False))
    bad = table[table["state"] != "ok"]
    if len(bad):
        raise MilError(f"{len(bad)} encoders cannot be used; the first: {bad['name'].iloc[0]}: {bad['reason'].iloc[0]}")
