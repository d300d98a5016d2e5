"""Every file of a results folder, read to its last byte: which are as they were written, which are not, and away with those."""

import time
from pathlib import Path

import pandas as pd

from mil import hdf5
from mil.errors import CorruptFile, MilError
from mil.files import file_name
from mil.progress import Reporter
from mil.provenance import listed_in
from mil.schemas import VALIDATION

SET_ASIDE = "set_aside"


def validate(folder: str | Path, reporter: Reporter, repair: bool = False) -> pd.DataFrame:
    """A row of `VALIDATION` for every HDF5 file below `folder`, and every manifest that cannot be read, in the order of their paths.

    States: ok; broken (unreadable, or its checksum does not hold); replaced (whole, but not the file that its manifest
    means); missing (in a manifest, but not there); leftover (of a job that was killed). With `repair`, broken, replaced
    and leftover files are moved to `folder/set_aside`, so that the next run makes them anew.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MilError(f"{folder} is not a folder; give the one that holds the files to validate")
    expected, rows = _expected(folder)
    paths = _below(folder, "*.h5")
    with reporter.steps("validate", len(paths), "files") as steps:
        for path in paths:
            state, reason = _state_of(path, expected.get(path))
            size = path.stat().st_size if path.exists() else 0  # a link to nowhere has none
            rows.append((path, state, reason, size))
            steps.done(MB=size >> 20)
    rows += [
        (path, "leftover", "of a job that was killed", path.stat().st_size) for path in _below(folder, ".*.partial")
    ]
    rows += [(path, "missing", "a manifest lists it", 0) for path in sorted(set(expected) - set(paths))]
    for path, state, reason, _ in rows:
        if state != "ok":
            reporter.note(f"{path}: {state}: {reason}")
            if repair and state != "missing":
                reporter.note(f"moved to {_set_aside(path, folder)}")
    table = pd.DataFrame(sorted(rows), columns=list(VALIDATION))
    return table.assign(path=[str(path.relative_to(folder)) for path in table["path"]])


def _expected(folder: Path) -> tuple[dict[Path, str], list[tuple[Path, str, str, int]]]:
    """Checksum of every file that a manifest (`shard*.csv`) lists as done, and a row for each manifest that cannot be read."""
    checksums, broken = {}, []
    for manifest in _below(folder, "shard*.csv"):
        try:
            for slide_id, checksum in listed_in(manifest):
                checksums[manifest.parent / f"{file_name(slide_id)}.h5"] = checksum
        except MilError as error:
            size = manifest.stat().st_size if manifest.exists() else 0
            broken.append((manifest, "broken", str(error).removeprefix(f"{manifest}: "), size))
    return checksums, broken


def _below(folder: Path, pattern: str) -> list[Path]:
    """Files below the folder, but for those that were set aside."""
    return [path for path in sorted(folder.rglob(pattern)) if SET_ASIDE not in path.relative_to(folder).parts]


def _state_of(path: Path, expected: str | None) -> tuple[str, str]:
    try:
        checksum = hdf5.verify(path)
    except CorruptFile as error:
        return "broken", str(error).removeprefix(f"{path}: ")
    if expected is not None and expected != checksum:
        return "replaced", f"its checksum {checksum[:12]} is not the manifest's {expected[:12]}; run the step again"
    return "ok", ""


def _set_aside(path: Path, folder: Path) -> Path:
    """Move a file out of the way, its place below the folder kept in its new path."""
    target = folder / SET_ASIDE / time.strftime("%Y%m%d-%H%M%S") / path.relative_to(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)
    return target
