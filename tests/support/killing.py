"""Processes that are killed with SIGKILL again and again: by the clock, or at one of their own file operations."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from forks import PROCESSES
from safetensors import safe_open

KILLS = int(os.environ.get("KILLS", "4"))
"""Of every sort of run; 50 for the full measure."""
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def _counted(target: Callable, arguments: tuple, folder: Path, count, fatal: int | None) -> None:
    """Run `target` and count its file operations below `folder`; it dies before operation number `fatal`."""

    def hook(event: str, details: tuple) -> None:
        if (
            event in OPERATIONS
            and isinstance(details[0], str | os.PathLike)
            and str(details[0]).startswith(str(folder))
        ):
            count.value += 1
            if count.value == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    target(*arguments, folder)


def undisturbed(target: Callable, arguments: tuple, folder: Path) -> tuple[float, int]:
    """Run to the end: seconds and file operations."""
    began, count = time.monotonic(), PROCESSES.Value("q", 0)
    process = PROCESSES.Process(target=_counted, args=(target, arguments, folder, count, None))
    process.start()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began, count.value


def killed(
    target: Callable, arguments: tuple, place: Path, whole: tuple[float, int], kills: int = KILLS, seed: int = 0
) -> Iterator[tuple[Path, bool]]:
    """Start, kill, start again in the same folder until `kills` have met a running process; the last is left alone.

    Yields the folder after each process, and whether the process came to its end; the next one then begins anew in
    another folder. `whole` is what `undisturbed` said.
    """
    generator, met, runs = np.random.default_rng(seed), 0, 0
    finished = False
    while met < kills or not finished:
        runs += finished
        folder, doomed = place / str(runs), met < kills
        by_clock = bool(generator.integers(2))
        fatal = int(generator.integers(1, whole[1] + 1)) if doomed and not by_clock else None
        count = PROCESSES.Value("q", 0)
        process = PROCESSES.Process(target=_counted, args=(target, arguments, folder, count, fatal))
        process.start()
        if doomed and by_clock:
            process.join(generator.uniform(0, whole[0]))
            process.kill()
        process.join()
        assert process.exitcode in {0, -signal.SIGKILL}
        finished = process.exitcode == 0
        met += not finished
        yield folder, finished


def check_whole(folder: Path) -> None:
    """Every file below `folder` that has its final name can be read to its end."""
    for path in folder.rglob("*"):
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:  # checks that the file is as long as its header says
                assert list(file.keys())
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".csv":
            assert path.read_text().endswith("\n")


def hidden(folder: Path) -> list[Path]:
    """Temporary files of any writer."""
    return [path for path in folder.rglob("*") if path.name.startswith(".") or "partial" in path.name]
