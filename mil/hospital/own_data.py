"""A hospital's bag table, which holds its own patients only."""

from pathlib import Path

import pandas as pd

from mil.bags.table import read_bags
from mil.errors import MilError
from mil.hospital.config import FederationSpec
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
