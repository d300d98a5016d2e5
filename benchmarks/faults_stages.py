"""Faults of whole stages, for `benchmarks/faults.py`: a small cohort of real slides, every command killed, limited, crowded, misled.

A stage's files are removed from a copy of the finished results, the stage runs with the fault, then, where it ended early, without it;
all files of the results must then be equal to the byte. REPEATS (an environment variable) repeats each trial in which a moment, a byte
or an order is drawn, or whose settings change from trial to trial.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from faults_cohort import (
    SITES,
    Stage,
    cohort,
    compared,
    digests,
    ended,
    finished,
    repaired,
    run,
    stages,
    start,
    trials,
)

from mil import hdf5
from mil.files import file_name
from mil.tables import read_table, write_table

CASES: list[tuple[str, str, tuple[str, ...], Callable[[Path], Iterator[str]]]] = []
NOBODY = 65534
random = np.random.default_rng(1)


def case(fault: str, expected: str, *allowed: str):
    """Enter a case: what is done, what must happen, and the outcomes that count as that."""

    def enter(function: Callable[[Path], Iterator[str]]) -> None:
        CASES.append((fault, expected, allowed, function))

    return enter


def interrupted(folder: Path, number: int) -> Iterator[tuple[Path, Stage, int]]:
    """Every stage, sent the signal at a random moment of its time; its exit code."""
    for name, stage, place in trials(folder):
        child = start(place, stage.arguments)
        time.sleep(0.05 + float(random.uniform(0, finished().seconds[name])))
        os.kill(child, number)
        yield place, stage, ended(child)


@case(
    "SIGKILL at a random moment of each stage, then the same command again", "the files of an undisturbed run", "equal"
)
def stage_kills(folder: Path) -> Iterator[str]:
    """One kill of each stage, times REPEATS."""
    for place, stage, _ in interrupted(folder, signal.SIGKILL):
        yield repaired(stage, place)


@case(
    "SIGTERM at a random moment of each stage, then the same command again",
    "exit code 143 (or done), then the same files",
    "equal",
)
def stage_terms(folder: Path) -> Iterator[str]:
    """One signal for each stage, times REPEATS; the outcome of another exit code quotes what the command said."""
    for place, stage, code in interrupted(folder, signal.SIGTERM):
        # a shell, and Snakemake, read a process that SIGTERM ends before or after the command itself as 143, too
        yield (
            repaired(stage, place)
            if code in {0, 143, -signal.SIGTERM}
            else f"exit {code}: {(place / 'said').read_text()}"
        )


@case("standard input and output closed, in each stage", "the same files", "equal")
def closed(folder: Path) -> Iterator[str]:
    """Each stage."""
    for _, stage, place in trials(folder, repeats=1):
        code, lines = run(place, stage.arguments, lambda: (os.close(0), os.close(1)))
        yield compared(place) if code == 0 else f"exit {code} {lines[:1]}"


@case(
    "a limit on file sizes at a random byte in each stage, as where a disk is full; then without",
    "one line, then the same files",
    "refused, then equal",
    "equal",
)
def stage_limits(folder: Path) -> Iterator[str]:
    """Each stage at a limit below its largest file."""
    for name, stage, place in trials(folder):
        source = finished().folder / "results"
        largest = max(
            path.stat().st_size
            for pattern in stage.makes
            for one in source.glob(pattern)
            for path in (one, *one.rglob("*"))
            if path.is_file()
        )
        limit = int(random.integers(0, largest))
        code, lines = run(
            place, stage.arguments, lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        )
        # what is said goes to a file, which the limit holds for as well
        if code not in {0, 1} or len(lines) > 1 or list(place.rglob("*.partial")):
            yield f"{name}: exit {code} {lines[-1:]}"
        else:
            yield ("" if code == 0 else "refused, then ") + repaired(stage, place)


@case("results that may not be written to, in each stage", "one line, nothing written", "refused")
def read_only(folder: Path) -> Iterator[str]:
    """Each stage as a user without the right to write."""

    def nobody() -> None:
        if os.getuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)

    for path in (folder, *folder.parents):
        if (
            path.owner() == "root"
            and path != Path("/")
            and os.getuid() == 0
            and str(path).startswith(tempfile.gettempdir() + "/")
        ):
            path.chmod(0o755)
    for name, stage, place in trials(folder, repeats=1):
        for path in (place / "results", *(place / "results").rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = digests(place)
        code, lines = run(place, stage.arguments, nobody)
        yield (
            "refused"
            if code == 1 and len(lines) == 1 and digests(place) == before
            else f"{name}: exit {code} {lines[-1:]}"
        )
        for path in (place / "results", *(place / "results").rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


@case("two processes of one stage in one folder at once", "the same files", "equal")
def crowded(folder: Path) -> Iterator[str]:
    """Each stage, the second process up to half a second later. Not the report: its viewer's folder is made anew, so that one of two
    reports can end with an error line; the next one is whole."""
    for name, stage, place in trials(folder, lambda stage: stage != "report"):
        first = start(place, stage.arguments)
        time.sleep(float(random.uniform(0, 0.5)))
        second = start(place, stage.arguments)
        codes = ended(first), ended(second)
        yield compared(place) if codes == (0, 0) else f"{name}: exit {codes}"


@case("results and slides that are symbolic links, in each stage", "the same files", "equal")
def linked(folder: Path) -> Iterator[str]:
    """Each stage."""
    for name, stage, place in trials(folder, repeats=1):
        (place / "elsewhere").mkdir()
        (place / "results").rename(place / "elsewhere/results")
        (place / "results").symlink_to(place / "elsewhere/results")
        for path in (place / "data").glob("*.tif"):
            path.rename(place / "elsewhere" / path.name)
            path.symlink_to(place / "elsewhere" / path.name)
        code, lines = run(place, stage.arguments)
        yield compared(place) if code == 0 else f"{name}: exit {code} {lines[-1:]}"


@case("other languages, encodings and time zones of the system", "the same files", "equal")
def locales(folder: Path) -> Iterator[str]:
    """Stages that read and write text, each in a process started anew."""
    settings = ({"LC_ALL": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati"}, {"LC_ALL": "de_DE.ISO-8859-1", "TZ": "America/St_Johns"},
                {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Asia/Kathmandu"})  # fmt: skip
    wanted = {"check", "bag", "score", "report"}
    for number, (_, stage, place) in enumerate(trials(folder, wanted.__contains__)):
        environment = os.environ | settings[number % 3] | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(
            [sys.executable, "-m", "mil.cli", *stage.arguments],
            cwd=place,
            env=environment,
            capture_output=True,
            check=False,
        )
        yield compared(place) if done.returncode == 0 else f"exit {done.returncode} {done.stderr[-200:]!r}"


@case(
    "ids with blanks, quotes, brackets, signs of the shell and letters of other scripts, through all stages",
    "the numbers of plain ids",
    "equal",
)
def odd_names(folder: Path) -> Iterator[str]:
    """One cohort twice."""
    config = cohort(folder / "odd", lambda name: f"Ü [{name}] 'a' $(x) #1 & 語%20")
    plain = finished().folder / "results/sites"
    (folder / "odd/results").mkdir()
    (folder / "odd/results/config.json").write_text(config.to_json())
    for name, stage in stages(config).items():
        code, lines = run(folder / "odd", stage.arguments)
        if code:
            yield f"{name}: exit {code} {lines[-1:]}"
            return
    for site in SITES:
        for path in sorted((plain / site / "features/colour").glob("*.h5")):
            other = file_name(f"Ü [{path.stem}] 'a' $(x) #1 & 語%20")
            found = hdf5.read(
                folder / "odd/results/sites" / site / "features/colour" / f"{other}.h5", "features", "coords"
            )
            yield "equal" if all(map(np.array_equal, found, hdf5.read(path, "features", "coords"))) else "differs"


@case(
    "a slide deleted, cut, replaced or changed by one byte before it is tiled, and before it is encoded",
    "a row with the reason, no features",
    "row",
)
def other_slides(folder: Path) -> Iterator[str]:
    """Four changes before two stages."""
    source = finished().folder
    for stage in ("tile.north", "extract.north"):
        for change in ("deleted", "cut", "replaced", "one byte"):
            for _, whole, place in trials(folder, lambda name, stage=stage: name == stage.partition(".")[0], 1):
                path = place / "data/north3.tif"
                content = path.read_bytes()
                middle = len(content) // 2
                path.unlink()
                if change == "cut":
                    path.write_bytes(content[:middle])
                elif change == "replaced":
                    shutil.copy(source / "data/south3.tif", path)
                elif change == "one byte":
                    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
                code, lines = run(place, whole.arguments)
                table = read_table(place / whole.arguments[whole.arguments.index("--out") + 1]).set_index("slide_id")
                row = table.loc["north-3-s"]
                is_row = code == 0 and row["state"] != "ok" and row["reason"] and (table["state"] == "ok").sum() == 7
                yield "row" if is_row else f"{stage}, {change}: exit {code}, {row['state']} {lines[:1]}"


@case("features of a wrong shape or type, with NaN, infinity or no tile, with a valid checksum", "one line", "refused")
def wrong_numbers(folder: Path) -> Iterator[str]:
    """Seven kinds."""
    good = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float16)
    kinds = (good[:, 0], good[None], good[:, :5], good * np.nan, good * np.inf, good[:0], good.astype(np.int32))
    for wrong in kinds:
        for _, stage, place in trials(folder, lambda name: name == "train", 1):
            path = place / "results/sites/north/features/colour/north-3-s.h5"
            about = hdf5.attributes(path)
            coords = hdf5.attributes(path, "coords")
            with hdf5.writing(path) as file:
                file.append("features", wrong)
                file.append("coords", np.zeros((len(wrong), 2), np.int64))
                file.annotate({name: value for name, value in about.items() if name != hdf5.CHECKSUM})
                file.annotate(coords, on="coords")
            manifest = read_table(path.with_name("shard0.csv")).set_index("slide_id")
            manifest.loc["north-3-s", "checksum"] = hdf5.verify(path)
            write_table(manifest.reset_index(), path.with_name("shard0.csv"))
            code, lines = run(place, stage.arguments)
            yield (
                "refused" if code == 1 and len(lines) == 1 else f"{wrong.shape} {wrong.dtype}: exit {code} {lines[-1:]}"
            )


@case("the sheets saved again and again, in another order, while they are read", "the same files", "equal")
def edited_sheets(folder: Path) -> Iterator[str]:
    """Stages that read a sheet."""
    for name, stage, place in trials(folder, {"check", "bag"}.__contains__):
        child = start(place, stage.arguments)
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            for sheet in ("slides.csv", "patients.csv") if name == "bag" else ("patients.csv",):
                header, *rows = (place / "data" / sheet).read_text().splitlines()
                random.shuffle(rows)
                (place / "data/new.csv").write_text("\n".join([header, *rows]) + "\n")
                (place / "data/new.csv").replace(place / "data" / sheet)
            time.sleep(0.01)
        yield compared(place)
