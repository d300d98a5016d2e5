"""From the sheet to features: `mil check`, `tile`, `contact`, `extract`, `census`."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from mil.commands.options import (
    LogOption,
    OutOption,
    SlidesArgument,
    check_configs,
    checked_by,
    reporter_of,
    require_results,
    spec_option,
)
from mil.errors import MilError

ShardOption = Annotated[
    int, typer.Option("--shard", help="Index of the shard: rows SHARD * SHARD_SIZE onwards of the slide table.")
]
ShardSizeOption = Annotated[int, typer.Option("--shard-size", help="Slides per shard.")]


def check(
    configs: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Argument(
            help="Config files of a cohort: settings, labels and weights are checked too.",
            show_default=False,
            callback=checked_by(check_configs),
        ),
    ] = None,
    spec: Annotated[str, spec_option("SlidesSpec", what="The slide settings")] = "{}",
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
            callback=checked_by(require_results),
        ),
    ] = None,
    log: LogOption = None,
) -> None:
    """Open every slide of the sheet; say which can be used, and why the others cannot."""
    if deep is not None:
        _deep_check(deep, out, log)
        return
    from mil.config import SlidesSpec, read_spec
    from mil.files import SHEET_PATH, require_file

    if not configs:
        require_file(read_spec(SlidesSpec, spec).sheet, "slide sheet", SHEET_PATH)
    from mil.readiness import ready_cohort
    from mil.slides.check import check_slides
    from mil.slides.sheet import read_cohort
    from mil.tables import write_table

    reporter = reporter_of(log)
    if configs:
        config, cohort = ready_cohort(configs)
        settings = config.slides
    else:
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
    if len(bad) and (strict or settings.on_bad_slide == "stop" or (site is None and len(bad) == len(table))):
        first = bad.iloc[0]
        raise MilError(
            f"{len(bad)} of {len(table)} slides cannot be used; the first: slide {first['slide_id']} ({first['path']}): {first['state']}: {first['reason']}"
        )


def _deep_check(results: Path, out: Path | None, log: Path | None) -> None:
    """Print what the leak checks found; a leak is an error, unless the config says `metrics.on_leak: flag`."""
    from mil.leaks.deep_check import deep_check
    from mil.results.results import Results
    from mil.tables import write_table

    reporter = reporter_of(log)
    opened = Results.open(results)
    found = deep_check(opened, reporter)
    if out is not None:
        write_table(found, out)
    for row in found.itertuples():
        (reporter.note if row.state == "ok" else reporter.say)(f"{row.state}: {row.check}: {row.subject} {row.reason}")
    counts = ", ".join(f"{number} {state}" for state, number in found["state"].value_counts().items())
    reporter.say(f"leak checks: {counts}")
    leaks = found[found["state"] == "leak"]
    if len(leaks) and opened.config.metrics.on_leak == "stop":
        first = leaks.iloc[0]
        raise MilError(
            f"{len(leaks)} leaks; the first: {first['check']}: {first['subject']} {first['reason']}; mend it, or go on with "
            "metrics.on_leak: flag"
        )


def tile(
    slides: SlidesArgument,
    folder: Annotated[Path, typer.Option(help="Folder for the tile files.")],
    thumbnails: Annotated[Path, typer.Option(help="Folder for the thumbnails.")],
    out: OutOption,
    spec: Annotated[str, spec_option("TileSpec", what="The tile settings")] = "{}",
    shard: ShardOption = 0,
    shard_size: ShardSizeOption = 1_000_000,
    log: LogOption = None,
) -> None:
    """Find the tissue of the slides of a shard and cover it with tiles."""
    from mil.config import TileSpec, read_spec
    from mil.tables import write_table
    from mil.tiles import tile_shard

    reporter = reporter_of(log)
    manifest = tile_shard(_shard(slides, shard, shard_size), read_spec(TileSpec, spec), folder, thumbnails, reporter)
    write_table(manifest, out)


def contact(
    slides: SlidesArgument,
    tiles: Annotated[Path, typer.Option(help="Folder with the tile files and their manifests.")],
    thumbnails: Annotated[Path, typer.Option(help="Folder with the thumbnails.")],
    out: OutOption,
    log: LogOption = None,
) -> None:
    """Draw one page with the thumbnails, tissue and tiles of a site, to check by eye. Unusual slides get a frame and their name."""
    from mil.tiles.contact import write_contact_sheet

    reporter = reporter_of(log)
    for line in write_contact_sheet(_shard(slides, 0, 1_000_000), tiles, thumbnails, out):
        reporter.note(line)


def extract(
    slides: SlidesArgument,
    tiles: Annotated[Path, typer.Option(help="Folder with the tile files.")],
    folder: Annotated[Path, typer.Option(help="Folder for the feature files.")],
    out: OutOption,
    spec: Annotated[str, spec_option("EncoderSpec", what="The encoder's settings")] = "{}",
    weights: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="File or bundle with the encoder's weights, before the spec's.", show_default=False),
    ] = None,
    shard: ShardOption = 0,
    shard_size: ShardSizeOption = 1_000_000,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="CPU cores to use; default: all that this job may use.", show_default=False),
    ] = None,
    profile: Annotated[bool, typer.Option(help="Print how long each step took, and not only to the log.")] = False,
    log: LogOption = None,
) -> None:
    """Compute the features of every tile of a shard's slides with a frozen encoder."""
    from mil.config import EncoderSpec, read_spec
    from mil.features import extract_shard
    from mil.tables import write_table

    reporter = reporter_of(log)
    encoder = read_spec(EncoderSpec, spec)
    encoder = encoder if weights is None else encoder.model_copy(update={"weights": weights})
    rows = _shard(slides, shard, shard_size)
    write_table(extract_shard(rows, tiles, encoder, folder, reporter, threads, profile=profile), out)


def census(
    slides: SlidesArgument,
    manifests: Annotated[
        list[Path], typer.Argument(help="Manifests of the stages, in their order; a stage is named by its folder.")
    ],
    out: OutOption,
) -> None:
    """Write the state and counts of every slide of a site: the only slide table that leaves the site's folder."""
    from mil.bags.census import read_manifests, take_census
    from mil.tables import read_table, write_table

    stages: dict[str, list[Path]] = {}
    for path in manifests:
        stages.setdefault(path.parent.name, []).append(path)
    table = read_table(slides)
    write_table(take_census(table, {stage: read_manifests(paths) for stage, paths in stages.items()}), out)


def _shard(slides: Path, shard: int, shard_size: int):
    from mil.tables import read_table

    table = read_table(slides)
    return table.iloc[shard * shard_size : (shard + 1) * shard_size]
