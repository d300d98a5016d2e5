"""How far a long step is: a bar on a terminal, plain lines in a log, a short line now and then elsewhere."""

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 60.0
"""Between lines of progress where there is no terminal."""


class Reporter:
    """Says what happens. `log` gets every line with its time; standard error a bar (terminal) or a line now and then."""

    def __init__(self, log: str | Path | None = None, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.log: TextIO | None = None
        self.path = log
        if log is not None:
            Path(log).parent.mkdir(parents=True, exist_ok=True)
            self.log = open(log, "w", encoding="utf-8", buffering=1)  # noqa: SIM115  open as long as the step

    def say(self, line: str) -> None:
        """One line to the log and to standard error."""
        self._to_log(line)
        print(line, file=self.stream, flush=True)

    def note(self, line: str) -> None:
        """One line to the log only; to standard error when there is no log."""
        if self.log is None:
            print(line, file=self.stream, flush=True)
        self._to_log(line)

    @contextmanager
    def steps(self, what: str, total: int, unit: str) -> Iterator["Steps"]:
        """Count `total` steps of `unit`, e.g. `with reporter.steps("tile A", 50, "slides") as steps: steps.done(tiles=310)`."""
        steps = Steps(self, what, total, unit)
        if self.log is None and self.stream.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            with Progress(*columns, transient=True) as bar:
                steps.bar, steps.task = bar, bar.add_task(what, total=total, rate="")
                yield steps
        else:
            yield steps
        self.note(steps.line())

    def _to_log(self, line: str) -> None:
        if self.log is not None:
            print(time.strftime("%H:%M:%S"), line, file=self.log)


class Steps:
    """One counted stretch of work; `done` after each step, with what was made in it."""

    def __init__(self, reporter: Reporter, what: str, total: int, unit: str) -> None:
        self.reporter, self.what, self.total, self.unit = reporter, what, total, unit
        self.count = 0
        self.made: dict[str, int] = {}
        self.started = self.last_line = time.monotonic()
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    def done(self, **made: int) -> None:
        """One step is finished; `made` counts what came out of it, e.g. `tiles=310`."""
        self.count += 1
        for name, number in made.items():
            self.made[name] = self.made.get(name, 0) + number
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=self.count, rate=self.rate())
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self.reporter.say(self.line())

    def rate(self) -> str:
        """What is made a second."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        made = self.made or {self.unit: self.count}
        return ", ".join(f"{number / seconds:,.1f} {name}/s" for name, number in made.items())

    def line(self) -> str:
        """Where things stand, in one line."""
        seconds = time.monotonic() - self.started
        left = seconds / max(self.count, 1) * (self.total - self.count)
        tail = f"{left:,.0f} s left" if 0 < self.count < self.total else f"{seconds:,.1f} s"
        return f"{self.what}: {self.count}/{self.total} {self.unit}, {self.rate()}, {tail}"


def quiet() -> Reporter:
    """A reporter that says nothing, for tests and for use as a library."""
    return Reporter(stream=io.StringIO())
