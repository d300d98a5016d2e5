"""Two processes that do at once what one may do: two jobs on one site, two servers, two coordinators, two runs."""

import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from deployment import until
from forks import PROCESSES
from hospitals import PROTOCOL, SEEN, Hospitals, edited, make_hospitals

from mil.hospital import coordinator, local_data
from mil.hospital.flare.processes import become
from mil.hospital.local_data import Busy, alone
from mil.hospital.payload import PayloadError, header
from mil.hospital.privacy import BudgetSpent
from mil.hospital.server import Server
from mil.hospital.site import Site
from mil.progress import quiet

pytestmark = pytest.mark.slow

SHORT = {**SEEN["experiment"]["training"], "rounds": 2}
PRIVATE = {"rounds": 1, "batch_size": 8, "lr": 0.01, "scaling": "none"}


def question_to_train(hospitals: Hospitals, folder: Path, sites: dict[str, Site]) -> bytes:
    """Of a new run of the folder's name, with the training sites' answers so far."""
    server = Server(hospitals.protocol, folder.name, folder)
    while server.kind != "train":
        blob = server.question()
        server.receive({name: sites[name].answer(blob) for name in server.asked}, {})
    return server.question()


def opened(hospitals: Hospitals) -> dict[str, Site]:
    torch.set_num_threads(1)
    return {name: Site.open(hospitals.site(name)) for name in hospitals.protocol.sites}


def test_of_two_jobs_at_once_only_one_gets_an_answer_to_a_place(tmp_path: Path) -> None:
    """A coordinator who starts a second job of the same run asks the same site twice, with other weights the second time."""
    own = {**SEEN, "experiment": {**SEEN["experiment"], "training": SHORT}}
    hospitals = make_hospitals(tmp_path, **own)
    first = opened(hospitals)
    blob = question_to_train(hospitals, tmp_path / "run", first)
    second = Site.open(hospitals.site("A"))  # the second job's process, which has read the ledger by now
    other = edited(blob, lambda found: {**found, "score.bias": found["score.bias"] + 1})
    assert first["A"].answer(blob)
    with pytest.raises(PayloadError, match="was answered already"):
        second.answer(other)
    assert header(second.answer(blob), "")["kind"] == "train"  # the same question again, as after a crash


def test_two_runs_at_once_do_not_spend_a_budget_twice(tmp_path: Path) -> None:
    """A round costs 3.4, two of them 4.8."""
    privacy = {"noise": 1.0, "clip": 0.5, "expected_batch": 8, "epsilon": 4.0, "delta": 1e-3}
    hospitals = make_hospitals(tmp_path, experiment={**PROTOCOL["experiment"], "training": PRIVATE}, privacy=privacy)
    jobs = {name: opened(hospitals) for name in ("one", "two")}
    blobs = {name: question_to_train(hospitals, tmp_path / name, sites) for name, sites in jobs.items()}
    assert jobs["one"]["A"].answer(blobs["one"])
    with pytest.raises(BudgetSpent, match="over the budget of 4"):
        jobs["two"]["A"].answer(blobs["two"])
    assert jobs["one"]["A"].budget.so_far().epsilon <= 4.0


def test_who_waits_too_long_for_another_process_is_told_which(tmp_path: Path) -> None:
    hospitals = make_hospitals(tmp_path, rounds={"timeout_s": 0.3})
    site, blob = Site.open(hospitals.site("A")), Server(hospitals.protocol, "run", tmp_path / "run").question()
    with (
        local_data.only_answer(site.spec, 0.0),
        pytest.raises(Busy, match=f"answer as site A: process {os.getpid()} does so"),
    ):
        site.answer(blob)
    assert site.answer(blob)


def test_a_second_coordinator_of_a_run_and_a_second_start_are_refused_in_one_line(tmp_path: Path) -> None:
    hospitals = make_hospitals(tmp_path)
    folder = coordinator.folder_of(hospitals.server, "first")
    with alone(folder / "running", 0.0, "x"), pytest.raises(Busy, match=f"mil server run first: process {os.getpid()}"):
        coordinator.run(hospitals.server, "first", quiet())
    kit = tmp_path / "workspace" / "kit"
    kit.mkdir(parents=True)
    said = f"mil site join as A: runs until it is stopped; FLARE's log is {kit / 'log.txt'}\n>"
    os.mkfifo(tmp_path / "first.in")
    first = started(kit, tmp_path / "first")
    try:
        until(lambda: (tmp_path / "first.out").read_text() == said, 60, "the first runs")
        second = started(kit, tmp_path / "second")
        second.join()
        told = (tmp_path / "second.out").read_text()
        assert f"Busy: mil site join as A: process {first.pid} does so already" in told
    finally:
        first.kill()
        first.join()
    (tmp_path / "third.in").write_text("\n")
    third = started(kit, tmp_path / "third")
    third.join()
    assert (third.exitcode, (tmp_path / "third.out").read_text()) == (0, said)


def started(kit: Path, files: Path) -> BaseProcess:
    """A process that becomes one on this kit, waits for a line of `files`.in and writes into `files`.out."""
    files.with_suffix(".out").touch()
    process = PROCESSES.Process(target=_become, args=(kit, files))
    process.start()
    return process


def _become(kit: Path, files: Path) -> None:
    flags = os.O_RDWR | os.O_CREAT  # a pipe opened like this waits for no writer
    for number, suffix in enumerate((".in", ".out", ".out")):
        os.dup2(os.open(files.with_suffix(suffix), flags | os.O_APPEND), number)
    become(([sys.executable, "-c", "input(chr(62))"], {}, kit), "mil site join as A")
