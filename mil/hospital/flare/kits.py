"""Certificates and start-up kits, by FLARE's distributed provisioning: private keys are made where they stay.

coordinator: `make_authority` (the certificate authority, the server's kit, the operator's kit)
site:        `request` (key and signing request)  ->  coordinator: `approve`  ->  site: `join` (its kit, hardened)
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from datetime import UTC, datetime
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mil.errors import MilError
from mil.files import write_text
from mil.hospital.certificates import days_to_end
from mil.hospital.config import FederationSpec, read_federation
from mil.hospital.flare.job import CONTROLLER, EXECUTOR
from mil.hospital.flare.wire import SPEC_FILE
from mil.hospital.keys import private_folder
from mil.hospital.parties import ServerSpec, SiteSpec, protocol_of

SERVER_KIT, OPERATOR_KIT, SITE_KIT = "kit", "operator", "kit"
REVOKED_SITES = "mil.hospital.flare.revoked.RevokedSites"
LONGEST_MEMBER = 2**20
"""Bytes of a file in a request, which has a few thousand."""
SITE_RIGHTS = {"lead": {"submit_job": "any", "abort_job": "any", "abort": "any"}}
"""What the server's operator may do at a site."""


def make_authority(spec: ServerSpec, spec_file: Path) -> str:
    """Make the certificate authority and the kits of the server and its operator; returns the authority's fingerprint."""
    protocol = read_federation(spec.federation)
    workspace = Path(spec.workspace)
    if (workspace / "authority").exists():
        raise MilError(f"{workspace}/authority is there already; certificates are made once (keep it, and its backup)")
    private_folder(workspace)
    profile = {
        "name": protocol.federation,
        "scheme": "grpc",  # goes through forward proxies; FLARE's default `http` does not
        "connection_security": "mtls",
        "server": {
            "host": protocol.server.host,
            "fed_learn_port": protocol.server.port,
            "admin_port": protocol.server.port,
        },
    }
    _write_yaml(workspace / "profile.yaml", profile)
    _flare("cert", "init", "--profile", workspace / "profile.yaml", "-o", workspace / "authority")
    _make_kits(spec, spec_file, protocol)
    return fingerprint(spec)


def renew(spec: ServerSpec, spec_file: Path) -> list[Path]:
    """New keys, certificates and kits of the server and its operator, of the same authority; where the old ones were put.

    The sites notice nothing: they hold the server to the authority and to its name.
    """
    protocol, workspace = read_federation(spec.federation), Path(spec.workspace)
    fingerprint(spec)  # the authority must be in place
    names = (protocol.server.host, spec.operator)
    places = [workspace / SERVER_KIT, workspace / OPERATOR_KIT, *(workspace / "requests" / name for name in names)]
    old = workspace / f"old-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    moved = [(folder, old / folder.relative_to(workspace)) for folder in places if folder.exists()]
    for folder, kept in moved:
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder, kept)
    try:
        _make_kits(spec, spec_file, protocol)
    except (MilError, OSError):
        for folder, kept in moved:
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(kept, folder)
        raise
    return [kept for _, kept in moved]


def days_left(spec: ServerSpec) -> dict[str, int]:
    """Days until the certificates of the server and of its operator end, by their kit; negative: ended."""
    files = {SERVER_KIT: "server.crt", OPERATOR_KIT: "client.crt"}
    certificates = {kit: Path(spec.workspace) / kit / "startup" / file for kit, file in files.items()}
    return {kit: days_to_end(path) for kit, path in certificates.items() if path.is_file()}


def _make_kits(spec: ServerSpec, spec_file: Path, protocol: FederationSpec) -> None:
    server = {
        "name": protocol.server.host,
        "type": "server",
        "org": protocol.server.organisation,
        "fed_learn_port": protocol.server.port,
        "admin_port": protocol.server.port,
        "connection_security": "mtls",
    }
    make_member(spec, protocol, server, SERVER_KIT)
    make_user(spec, spec.operator, "lead", OPERATOR_KIT)
    harden_server(Path(spec.workspace) / SERVER_KIT, spec, spec_file, protocol)


def make_user(spec: ServerSpec, name: str, role: str, kit: str) -> Path:
    """A kit for a person: role `lead` may start runs, `member` may only look."""
    protocol = read_federation(spec.federation)
    user = {"name": name, "type": "admin", "org": protocol.server.organisation, "role": role}
    return make_member(spec, protocol, user, kit)


def make_member(spec: ServerSpec, protocol: FederationSpec, participant: dict, kit: str) -> Path:
    """Request, approval and kit of a participant on the coordinator's own machine."""
    requests = Path(spec.workspace) / "requests"
    request_zip = _request(requests, protocol.federation, participant)
    signed = approve(spec, request_zip, check=False)
    return _package(signed, request_zip.parent, fingerprint(spec), Path(spec.workspace) / kit)


def fingerprint(spec: ServerSpec) -> str:
    """SHA-256 fingerprint of the certificate authority, to be told to the sites by another way than the kits."""
    path = Path(spec.workspace) / "authority" / "ca.json"
    if not path.is_file():
        raise MilError(f"{path} does not exist; run `mil server provision` first")
    return json.loads(path.read_text(encoding="utf-8"))["rootCA_fingerprint"]


def request(spec: SiteSpec) -> Path:
    """A site's key and its signing request, to be sent to the coordinator; the key stays."""
    protocol = protocol_of(spec)
    member = {"name": spec.site, "type": "client", "org": protocol.sites[spec.site].organisation}
    return _request(private_folder(spec.workspace) / "request", protocol.federation, member)


def approve(spec: ServerSpec, request_zip: Path, check: bool = True, key: str | None = None) -> Path:
    """Sign a request; a site's must be of a member of the protocol. Returns what goes back to the site.

    `key`: the fingerprint of the site's key, as the hospital read it out; needed where another key of the site was signed before.
    """
    workspace = Path(spec.workspace)
    if check:
        _check_key(workspace, _check_member(request_zip, read_federation(spec.federation)), request_zip, key)
    name = request_zip.name.removesuffix(".request.zip")
    signed = workspace / "signed" / f"{name}.signed.zip"
    signed.parent.mkdir(parents=True, exist_ok=True)
    authority = ("-c", workspace / "authority", "--profile", workspace / "profile.yaml", "--out", signed)
    _flare("cert", "approve", request_zip, *authority, "--force")
    return signed


def join(spec: SiteSpec, signed_zip: Path, authority: str, spec_file: Path) -> Path:
    """The site's kit from what the coordinator signed, once the authority's fingerprint is the one that was told."""
    kit = Path(spec.workspace) / SITE_KIT
    folder = Path(spec.workspace) / "request" / spec.site
    _package(signed_zip, folder, authority, kit)
    harden_site(kit, spec_file)
    return kit


def harden_site(kit: Path, spec_file: Path) -> None:
    """The site's side of the rules: one class, no code in jobs, no shell, no logs to the server, nothing from afar.

    FLARE's defaults stream the site's error log to the server and let the job's submitter read files and logs.
    """
    _write_rules(kit, spec_file, EXECUTOR, SITE_RIGHTS)
    resources = _defaults(kit)
    resources |= {
        "allow_log_streaming": False,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": [EXECUTOR],
    }
    resources["components"] = [part for part in resources["components"] if part["id"] != "site_log_streamer"]
    _write_json(kit / "local" / "resources.json", resources)


def is_hardened(kit: Path) -> bool:
    """Whether a site's kit still has the rules that `harden_site` gave it."""
    try:
        resources = json.loads((kit / "local" / "resources.json").read_text(encoding="utf-8"))
        rules = json.loads((kit / "local" / "authorization.json").read_text(encoding="utf-8"))["permissions"]
    except (OSError, ValueError, KeyError):
        return False
    streams = resources.get("allow_log_streaming") or any(
        part["id"] == "site_log_streamer" for part in resources["components"]
    )
    classes = (resources.get("class_allow_list"), resources.get("class_list_enforcement_mode"))
    return not streams and classes == ([EXECUTOR], "enforce") and rules == _rules(SITE_RIGHTS)


def harden_server(kit: Path, spec: ServerSpec, spec_file: Path, protocol: FederationSpec) -> None:
    """The server's side: one class, no code in jobs, no shell; its stores in the workspace, not in /tmp."""
    submitter = ("abort_job", "delete_job", "download_job")
    anybody = ("list_jobs", "get_job_meta", "check_status", "sys_info")
    lead = {"submit_job": "any", **dict.fromkeys(submitter, "n:submitter"), **dict.fromkeys(anybody, "any")}
    _write_rules(kit, spec_file, CONTROLLER, {"lead": lead, "member": dict.fromkeys(anybody, "any")})
    resources = _defaults(kit)
    resources |= {"class_list_enforcement_mode": "enforce", "class_allow_list": [CONTROLLER]}
    stores = Path(spec.workspace) / "engine"
    resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = str(stores / "snapshots")
    for part in resources["components"]:
        if part["id"] == "job_manager":
            part["args"]["uri_root"] = str(stores / "jobs")
    resources["components"] = [part for part in resources["components"] if part["id"] != "log_receiver"]
    _write_json(kit / "local" / "resources.json", resources)
    refresh_server(kit, protocol)


def heartbeat(kit: Path) -> float:
    """Seconds of silence after which the server's kit counts a site as away, as it stood when the server started."""
    path = kit / "local" / "resources.json"
    if not path.is_file():
        raise MilError(f"{kit}: holds no certificates; run `mil server provision` first")
    resources = json.loads(path.read_text(encoding="utf-8"))
    return float(resources["servers"][0]["heart_beat_timeout"])


def refresh_server(kit: Path, protocol: FederationSpec) -> None:
    """Put the protocol's `silent_s` and the check for revoked sites into the server's kit."""
    path, spec_file = kit / "local" / "resources.json", kit / "local" / SPEC_FILE
    resources = json.loads(path.read_text(encoding="utf-8"))
    resources["servers"][0]["heart_beat_timeout"] = protocol.rounds.silent_s
    args = {"own_file": json.loads(spec_file.read_text(encoding="utf-8"))["file"]}
    others = [part for part in resources["components"] if part["id"] != "revoked_sites"]
    resources["components"] = [*others, {"id": "revoked_sites", "path": REVOKED_SITES, "args": args}]
    _write_json(path, resources)


def _write_rules(kit: Path, spec_file: Path, allowed: str, permissions: dict) -> None:
    local = kit / "local"
    _write_json(local / "authorization.json", {"format_version": "1.0", "permissions": _rules(permissions)})
    _write_json(local / SPEC_FILE, {"file": str(spec_file), "class": allowed})
    logging = json.loads((local / "log_config.json.default").read_text(encoding="utf-8"))
    logging["handlers"]["consoleHandler"]["level"] = "WARNING"  # everything is in the kit's log.txt
    _write_json(local / "log_config.json", logging)


def _rules(permissions: dict) -> dict:
    """FLARE's permissions by role: what is not named is not allowed, and code in jobs never is."""
    roles = ("project_admin", "org_admin", "lead", "member")
    return {role: {**permissions[role], "byoc": "none"} if role in permissions else "none" for role in roles}


def _defaults(kit: Path) -> dict:
    return json.loads((kit / "local" / "resources.json.default").read_text(encoding="utf-8"))


def _request(folder: Path, federation: str, participant: dict) -> Path:
    definition = folder / f"{participant['name']}.yaml"
    _write_yaml(definition, {"name": federation, "participants": [participant]})
    target = folder / participant["name"]
    if (target / f"{participant['name']}.key").exists():
        raise MilError(f"{target} holds a key already; send its request again, or delete the folder to make a new key")
    return Path(_flare("cert", "request", "-p", definition, "--out", target)["request_zip"])


def _package(signed: Path, request_dir: Path, authority: str, kit: Path) -> Path:
    if not request_dir.is_dir():
        raise MilError(
            f"{request_dir} does not exist, so the private key is not here; run `mil site join` on its machine"
        )
    if kit.exists():
        raise MilError(f"{kit} is there already; delete it to make the kit again from {signed.name}")
    with tempfile.TemporaryDirectory(dir=kit.parent) as staging:
        options = ("--request-dir", request_dir, "--fingerprint", authority, "-w", staging)
        os.replace(_flare("package", signed, *options)["output_dir"], kit)
    return kit


def request_fingerprint(request_zip: Path) -> str:
    """SHA-256 of the public key that a request is about, to be compared by telephone."""
    try:
        public = x509.load_pem_x509_csr(_member(request_zip, ".csr")).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MilError(f"{request_zip}: is no signing request ({error}); it was not signed") from error
    content = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"SHA256:{hashlib.sha256(content).digest().hex(':').upper()}"


def _check_key(workspace: Path, site: str, request_zip: Path, stated: str | None) -> None:
    """Raise for another key than the hospital read out, and for a second key of a site of which nothing was read out."""
    key, known = request_fingerprint(request_zip), workspace / "signed" / f"{site}.key"
    if stated is not None and stated != key:
        raise MilError(f"{request_zip}: is about the key {key}, not {stated}; it was not signed")
    before = known.read_text(encoding="utf-8").strip() if known.exists() else key
    if before != key and stated is None:
        raise MilError(
            f"{request_zip}: another key of {site} was signed before ({before}); where the hospital made a new one, let it read out "
            "the fingerprint and give it with --key"
        )
    write_text(known, f"{key}\n")


def _check_member(request_zip: Path, protocol: FederationSpec) -> str:
    """The site of the protocol that a request is of; raise where it is of none, or of another organisation."""
    try:
        stated = json.loads(_member(request_zip, "request.json"))
        if not isinstance(stated, dict):
            raise ValueError("it states nothing")
    except (ValueError, RecursionError) as error:
        raise MilError(
            f"{request_zip}: not a site's request ({error}); it is the file that `mil site join` wrote"
        ) from error
    name, organisation = stated.get("name"), stated.get("org")
    member = protocol.sites.get(str(name))
    if member is None or member.organisation != organisation or stated.get("cert_type") != "client":
        raise MilError(
            f"{request_zip}: asks for '{name}' of '{organisation}' as {stated.get('cert_type')}, which is no site of the "
            f"federation ({', '.join(sorted(protocol.sites))}); it was not signed"
        )
    return str(name)


def _member(request_zip: Path, end: str) -> bytes:
    """The only file of a request whose name ends so; ValueError for a request that is none, however it was spoilt."""
    try:
        with zipfile.ZipFile(request_zip) as archive:
            (member,) = [file for file in archive.infolist() if file.filename.endswith(end)]
            if member.file_size > LONGEST_MEMBER:
                raise ValueError(f"{member.filename} would have {member.file_size:,} bytes")
            return archive.read(member)
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error)) from error


def _flare(*words: object) -> dict:
    """One call of FLARE's own command line; its data, or its error as ours."""
    command = [sys.executable, "-m", "nvflare.cli", "--format", "json", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            reply = json.loads(line)
            if reply.get("status") == "ok":
                return reply["data"]
            raise MilError(f"nvflare {words[0]} {words[1]}: {reply.get('message')} ({reply.get('hint', '')})")
    raise MilError(f"nvflare {words[0]}: {(done.stderr or done.stdout).strip()[-500:]}")


def _write_yaml(path: Path, content: dict) -> None:
    write_text(path, yaml.safe_dump(content, sort_keys=False))


def _write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")
