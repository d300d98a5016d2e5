"""Files that were deleted or moved aside -> what has Snakemake make them again.

Snakemake does not make a missing file again that nothing asks for whose own results are there. `shards/again/{stage}.{number}` of a site,
or `inputs/again/predict.{experiment}`, becomes one more input of the job that makes it.
"""

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mil.files import file_name, write_text
from mil.workflow.shards import read_rows

ATTENTION = "manifest.csv"  # lists the slides with attention, in each of its folders


def order_again(
    results: Path, shards: Mapping[str, list[int]], encoders: Sequence[str], experiments: Iterable[str]
) -> None:
    """Order every slide table, manifest and prediction again that is missing, or lists a file that is."""
    for site, numbers in shards.items():
        folder, census = results / "sites" / site, results / f"census/{site}.csv"
        orders = folder / "shards/again"
        tables = _names(folder / "slides")
        for number in numbers:
            if f"{number}.csv" not in tables:
                _order(orders / f"slides.{number}", census)
        if not (folder / "slides.csv").is_file():
            _order(orders / "table.0", census)
        for stage in ("tiles", *(f"features/{encoder}" for encoder in encoders)):
            there = _names(folder / stage)
            pictures = _names(folder / "thumbnails") if stage == "tiles" else None
            for number in numbers:
                manifest, order = folder / stage / f"shard{number}.csv", orders / f"{stage.replace('/', '.')}.{number}"
                if manifest.name not in there:
                    _order(order, census)
                elif gone := _gone(manifest, stage, there, pictures):
                    manifest.unlink()
                    _say(manifest, gone)
                    write_text(order, f"{time.time_ns()}\n")
    for experiment in experiments:
        _order_attention(results, shards, experiment)


def _order(order: Path, later: Path) -> None:
    """Write the order, unless the file that comes after is still to be made, or the order stands already."""
    if later.is_file() and not (order.is_file() and order.stat().st_mtime_ns > later.stat().st_mtime_ns):
        write_text(order, f"{time.time_ns()}\n")


def _order_attention(results: Path, sites: Iterable[str], experiment: str) -> None:
    for site in sites:
        folder = results / "sites" / site / "attention" / experiment
        manifest = folder / ATTENTION
        there = _names(folder)
        listed = [f"{file_name(row['slide_id'])}.h5" for row in read_rows(manifest)] if manifest.is_file() else []
        gone = [name for name in listed if name not in there]
        if gone:
            _say(manifest, gone)
        if gone or not folder.is_dir():
            _order(results / f"inputs/again/predict.{experiment}", results / f"predictions/{experiment}.csv")


def _gone(manifest: Path, stage: str, there: set[str], pictures: set[str] | None) -> list[str]:
    """Files that the manifest lists and that are not there."""
    done = [file_name(row["slide_id"]) for row in read_rows(manifest) if row.get("checksum")]
    gone = [f"{stage}/{name}.h5" for name in done if f"{name}.h5" not in there]
    return gone + [f"thumbnails/{name}.jpg" for name in done if pictures is not None and f"{name}.jpg" not in pictures]


def _say(manifest: Path, gone: Sequence[str]) -> None:
    print(f"{manifest} lists {len(gone)} files that are not there ({gone[0]}); they are made again", file=sys.stderr)


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
