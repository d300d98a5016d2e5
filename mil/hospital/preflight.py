"""Before a hospital joins: everything that can be known to go wrong, looked at where the data are. Nothing is sent.

Each check is one sentence that is good, worth a thought, or a fault with the way out.
"""

import shutil
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from mil import hdf5
from mil.errors import MilError
from mil.hospital.certificates import MINUTE, days_to_end, named, out_of_date, private, signed
from mil.hospital.config import FLOOR_STEPS, FederationSpec
from mil.hospital.differencing import check_columns
from mil.hospital.flare.kits import SITE_KIT, is_hardened
from mil.hospital.forms import slots
from mil.hospital.identity import code_sha256
from mil.hospital.local_data import bag_path, feature_files, site_bags
from mil.hospital.parties import SiteSpec, limits, protocol_of
from mil.hospital.record import read_record, torn_line
from mil.hospital.revocation import revoked_of, revoked_sites
from mil.hospital.shared_files import Kept
from mil.hospital.shared_patients import site_ids, still_shared, uncompared
from mil.provenance import require_slide, shared_recipe

SOON_DAYS = 30
HANDSHAKE_S = 5.0
TILED = {"tile_mpp", "size_px"}
"""What a features file states of its tiles; the rest is of the encoder."""
OUT_OF_DATE = {9, 10}  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED
OTHER_NAME = {62, 64}  # X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH


@dataclass(frozen=True)
class CheckedItem:
    """What a check found: `ok`, `warning` or `fault`."""

    check: str
    state: str
    sentence: str


def check_site(spec: SiteSpec) -> list[CheckedItem]:
    """All checks."""
    try:
        protocol = protocol_of(spec)
    except MilError as error:
        return [CheckedItem("protocol", "fault", str(error))]
    digest = f"protocol {protocol.sha256[:16]}, code {code_sha256()}: both must be equal at all parties"
    findings = [CheckedItem("protocol", "ok", digest), *check_revoked(spec, protocol)]
    if protocol.code_sha256 not in {None, code_sha256()}:
        wrong = (
            f"the protocol asks for code {protocol.code_sha256}, this is {code_sha256()}; install the stated version"
        )
        findings.append(CheckedItem("code", "fault", wrong))
    bags = _table(spec, protocol)
    if isinstance(bags, CheckedItem):
        findings.append(bags)
    else:
        findings += check_patients(spec, protocol, bags)
        findings += check_features(spec, protocol, bags)
        findings += check_duplicates(spec, protocol, bags)
    findings += [
        check_disk(spec),
        *check_secrets(spec),
        *check_kit(spec),
        check_connection(spec, protocol),
        check_ledger(spec),
    ]
    return findings


def _table(spec: SiteSpec, protocol: FederationSpec) -> pd.DataFrame | CheckedItem:
    try:
        bags = site_bags(bag_path(spec, protocol), spec.site, protocol)
        check_columns(bags, protocol.experiment.covariates, limits(protocol, spec).small_cells)
        return bags
    except MilError as error:
        return CheckedItem("bags", "fault", str(error))


def check_patients(spec: SiteSpec, protocol: FederationSpec, bags: pd.DataFrame) -> list[CheckedItem]:
    """Labels, folds, classes a fold, and the fewest patients that a model would learn from."""
    where = bag_path(spec, protocol)
    member = protocol.sites[spec.site]
    if member.role == "external":
        return [CheckedItem("bags", "ok", f"{len(bags)} patients, role external: they are only judged")]
    from mil.endpoints import build_endpoint
    from mil.training.cohort import TrainingCohort
    from mil.training.plans import reach

    endpoint = build_endpoint(protocol.endpoint)
    try:
        cohort = TrainingCohort.of(bags, protocol.endpoint, endpoint, protocol.experiment.covariates)
    except MilError as error:
        return [CheckedItem("bags", "fault", str(error))]
    least, findings = limits(protocol, spec).min_patients, []
    fewest, briefest, classes = len(bags), FLOOR_STEPS, 0
    for slot in slots(protocol, "inner" if protocol.privacy is None else "refit"):
        seen = cohort.outer_train([spec.site], slot.repeat, slot.fold)
        patients = seen if slot.inner is None else seen[cohort.inner[seen, slot.repeat, slot.fold] != slot.inner]
        if protocol.privacy is None:
            steps, seen = reach(protocol.experiment.training, len(patients))
            fewest, briefest = min(fewest, seen), min(briefest, steps)
        fewest = min(fewest, len(patients))
        if endpoint.classes > 1 and len({int(label) for label in cohort.targets[patients, 0]}) < endpoint.classes:
            classes += 1
    if fewest < least:
        findings.append(
            CheckedItem(
                "bags",
                "fault",
                f"{where}: a model would learn from {fewest} patients, fewer than {least}; use fewer folds",
            )
        )
    elif briefest < FLOOR_STEPS:
        findings.append(
            CheckedItem(
                "bags",
                "fault",
                f"{where}: a round would be one step of {fewest} patients, which is their gradient; use smaller batches or more "
                "local work",
            )
        )
    if classes:
        findings.append(
            CheckedItem("classes", "warning", f"{where}: {classes} models would learn from patients of one class only")
        )
    return findings or [CheckedItem("bags", "ok", f"{len(bags)} patients; no model learns from fewer than {fewest}")]


def check_features(spec: SiteSpec, protocol: FederationSpec, bags: pd.DataFrame) -> list[CheckedItem]:
    """Every slide's file is there, is whole, and says of its encoder what the protocol says."""
    paths = feature_files(spec, protocol, bags)
    stated = {key: value for key, value in protocol.features.model_dump().items() if value is not None}
    first: dict[str, object] | None = None
    try:
        for path in paths:
            attributes = hdf5.attributes(path)
            require_slide(path, unquote(path.stem), attributes)
            recipe = shared_recipe(attributes)
            for key, value in {**(first or {}), **stated}.items():
                if recipe.get(key) != value:
                    again = "tile and extract" if key in TILED else "extract"
                    raise MilError(
                        f"{path}: {key} is {recipe.get(key)!r}, not {value!r}; {again} the slide again as the protocol states"
                    )
            first = first or recipe
    except MilError as error:
        return [CheckedItem("features", "fault", str(error))]
    encoder = (first or {}).get("encoder")
    return [CheckedItem("features", "ok", f"{len(paths)} slides of {len(bags)} patients, encoder {encoder}")]


def check_duplicates(spec: SiteSpec, protocol: FederationSpec, bags: pd.DataFrame) -> list[CheckedItem]:
    """Patients and slides of this site that another site has too, as far as the sites compared them (`mil site shared`)."""
    findings, lacking = [], []
    try:
        ids = site_ids(spec, protocol, bags)
        for other in sorted(set(protocol.sites) - {spec.site}):
            comparison = Kept.read(spec, other).comparison
            if comparison is None or comparison.protocol != protocol.sha256 or uncompared(comparison, ids):
                lacking.append(other)
            shared = [] if comparison is None else still_shared(comparison, ids)
            findings += [
                CheckedItem(
                    "duplicates",
                    "fault",
                    f"{duplicate} is at {other} too; agree which site keeps it, then both compare again (`mil site shared --again`)",
                )
                for duplicate in shared
            ]
    except MilError as error:
        return [CheckedItem("duplicates", "fault", str(error))]
    if lacking:
        said = (
            f"not compared with {', '.join(lacking)}, or not with all of today's patients; `mil site shared site.yaml`"
        )
        findings.append(CheckedItem("duplicates", "warning", said))
    return findings or [CheckedItem("duplicates", "ok", "no patient and no slide is shared with another site")]


def check_disk(spec: SiteSpec) -> CheckedItem:
    """Room for models, ledger and logs."""
    path = next(folder for folder in (Path(spec.workspace), *Path(spec.workspace).parents) if folder.exists())
    if not path.is_dir():
        return CheckedItem("disk", "fault", f"{path}: is a file; workspace names a folder")
    free = shutil.disk_usage(path).free / 1e9
    if free < spec.free_gb:
        return CheckedItem("disk", "fault", f"{path}: {free:.1f} GB free, {spec.free_gb:g} are asked for; make room")
    return CheckedItem("disk", "ok", f"{free:.0f} GB free")


def check_revoked(spec: SiteSpec, protocol: FederationSpec) -> list[CheckedItem]:
    """Sites of the protocol that are on the authority's list, as the server sent it last."""
    try:
        revoked = revoked_of(revoked_sites(Path(spec.workspace)), protocol)
    except MilError as error:
        return [CheckedItem("revoked", "fault", str(error))]
    lines = {
        site: f"site {site} was revoked on {since}; with new keys it may join again" for site, since in revoked.items()
    }
    return [CheckedItem("revoked", "fault" if site == spec.site else "warning", said) for site, said in lines.items()]


def check_secrets(spec: SiteSpec) -> list[CheckedItem]:
    """Nobody but their owner may read the site's keys, nor the folder that they lie in."""
    files = [path for name in ("party.key", "secret", "request/*/*.key") for path in Path(spec.workspace).glob(name)]
    said = [f"{path}: {wrong}" for path in files if path.is_file() and (wrong := private(path)) is not None]
    folder = Path(spec.workspace)
    shown = private(folder) if folder.is_dir() else None
    return [CheckedItem("keys", "fault", sentence) for sentence in said] + (
        [] if shown is None else [CheckedItem("workspace", "warning", f"{folder}: {shown}")]
    )


def check_kit(spec: SiteSpec) -> list[CheckedItem]:
    """The certificate is the site's, of the federation's authority, in date, with its own key; the kit's rules are in force."""
    kit = Path(spec.workspace) / SITE_KIT
    if not kit.exists():
        return [CheckedItem("certificate", "warning", "no kit yet; `mil site join` makes it")]
    startup = kit / "startup"
    try:
        leaf = x509.load_pem_x509_certificate((startup / "client.crt").read_bytes())
        root = x509.load_pem_x509_certificate((startup / "rootCA.pem").read_bytes())
        key = load_pem_private_key((startup / "client.key").read_bytes(), password=None)
    except (OSError, ValueError) as error:
        return [CheckedItem("certificate", "fault", f"{startup}: {error}; make the kit again with `mil site join`")]
    checks: list[Callable[[], str | None]] = [
        lambda: named(leaf, spec.site),
        lambda: signed(leaf, root),
        lambda: None if key.public_key() == leaf.public_key() else "the key is not the certificate's",
        lambda: private(startup / "client.key"),
        lambda: None if is_hardened(kit) else "the kit's own rules were changed",
    ]
    faults = [f"{said}; make the kit again with `mil site join`" for check in checks if (said := check()) is not None]
    faults += [said] if (said := out_of_date(leaf)) is not None else []
    if faults:
        return [CheckedItem("certificate", "fault", f"{startup}: {said}") for said in faults]
    days = days_to_end(startup / "client.crt")
    said = f"of {spec.site}, valid for {days} more days"
    return [CheckedItem("certificate", "warning" if days < SOON_DAYS else "ok", said)]


def check_connection(spec: SiteSpec, protocol: FederationSpec) -> CheckedItem:
    """A mutual-TLS handshake with the server, as FLARE will make it; no message is sent."""
    startup = Path(spec.workspace) / SITE_KIT / "startup"
    address = f"{protocol.server.host}:{protocol.server.port}"
    if not startup.exists():
        return CheckedItem("connection", "warning", "not tried without a kit")
    try:
        context = ssl.create_default_context(cafile=str(startup / "rootCA.pem"))
        context.load_cert_chain(str(startup / "client.crt"), str(startup / "client.key"))
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection((protocol.server.host, protocol.server.port), HANDSHAKE_S) as plain,
            context.wrap_socket(plain, server_hostname=protocol.server.host) as secure,
        ):
            secure.settimeout(HANDSHAKE_S)
            greeted = secure.recv(1)  # a server that refuses our certificate says so only now, or hangs up
    except ssl.SSLCertVerificationError as error:
        why = "the server and this kit are not of the same authority"
        if error.verify_code in OUT_OF_DATE:
            now = f"{datetime.now(UTC):{MINUTE}}"
            why = f"this machine's clock says {now}; set the clock, or tell the coordinator where it is right"
        if error.verify_code in OTHER_NAME:
            why = "server.host in federation.yaml must be the name that the coordinator had when the certificates were made"
        return CheckedItem("connection", "fault", f"{address}: the server's certificate: {error.verify_message}; {why}")
    except ssl.SSLError as error:
        why = "the server and this kit are not of the same authority"
        if error.reason == "WRONG_VERSION_NUMBER":
            why = "no TLS is spoken there; is server.port in federation.yaml the server's, or is a proxy between?"
        return CheckedItem("connection", "fault", f"{address}: {error.reason or error}; {why}")
    except OSError as error:
        said = f"{address} cannot be reached ({error}); is the server running, and may this machine open connections to it?"
        return CheckedItem("connection", "warning", said)
    if not greeted:
        said = f"{address} hung up: it does not know this site's certificate, or the certificate has ended by its clock"
        return CheckedItem("connection", "fault", said)
    return CheckedItem("connection", "ok", f"{address} knows this site's certificate")


def check_ledger(spec: SiteSpec) -> CheckedItem:
    """The site's own record is whole."""
    path = Path(spec.workspace) / "ledger.jsonl"
    if not path.exists():
        return CheckedItem("ledger", "ok", "begins with the first question")
    try:
        if unfinished := torn_line(path):
            said = f"{path}: the last line is unfinished ({unfinished} bytes), as after a full disk; the next start mends it"
            return CheckedItem("ledger", "warning", said)
        return CheckedItem("ledger", "ok", f"{len(read_record(path, spec.site))} lines, unbroken")
    except MilError as error:
        return CheckedItem("ledger", "fault", f"{error}; find out why before joining")
