"""From the sheet to features: `mil check`, `tile`, `contact`, `extract`, `census`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mil.commands.options import (
    LogOption,
    OutOption,
    SlidesArgument,
    checked_by,
    read_config,
    reporter_of,
    require_results,
    spec_option,
)
from mil.errors import MilError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from mil.config import SlidesSpec
    from mil.progress import Reporter


def check(
    configs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Config files of a cohort: settings, labels and weights are checked too.",
            show_default=False,
        ),
    ] = None,
    spec: Annotated[str, spec_option("SlidesSpec", what="The slide settings")] = "{}",
    site: Annotated[str | None, typer.Option(help="Only this site.", show_default="all")] = None,
    rows: Annotated[
        Path | None,
        typer.Option(help="Check only the slides of this shard, instead of the sheet's.", show_default=False),
    ] = None,
    labels: Annotated[str, typer.Option(help="Comma-separated label columns that the patient table must have.")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Slide table to write.", show_default=False)] = None,
    strict: Annotated[bool, typer.Option(help="Exit with 1 if any slide cannot be used.")] = False,
    deep: Annotated[
        Path | None,
        typer.Option(
            help="Results folder of a run: look for leaks in its folds, inputs and training instead.",
            show_default=False,
            callback=checked_by(require_results),
        ),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            help="Results folder with bags and features: look for what can be known of leaks before training.",
            show_default=False,
            callback=checked_by(require_results),
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="With --inputs: only this endpoint.", show_default="all"),
    ] = None,
    known: Annotated[
        list[Path] | None,
        typer.Option(help="With --deep: tables of --inputs, not to do their checks again.", show_default=False),
    ] = None,
    log: LogOption = None,
) -> None:
    """Open every slide of the sheet; say which can be used, and why the others cannot."""
    if deep is not None or inputs is not None or known:
        _leak_check(deep, inputs, endpoint, known or [], out, log)
    else:
        _slide_check(configs, spec, site, rows, labels, out, strict, log)


def _slide_check(
    configs: list[Path] | None,
    spec: str,
    site: str | None,
    rows: Path | None,
    labels: str,
    out: Path | None,
    strict: bool,
    log: Path | None,
) -> None:
    """Open the slides, write the slide table to `out`; an error where `strict`, or where none can be used."""
    from mil.config import SlidesSpec, read_spec
    from mil.files import SHEET_PATH, require_file

    if not configs and rows is None:
        require_file(read_spec(SlidesSpec, spec).sheet, "slide sheet", SHEET_PATH)
    reporter = reporter_of(log)
    settings, sheet = _asked(configs, spec, site, rows, labels)
    from mil.slides.check import check_slides
    from mil.tables import write_table

    kept = out.with_name(f".{out.stem}.checked.jsonl") if out is not None else None
    table = check_slides(sheet, settings, reporter, kept)
    if out is not None:
        write_table(table, out)
    bad = _report_states(table, f"check {rows or site or 'all sites'}", reporter)
    if len(lost := sheet[~sheet["listed"]]):
        patients = lost["patient_id"].unique()
        reporter.say(
            f"{len(lost)} slides are not used: {len(patients)} patients have no row in the patient table, '{patients[0]}' first"
        )
    none_usable = site is None and rows is None and len(bad) == len(table)
    if len(bad) and (strict or settings.on_bad_slide == "stop" or none_usable):
        raise MilError(_first_of(bad, len(table)))


def _asked(
    configs: list[Path] | None, spec: str, site: str | None, rows: Path | None, labels: str
) -> "tuple[SlidesSpec, pd.DataFrame]":
    """The slide settings, and the rows of the sheet that are to be checked."""
    from mil.config import SlidesSpec, read_spec
    from mil.readiness import checked_cohort
    from mil.slides.sheet import read_cohort, read_shard
    from mil.workflow.plan import check_disk

    if rows is not None and not configs:
        return read_spec(SlidesSpec, spec), read_shard(rows)
    if configs:
        config = read_config(configs)
        cohort = checked_cohort(config)
        check_disk(config, cohort)
        settings = config.slides
    else:
        settings = read_spec(SlidesSpec, spec)
        cohort = read_cohort(settings, [column for column in labels.split(",") if column])
    return settings, cohort.at(site) if site else cohort.slides


def _report_states(table: "pd.DataFrame", what: str, reporter: "Reporter") -> "pd.DataFrame":
    """Print how many slides are in each state; each slide that cannot be used goes to the log. Returns those slides."""
    counts = ", ".join(f"{number} {state}" for state, number in table["state"].value_counts().items())
    bad = table[table["state"] != "ok"]
    for row in bad.itertuples():
        reporter.note(f"slide {row.slide_id} ({row.path}): {row.state}: {row.reason}")
    reporter.say(f"{what}: {len(table)} slides: {counts}")
    return bad


def _first_of(bad: "pd.DataFrame", count: int) -> str:
    """How many of `count` slides cannot be used, and why the first cannot."""
    first = bad.iloc[0]
    return (
        f"{len(bad)} of {count} slides cannot be used; the first: slide {first['slide_id']} ({first['path']}): "
        f"{first['state']}: {first['reason']}"
    )


def _leak_check(
    deep: Path | None, inputs: Path | None, endpoint: str | None, known: list[Path], out: Path | None, log: Path | None
) -> None:
    """Print what the leak checks found; a leak is an error, unless the config says `metrics.on_leak: flag`."""
    if (deep is None) == (inputs is None) or (known and deep is None):
        raise MilError(
            "give --inputs R before training, or --deep R after it, with --known FILE where inputs were checked"
        )
    import pandas as pd

    from mil.leaks.checks import findings_table, named
    from mil.leaks.deep_check import deep_check
    from mil.leaks.inputs import input_checks
    from mil.results.results import Results
    from mil.tables import read_table, write_table

    reporter = reporter_of(log)
    opened = Results.open(str(inputs or deep))
    if endpoint is not None and endpoint not in opened.endpoints:
        raise MilError(f"endpoint '{endpoint}' is none of this run's; {nearest(endpoint, opened.endpoints)}")
    if inputs is not None:
        names = [endpoint] if endpoint is not None else list(opened.endpoints)
        findings = findings_table(finding for name in names for finding in input_checks(opened, name))
    else:
        tables = [read_table(path, text=("check", "subject", "reason")) for path in known]
        findings = deep_check(opened, reporter, pd.concat(tables) if tables else None)
    if out is not None:
        write_table(findings, out)
    for row in findings.itertuples():
        (reporter.note if row.state == "ok" else reporter.say)(f"{row.state}: {row.check}: {row.subject} {row.reason}")
    counts = ", ".join(f"{number} {state}" for state, number in findings["state"].value_counts().items())
    reporter.say(f"leak checks: {counts}")
    leaks = findings[findings["state"] == "leak"]
    if len(leaks) and opened.config.metrics.on_leak == "stop":
        number = f"{len(leaks)} leak{'s' if len(leaks) > 1 else ''}"
        raise MilError(f"{number}: {named(leaks)}; mend the cause, or go on with metrics.on_leak: flag")


def tile(
    slides: SlidesArgument,
    folder: Annotated[Path, typer.Option(help="Folder for the tile files.")],
    thumbnails: Annotated[Path, typer.Option(help="Folder for the thumbnails.")],
    out: OutOption,
    spec: Annotated[str, spec_option("TileSpec", what="The tile settings")] = "{}",
    log: LogOption = None,
) -> None:
    """Find the tissue of the slides of a shard and cover it with tiles."""
    from mil.config import TileSpec, read_spec
    from mil.tables import read_table, write_table
    from mil.tiles.shard import tile_shard

    reporter = reporter_of(log)
    manifest = tile_shard(read_table(slides), read_spec(TileSpec, spec), folder, thumbnails, reporter)
    write_table(manifest, out)


def contact(
    slides: SlidesArgument,
    tiles: Annotated[Path, typer.Option(help="Folder with the tile files and their manifests.")],
    thumbnails: Annotated[Path, typer.Option(help="Folder with the thumbnails.")],
    out: OutOption,
    log: LogOption = None,
) -> None:
    """Draw one page with the thumbnails, tissue and tiles of a site, to check by eye. Unusual slides get a frame and their name."""
    from mil.tables import read_table
    from mil.tiles.contact import write_contact_sheet

    reporter = reporter_of(log)
    for line in write_contact_sheet(read_table(slides), tiles, thumbnails, out):
        reporter.note(line)


def extract(
    slides: SlidesArgument,
    tiles: Annotated[Path, typer.Option(help="Folder with the tile files.")],
    folder: Annotated[Path, typer.Option(help="Folder for the feature files.")],
    out: OutOption,
    spec: Annotated[str, spec_option("EncoderSpec", what="The encoder's settings")] = "{}",
    weights: Annotated[
        str | None,
        typer.Option(help="File or bundle with the encoder's weights, before the spec's.", show_default=False),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Tiles per step on a GPU, before the spec's.", min=1, show_default=False),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="CPU cores to use; default: all that this job may use.", show_default=False),
    ] = None,
    profile: Annotated[bool, typer.Option(help="Print how long each step took, and not only to the log.")] = False,
    log: LogOption = None,
) -> None:
    """Compute the features of every tile of a shard's slides with a frozen encoder."""
    from mil.config import EncoderSpec, parse, read_spec
    from mil.features.shard import extract_shard
    from mil.machine import keep_memory
    from mil.tables import read_table, write_table

    keep_memory()
    reporter = reporter_of(log)
    given = {"weights": weights, "batch_size": batch_size}
    given = {key: value for key, value in given.items() if value is not None}
    encoder = parse(EncoderSpec, read_spec(EncoderSpec, spec).model_dump(mode="json") | given, "--spec")
    rows = read_table(slides)
    write_table(extract_shard(rows, tiles, encoder, folder, reporter, threads, profile=profile), out)


def census(
    slides: SlidesArgument,
    manifests: Annotated[
        list[Path], typer.Argument(help="Manifests of the stages, in their order; a stage is named by its folder.")
    ],
    out: OutOption,
) -> None:
    """Write the state and counts of every slide of a site: the only slide table that leaves the site's folder."""
    import pandas as pd

    from mil.bags.census import read_manifests, take_census
    from mil.slides.check import mark_series_twice
    from mil.tables import read_table, write_table

    stages: dict[str, list[Path]] = {}
    for path in manifests:
        stages.setdefault(path.parent.name, []).append(path)
    rows = read_table(slides).to_dict("records")
    mark_series_twice(rows)  # `mil check` sees those of a shard only
    table = pd.DataFrame(rows)
    write_table(take_census(table, {stage: read_manifests(paths) for stage, paths in stages.items()}), out)
