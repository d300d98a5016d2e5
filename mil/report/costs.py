"""Snakemake's measurements of the jobs (`benchmarks/{rule}/*.tsv`) -> the report's table of what each stage took."""

import csv
from pathlib import Path

from mil.report.cells import Cell, ReportTable
from mil.report.tables import TABLES
from mil.results.leftovers import of_this_run
from mil.results.results import Results

STAGES = ("check", "tile", "extract", "convert", "bag", "input_check", "train", "predict", "score", "localise", "compare", "baseline", "deep_check", "figure")  # fmt: skip


@TABLES.register("costs")
def costs(results: Results) -> ReportTable:
    """Jobs, hours and memory of each stage that Snakemake measured; no rows for results that were made without it."""
    rows = []
    for stage in STAGES:
        paths = sorted((results.folder / "benchmarks" / stage).glob("*.tsv"))
        jobs = [_measured(path) for path in of_this_run(results, paths)]
        if jobs:
            seconds, cpu, memory = zip(*jobs, strict=True)
            rows.append(
                [
                    Cell(stage.replace("_", " ")),
                    Cell(f"{len(jobs):,}", len(jobs)),
                    _hours(sum(seconds)),
                    _hours(max(seconds)),
                    _hours(sum(cpu)),
                    Cell(f"{max(memory) / 1024:.1f}", max(memory)),
                ]
            )
    return ReportTable(
        "What each stage took",
        "Of the last run of each job. Hours are those of the clock, added up over jobs that may have run at the same time; time in a "
        "queue does not count.",
        ["Stage", "Jobs", "Hours, all jobs", "Hours, longest job", "CPU hours", "Memory, largest job (GiB)"],
        rows,
    )


def _measured(path: Path) -> tuple[float, float, float]:
    """Seconds of the clock, seconds of CPU and largest resident memory (MiB) of one job; 0 for what was too short to measure."""
    with open(path, newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file, delimiter="\t"))
    seconds, cpu, memory = (row[name] for name in ("s", "cpu_time", "max_rss"))
    return _number(seconds), _number(cpu), _number(memory)


def _number(text: str) -> float:
    return 0.0 if text in ("-", "NA", "") else float(text)


def _hours(seconds: float) -> Cell:
    return Cell(f"{seconds / 3600:,.2f}" if seconds >= 36 else "< 0.01", seconds)
