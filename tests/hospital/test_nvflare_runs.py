"""Whole runs of real processes with mutual TLS, and everything that may befall them."""

import json
import os
import shutil
import signal
import time
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest
from deployment import Deployment, until
from hospitals import rewrite_protocol
from killing import check_whole, hidden
from real_runs import Background, digests_of, reference, start_the_server_again
from slow_line import SlowLine
from wall_clock import COMPILER, WallClock

from mil.errors import MilError
from mil.hospital import coordinator as hospital
from mil.hospital.crosscheck import cross_check
from mil.hospital.revocation import NAME, revoke
from mil.hospital.watch import server_view, site_view
from mil.progress import quiet
from mil.training.ledger import read
from mil.training.run import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.extended,
    pytest.mark.filterwarnings("ignore"),  # warnings of the engine's threads, not ours
]


LOST = "connection lost: its process ended, or was not heard for 10 s (silent_s)"


def lost_b(deployment: Deployment, run: str) -> bool:
    """Whether the server has missed B alone in mid-run; on a busy machine B may also have come too late when the job began."""
    return any(line["event"] == "waiting" and line["missing"] == {"B": LOST} for line in deployment.ledger(run))


def test_a_run_survives_a_killed_site_and_a_killed_server_bit_for_bit(deployment: Deployment, tmp_path: Path) -> None:
    run = Background(deployment, "killed", rehearse=True)
    until(lambda: len(deployment.answered("killed")) >= 1, 300, "the first round")
    until(lambda: deployment.job_process("B") is not None, 60, "the site's job process")
    time.sleep(0.8)
    deployment.kill("B")
    until(lambda: lost_b(deployment, "killed"), 300, "the server misses B")
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
    assert ("B", LOST) in [(site, why) for _, site, why in stand.missed]


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
    deployment.kill("B")
    deployment.start("B")
    deployment.wait_for("B")


def shown(deployment: Deployment, run: str) -> tuple[str, dict[str, list]]:
    """Of the coordinator's page: the last line of a run, and the rows of the sites."""
    (part,) = (one for one in server_view(deployment.hospitals.server) if one.title == f"Run {run}")
    return str(part.facts["last line"]), {str(row[0]): list(row) for row in part.tables[0].rows}


def test_a_site_that_says_nothing_is_one_line_and_the_run_waits_for_it(deployment: Deployment, tmp_path: Path) -> None:
    run = Background(deployment, "frozen")
    until(lambda: len(deployment.answered("frozen")) >= 1, 300, "the first round")
    deployment.freeze("B")
    try:
        until(lambda: lost_b(deployment, "frozen"), 90, "the server misses B")
        until(lambda: "waiting for B to connect" in run.log.read_text(), 60, "the coordinator waits")
        *_, missed, why = shown(deployment, "frozen")[1]["B"]
        assert missed >= 1
        assert why == LOST
        assert run.thread.is_alive()
    finally:
        deployment.freeze("B", signal.SIGCONT)
    run.finished(600)
    assert run.log.read_text().count(f"without B: {LOST}") == 1
    assert digests_of(deployment, "frozen") == reference(deployment.hospitals, tmp_path)


def stopped(run: Background) -> str:
    """The sentence with which a run stopped."""
    run.thread.join(180)
    assert isinstance(run.error, MilError), run.log.read_text()
    return str(run.error)


@pytest.mark.parametrize("side", ["A", "server"])
def test_a_disk_that_fills_in_mid_run_stops_it_in_one_line_and_it_goes_on_with_room(
    deployment: Deployment, tmp_path: Path, side: str
) -> None:
    hospitals, name = deployment.hospitals, f"disk{side}"
    workspace = Path((hospitals.server if side == "server" else hospitals.site(side)).workspace)
    own = hospitals.folder / side / ("server.yaml" if side == "server" else "site.yaml")
    before, free = own.read_text(), shutil.disk_usage(workspace).free
    size = min(4 * 10**9, free // 2)
    own.write_text(f"{before}free_gb: {(free - size / 2) / 1e9}\n")
    try:
        run = Background(deployment, name)
        until(lambda: len(deployment.answered(name)) >= 1, 300, "the first round")
        with open(workspace / "filler", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        said = stopped(run)
    finally:
        (workspace / "filler").unlink(missing_ok=True)
        own.write_text(before)
    assert ("make room" if side == "server" else "A: refused: disk") in said
    assert "\n" not in said
    assert said in shown(deployment, name)[0]
    check_whole(workspace / "runs" / name)
    assert not hidden(workspace / "runs")
    run = Background(deployment, name)
    run.finished(600)
    assert digests_of(deployment, name) == reference(hospitals, tmp_path)


def test_a_limit_that_a_write_meets_in_mid_run_is_the_same_line(deployment: Deployment, tmp_path: Path) -> None:
    run = Background(deployment, "limit")
    until(lambda: len(deployment.answered("limit")) >= 1, 300, "the first round")
    job, workspace = deployment.job_process("B"), Path(deployment.hospitals.site("B").workspace)
    assert job is not None
    job.rlimit(
        psutil.RLIMIT_FSIZE, (4096, psutil.RLIM_INFINITY)
    )  # less than a site's state, which is written every round
    assert "B: refused: disk" in stopped(run)
    check_whole(workspace / "runs" / "limit")
    assert not hidden(workspace / "runs")
    run = Background(deployment, "limit")
    run.finished(600)
    assert digests_of(deployment, "limit") == reference(deployment.hospitals, tmp_path)


def test_a_site_that_is_revoked_in_mid_run_is_turned_away_at_the_next_question(
    deployment: Deployment, tmp_path: Path
) -> None:
    hospitals = deployment.hospitals
    lists = [Path(spec.workspace) / NAME for spec in (hospitals.server, hospitals.site("A"), hospitals.site("C"))]
    run = Background(deployment, "revoked")
    until(lambda: len(deployment.answered("revoked")) >= 1, 300, "the first round")
    revoke(hospitals.server, "B")
    try:
        rounds, said = len(deployment.answered("revoked")), stopped(run)
        assert "B: refused: revoked on 20" in said
        assert "\n" not in said
        assert len(deployment.answered("revoked")) <= rounds + 1  # a round that was over when the list came
        assert shown(deployment, "revoked")[1]["B"][-1].startswith("refused: revoked on 20")
        assert all(path.exists() for path in lists)  # the other sites were sent it
        assert "site B was revoked on 20" in site_view(hospitals.site("A"))[0].facts["revoked"]
    finally:
        for path in lists:
            path.unlink(missing_ok=True)  # as if it had never been
    run = Background(deployment, "revoked")
    run.finished(600)
    assert digests_of(deployment, "revoked") == reference(hospitals, tmp_path)


def test_two_runs_at_once_end_as_one_alone(deployment: Deployment, tmp_path: Path) -> None:
    hospitals = deployment.hospitals
    own = {**hospitals.protocol.experiment.model_dump(mode="json"), "training": SHORT}
    with rewrite_protocol(hospitals, experiment=own):
        runs = {name: Background(deployment, name) for name in ("one", "two")}
        for run in runs.values():
            run.finished(600)
        expected = reference(hospitals, tmp_path)
    sites = {name: Path(hospitals.site(name).workspace) / "ledger.jsonl" for name in "ABC"}
    for name in runs:
        assert digests_of(deployment, name) == expected
        assert cross_check(Path(hospitals.server.workspace) / "runs" / name / "ledger.jsonl", sites).faults == []
