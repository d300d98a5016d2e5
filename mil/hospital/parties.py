"""What a party's own file says (`server.yaml`, `site.yaml`), and the limits that the protocol and a site put in force."""

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field

from mil.config import parse, read_yaml
from mil.errors import MilError, nearest
from mil.hospital.config import FLOOR_CELL, FLOOR_PATIENTS, FederationSpec, Name, PayloadSpec, read_federation
from mil.spec import Spec

S = TypeVar("S", bound=Spec)


class ServerSpec(Spec):
    """The coordinator's own file."""

    federation: str = "federation.yaml"
    """The file of the protocol, relative to this file."""
    workspace: str = "server"
    """Folder for certificates, the engine's kit, checkpoints, ledger and results; relative to this file. Back it up."""
    operator: str = Field(default="operator@coordinator.org", pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}$")
    """Name in the certificate of the person who starts runs."""
    free_gb: float = Field(default=2.0, ge=0)
    """Disk space that must be free before every question, in GB of 1e9 bytes."""


class SiteSpec(Spec):
    """A hospital's own file. Nothing in it travels."""

    site: Name
    """Name of the hospital, as under `sites` in federation.yaml."""
    federation: str = "federation.yaml"
    """The hospital's own copy of the protocol, relative to this file."""
    results: str = Field(min_length=1)
    """Folder of the site's results: `sites/<site>/features/<encoder>/*.h5` and `bags/<endpoint>.csv`."""
    workspace: str = "site"
    """Folder for the private key, the engine's kit and the ledger; relative to this file."""
    runs: tuple[Name, ...] | None = None
    """Names of the runs that the hospital has agreed to; another is refused, but for its canary. None: any."""
    max_mb_a_round: float | None = Field(default=None, gt=0)
    """Largest message either way, in MB of 1e6 bytes; the smaller of this and the protocol's is in force."""
    min_patients: int | None = Field(default=None, ge=FLOOR_PATIENTS)
    """Fewest patients from whom an update is made; the larger of this and the protocol's is in force."""
    small_cells: int | None = Field(default=None, ge=FLOOR_CELL)
    """Counts below this never leave; the larger of this and the protocol's is in force."""
    max_update: float | None = Field(default=None, gt=0)
    """Longest update of a model (L2 norm of its change in a round); the smaller of this and the protocol's is in force."""
    epsilon: float | None = Field(default=None, gt=0)
    """Budget of every patient of this site over all runs; the protocol's, if not given."""
    free_gb: float = Field(default=2.0, ge=0)
    """Disk space that must be free before joining and before every answer, in GB of 1e9 bytes."""
    threads: int = Field(default=1, ge=1, le=1024)
    """Threads of the arithmetic. Results are equal bit for bit only between equal numbers of threads."""
    device: Literal["cpu", "auto"] = "cpu"
    """`auto`: train on this site's GPU where there is one, in fp32 without TF32; rounds with noise for privacy stay on the CPU. The site's
    updates then differ from the CPU's by rounding: weights by less than 1e-5 after some steps of SGD, single weights by up to the learning
    rate per step with Adam, which takes the sign of rounding errors. All sites still compute the same global model from their sums."""


def read_party(spec: type[S], path: str | Path) -> S:
    """A side's own YAML file, its relative paths resolved from where the file lies."""
    path = Path(path).resolve()
    party = parse(spec, read_yaml(path), str(path))
    places = {
        key: _absolute(value, key, path)
        for key in ("federation", "workspace", "results")
        if (value := getattr(party, key, None)) is not None
    }
    return party.model_copy(update=places)


def _absolute(value: str, key: str, file: Path) -> str:
    """An absolute path; `value` is relative to where `file` lies."""
    try:
        return str((file.parent / Path(value).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError) as error:  # no such user after ~; a zero byte
        raise MilError(f"{file}: {key}: {value[:80]!r} is no path ({error})") from error


def protocol_of(spec: SiteSpec) -> FederationSpec:
    """The site's copy of the protocol, with the site in it, and the stricter of both limits in force."""
    protocol = read_federation(spec.federation)
    if spec.site not in protocol.sites:
        raise MilError(f"{spec.federation}: site '{spec.site}' is not a member; {nearest(spec.site, protocol.sites)}")
    return protocol


def limits(protocol: FederationSpec, site: SiteSpec) -> PayloadSpec:
    """The stricter of the protocol's and the site's limits."""
    common = protocol.payload
    return PayloadSpec(
        max_mb_a_round=min(common.max_mb_a_round, site.max_mb_a_round or common.max_mb_a_round),
        min_patients=max(common.min_patients, site.min_patients or 0),
        small_cells=max(common.small_cells, site.small_cells or 0),
        max_update=min((limit for limit in (common.max_update, site.max_update) if limit is not None), default=None),
    )
