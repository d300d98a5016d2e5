"""Keys have a life: a revoked site is refused in one line by the server and by the other sites, certificates are renewed."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hospitals import Hospitals, edited, make_hospitals
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from typer.testing import CliRunner

from mil.cli import app
from mil.errors import CorruptFile, MilError
from mil.hospital.flare import kits
from mil.hospital.flare.revoked import RevokedSites
from mil.hospital.local_data import DiskShort
from mil.hospital.payload import header
from mil.hospital.preflight import check_site
from mil.hospital.revocation import NAME, Revoked, revoke, revoked_of, revoked_sites
from mil.hospital.server import Server
from mil.hospital.site import Site

pytestmark = pytest.mark.slow


def authority_of(folder: Path) -> None:
    """A certificate authority as the engine makes one."""
    key = rsa.generate_private_key(65537, 2048)
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")]), datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=9))
    folder.mkdir(parents=True)
    (folder / "rootCA.pem").write_bytes(builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
    (folder / "rootCA.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    )


@pytest.fixture
def hospitals(tmp_path: Path) -> Hospitals:
    torch.set_num_threads(1)
    found = make_hospitals(tmp_path)
    authority = Path(found.server.workspace) / "authority"
    authority_of(authority)
    for workspace in [found.server.workspace, *(found.site(name).workspace for name in "ABC")]:
        (Path(workspace) / "kit" / "startup").mkdir(parents=True)
        shutil.copy(authority / "rootCA.pem", Path(workspace) / "kit" / "startup")
    return found


def question(hospitals: Hospitals, folder: Path, sent: bytes) -> bytes:
    return Server(hospitals.protocol, folder.name, folder, revoked=sent).question()


def test_a_revoked_site_is_refused_by_itself_and_by_the_others(hospitals: Hospitals, tmp_path: Path) -> None:
    sites = {name: Site.open(hospitals.site(name)) for name in "ABC"}
    server = Server(hospitals.protocol, "before", tmp_path / "before")
    server.receive({name: sites[name].answer(server.question()) for name in "ABC"}, {})
    moments = server.question()
    assert sites["A"].answer(moments)
    sent = revoke(hospitals.server, "B").read_bytes()
    join = question(hospitals, tmp_path / "after", sent)
    with pytest.raises(Revoked, match="site B was revoked on 20"):
        sites["B"].answer(join)
    assert sites["A"].answer(join)
    for site in (sites["A"], Site.open(hospitals.site("A"))):  # it keeps the list
        with pytest.raises(Revoked, match="site B was revoked on 20"):
            site.answer(moments)
    assert json.loads(sites["A"].ledger.lines[-1])["event"] == "refused"
    faults = {site: [one for one in check_site(hospitals.site(site)) if one.check == "revoked"] for site in "AB"}
    assert [one.state for one in faults["A"]] == ["warning"]
    assert [one.state for one in faults["B"]] == ["fault"]


def test_only_the_authority_s_list_counts_and_it_grows(hospitals: Hospitals, tmp_path: Path) -> None:
    workspace = Path(hospitals.site("A").workspace)
    first = revoke(hospitals.server, "B").read_bytes()
    both = revoke(hospitals.server, "C").read_bytes()
    assert set(revoked_of(revoked_sites(workspace, both), hospitals.protocol)) == {"B", "C"}
    assert set(revoked_of(revoked_sites(workspace, first), hospitals.protocol)) == {
        "B",
        "C",
    }  # an older list takes nothing back
    forged = json.loads(both)
    forged["revoked"][hospitals.protocol.sites["A"].key] = "2026-01-01"
    for content in (json.dumps(forged).encode(), b"{}", b"[]", b"\xff", b'{"revoked": {}, "signature": "zz"}'):
        with pytest.raises(CorruptFile, match="is not signed by the certificate authority"):
            revoked_sites(workspace, content)
        with pytest.raises(CorruptFile):
            Site.open(hospitals.site("A")).answer(question(hospitals, tmp_path / f"{len(content)}", content))
    (workspace / NAME).write_bytes(first.replace(b"20", b"19", 1))
    with pytest.raises(CorruptFile):
        Site.open(hospitals.site("A"))
    root = workspace / "kit" / "startup" / "rootCA.pem"
    root.rename(root.with_name("gone"))
    with pytest.raises(CorruptFile, match="cannot be checked"):  # without the authority nobody was revoked
        Site.open(hospitals.site("A"))
    with pytest.raises(MilError, match="site 'X' is not a member"):
        revoke(hospitals.server, "X")
    (Path(hospitals.server.workspace) / "authority" / "rootCA.key").unlink()
    with pytest.raises(MilError, match="put its folder in place"):
        revoke(hospitals.server, "A")


def test_a_message_in_another_name_does_not_let_a_revoked_site_in(hospitals: Hospitals) -> None:
    """FLARE reads the sender's name from the message before it has looked at a certificate."""
    revoke(hospitals.server, "B")
    calls, context = [], FLContext()
    engine = SimpleNamespace(
        disable_clients=lambda sites: calls.append(("disable", *sites)),
        enable_clients=lambda sites: calls.append(("enable", *sites)),
    )
    context.get_engine = lambda: engine  # type: ignore[method-assign]
    claimed = FLContext()
    claimed.set_prop(ReservedKey.IDENTITY_NAME, "A", private=False, sticky=False)
    context.set_peer_context(claimed)
    judge = RevokedSites(str(hospitals.folder / "server" / "server.yaml"))
    for _ in range(2):
        judge.handle_event(EventType.CLIENT_REGISTER_RECEIVED, context)
    assert sorted(calls) == [("disable", "B"), ("enable", "A"), ("enable", "C")]


def test_a_question_without_room_on_the_disk_is_refused(hospitals: Hospitals, tmp_path: Path) -> None:
    site = Site.open(hospitals.site("A").model_copy(update={"free_gb": 1e9}))
    with pytest.raises(DiskShort, match="make room"):
        site.answer(question(hospitals, tmp_path / "run", b""))
    reply = Site.open(hospitals.site("A")).answer(question(hospitals, tmp_path / "run", b""))
    assert header(reply, "")["kind"] == "join"
    assert edited(reply)


@pytest.mark.extended
def test_server_and_operator_are_renewed_under_the_same_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By FLARE's own provisioning; the old kits stay aside, the sites' authority is the same, and the days begin anew."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    hospitals = make_hospitals(tmp_path / "h")
    spec, own = hospitals.server, hospitals.folder / "server" / "server.yaml"
    told = kits.make_authority(spec, own)
    kit = Path(spec.workspace) / "kit" / "startup"
    before = x509.load_pem_x509_certificate((kit / "server.crt").read_bytes())
    done = CliRunner().invoke(app, ["server", "renew", str(own)])
    assert done.exit_code == 0, done.output
    assert done.output.count("the old one is in") == 4
    after = x509.load_pem_x509_certificate((kit / "server.crt").read_bytes())
    assert before.public_key() != after.public_key()
    assert after.subject == before.subject
    assert kits.fingerprint(spec) == told
    root = x509.load_pem_x509_certificate((kit / "rootCA.pem").read_bytes())
    after.verify_directly_issued_by(root)
    assert set(kits.days_left(spec)) == {"kit", "operator"}
    assert min(kits.days_left(spec).values()) > 1000
    assert kits.heartbeat(kit.parent) == hospitals.protocol.rounds.silent_s
    monkeypatch.setattr(kits, "make_user", lambda *_: (_ for _ in ()).throw(MilError("no engine")))
    with pytest.raises(MilError, match="no engine"):
        kits.renew(spec, own)
    assert x509.load_pem_x509_certificate((kit / "server.crt").read_bytes()) == after  # as it was before the failure
