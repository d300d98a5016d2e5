"""`mil cohort`, `mil doctor` and `mil plan`: a published cohort, whether this machine can run it, and what that will take."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mil.commands.options import read_config
from mil.errors import MilError


def doctor(
    configs: Annotated[
        list[Path] | None,
        typer.Argument(help="Config files of a cohort: their weights are looked for, too.", show_default=False),
    ] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="The run will use Slurm: fail where it does not answer.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for support.")] = False,
) -> None:
    """Look at packages, GPU, memory, disk, Slurm, network and weights; name the command that mends what is missing."""
    from mil.workflow.doctor import examine, lines

    config = read_config(configs) if configs else None
    findings = examine(config, Path("results") if config is None else config.results_folder, slurm)
    for line in [json.dumps([vars(finding) for finding in findings], indent=1)] if as_json else lines(findings):
        typer.echo(line)
    if missing := [finding.what for finding in findings if finding.state == "missing"]:
        raise MilError(f"missing: {', '.join(missing)}; see the lines above")


def plan(
    configs: Annotated[list[Path], typer.Argument(help="Config files of a cohort.", show_default=False)],
    rates: Annotated[
        Path | None,
        typer.Option(help="What `mil bench --out` wrote on the machine that will run.", show_default="reference rates"),
    ] = None,
) -> None:
    """Estimate tiles, disk, hours and jobs of a run from the slides' headers."""
    from mil.readiness import checked_cohort
    from mil.workflow.plan import lines
    from mil.workflow.plan import plan as planned
    from mil.workflow.shards import shard_size

    config = read_config(configs)
    cohort = checked_cohort(config)
    size = shard_size(config, cohort)
    shards = {site: -(-len(cohort.at(site)) // size) for site in cohort.sites if site not in config.slides.features}
    for line in lines(planned(config, cohort, shards, rates)):
        typer.echo(line)


def cohort(
    name: Annotated[
        str | None,
        typer.Argument(help="Name of a published cohort; none: list them.", show_default=False),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder with the downloaded slides (or DICOM folders) and tables.", show_default=False),
    ] = None,
) -> None:
    """Write the sheets and the cohort file of a published cohort from what was downloaded; or say where to get it, its licence and size."""
    from mil.public_cohorts import COHORTS, build_cohort

    if name is None or folder is None:
        for known in [name] if name in COHORTS else COHORTS:
            published = COHORTS[known]
            typer.echo(
                f"{known}\n  {published.where}\n  licence (check it at the source): {published.licence}\n  size: {published.size}"
            )
        return
    paths, slides = build_cohort(name, folder)
    for path in paths:
        typer.echo(f"wrote {path}")
    typer.echo("slides: " + ", ".join(f"{site} {count}" for site, count in sorted(slides.items())))
