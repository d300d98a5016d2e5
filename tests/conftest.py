"""Shared ground of the tests: the shared folder of real data, and a cohort's sheets."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # processes of tests would compile the package anew, each for a second
sys.dont_write_bytecode = False
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process for each core; more threads would wait for each other

os.fsync = lambda _: None  # 7 ms per file; what it is for, a cut of the power, no test can make

REPOSITORY = Path(__file__).resolve().parents[1]


# Files of tests that take minutes: they begin first, so that no process works on one of them alone at the end.
LONGEST = (
    "project/test_workflow.py",
    "project/test_slurm.py",
    "hospital/test_nvflare",
    "project/test_faults.py",
    "figures",
    "endpoints/test_kinds.py",  # between two that wait for the same results
    "report",
)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests by `LONGEST`; the order within a file stays. What is `extended` is `slow`, too."""
    for item in items:
        if item.get_closest_marker("extended"):
            item.add_marker("slow")

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(REPOSITORY / "tests").as_posix()
        return next((number for number, name in enumerate(LONGEST) if path.startswith(name)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout that is tested."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real slides, tissue and reference outputs beside the checkout (`../shared`, or MIL_SHARED)."""
    folder = Path(os.environ.get("MIL_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"the folder of real test data is not here ({folder}); set MIL_SHARED to run this test")
    return folder


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the working directory for the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def _browser() -> Iterator[None]:
    """End the file's browser, if it had any."""
    yield
    if "browser" in sys.modules:
        sys.modules["browser"].close_chromium()
