"""Before a hospital joins: its certificate, the server's, and the rules of its kit."""

import datetime
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import certificate, new_key, pem
from cryptography.hazmat.primitives.asymmetric import rsa
from deployment import free_port
from hospitals import Hospitals, make_hospitals, rewrite_protocol
from listener import Listener
from typer.testing import CliRunner

from mil.commands.hospital import ledger, server, site
from mil.errors import MilError
from mil.hospital import coordinator, preflight
from mil.hospital.flare import kits
from mil.hospital.flare.processes import server_command
from mil.hospital.identity import code_sha256
from mil.hospital.preflight import check_site
from mil.progress import quiet

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    """Three hospitals, A with a kit: made through the command line, as two people would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        hospitals = make_hospitals(tmp_path_factory.mktemp("federation"), port=free_port())
        runner, folder = CliRunner(), hospitals.folder
        made = runner.invoke(server, ["provision", str(folder / "server" / "server.yaml")], catch_exceptions=False)
        fingerprint = made.output.split("telephone: ")[1].strip()
        asked = runner.invoke(site, ["join", str(folder / "A" / "site.yaml")], catch_exceptions=False)
        request = asked.output.split("coordinator: ")[1].split(" (the")[0]
        signed = runner.invoke(
            server, ["provision", str(folder / "server" / "server.yaml"), request], catch_exceptions=False
        )
        back = signed.output.split("send back: ")[1].splitlines()[0]
        arguments = ["join", str(folder / "A" / "site.yaml"), back, "--fingerprint", fingerprint]
        assert runner.invoke(site, arguments, catch_exceptions=False).exit_code == 0
    return hospitals


@pytest.fixture
def copied(joined: Hospitals, tmp_path: Path) -> Hospitals:
    """The same, to be spoilt."""
    shutil.copytree(joined.folder, tmp_path / "copy")
    return Hospitals(tmp_path / "copy")


def states(hospitals: Hospitals, name: str = "A", **options) -> dict[str, tuple[str, str]]:
    return {one.check: (one.state, one.sentence) for one in check_site(hospitals.site(name), **options)}


def test_a_sound_site_has_no_fault(joined: Hospitals) -> None:
    found = states(joined)
    assert {state for state, _ in found.values()} <= {"ok", "warning"}
    assert found["certificate"][0] == "ok"
    assert "48 patients; no model learns from fewer than 21" in found["bags"][1]
    assert code_sha256()[:16] in found["protocol"][1]
    assert found["connection"][0] == "warning"  # no server runs
    assert states(joined, "C")["bags"][1].endswith("they are only judged")


def _startup(hospitals: Hospitals) -> Path:
    return Path(hospitals.site("A").workspace) / "kit" / "startup"


@pytest.fixture(scope="module")
def authority() -> rsa.RSAPrivateKey:
    return new_key()


NOT_YET = "valid only from (.* UTC) on, but this machine's clock says (.* UTC); set the clock"
ENDED = "ended on (.* UTC), and this machine's clock says (.* UTC); where the clock is right, make the kit again"


@pytest.mark.parametrize(
    ("name", "days", "said", "times"),
    [
        ("A", (-2, -1), ENDED, (-1, 0)),
        ("A", (1, 300), NOT_YET, (1, 0)),
        ("B", (-1, 300), "the certificate is of 'B', not of 'A'; make the kit again", ()),
    ],
)
def test_a_certificate_that_will_not_do_is_seen(
    copied: Hospitals, authority: rsa.RSAPrivateKey, name: str, days: tuple[int, int], said: str, times: tuple[int, ...]
) -> None:
    """`times`: days from now that the sentence speaks of."""
    startup, own, now = _startup(copied), new_key(), datetime.datetime.now(datetime.UTC)
    (startup / "rootCA.pem").write_bytes(certificate("root", "root", authority, authority, (-1, 900), ca=True))
    (startup / "client.crt").write_bytes(certificate(name, "root", own, authority, days))
    (startup / "client.key").write_bytes(pem(own))
    (sentence,) = [one.sentence for one in check_site(copied.site("A")) if one.check == "certificate"]
    found = re.search(said, sentence)
    assert found, sentence
    for day, stated in zip(times, found.groups(), strict=True):
        moment = datetime.datetime.strptime(stated, "%Y-%m-%d %H:%M UTC").replace(tzinfo=datetime.UTC)
        assert abs(moment - now - datetime.timedelta(day)) < datetime.timedelta(minutes=3)


def test_a_certificate_of_another_authority_or_key_is_seen(copied: Hospitals, authority: rsa.RSAPrivateKey) -> None:
    startup = _startup(copied)
    whole = (startup / "rootCA.pem").read_bytes()
    (startup / "rootCA.pem").write_bytes(certificate("root", "root", authority, authority, (-1, 900), ca=True))
    assert "not signed by the authority" in states(copied)["certificate"][1]
    (startup / "rootCA.pem").write_bytes(whole)
    (startup / "client.key").write_bytes(pem(authority))
    assert "the key is not the certificate's" in states(copied)["certificate"][1]


def test_a_certificate_that_ends_soon_is_worth_a_thought(copied: Hospitals, authority: rsa.RSAPrivateKey) -> None:
    startup, own = _startup(copied), new_key()
    (startup / "rootCA.pem").write_bytes(certificate("root", "root", authority, authority, (-1, 900), ca=True))
    (startup / "client.crt").write_bytes(certificate("A", "root", own, authority, (-1, 20)))
    (startup / "client.key").write_bytes(pem(own))
    assert states(copied)["certificate"][0] == "warning"


def test_a_workspace_is_its_owner_s_alone_and_one_that_is_not_is_seen(copied: Hospitals) -> None:
    workspace = Path(copied.site("A").workspace)
    assert {Path(one).stat().st_mode & 0o777 for one in (workspace, copied.server.workspace)} == {0o700}
    assert "workspace" not in states(copied)
    workspace.chmod(0o755)
    assert states(copied)["workspace"][1].endswith("may read it (mode 755; chmod 700)")


def test_a_readable_key_and_changed_rules_are_seen(copied: Hospitals) -> None:
    key = _startup(copied) / "client.key"
    key.chmod(0o644)
    assert "chmod 600" in states(copied)["certificate"][1]
    key.chmod(0o600)
    same = Path(copied.site("A").workspace) / "request" / "A" / "A.key"
    same.chmod(0o644)
    assert states(copied)["keys"] == ("fault", f"{same}: others than its owner may read it (mode 644; chmod 600)")
    for file, change in {
        "resources.json": lambda content: content.__setitem__("allow_log_streaming", True),
        "authorization.json": lambda content: content["permissions"]["lead"].__setitem__("byoc", "any"),
    }.items():
        path = _startup(copied).parent / "local" / file
        whole = path.read_text()
        content = json.loads(whole)
        change(content)
        path.write_text(json.dumps(content))
        assert "rules were changed" in states(copied)["certificate"][1]
        path.write_text(whole)
    assert states(copied)["certificate"][0] == "ok"


def test_an_altered_ledger_is_seen(copied: Hospitals) -> None:
    path = Path(copied.site("A").workspace) / "ledger.jsonl"
    path.write_text('{"event": "answered"}\n')
    assert states(copied)["ledger"][0] == "fault"


@pytest.fixture
def listen(joined: Hospitals) -> Iterator:
    listeners: list[Listener] = []

    def start(certificate: Path, key: Path, trusted: Path) -> None:
        listeners.append(Listener(certificate, key, trusted, joined.protocol.server.port))

    yield start
    for listener in listeners:
        listener.close()


def test_the_handshake_tells_the_right_server_from_a_wrong_one(
    joined: Hospitals, listen, tmp_path: Path, authority: rsa.RSAPrivateKey
) -> None:
    kit = Path(joined.server.workspace) / "kit" / "startup"
    listen(kit / "server.crt", kit / "server.key", kit / "rootCA.pem")
    assert states(joined)["connection"][0] == "ok"


def test_a_server_that_hangs_up_without_a_word_has_not_let_us_in(
    joined: Hospitals, listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So FLARE's gRPC refuses a certificate that has ended: no alert, the line is just gone."""
    monkeypatch.setattr(Listener, "greeting", b"")
    kit = Path(joined.server.workspace) / "kit" / "startup"
    listen(kit / "server.crt", kit / "server.key", kit / "rootCA.pem")
    state, sentence = states(joined)["connection"]
    assert (state, "hung up" in sentence) == ("fault", True)


def test_the_handshake_fails_with_a_server_of_another_authority(
    joined: Hospitals, listen, tmp_path: Path, authority: rsa.RSAPrivateKey
) -> None:
    own = new_key()
    (tmp_path / "root.pem").write_bytes(certificate("root", "root", authority, authority, (-1, 900), ca=True))
    (tmp_path / "server.crt").write_bytes(certificate("localhost", "root", own, authority, (-1, 300)))
    (tmp_path / "server.key").write_bytes(pem(own))
    listen(tmp_path / "server.crt", tmp_path / "server.key", tmp_path / "root.pem")
    state, said = states(joined)["connection"]
    assert state == "fault"
    assert "not of the same authority" in said


def test_the_handshake_fails_where_the_server_does_not_know_us(
    joined: Hospitals, listen, tmp_path: Path, authority: rsa.RSAPrivateKey
) -> None:
    kit = Path(joined.server.workspace) / "kit" / "startup"
    (tmp_path / "root.pem").write_bytes(certificate("root", "root", authority, authority, (-1, 900), ca=True))
    listen(kit / "server.crt", kit / "server.key", tmp_path / "root.pem")
    assert states(joined)["connection"][0] == "fault"


@pytest.mark.parametrize(("days", "said"), [((1, 300), "certificate is not yet valid"), ((-9, -1), "has expired")])
def test_a_server_s_certificate_out_of_date_may_be_this_machine_s_clock(
    copied: Hospitals, listen, tmp_path: Path, authority: rsa.RSAPrivateKey, days: tuple[int, int], said: str
) -> None:
    own, trusted = new_key(), _startup(copied) / "rootCA.pem"
    trusted.write_bytes(certificate("root", "root", authority, authority, (-20, 900), ca=True))
    (tmp_path / "server.crt").write_bytes(certificate("localhost", "root", own, authority, days))
    (tmp_path / "server.key").write_bytes(pem(own))
    listen(tmp_path / "server.crt", tmp_path / "server.key", trusted)
    state, sentence = states(copied)["connection"]
    assert state == "fault"
    assert re.search(f"{said}; this machine's clock says .* UTC; set the clock", sentence)


def test_a_wrong_host_name_and_a_port_without_tls_are_named(joined: Hospitals, listen) -> None:
    """Formerly both were a server of another authority."""
    kit, address = Path(joined.server.workspace) / "kit" / "startup", joined.protocol.server
    listen(kit / "server.crt", kit / "server.key", kit / "rootCA.pem")
    with rewrite_protocol(joined, server={"host": "127.0.0.1", "port": address.port}):
        state, said = states(joined)["connection"]
    assert (state, "server.host in federation.yaml must be the name" in said) == ("fault", True)
    with socket.create_server(("127.0.0.1", free_port())) as plain:
        port = plain.getsockname()[1]

        def answer() -> None:
            with plain.accept()[0] as one:
                one.recv(100)
                one.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with rewrite_protocol(joined, server={"host": "localhost", "port": port}):
            state, said = states(joined)["connection"]
    assert (state, "no TLS is spoken there" in said) == ("fault", True)


# Provisioning and commands


def test_a_request_of_no_member_is_not_signed(
    joined: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    stranger = make_hospitals(tmp_path / "stranger", sites={"D": ("train", 48)})
    request = kits.request(stranger.site("D"))
    with pytest.raises(MilError, match=r"asks for 'D'.* it was not signed"):
        kits.approve(joined.server, request)
    (tmp_path / "nothing.zip").write_bytes(b"nothing")
    with pytest.raises(MilError, match="not a site's request"):
        kits.approve(joined.server, tmp_path / "nothing.zip")


def test_a_second_key_of_a_site_is_signed_only_where_the_hospital_read_it_out(
    copied: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever knows a site's name and organisation could send a request; formerly it was signed without a word."""
    monkeypatch.setenv("HOME", str(tmp_path))
    first = Path(copied.site("A").workspace) / "request" / "A" / "A.request.zip"
    assert kits.approve(copied.server, first)  # the same key again, as after a lost file
    second = kits.request(copied.elsewhere("A", tmp_path / "stranger"))
    signed = Path(copied.server.workspace) / "signed" / "A.signed.zip"
    before = signed.read_bytes()
    for key, said in (
        (None, "another key of A was signed before"),
        (kits.request_fingerprint(first), "is about the key"),
    ):
        with pytest.raises(MilError, match=said):
            kits.approve(copied.server, second, key=key)
    assert signed.read_bytes() == before
    told = ["provision", str(copied.folder / "server" / "server.yaml"), str(second)]
    done = CliRunner().invoke(server, [*told, "--key", kits.request_fingerprint(second)], catch_exceptions=False)
    assert f"reads out the same key: {kits.request_fingerprint(second)}" in done.output
    assert signed.read_bytes() != before


def test_certificates_are_made_once(joined: Hospitals) -> None:
    with pytest.raises(MilError, match="there already"):
        kits.make_authority(joined.server, joined.folder / "server" / "server.yaml")
    with pytest.raises(MilError, match="holds a key already"):
        kits.request(joined.site("A"))


def test_the_kit_s_rules_leave_the_server_next_to_nothing(joined: Hospitals) -> None:
    local = Path(joined.site("A").workspace) / "kit" / "local"
    rules = json.loads((local / "authorization.json").read_text())["permissions"]
    assert rules["lead"] == {"submit_job": "any", "abort_job": "any", "abort": "any", "byoc": "none"}
    assert {rules[role] for role in ("project_admin", "org_admin", "member")} == {"none"}
    resources = json.loads((local / "resources.json").read_text())
    assert resources["class_allow_list"] == ["mil.hospital.flare.executor.SiteExecutor"]
    assert resources["allow_log_streaming"] is False
    assert str(joined.folder) not in json.dumps(resources)  # FLARE tells the server what stands there


def test_the_commands_say_what_they_found(joined: Hospitals) -> None:
    runner = CliRunner()
    shown = runner.invoke(site, ["check", str(joined.folder / "A" / "site.yaml")], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "ok       certificate" in shown.output
    assert code_sha256() in shown.output  # all of it: it is put into federation.yaml
    spec = joined.folder / "B" / "site.yaml"
    spec.write_text(spec.read_text() + "free_gb: 1.0e+9\n")
    with pytest.raises(MilError, match="checks failed"):
        runner.invoke(site, ["check", str(spec)], catch_exceptions=False)
    with pytest.raises(MilError, match="no run of that name"):
        runner.invoke(server, ["status", str(joined.folder / "server" / "server.yaml"), "none"], catch_exceptions=False)
    with pytest.raises(MilError, match="does not exist"):
        runner.invoke(ledger, ["verify", str(joined.folder / "no.jsonl")], catch_exceptions=False)


def test_a_changed_silence_is_refused_until_the_server_is_started_again(joined: Hospitals) -> None:
    with rewrite_protocol(joined, rounds={"silent_s": 33.0}):
        with pytest.raises(MilError, match="silent_s is 33, but the server was started with 120"):
            coordinator.run(joined.server, "first", quiet(), 1.0, rehearse=False)
        server_command(joined.server)
        assert kits.heartbeat(Path(joined.server.workspace) / "kit") == 33.0
    server_command(joined.server)


def test_every_check_is_covered_here() -> None:
    names = {name for name in vars(preflight) if name.startswith("check_")}
    assert names == {
        "check_site",
        "check_columns",
        "check_patients",
        "check_features",
        "check_duplicates",
        "check_disk",
        "check_revoked",
        "check_secrets",
        "check_kit",
        "check_connection",
        "check_ledger",
    }
