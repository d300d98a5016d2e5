"""`mil encoders`: the registered encoders, and weights for machines without a network."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mil.commands.options import reporter_of
from mil.errors import MilError

app = typer.Typer(no_args_is_help=True, help="Frozen encoders: names, licences and weights.")
WIDTH = 100
"""Columns of the terminal that the list fits."""
Folder = Annotated[Path, typer.Option("--weights", help="Folder of bundled weights.")]


@app.command("list")
def list_all(
    as_json: Annotated[bool, typer.Option("--json", help="Print every property of every encoder as JSON.")] = False,
) -> None:
    """List every registered encoder: width of its vectors, input, resolution, access, licence of the weights."""
    from mil.encoders.listing import list_encoders

    rows = list_encoders()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    typer.echo(f"{'name':18s} {'width':>5s} {'input':>5s} {'mpp':>4s} {'access':6s} {'pinned':6s} weights' licence")
    for row in rows:
        typer.echo(_line(row))
    typer.echo("any timm:NAME, torchvision:NAME, torchscript:FILE or python:FILE.py:FUNCTION works too (the last two")
    typer.echo("run the code in that file: name only a file that you trust);")
    typer.echo("an empty `mpp`: several resolutions, or not trained on slides; more: `mil encoders show NAME`")


def _line(row: dict[str, Any]) -> str:
    access, pinned = "ask" if row["gated"] else "open", "yes" if row["pinned"] else "no"
    input_px = row["input_px"] or "any"
    line = f"{row['name']:18s} {row['width']:5d} {input_px:>5} {row['mpp'] or '':>4} {access:6s} {pinned:6s} {row['weights_licence']}"
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."


@app.command()
def show(name: Annotated[str, typer.Argument(help="An encoder, e.g. efficientnet_lite0.")]) -> None:
    """Show what one encoder takes and returns, its licence, and where its weights come from."""
    from mil.encoders.listing import show_encoder

    typer.echo(show_encoder(name))


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="Encoders whose weights are downloaded.")],
    weights: Folder = Path("weights"),
    endpoint: Annotated[
        str | None,
        typer.Option(help="Address of a mirror of the Hugging Face hub.", show_default=False),
    ] = None,
) -> None:
    """Download weights into a folder, on a machine that has a network."""
    _check_names(names)
    from mil.encoders.bundle import fetch as fetch_all

    fetch_all(names, weights, reporter_of(None), endpoint)


@app.command()
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Encoders; default: all in the folder."),
    ] = None,
    weights: Folder = Path("weights"),
) -> None:
    """Check that the weights of every encoder are there and unchanged; exit with 1 if some are not."""
    _check_names(names or [])
    from mil.encoders.bundle import check as check_all

    table = check_all(weights, names or ())
    typer.echo(table.to_string(index=False))
    bad = table[table["state"] != "ok"]
    if len(bad):
        raise MilError(f"{len(bad)} encoders cannot be used; the first: {bad['name'].iloc[0]}: {bad['reason'].iloc[0]}")


def _check_names(names: list[str]) -> None:
    from mil.encoders.table import ENCODERS

    for name in names:
        if ":" not in name:
            ENCODERS[name]
