"""`mil validate` and `mil convert`: feature files that can be trusted, in our layout and in others'."""

from pathlib import Path
from typing import Annotated

import typer

from mil.commands.options import LogOption, encoder_of, reporter_of
from mil.errors import MilError, nearest


def validate(
    folder: Annotated[Path, typer.Argument(help="Folder with HDF5 files, e.g. a results folder.")],
    repair: Annotated[
        bool, typer.Option(help="Move damaged files aside, so that the next run writes them again.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Table to write.", show_default=False)] = None,
    log: LogOption = None,
) -> None:
    """Read every byte of every HDF5 file; exit with 1 if a file was changed or damaged since it was written."""
    from mil.features.validate import validate as validate_all
    from mil.tables import write_table

    reporter = reporter_of(log)
    table = validate_all(folder, reporter, repair)
    if out is not None:
        write_table(table, out)
    counts = ", ".join(f"{number} {state}" for state, number in table["state"].value_counts().items())
    reporter.say(f"validate {folder}: {counts or 'no HDF5 file'}")
    bad = table[table["state"] != "ok"]
    if len(bad) and not repair:
        first = bad.iloc[0]
        raise MilError(
            f"{len(bad)} files are bad; the first: {first['path']}: {first['state']}; use --repair to move them aside"
        )


def convert(
    layout: Annotated[
        str,
        typer.Argument(
            help="Layout of the other tool: clam, trident, stamp, marugoto, histossl, slide2vec or atlaspatch."
        ),
    ],
    source: Annotated[Path, typer.Argument(help="Folder to read.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    back: Annotated[
        bool, typer.Option("--back", help="Convert the other way: from our layout to that of TRIDENT or STAMP.")
    ] = False,
    mpp: Annotated[
        float | None, typer.Option(help="Microns per level-0 pixel, if the files do not say.", show_default=False)
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Name of the encoder, if the files do not say.", show_default=False)
    ] = None,
    tile_mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel of the tiles, if the files do not say.", show_default=False)
    ] = None,
    weights_sha256: Annotated[
        str | None, typer.Option(help="SHA-256 of the encoder's weights, if you know it.", show_default=False)
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(
            help="KEY=SETTINGS of the encoder that must have made them, as under `encoders:`; others are refused.",
            show_default=False,
        ),
    ] = None,
    slides: Annotated[
        Path | None,
        typer.Option(help="Slide table of one site: convert its slides only, in its order.", show_default=False),
    ] = None,
    log: LogOption = None,
) -> None:
    """Convert features of another tool to ours, with a manifest (`shard0.csv`); or ours to those of TRIDENT or STAMP."""
    from mil.convert import LAYOUTS, LAYOUTS_BACK

    if layout not in (LAYOUTS_BACK if back else LAYOUTS):
        raise MilError(f"unknown layout '{layout}'; {nearest(layout, LAYOUTS_BACK if back else LAYOUTS)}")
    if not source.is_dir():
        raise MilError(f"{source} is not a folder; give the folder that holds the features")
    from mil.convert.convert import convert_in, convert_out
    from mil.convert.foreign import ForeignFeatures
    from mil.tables import read_table, write_table

    reporter = reporter_of(log)
    if back:
        written = convert_out(layout, source, target, reporter)
        reporter.say(f"wrote {len(written)} files below {target}")
        return
    text = ("slide_id", "patient_id", "site", "path", "state", "reason", "format", "mpp_source", "fingerprint")
    table = None if slides is None else read_table(slides, text=text)
    expected = None if expect is None else encoder_of(expect)
    features = ForeignFeatures(source, encoder, mpp, tile_mpp, weights_sha256, expected)
    write_table(convert_in(layout, features, target, reporter, table), target / "shard0.csv")


def licences() -> None:
    """Print the licence of every installed dependency and of every encoder, and where it is stated, as CSV."""
    from mil.licences import licences as list_licences
    from mil.tables import csv_text

    typer.echo(csv_text(list_licences()), nl=False)
