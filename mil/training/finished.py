"""A finished run, kept beside its files: Snakemake removes a job's output before it runs the job again, needed or not."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from mil.errors import MilError
from mil.files import replacing, write_text
from mil.training.artefact import FILES, check_run

KEPT = (*FILES, "spec.json")
"""The files of a run; the last completes it."""


@dataclass(frozen=True)
class FinishedRun:
    """Links to the files of the run in `folder`; `key` names all that it was made from."""

    folder: Path
    key: str

    @property
    def _links(self) -> Path:
        return self.folder / "finished"

    @property
    def _stated(self) -> Path:
        return self._links / "made_from.txt"

    def keep(self) -> None:
        """Link the files of the run, which is saved."""
        shutil.rmtree(self._links, ignore_errors=True)
        for name in KEPT:
            if (self.folder / name).is_file():
                _link(self.folder / name, self._links / name)
        write_text(self._stated, self.key)

    def taken(self) -> bool:
        """Whether the run that was kept is of the same key and undamaged; if so, its files are put back."""
        if not self._stated.is_file() or self._stated.read_text(encoding="utf-8") != self.key:
            return False
        try:
            check_run(self._links)
        except MilError:
            return False
        for name in ("spec.json", *(name for name in FILES if not (self._links / name).is_file())):
            (self.folder / name).unlink(missing_ok=True)
        for name in KEPT:
            if (self._links / name).is_file():
                _link(self._links / name, self.folder / name)
        return True


def _link(source: Path, target: Path) -> None:
    """`target` becomes `source` by a link where the disk has these, else by a copy; its time is now, as of any output."""
    with replacing(target) as partial:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
    os.utime(target)
