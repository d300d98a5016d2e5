"""A cohort's headers -> what a run will take: tiles, bytes, hours by stage, jobs; from stated assumptions and rates."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mil.config import Config
from mil.encoders.table import resolve
from mil.errors import MilError, SlideError
from mil.slides.check import check_scale, sheet_mpp
from mil.slides.sheet import Cohort
from mil.slides.slide import open_slide
from mil.tables import read_table
from mil.tiles.grid import check_magnification

HEADERS_PER_SITE = 20  # opened, spread over the site's rows; the others are taken to be like them
TISSUE_SHARE = 0.3  # of a slide's area, where no tiles of this cohort are there to count
BYTES_PER_TILE = 40  # of a tiles file: corner, tissue share, quality flags
THUMBNAIL_BYTES = 150_000
# Measured on one H100 with 16 cores, 512 px of JPEG tiles at 40x to features at 20x: reading alone, and ViT-L with its reading.
REFERENCE = "one H100 with 16 cores"
READING_TILES_PER_S = 8000.0
VIT_L_TILES_PER_S, VIT_L_PARAMETERS = 3582.0, 304e6
CHECK_SLIDES_PER_S, TILE_SLIDES_PER_S = 5.0, 0.5  # per core


@dataclass(frozen=True)
class Stage:
    """One line of the plan."""

    stage: str
    jobs: int
    hours: float
    device: str
    gigabytes: float


@dataclass(frozen=True)
class RunPlan:
    """What a run will take."""

    slides: int
    refused: int
    """Slides that `mil check` refused before, or will refuse for what their headers say; of headers that were not read, as many in a hundred."""
    opened: int
    tiles: float
    tissue_share: float
    stages: tuple[Stage, ...]
    free_gigabytes: float

    @property
    def gigabytes(self) -> float:
        """Disk that the results need."""
        return sum(stage.gigabytes for stage in self.stages)


def plan(
    config: Config,
    cohort: Cohort,
    shards: Mapping[str, int],
    rates: Path | None = None,
    headers: int = HEADERS_PER_SITE,
) -> RunPlan:
    """The plan of a cohort with so many shards per site; `rates`: what `mil bench --out` wrote on the machine that will run."""
    area, count, opened = _usable(config, cohort, headers)
    side_mm = config.tiles.size_px * config.tiles.mpp / 1000
    tiles = area * TISSUE_SHARE / side_mm**2
    given = len(cohort.slides[~cohort.slides["site"].isin(list(config.slides.features))])
    jobs = sum(shards.values())
    stages = [
        Stage("check", jobs, given / CHECK_SLIDES_PER_S / 3600, "one core", 0.0),
        Stage(
            "tile",
            jobs,
            count / TILE_SLIDES_PER_S / 3600,
            "one core",
            (tiles * BYTES_PER_TILE + count * THUMBNAIL_BYTES) / 1e9,
        ),
    ]
    measured = _measured(rates)
    for name in config.used_encoders if given else ():
        entry = resolve(config.encoders[name])
        modelled = min(READING_TILES_PER_S, VIT_L_TILES_PER_S * VIT_L_PARAMETERS / max(entry.parameters, 1))
        speed, device = measured.get(entry.name, (modelled, REFERENCE))
        stages.append(Stage(f"extract {name}", jobs, tiles / speed / 3600, device, tiles * entry.width * 2 / 1e9))
    stages = stages if given else []  # sites that have features: nothing is checked, tiled or extracted
    others = 4 * len(cohort.sites) + 4 * len(config.run) + 5
    stages.append(Stage("train to report", others, float("nan"), "see docs/cluster.md", 0.5))
    folder = config.results_folder
    there = next(path for path in [folder, *folder.absolute().parents] if path.is_dir())
    return RunPlan(
        len(cohort.slides),
        given - count,
        opened,
        tiles,
        TISSUE_SHARE,
        tuple(stages),
        shutil.disk_usage(there).free / 1e9,
    )


def check_disk(config: Config, cohort: Cohort) -> None:
    """Before anything is extracted: a `MilError` where the disk holds less than half of the estimated results, a line where less than all."""
    folder = config.results_folder
    if next(folder.glob("sites/*/features/*/shard*.csv"), None) is not None:
        return
    needed = plan(config, cohort, {}, headers=2)
    if needed.free_gigabytes < needed.gigabytes:
        said = f"results: {folder} will take about {needed.gigabytes:,.1f} GB, and {needed.free_gigabytes:,.1f} GB are free there"
        if needed.free_gigabytes < needed.gigabytes / 2:
            raise MilError(f"{said}; free some, or name a folder on another disk (`mil plan` says what takes how much)")
        print(f"{said}; see `mil plan`", file=sys.stderr)


def lines(plan: RunPlan) -> Iterator[str]:
    """For a person."""
    refused = f", about {plan.refused:,} of them refused (`mil check` says which and why)" if plan.refused else ""
    yield (
        f"{plan.slides:,} slides{refused}; about {plan.tiles:,.0f} tiles, from the headers of {plan.opened} slides and the assumption that "
        f"{plan.tissue_share:.0%} of a slide is tissue"
    )
    yield f"{'stage':20s} {'jobs':>6s} {'hours':>9s} {'GB':>9s}  hours of"
    for stage in plan.stages:
        hours = "" if stage.hours != stage.hours else f"{stage.hours:,.2f}"
        yield f"{stage.stage:20s} {stage.jobs:6,d} {hours:>9s} {stage.gigabytes:9,.2f}  {stage.device}"
    if any(stage.device == REFERENCE for stage in plan.stages):
        yield f"hours on {REFERENCE}; for this machine: `mil bench --out rates.json`, then add `--rates rates.json`"
    enough = "enough" if plan.free_gigabytes > plan.gigabytes else "TOO LITTLE"
    yield f"disk: about {plan.gigabytes:,.1f} GB needed, {plan.free_gigabytes:,.1f} GB free: {enough}"


def _usable(config: Config, cohort: Cohort, headers: int) -> tuple[float, int, int]:
    """Area of the usable slides in mm squared, how many they are, and how many headers were read for it.

    A slide is not usable where `mil check` said so before, or where its header cannot be read or says a scale that is refused. Of
    headers that were not read, the same share is taken to be usable, with the same mean area.
    """
    area, usable, opened = 0.0, 0.0, 0
    for site in cohort.sites:
        if site in config.slides.features:
            continue
        rows = cohort.at(site)
        rows = rows[~rows["slide_id"].isin(_refused_before(config.results_folder / "sites" / site / "slides.csv"))]
        seen = rows.iloc[:: max(1, len(rows) // headers)]
        areas = [
            mm2
            for row in seen.itertuples()
            if (mm2 := _area_mm2(config, Path(str(row.path)), str(row.mpp))) is not None
        ]
        opened += len(seen)
        area += len(rows) * sum(areas) / max(1, len(seen))
        usable += len(rows) * len(areas) / max(1, len(seen))
    return area, round(usable), opened


def _area_mm2(config: Config, path: Path, mpp: str) -> float | None:
    """Area of a slide by its header; none where the check or the tiling would refuse what stands there."""
    try:
        with open_slide(path, sheet_mpp(mpp)) as slide:
            check_scale(slide, config.slides)
            check_magnification(slide, config.tiles)
            return slide.width * slide.height * (slide.mpp_x or 0.0) * (slide.mpp_y or 0.0) / 1e6
    except (SlideError, OSError):
        return None


def _refused_before(table: Path) -> list[str]:
    """Slides of a site that an earlier check refused."""
    if not table.is_file():
        return []
    rows = read_table(table)
    return rows.loc[rows["state"] != "ok", "slide_id"].astype(str).tolist()


def _measured(rates: Path | None) -> dict[str, tuple[float, str]]:
    """Tiles/s of extraction by encoder, and where they were measured."""
    if rates is None:
        return {}
    try:
        measured = json.loads(rates.read_text(encoding="utf-8"))["rates"]
        return {
            rate["encoder"]: (float(rate["rate"]), f"{rate['device']}, {rate['cores']} cores ({rates})")
            for rate in reversed(measured)  # what a user has most often comes first, and is kept
            if rate["stage"] == "extraction" and rate["encoder"]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MilError(f"--rates {rates}: is not what `mil bench --out` writes ({error}); measure again") from error
