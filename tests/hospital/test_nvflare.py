"""A federation of three hospitals as real processes with mutual TLS, and everything that may befall it."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import inprocess
import psutil
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from deployment import Deployment, free_port, until
from hospitals import PROTOCOL, Hospitals, make_hospitals, rewrite_protocol
from slow_line import SlowLine
from tissue import make_tissue_hospitals, write_tissue
from wall_clock import COMPILER, WallClock

from mil.errors import MilError
from mil.hospital import coordinator as hospital
from mil.hospital.crosscheck import cross_check
from mil.hospital.flare import kits
from mil.hospital.flare.job import Stretch, write_job
from mil.hospital.flare.processes import site_command
from mil.hospital.flare.session import abort, session
from mil.hospital.parties import SiteSpec
from mil.hospital.preflight import check_connection, check_kit
from mil.hospital.server import Server
from mil.hospital.site import Site
from mil.progress import Reporter, quiet
from mil.training.ledger import read
from mil.training.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings of the engine's threads, not ours

LONG_ROUNDS = {"rounds": 4, "batch_size": 8, "lr": 0.002, "local_epochs": 10}
EXPERIMENT = {**PROTOCOL["experiment"], "training": LONG_ROUNDS}


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WallClock]:
    """Of the sides that have their own."""
    return {side: WallClock(tmp_path_factory.mktemp("clock")) for side in ("server", "B") if COMPILER}


@pytest.fixture(scope="module")
def line() -> Iterator[SlowLine]:
    """A's, which can be cut."""
    with SlowLine() as found:
        yield found


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory,
    repository: Path,
    tissue: Path | None,
    clocks: dict[str, WallClock],
    line: SlowLine,
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(repository))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # FLARE keeps an audit of certificates there
        made = {
            "rounds": {"timeout_s": 180, "silent_s": 10},
            "experiment": EXPERIMENT,
            "payload": {"max_mb_a_round": 4.0},
        }
        folder = tmp_path_factory.mktemp("federation")
        make = make_tissue_hospitals if tissue else make_hospitals
        environments = {side: clock.environment for side, clock in clocks.items()}
        running = Deployment(make(folder, port=free_port(), **made), {**environments, "A": line.environment})
        with ThreadPoolExecutor(1) as pool:
            provisioned = pool.submit(running.provision)
            if tissue:
                write_tissue(running.hospitals, tissue)
            provisioned.result()
        try:
            running.lift_the_servers_rules()
            running.start("server", "A", "B", "C")
            running.wait_for("A", "B", "C")
            yield running
        finally:
            running.stop()


@pytest.fixture(scope="module")
def tissue(request: pytest.FixtureRequest) -> Path | None:
    """The folder with real tissue, where it is here and a test trains on it; otherwise the hospitals' features are drawn."""
    folder = Path(os.environ.get("MIL_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    trains = any(item.get_closest_marker("extended") for item in request.session.items)
    return folder if trains and (folder / "data" / "idc").is_dir() else None


class Background:
    """`hospital.run` in a thread, its error kept."""

    def __init__(self, deployment: Deployment, name: str, rehearse: bool = False) -> None:
        self.rehearse = rehearse
        self.error: BaseException | None = None
        self.log = deployment.hospitals.folder / f"{name}.run.log"
        self.thread = threading.Thread(target=self._run, args=(deployment, name), daemon=True)
        self.thread.start()

    def _run(self, deployment: Deployment, name: str) -> None:
        try:
            hospital.run(deployment.hospitals.server, name, Reporter(self.log), 300, self.rehearse)
        except BaseException as error:  # noqa: BLE001  handed to the test
            self.error = error

    def finished(self, seconds: float) -> None:
        self.thread.join(seconds)
        assert not self.thread.is_alive(), self.log.read_text()
        assert self.error is None, self.error


def reference(hospitals: Hospitals, folder: Path, silent: dict[str, tuple[str, int]] | None = None) -> dict:
    """Digest after every round of the same run in this process; `silent`: from which phase and round a site is away."""
    protocol = hospitals.protocol
    torch.set_num_threads(1)
    sites = {}
    for name in protocol.sites:
        sites[name] = Site.open(hospitals.elsewhere(name, folder / name))
    digests = {}

    def note(server: Server) -> None:
        entry = json.loads(server.ledger.lines[-1])
        if entry["event"] == "answered" and entry["kind"] != "join":  # every job asks for it anew
            digests[entry["kind"], entry["phase"], entry["round"]] = server.stages.digest()

    inprocess.run(Server(protocol, "reference", folder / "server"), Leaving(sites, silent or {}), note)
    return digests


class Leaving(dict):
    """Sites, some of which stop answering at a place."""

    def __init__(self, sites: dict[str, Site], silent: dict[str, tuple[str, int]]) -> None:
        super().__init__({name: Mute(site, silent[name]) if name in silent else site for name, site in sites.items()})


class Mute:
    def __init__(self, site: Site, place: tuple[str, int]) -> None:
        self.site, self.place = site, place

    def answer(self, blob: bytes) -> bytes:
        from mil.hospital.payload import header

        values = header(blob, "")["values"]
        if (values.get("phase"), values.get("round")) == self.place:
            raise MilError("away")
        return self.site.answer(blob)


def digests_of(deployment: Deployment, run: str) -> dict:
    lines = [entry for entry in deployment.ledger(run) if entry["event"] == "answered" and entry["kind"] != "join"]
    return {(line["kind"], line["phase"], line["round"]): line["global_sha256"] for line in lines}


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


@pytest.mark.extended
def test_a_run_survives_a_killed_site_and_a_killed_server_bit_for_bit(deployment: Deployment, tmp_path: Path) -> None:
    run = Background(deployment, "killed", rehearse=True)
    until(lambda: len(deployment.answered("killed")) >= 1, 300, "the first round")
    until(lambda: deployment.job_process("B") is not None, 60, "the site's job process")
    time.sleep(0.8)
    deployment.kill("B")
    until(lambda: any(line["event"] == "waiting" for line in deployment.ledger("killed")), 300, "the server misses B")
    waiting = next(line for line in deployment.ledger("killed") if line["event"] == "waiting")
    assert waiting["missing"] == {"B": "connection lost"}
    before = len(deployment.answered("killed"))
    deployment.start("B")
    until(lambda: len(deployment.answered("killed")) > before, 300, "the round that B missed")
    time.sleep(0.6)
    deployment.kill("server")
    deployment.start("server")
    run.finished(600)
    assert digests_of(deployment, "killed") == reference(deployment.hospitals, tmp_path)
    begun = sum(line["event"] in {"started", "resumed"} for line in deployment.ledger("killed"))
    assert begun >= 3  # one more for each site that is not yet back when the job begins after the server
    assert deployment.ledger("killed")[1]["rehearsal"] == hospital.rehearsal(deployment.hospitals.server)
    stand = hospital.status(deployment.hospitals.server, "killed")
    assert stand.progress.stage == "done"
    assert [(site, why) for _, site, why in stand.missed][:1] == [("B", "connection lost")]


@pytest.mark.extended
def test_every_side_holds_the_result_and_the_ledgers_agree(deployment: Deployment) -> None:
    spec = deployment.hospitals.server
    result = Run.load(Path(spec.workspace) / "runs" / "killed" / "result")
    assert len(result.models) == 3
    for name in "ABC":
        own = Run.load(Path(deployment.hospitals.site(name).workspace) / "runs" / "killed")
        assert list(own.models["sha256"]) == list(result.models["sha256"])
    sites = {name: Path(deployment.hospitals.site(name).workspace) / "ledger.jsonl" for name in "ABC"}
    agreement = cross_check(Path(spec.workspace) / "runs" / "killed" / "ledger.jsonl", sites)
    assert agreement.faults == []
    assert agreement.answers == sum(len(line.get("answered", {})) for line in deployment.ledger("killed"))


SHORT = {"rounds": 2, "batch_size": 8, "lr": 0.002}
PERSONAL = {
    "searched": {
        "strategy": {"name": "finetune", "epochs": 2, "base": {"name": "cyclic", "shuffled": True}},
        "search": {"lr": [0.001, 0.01]},
    },
    "heads": {"strategy": "fedper"},
}


@pytest.mark.extended
@pytest.mark.parametrize("run", PERSONAL)
def test_what_is_a_site_s_own_stays_there_and_the_rest_is_the_reference_s(
    deployment: Deployment, tmp_path: Path, run: str
) -> None:
    hospitals = deployment.hospitals
    own = {**hospitals.protocol.experiment.model_dump(mode="json"), "training": SHORT, **PERSONAL[run]}
    members = hospitals.protocol.model_dump(mode="json")["sites"]
    if run == "heads":  # an external site would have no layers of its own
        members.pop("C")
    with rewrite_protocol(hospitals, experiment=own, sites=members):
        hospital.run(hospitals.server, run, quiet(), 300, rehearse=False)
        digests = reference(hospitals, tmp_path)
    assert digests_of(deployment, run) == digests
    for name in "AB":
        found = Run.load(Path(hospitals.site(name).workspace) / "runs" / run)
        assert list(found.models["member"]) == [name] * 3
        plain = Run.load(tmp_path / name / "runs" / "reference")
        assert list(found.models["sha256"]) == list(plain.models["sha256"])
        layer = found.families[0].weights["score.weight"].numpy().tobytes()
        for path in Path(hospitals.server.workspace).rglob("*"):
            assert not path.is_file() or layer not in path.read_bytes(), path


@pytest.mark.extended
def test_a_line_that_is_cut_in_mid_round_costs_no_round(deployment: Deployment, tmp_path: Path, line: SlowLine) -> None:
    run = Background(deployment, "cut")
    until(lambda: len(deployment.answered("cut")) >= 1, 300, "the first round")
    time.sleep(0.5)
    assert line.lines
    line.cut()
    time.sleep(3)
    line.mend()
    run.finished(600)
    assert digests_of(deployment, "cut") == reference(deployment.hospitals, tmp_path)


@pytest.mark.extended
@pytest.mark.skipif(COMPILER is None, reason="a wrong clock needs a C compiler (cc)")
def test_clocks_that_disagree_and_jump_move_nothing_but_the_times(
    deployment: Deployment, tmp_path: Path, clocks: dict[str, WallClock]
) -> None:
    hospitals = deployment.hospitals
    own = {**hospitals.protocol.experiment.model_dump(mode="json"), "training": SHORT}
    with rewrite_protocol(hospitals, experiment=own):
        clocks["B"].put_ahead(20)
        run = Background(deployment, "clocks")
        until(lambda: len(deployment.answered("clocks")) >= 1, 300, "the first round")
        clocks["server"].put_ahead(3)
        run.finished(600)
        for clock in clocks.values():
            clock.put_ahead(0)
        assert digests_of(deployment, "clocks") == reference(hospitals, tmp_path)
    server = Path(hospitals.server.workspace) / "runs" / "clocks" / "ledger.jsonl"
    sites = {name: Path(hospitals.site(name).workspace) / "ledger.jsonl" for name in "ABC"}
    assert cross_check(server, sites).faults == []
    times = {
        name: [line["time"] for line in read(path) if "time" in line]
        for name, path in {**sites, "server": server}.items()
    }
    last = {name: datetime.fromisoformat(lines[-1]) for name, lines in times.items()}
    assert last["B"] - last["A"] > timedelta(hours=19)
    assert last["server"] - last["A"] > timedelta(hours=2)


@pytest.mark.extended
def test_a_site_that_never_answers_is_left_out_only_where_the_protocol_says_so(
    deployment: Deployment, tmp_path: Path
) -> None:
    rounds = {"timeout_s": 20, "silent_s": 120, "allow_subset": True, "required": ["A"], "minimum": 1}
    with rewrite_protocol(deployment.hospitals, rounds=rounds):
        start_the_server_again(deployment)  # `silent_s` is in force from its start on
        run = Background(deployment, "silent")
        until(lambda: len(deployment.answered("silent")) >= 1, 300, "the first round")
        time.sleep(0.5)
        frozen = deployment.job_process("B")
        assert frozen is not None
        frozen.send_signal(signal.SIGSTOP)
        run.finished(600)
        frozen.kill()
        lines = [line for line in deployment.ledger("silent") if line["event"] == "answered"]
        first = next(line for line in lines if line["missing"])
        assert first["missing"] == {"B": "no answer in 20 s"}
        assert all(
            line["missing"] == first["missing"] for line in lines[lines.index(first) :] if line["kind"] != "finish"
        )
        away = {"B": (first["phase"], first["round"])}
        assert digests_of(deployment, "silent") == reference(deployment.hospitals, tmp_path, away)
    start_the_server_again(deployment)


def start_the_server_again(deployment: Deployment) -> None:
    deployment.kill("server")
    deployment.start("server")
    deployment.wait_for(*deployment.hospitals.protocol.sites)


@pytest.mark.extended
def test_a_site_that_runs_other_code_is_refused(deployment: Deployment, tmp_path: Path, repository: Path) -> None:
    shutil.copytree(repository / "mil", tmp_path / "mil", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "mil" / "rng.py", "a") as file:
        file.write("\n# one line more\n")
    deployment.kill("B")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        deployment.start("B")
    deployment.wait_for("B")
    with pytest.raises(MilError, match="B: refused: mismatch"):
        hospital.run(deployment.hospitals.server, "mismatch", quiet(), 300, rehearse=False)
    refused = (Path(deployment.hospitals.site("B").workspace) / "ledger.jsonl").read_text().splitlines()[-1]
    assert "code_sha256" in json.loads(refused)["reason"]


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
    assert all(f"{site}: NVFLARE_ERROR: BYOC not permitted" in refused for site in "ABC")
    assert (
        "Component 'os.system' at config path 'executors.#1.executor' is not in allow_list"
        in deployment.log("A").read_text()
    )


def test_a_member_may_look_and_not_submit(deployment: Deployment, tmp_path: Path) -> None:
    spec = deployment.hospitals.server
    kits.make_user(spec, "member@coordinator.org", "member", "member")
    job = write_job(tmp_path / "job", deployment.hospitals.protocol, Stretch("never", "0" * 64))
    with pytest.raises(MilError, match="role lead"), session(spec, "member@coordinator.org", "member") as line:
        line.submit_job(str(job))
    audit = (Path(spec.workspace) / "kit" / "audit.log").read_text()
    assert "U:member@coordinator.org" in audit
    assert "submit_job" in audit


def test_strangers_are_turned_away(deployment: Deployment, tmp_path: Path) -> None:
    """A site whose certificate is of another authority, and one that holds another site's certificate."""
    other = make_hospitals(tmp_path / "other", port=deployment.hospitals.protocol.server.port)
    told = kits.make_authority(other.server, tmp_path / "other" / "server" / "server.yaml")
    request = kits.request(other.site("A"))
    with pytest.raises(MilError, match="fingerprint"):
        kits.join(
            other.site("A"), kits.approve(other.server, request), "SHA256:" + ":".join(["00"] * 32), tmp_path / "x"
        )
    kits.join(other.site("A"), kits.approve(other.server, request), told, tmp_path / "other" / "A" / "site.yaml")
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
