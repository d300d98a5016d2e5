"""Crashes, hangs and cores: what one bad slide or a small job may cost."""

import importlib
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_slide import ramp, write_slide

from mil.errors import MilError, SlideError
from mil.machine import cores, memory_given
from mil.slides import isolation
from mil.slides.isolation import LENGTH, Isolated, isolated
from mil.specs.slides import SlidesSpec


def die(how: int) -> None:
    os.kill(os.getpid(), how)


def hang() -> None:
    time.sleep(60)


def refuse() -> None:
    raise SlideError("no_mpp", "says nothing")


def talk(text: str) -> str:
    print("a library's chatter on standard output")
    return text + "!"


def greedy() -> int:
    return len(bytearray(2**50))


def test_a_dead_decoder_is_one_slides_reason_and_the_next_call_works():
    with pytest.raises(SlideError, match=r"a\.svs: .*SIGSEGV") as raised:
        isolated(die, signal.SIGSEGV, name="a.svs", timeout_s=30)
    assert raised.value.state == "decoder_crash"
    assert isolated(talk, "hello", name="b.svs", timeout_s=30) == "hello!"
    with pytest.raises(SlideError, match="says nothing") as raised:
        isolated(refuse, name="c.svs", timeout_s=30)
    assert raised.value.state == "no_mpp"
    with pytest.raises(SlideError, match="memory"):
        isolated(greedy, name="d.svs", timeout_s=30)
    with pytest.raises(RuntimeError, match="ValueError"):
        isolated(int, "x", name="e.svs", timeout_s=30)


def test_a_reader_that_is_killed_from_outside_stops_the_command_and_blames_no_file():
    """The system kills for want of memory, Slurm ends every process of a job: a slide that was well would be left out of the study."""
    with pytest.raises(MilError, match=r"a\.svs: .*killed \(SIGKILL\).*memory"):
        isolated(die, signal.SIGKILL, name="a.svs", timeout_s=30)
    with pytest.raises(MilError, match=r"a\.svs: .*ended from outside \(SIGTERM\)"):
        isolated(die, signal.SIGTERM, name="a.svs", timeout_s=30)
    assert isolated(talk, "hello", name="b.svs", timeout_s=30) == "hello!"


def test_a_file_of_the_working_directory_stands_for_no_module(tmp_path, monkeypatch):
    """`grp.py` beside the cohort's sheet made every slide a damaged one."""
    for name in ("grp", "queue", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise IndexError('not a module')")
    monkeypatch.chdir(tmp_path)
    worker = Isolated()
    assert worker.call(talk, "hello", name="a.svs", timeout_s=30) == "hello!"
    worker.close()


def test_a_fault_before_the_file_is_opened_blames_no_file(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("def call():\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("broken_module").call
    (tmp_path / "broken_module.py").write_text("raise IndexError('a release that was half copied')")
    worker = Isolated()
    with pytest.raises(RuntimeError, match=r"a\.svs: IndexError"):
        worker.call(function, name="a.svs", timeout_s=30)
    worker.close()


def test_a_reader_that_cannot_start_stops_the_command_and_blames_no_file(monkeypatch):
    monkeypatch.setattr(isolation.sys, "executable", "/bin/false")
    with pytest.raises(MilError, match=r"did not start \(exit code 1; .*no slide was read"):
        Isolated().call(talk, "hello", name="a.svs", timeout_s=30)


def test_slides_are_read_under_a_limit_of_memory():
    """Clusters set `ulimit -v`; a reader may not ask for more than that, nor for the machine's share."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))\n"
        "from mil.slides.isolation import isolated\nprint(isolated(len, 'abc', name='a.svs', timeout_s=60))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("3\n", "")


def forge(written: str) -> None:
    """What a file that took over its reader could write to the parent."""
    answer = bytes.fromhex(written)
    os.write(ANSWERS, LENGTH.pack(len(answer)) + answer)
    os._exit(0)


ANSWERS = 4  # `serve` copies standard input to 3 and standard output to 4


@pytest.mark.parametrize(
    "answer",
    [
        pickle.dumps(RuntimeError("executed")),
        b"[]",
        b"{}",
        b'"done"',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_a_reader_answers_is_never_executed(answer):
    worker = Isolated()
    with pytest.raises(SlideError) as raised:
        worker.call(forge, answer.hex(), name="a.svs", timeout_s=60)
    assert raised.value.state == "decoder_crash"
    assert "a.svs" in str(raised.value)
    worker.close()


def given(path: Path, spec: SlidesSpec, row: dict, nothing: None) -> dict:
    assert isinstance(path, Path)
    assert isinstance(spec, SlidesSpec)
    return {"path": str(path), "roles": spec.roles, "width": np.int64(row["width"]), "none": nothing}


def test_paths_and_specs_cross_as_they_are():
    spec = SlidesSpec(roles={"a": "train"})
    found = isolated(given, Path("/a b/c"), spec, {"width": np.int64(7)}, None, name="a.svs", timeout_s=60)
    assert found == {"path": "/a b/c", "roles": {"a": "train"}, "width": 7, "none": None}


def test_nothing_of_ours_uses_pickle(repository):
    paths = [path for folder in ("mil", "workflow") for path in sorted((repository / folder).rglob("*.py"))]
    for path in paths:
        text = path.read_text()
        assert "import pickle" not in text, path
        for call in re.findall(r"torch\.load\([^\n]*", text):
            assert "weights_only=True" in call, path


def test_a_hang_ends_in_time():
    worker = Isolated()
    worker.call(talk, "", name="warm", timeout_s=30)
    start = time.monotonic()
    with pytest.raises(SlideError) as raised:
        worker.call(hang, name="a.svs", timeout_s=0.2)
    assert raised.value.state == "timeout"
    assert time.monotonic() - start < 5
    worker.close()


def cgroup(root, version: int, quota: str, period: str = "100000"):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/job\n" if version == 2 else "4:cpu,cpuacct:/job\n")
    folder = root / "sys/fs/cgroup" / ("job" if version == 2 else "cpu/job")
    folder.mkdir(parents=True)
    if version == 2:
        (folder / "cpu.max").write_text(f"{quota} {period}\n")
    else:
        (folder / "cpu.cfs_quota_us").write_text(quota)
        (folder / "cpu.cfs_period_us").write_text(period)
    return root


def test_threads_follow_the_job(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert cores(None, cgroup(tmp_path / "v2", 2, "400000")) == 4
    assert cores(None, cgroup(tmp_path / "v1", 1, "250000")) == 3
    assert cores(None, cgroup(tmp_path / "small", 2, "10000")) == 1
    assert cores(None, cgroup(tmp_path / "free", 2, "max")) == 64
    assert cores(None, tmp_path / "nothing") == 64
    assert cores(5, tmp_path / "nothing") == 5
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert cores(None, tmp_path / "v2") == 2
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")  # on a cluster that binds no job to its cores
    assert cores(None, tmp_path / "v2") == 1
    with pytest.raises(MilError, match="threads"):
        cores(0)


def test_a_slide_id_that_would_leave_the_folder_is_refused(tmp_path):
    import pandas as pd

    from mil.config import TileSpec
    from mil.progress import quiet
    from mil.tiles.shard import tile_shard

    path = write_slide(tmp_path / "a.svs", ramp(300, 300))
    row = {"slide_id": "../../x", "path": str(path), "state": "ok", "reason": "", "mpp": 0.5, "mpp_source": "aperio.MPP", "fingerprint": "0"}  # fmt: skip
    with pytest.raises(MilError, match="cannot be a file name"):
        tile_shard(pd.DataFrame([row]), TileSpec(), tmp_path / "t", tmp_path / "p", quiet())


def test_memory_is_what_the_scheduler_allows(tmp_path):
    groups, mounted = tmp_path / "proc/self/cgroup", tmp_path / "sys/fs/cgroup"
    groups.parent.mkdir(parents=True)
    (mounted / "job").mkdir(parents=True)
    (mounted / "memory.max").write_text("max\n")
    (mounted / "job" / "memory.max").write_text("2000000\n")
    groups.write_text("0::/job/step\n")
    assert memory_given(tmp_path) == 2_000_000
    old = mounted / "memory" / "job"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("1000000\n")
    groups.write_text("9:name=systemd:/x\n8:memory:/job\n")
    assert memory_given(tmp_path) == 1_000_000
    assert memory_given(tmp_path / "none") > 2_000_000


def test_a_file_that_the_system_refuses_is_a_reason():
    with pytest.raises(SlideError, match="/nowhere: No such file or directory") as raised:
        isolated(os.listdir, Path("/nowhere"), name="a.svs", timeout_s=60)
    assert raised.value.state == "unreadable"
