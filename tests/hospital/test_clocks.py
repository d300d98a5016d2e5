"""Wall clocks that are wrong, disagree or jump: nothing in a run's result or in a record's soundness depends on them."""

import os
import subprocess
import sys
from pathlib import Path

import inprocess
import pytest
import torch
from hospitals import PROTOCOL, Hospitals, make_hospitals
from wall_clock import COMPILER, WallClock, put_ahead

from mil.hospital import coordinator as hospital
from mil.hospital.crosscheck import cross_check
from mil.hospital.server import Server
from mil.hospital.site import Site
from mil.training.ledger import read
from mil.training.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMPILER is None, reason="a wrong clock needs a C compiler (cc)")]
JUMPS = (0, 24, -24, 1, -1, 9, 2)
"""Hours that the clock is ahead after each question; 1 is daylight saving."""


def federated(hospitals: Hospitals, folder: Path, clock: Path | None = None) -> None:
    """A run in this process; where it has a `clock` of its own, this jumps after every question."""
    torch.set_num_threads(1)
    jumps = iter(JUMPS * 10)
    sites = {}
    for name in hospitals.protocol.sites:
        sites[name] = Site.open(hospitals.elsewhere(name, folder / name))
    server = Server(hospitals.protocol, "run", folder / "server")
    inprocess.run(server, sites, lambda _: put_ahead(clock, next(jumps)) if clock else None)


def rehearsals(hospitals: Hospitals, clock: Path) -> list[str | None]:
    """A canary, and whether it counts when the clock is right, then three days ahead, then three behind."""
    sites = {name: Site.open(hospitals.site(name), canary=True) for name in hospitals.protocol.sites}
    place = Path(hospitals.server.workspace) / "runs" / "canary-1"
    inprocess.run(Server(hospitals.protocol, "canary-1", place, canary=True), sites)
    found = []
    for hours in (0, 72, -72):
        put_ahead(clock, hours)
        found.append(hospital.rehearsal(hospitals.server))
    return found


def under(clock: WallClock, call: str, *words: Path) -> str:
    """Call a function of this file in a process of that clock; what it prints."""
    code = f"import sys\nfrom test_clocks import *\nwords = [Path(word) for word in sys.argv[1:]]\n{call}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **clock.environment}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, env=environment, check=True, timeout=120, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.extended
def test_a_clock_that_jumps_by_a_day_changes_the_times_in_the_ledgers_and_nothing_else(tmp_path: Path) -> None:
    stanza = {**PROTOCOL["experiment"], "training": {"rounds": 2, "batch_size": 8, "lr": 0.01}}
    hospitals, clock = make_hospitals(tmp_path / "hospitals", experiment=stanza), WallClock(tmp_path)
    federated(hospitals, tmp_path / "right")
    under(clock, "federated(Hospitals(words[0]), words[1], words[2])", hospitals.folder, tmp_path / "wrong", clock.file)
    right, wrong = (Run.load(tmp_path / name / "server" / "result") for name in ("right", "wrong"))
    assert list(wrong.models["sha256"]) == list(right.models["sha256"])
    ledgers = {name: tmp_path / "wrong" / name / "ledger.jsonl" for name in ("server", *"ABC")}
    times = [str(line["time"]) for line in read(ledgers["server"]) if "time" in line]
    assert times != sorted(times)
    assert cross_check(ledgers.pop("server"), ledgers).faults == []


def test_a_rehearsal_counts_for_a_day_and_not_longer_where_the_clock_was_set_back_since(tmp_path: Path) -> None:
    hospitals, clock = make_hospitals(tmp_path / "hospitals"), WallClock(tmp_path)
    told = under(clock, "print(rehearsals(Hospitals(words[0]), words[1]))", hospitals.folder, clock.file)
    assert told.strip() == "['canary-1', None, None]"
