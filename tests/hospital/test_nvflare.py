"""A federation of three hospitals as real processes with mutual TLS: who and what is let in."""

import contextlib
import json
import shutil
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from deployment import Deployment, forked_flare, until
from hospitals import make_hospitals

from mil.errors import MilError
from mil.hospital import coordinator as hospital
from mil.hospital.flare import kits
from mil.hospital.flare.job import Stretch, write_job
from mil.hospital.flare.processes import site_command
from mil.hospital.flare.session import abort, session
from mil.hospital.parties import SiteSpec
from mil.hospital.preflight import check_connection, check_kit
from mil.hospital.revocation import NAME, revoke
from mil.progress import quiet

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings of the engine's threads, not ours


def test_private_keys_are_only_where_they_were_made(deployment: Deployment) -> None:
    folder = deployment.hospitals.folder
    for site in "ABC":
        keys = {path.read_bytes() for path in (folder / site).rglob("*.key")}
        assert len(keys) == 2  # the certificate's, and the party's
        for path in folder.rglob("*"):
            if path.is_file() and (folder / site) not in path.parents:
                content = path.read_bytes()
                assert not any(key in content for key in keys), path


def test_the_canary_goes_through_and_nothing_of_it_stays(deployment: Deployment) -> None:
    folder = hospital.canary(deployment.hospitals.server, quiet(), wait_s=300)
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines if line["event"] == "answered"] == ["join", "canary"]
    assert sorted(lines[-1]["answered"]) == ["A", "B"]
    assert not (folder / "result").exists()


def test_a_site_takes_no_code_and_no_class_but_its_own(deployment: Deployment, tmp_path: Path) -> None:
    hospitals = deployment.hospitals
    with_code = write_job(tmp_path / "code", hospitals.protocol, Stretch("code", hospitals.protocol.sha256))
    (with_code / "app" / "custom").mkdir()
    (with_code / "app" / "custom" / "evil.py").write_text("print('here')\n")
    other_class = write_job(tmp_path / "other", hospitals.protocol, Stretch("other", hospitals.protocol.sha256))
    config = other_class / "app" / "config" / "config_fed_client.json"
    config.write_text(config.read_text().replace("mil.hospital.flare.executor.SiteExecutor", "os.system"))
    with session(hospitals.server) as line:
        first = line.submit_job(str(with_code))
        second = line.submit_job(str(other_class))
        until(lambda: line.get_job_meta(first)["status"] == "FINISHED:FAILED_TO_RUN", 180, "the job with code fails")
        until(lambda: "'os.system'" in deployment.log("A").read_text(), 180, "the site refuses the class")
        abort(line, second)
    refused = deployment.log("server").read_text()
    assert all(f"{site}: a job has two configuration files, and no code; refused" in refused for site in "ABC")
    assert (
        "Component 'os.system' at config path 'executors.#1.executor' is not in allow_list"
        in deployment.log("A").read_text()
    )
    assert " - INFO - " not in deployment.log("A").read_text()  # the terminal has warnings; the kit's log.txt has all


def test_a_member_may_look_and_not_submit(deployment: Deployment, tmp_path: Path) -> None:
    spec = deployment.hospitals.server
    kits.make_user(spec, "member@coordinator.org", "member", "member")
    job = write_job(tmp_path / "job", deployment.hospitals.protocol, Stretch("never", "0" * 64))
    with pytest.raises(MilError, match="role lead"), session(spec, "member@coordinator.org", "member") as line:
        line.submit_job(str(job))
    audit = (Path(spec.workspace) / "kit" / "audit.log").read_text()
    assert "U:member@coordinator.org" in audit
    assert "submit_job" in audit


def test_a_user_of_the_machine_without_a_certificate_has_no_way_in(deployment: Deployment) -> None:
    """The processes of a side connect on the loopback interface, where FLARE's default took anybody's commands in clear."""
    for side in ("server", "A"):
        found = deployment.processes[side].net_connections("tcp")
        ports = {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}
        assert ports
        for port in ports:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols(["h2"])
            with socket.create_connection(("127.0.0.1", port), 10) as plain, context.wrap_socket(plain) as secure:
                assert secure.getpeercert(binary_form=True)
                with contextlib.suppress(ssl.SSLError, ConnectionError):  # one says so, the other hangs up
                    assert secure.recv(1) == b""


def test_strangers_are_turned_away(deployment: Deployment, tmp_path: Path) -> None:
    """A site whose certificate is of another authority, and one that holds another site's certificate."""
    other = make_hospitals(tmp_path / "other", port=deployment.hospitals.protocol.server.port)
    with forked_flare():
        told = kits.make_authority(other.server, tmp_path / "other" / "server" / "server.yaml")
        signed = kits.approve(other.server, kits.request(other.site("A")))
        with pytest.raises(MilError, match="fingerprint"):
            kits.join(other.site("A"), signed, "SHA256:" + ":".join(["00"] * 32), tmp_path / "x")
        kits.join(other.site("A"), signed, told, tmp_path / "other" / "A" / "site.yaml")
    own = deployment.hospitals.site("B")
    shutil.copytree(
        Path(own.workspace) / "kit", tmp_path / "thief" / "kit", ignore=shutil.ignore_patterns("*.fl", "*log*")
    )
    shutil.copytree(Path(own.workspace) / "kit" / "local", tmp_path / "thief" / "kit" / "local", dirs_exist_ok=True)
    thief = SiteSpec(**{**own.model_dump(), "workspace": str(tmp_path / "thief")})
    words, environment, folder = site_command(thief)
    strangers = {
        "other": site_command(other.site("A")),
        "thief": ([w.replace("uid=B", "uid=A") for w in words], environment, folder),
    }
    logs = {}
    for name, (command, variables, place) in strangers.items():
        logs[name] = tmp_path / f"{name}.log"
        with open(logs[name], "w") as log:
            deployment.processes[name] = psutil.Popen(command, env=variables, cwd=place, stdout=log, stderr=log)
    server_log = deployment.log("server")
    try:
        until(
            lambda: (
                "authenticated as 'B' but claimed endpoint 'A'" in server_log.read_text() + logs["thief"].read_text()
            ),
            180,
            "the thief",
        )
        until(
            lambda: "CERTIFICATE_VERIFY_FAILED" in server_log.read_text() + logs["other"].read_text(),
            180,
            "the other authority",
        )
        assert "registered client" not in logs["other"].read_text().lower().replace("successfully ", "")
    finally:
        deployment.kill("other")
        deployment.kill("thief")


def test_a_revoked_site_is_not_let_in_and_with_its_list_gone_it_is(deployment: Deployment) -> None:
    """Its certificate is as good as before, and its process goes on knocking: FLARE's server takes no sign of life from it."""
    listed = Path(deployment.hospitals.server.workspace) / NAME
    revoke(deployment.hospitals.server, "C")
    try:
        until(lambda: "C" not in deployment.connected(), 60, "C is turned away")
        assert {"A", "B"} <= deployment.connected()
        deployment.kill("C")
        deployment.start("C")
        said = "Reject disabled client registration: C"
        until(lambda: said in deployment.log("server").read_text(), 120, "a new process is turned away too")
        assert "C" not in deployment.connected()
    finally:
        listed.unlink()  # as with a new key in the protocol
    deployment.kill("C")
    deployment.start("C")
    deployment.wait_for("C", seconds=120)


def test_a_certificate_that_has_ended_opens_nothing(deployment: Deployment, tmp_path: Path) -> None:
    """B's own kit, signed by the right authority, a day too old: the running server turns it away, and so does the site."""
    hospitals, kit = deployment.hospitals, tmp_path / "kit"
    shutil.copytree(Path(hospitals.site("B").workspace) / "kit" / "startup", kit / "startup")
    shutil.copytree(Path(hospitals.site("B").workspace) / "kit" / "local", kit / "local")
    spec = hospitals.site("B").model_copy(update={"workspace": str(tmp_path)})
    assert check_connection(spec, hospitals.protocol).state == "ok"
    authority = Path(hospitals.server.workspace) / "authority" / "rootCA.key"
    key = load_pem_private_key(authority.read_bytes(), None)
    place = kit / "startup" / "client.crt"
    own = x509.load_pem_x509_certificate(place.read_bytes())
    days = [datetime.now(UTC) - timedelta(days=count) for count in (9, 1)]
    ended = x509.CertificateBuilder(own.issuer, own.subject, own.public_key(), x509.random_serial_number(), *days)
    place.write_bytes(ended.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    found = check_connection(spec, hospitals.protocol)
    assert (found.state, "has ended" in found.sentence) == ("fault", True), found
    assert "CERTIFICATE_VERIFY_FAILED: certificate has expired" in deployment.log("server").read_text()
    assert [one.state for one in check_kit(spec)] == ["fault"]
    assert "the certificate ended on" in check_kit(spec)[0].sentence
