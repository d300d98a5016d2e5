"""What two hospitals send each other to find shared patients, and what each keeps meanwhile: signed JSON files."""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mil.errors import CorruptFile, MilError, nearest
from mil.files import reason_of, write_bytes
from mil.hospital.config import FederationSpec
from mil.hospital.intersection import check_point
from mil.hospital.keys import HALF, is_signed
from mil.hospital.parties import SiteSpec
from mil.hospital.payload import fault_of

MOST_PATIENTS = 10_000
"""Most patients in the list of a site for which the protocol states no `patients`."""
SLIDES_PER_PATIENT = 20
"""A list may hold this many slides for each patient that it may hold."""

Hex = Annotated[str, Field(pattern=f"^[0-9a-f]{{{2 * HALF}}}$")]


class JsonFile(BaseModel):
    """Base of what is written; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SentFile(JsonFile):
    """A file from one hospital to another."""

    kind: Literal["list", "answer"]
    sender: str
    recipient: str
    protocol: Hex
    """SHA-256 of the protocol; elements are mapped to points with it."""
    lists: dict[str, Hex] = {}
    """Of an answer: SHA-256 of the two lists that it belongs to, by sender."""
    patients: tuple[Hex, ...]
    slides: tuple[Hex, ...]
    signature: str = ""

    @property
    def content(self) -> bytes:
        """What is signed."""
        return b"mil shared|" + self.model_dump_json(exclude={"signature"}).encode()

    @property
    def sha256(self) -> str:
        """SHA-256 of what is signed."""
        return hashlib.sha256(self.content).hexdigest()


class Elements(JsonFile):
    """What is compared: patients (ids without case and blanks) and slides (fingerprints of their content)."""

    patients: tuple[str, ...]
    slides: tuple[str, ...]


class Exchange(JsonFile):
    """An exchange that is not over."""

    secret: Hex
    """The number by which this site multiplies."""
    own: Elements
    """In the order of the list that was sent."""
    sent: SentFile
    received: SentFile | None = None
    """The other site's list."""
    answer: SentFile | None = None
    """What was sent for it."""


class Comparison(JsonFile):
    """The result of an exchange."""

    protocol: Hex
    received: Hex
    """SHA-256 of the other site's list."""
    own: Elements
    """All that was compared."""
    shared: Elements
    """What the other site has too."""
    code: str
    """Equal at both sites."""


class Kept(JsonFile):
    """What a site keeps of its exchanges with one other site; readable by its owner only."""

    exchange: Exchange | None = None
    comparison: Comparison | None = None

    @classmethod
    def read(cls, spec: SiteSpec, other: str) -> "Kept":
        """The file of an exchange; empty where there is none."""
        path = folder_of(spec) / f"{other}.json"
        try:
            return cls.model_validate_json(path.read_bytes()) if path.exists() else cls()
        except ValidationError as error:
            raise CorruptFile(
                f"{path}: {' '.join(fault_of(error))}; delete it and compare again (`mil site shared`)"
            ) from error

    def write(self, spec: SiteSpec, other: str) -> None:
        """Write it, in place of an earlier file."""
        write_bytes(folder_of(spec) / f"{other}.json", self.model_dump_json().encode(), private=True)


def folder_of(spec: SiteSpec) -> Path:
    """Folder of the exchanges in the site's workspace."""
    return Path(spec.workspace) / "shared"


def write_sent(spec: SiteSpec, sent: SentFile) -> Path:
    """Write a file for another site; its path."""
    path = folder_of(spec) / f"{sent.sender}-to-{sent.recipient}.{sent.kind}.json"
    write_bytes(path, sent.model_dump_json().encode())
    return path


def read_sent(path: Path, protocol: FederationSpec, site: str) -> SentFile:
    """A file from another site for `site`, once it is signed by its sender and holds what it may hold."""
    again = "ask for the file again"
    try:
        sent = SentFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise MilError(f"{path}: cannot be read ({reason_of(error)}); {again}") from error
    except ValidationError as error:
        raise MilError(f"{path}: is no file of `mil site shared` ({' '.join(fault_of(error))}); {again}") from error
    if sent.sender not in protocol.sites:
        raise MilError(f"{path}: sender '{sent.sender}' is not a member; {nearest(sent.sender, protocol.sites)}")
    key = protocol.sites[sent.sender].key
    if key is None or not is_signed(sent.content, sent.signature, key):
        raise MilError(f"{path}: is not signed with the key of {sent.sender} in federation.yaml; {again}")
    if sent.recipient != site or sent.sender == site:
        raise MilError(f"{path}: is from {sent.sender} to {sent.recipient}; this is {site}")
    if sent.protocol != protocol.sha256:
        raise MilError(
            f"{path}: is of the protocol {sent.protocol[:16]}, not {protocol.sha256[:16]}; compare federation.yaml, then both "
            f"hospitals begin again (`--again`)"
        )
    if sent.kind == "list":
        check_size(sent, protocol, str(path))
        _check_points(sent, path)
    return sent


def check_size(sent: SentFile, protocol: FederationSpec, where: str) -> None:
    """Raise for a list with more elements than the sender may have patients: each is a guess that it may test."""
    patients = protocol.sites[sent.sender].patients or MOST_PATIENTS
    for kind, most in (("patients", patients), ("slides", SLIDES_PER_PATIENT * patients)):
        if (count := len(getattr(sent, kind))) > most:
            raise MilError(
                f"{where}: {count:,} {kind} of site {sent.sender}, but at most {most:,} are compared; "
                f"sites.{sent.sender}.patients in federation.yaml states how many patients it may have"
            )


def _check_points(sent: SentFile, path: Path) -> None:
    for points in (sent.patients, sent.slides):
        if list(points) != sorted(set(points)):
            raise MilError(f"{path}: its points are not sorted, or a point occurs twice; refused")
        try:
            for point in points:
                check_point(bytes.fromhex(point))
        except ValueError as error:
            raise MilError(f"{path}: {error}; refused") from error
