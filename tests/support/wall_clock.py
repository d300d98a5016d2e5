"""A wall clock that is wrong, for a process and its children: C, preloaded, since the libraries below Python read it too."""

import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
COMPILER = shutil.which("cc")
HOUR = 3600


class WallClock:
    """Of processes that are started in its `environment`; `put_ahead` takes effect at once, in running ones too."""

    def __init__(self, folder: Path) -> None:
        assert COMPILER is not None
        folder.mkdir(exist_ok=True)
        self.file, library = folder / "wall_clock", folder / "wall_clock.so"
        subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, SOURCE], check=True)
        self.file.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(library), "WALL_CLOCK": str(self.file)}

    def put_ahead(self, hours: float) -> None:
        """Hours before the true time where negative."""
        put_ahead(self.file, hours)


def put_ahead(file: Path, hours: float) -> None:
    """The same, for who has the file only."""
    with open(file, "r+b") as handle:
        handle.write(struct.pack("q", round(HOUR * hours)))
