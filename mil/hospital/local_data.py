"""A hospital's own files: the bag table, which holds its own patients only, and what runs left in the workspace."""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TextIO

import pandas as pd

from mil.bags.table import read_bags
from mil.endpoints import build_endpoint
from mil.errors import CorruptFile, MilError
from mil.files import file_name, reason_of, way_out
from mil.hospital.config import FederationSpec
from mil.hospital.keys import private_folder
from mil.hospital.parties import SiteSpec
from mil.hospital.payload import Refusal
from mil.schemas import BAGS
from mil.tables import require_columns
from mil.training.cohort import covariate_table

POLL_S = 0.1


def bag_path(spec: SiteSpec, protocol: FederationSpec) -> Path:
    """The site's bag table."""
    return Path(spec.results) / "bags" / f"{protocol.experiment.endpoint}.csv"


def feature_files(spec: SiteSpec, protocol: FederationSpec, bags: pd.DataFrame) -> list[Path]:
    """Features of every slide of the bag table, whether they exist or not."""
    folder = Path(spec.results) / "sites" / spec.site / "features" / protocol.experiment.encoder
    return [folder / f"{file_name(slide)}.h5" for row in bags["slides"] for slide in str(row).split(";")]


def site_bags(path: Path, site: str, protocol: FederationSpec) -> pd.DataFrame:
    """The bag table, which may hold no other site's patient, with the roles, outcomes and covariates as the protocol has them."""
    bags = read_bags(path)
    require_columns(bags, BAGS, str(path))
    if bags.empty:
        raise MilError(f"{path}: no patient has a label, so that the site has nothing to learn from or to measure")
    foreign = bags[bags["site"] != site]
    if len(foreign):
        raise MilError(
            f"{path}: patient {foreign.iloc[0]['patient_id']} is of site {foreign.iloc[0]['site']}, not {site}; a hospital "
            "holds its own patients only (make the table from a sheet of this site alone)"
        )
    roles = set(bags["role"]) - {protocol.sites[site].role}
    if roles:
        raise MilError(f"{path}: role {roles.pop()}, but the federation has {site} as {protocol.sites[site].role}")
    build_endpoint(protocol.endpoint).targets(bags)  # an external site's are read at the end of a run only
    covariate_table(bags, protocol.experiment.covariates)
    return bags


def check_remembered(workspace: Path, ledger: Sequence[str]) -> None:
    """Raise where runs left their files and the ledger says nothing: without it, every question could be put again."""
    kinds = ("*/kept/*", "*/weights.safetensors", "*/replica.safetensors")
    left = [path for pattern in kinds for path in (workspace / "runs").glob(pattern)]
    if left and not any('"event": "answered"' in line for line in ledger):
        raise CorruptFile(
            f"{workspace / 'ledger.jsonl'}: is empty, but {left[0]} shows that questions were answered; restore it from the backup"
        )


class DiskShort(Refusal):
    """Less is free on the disk than the side's own file asks for."""

    code = "disk"


def check_room(workspace: str, free_gb: float) -> None:
    """Raise `DiskShort` where less than `free_gb` (1e9 bytes) is free on the disk of the workspace."""
    free = shutil.disk_usage(workspace).free / 1e9
    if free < free_gb:
        raise DiskShort(f"{workspace}: {free:.2f} GB free, {free_gb:g} are asked for (free_gb); make room")


class Busy(Refusal):
    """Another process holds what only one may use."""

    code = "busy"


@contextmanager
def alone(path: Path, wait_s: float, what: str) -> Iterator[int]:
    """Hold the lock file `path`, whose descriptor is given; raise `Busy` where another process still holds it after `wait_s`. It ends with its process.

    `what` only one process may do at a time, for the sentence.
    """
    private_folder(path.parent)
    deadline = time.monotonic() + wait_s
    with open(path, "a+") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise Busy(
                        f"{what}: process {_holder(handle)} does so already ({path}); wait for it, or end it"
                    ) from error
            time.sleep(POLL_S)
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield handle.fileno()


def _holder(handle: TextIO) -> str:
    handle.seek(0)
    return handle.read(20).strip() or "of another user"


def disk_short(error: Exception) -> DiskShort | None:
    """A full disk, a quota or a limit on file sizes as a refusal of ours; None for other errors."""
    if not isinstance(error, OSError) or not (ways_out := way_out(error)):
        return None
    return DiskShort(f"{error.filename or 'a file of the workspace'}: {reason_of(error)}{ways_out}")


def refusal_reason(error: Exception, spec: SiteSpec) -> str:
    """What the ledger, which others get to read, says of an error: not where the site's folders are, nor the name of a slide, which
    may be that of a patient; of a fault of the program its kind.
    """
    said = str(error) if isinstance(error, MilError) else f"an error of the program: {type(error).__name__}"
    said = said.replace(spec.workspace, "workspace").replace(spec.results, "results")
    return re.sub(r"(results/sites/.*?/)[^/]*\.h5", r"\1<slide>.h5", said)


def only_answer(spec: SiteSpec, wait_s: float) -> AbstractContextManager[int]:
    """While the site answers a question, in whatever process."""
    return alone(Path(spec.workspace) / "answering", wait_s, f"answer as site {spec.site}")
