"""A federation of three hospitals as real processes with mutual TLS, for the tests of one file."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from deployment import Deployment, forked_flare, free_port
from hospitals import PROTOCOL, features_read_once, make_hospitals
from slow_line import SlowLine
from tissue import make_tissue_hospitals, write_tissue
from wall_clock import COMPILER, WallClock

EXPERIMENT = {
    **PROTOCOL["experiment"],
    "training": {"rounds": 4, "batch_size": 8, "lr": 0.002, "local_epochs": 10},
}
"""Rounds that are long enough for something to happen in the middle of one."""


@pytest.fixture(scope="module", autouse=True)
def _features_read_once() -> Iterator[None]:
    with features_read_once():
        yield


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
        with forked_flare(), ThreadPoolExecutor(1) as pool:
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
