"""A hospital's own files: the bag table, which holds its own patients only, and what runs left in the workspace."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mil.bags.table import read_bags
from mil.errors import CorruptFile, MilError
from mil.hospital.config import FederationSpec
from mil.hospital.parties import SiteSpec
from mil.hospital.payload import Refusal
from mil.schemas import BAGS
from mil.tables import require_columns


def own_bags(path: Path, site: str, protocol: FederationSpec) -> pd.DataFrame:
    """The bag table, which may hold no other site's patient, with the roles as the protocol has them."""
    bags = read_bags(path)
    require_columns(bags, BAGS, str(path))
    foreign = bags[bags["site"] != site]
    if len(foreign):
        raise MilError(
            f"{path}: patient {foreign.iloc[0]['patient_id']} is of site {foreign.iloc[0]['site']}, not {site}; a hospital "
            "holds its own patients only (make the table from a sheet of this site alone)"
        )
    roles = set(bags["role"]) - {protocol.sites[site].role}
    if roles:
        raise MilError(f"{path}: role {roles.pop()}, but the federation has {site} as {protocol.sites[site].role}")
    return bags


def check_remembered(workspace: Path, ledger: Sequence[str]) -> None:
    """Raise where runs left their files and the ledger says nothing: without it, every question could be put again."""
    left = [path for pattern in ("*/kept/*", "*/weights.safetensors") for path in (workspace / "runs").glob(pattern)]
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


def without_paths(text: str, spec: SiteSpec) -> str:
    """A sentence for the ledger, which others get to read: where the site's folders are is not their affair."""
    return text.replace(spec.workspace, "workspace").replace(spec.results, "results")
