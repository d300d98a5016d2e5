"""The workflow on a real Slurm of one node, with the profile as it is: from end to end, and a kill of each kind with its recovery."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import asks_often
import numpy as np
import pandas as pd
import pytest
import yaml
from one_node_slurm import OneNodeSlurm, missing

from mil.config import merge
from mil.synthetic import cohort, flaws

pytestmark = pytest.mark.extended

OVER = {
    "endpoints": {"response": {"folds": 2}},
    "run": ["attention_fedavg"],
    "experiments": {"attention_fedavg": {"encoder": "colour", "training": {"rounds": 4}}},
    "metrics": {"bootstrap": 100, "permutations": 10},
    "figures": {"formats": ["svg"], "slides_a_site": 1, "tiles_a_site": 2, "review_tiles": 2, "resamplings": 2},
    "report": {"viewer_slides": 1, "viewer_px": 512},
}
ROLES = {"north": "train", "east": "external"}
TILES = "results/demo/sites/north/tiles/shard0.csv"
LOG = "results/demo/logs/tile/north.0.log"


def require_slurm(accounting=False):
    if why := missing(accounting):
        required = os.environ.get("MIL_SLURM") == "required" and not accounting
        (pytest.fail if required else pytest.skip)(f"NOT tested on a real Slurm: {why}")


def started(folder, accounting):
    require_slurm(accounting)
    return OneNodeSlurm(folder, accounting)


@pytest.fixture(scope="module")
def demo(tmp_path_factory, repository):
    """The demo cohort with two of its hospitals: each rule has its jobs, and a job costs two starts of Snakemake."""
    require_slurm()
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort, "SITES", [site for site in cohort.SITES if site.name in ROLES])
        patch.setattr(flaws, "FLAWS", [flaw for flaw in flaws.FLAWS if flaw.site in ROLES])
        cohort.make_cohort(folder / "data/demo", seed=1, patients_per_site=8)
    sheet = folder / "data/demo/patients.csv"
    patients = pd.read_csv(sheet, dtype=str, keep_default_na=False)
    patients.assign(response=np.arange(len(patients)) % 2).to_csv(sheet, index=False)  # enough of each for the folds
    config = yaml.safe_load((repository / "configs/cohorts/demo.yaml").read_text())
    config["slides"]["roles"] = ROLES
    (folder / "small.yaml").write_text(yaml.safe_dump(merge(config, OVER)))
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["without-accounting", "with-accounting"])
def slurm(request, demo, tmp_path_factory):
    """First a Slurm that keeps no accounts of jobs, then one that does."""
    with started(tmp_path_factory.mktemp("slurmctld"), request.param) as running:
        yield running


def command(repository, *arguments):
    snakemake = [sys.executable, asks_often.__file__, "--snakefile", repository / "Snakefile"]
    profile = ["--workflow-profile", repository / "configs/profiles/slurm"]
    configs = ["--configfile", "small.yaml"]
    return [str(word) for word in [*snakemake, *configs, *profile, *arguments]]


def environment(repository):
    return os.environ | {"PYTHONPATH": str(repository)}


def run(folder, repository, *arguments):
    """A run from the first line to the last: exit code and all that Snakemake printed."""
    done = subprocess.run(
        command(repository, *arguments),
        cwd=folder,
        env=environment(repository),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_small_demo_runs_from_end_to_end(slurm, demo, repository, tmp_path):
    """Everything without accounting; with accounting up to the census of each site."""
    if slurm.accounting:
        (tmp_path / "data").symlink_to(demo / "data")
        shutil.copy(demo / "small.yaml", tmp_path)
        code, said = run(tmp_path, repository, "--until", "census", "--jobs", "4")
        assert code == 0, said[-5000:]
        assert len(list(tmp_path.glob("results/demo/census/*.csv"))) == len(ROLES)
        states = slurm.say("sacct", "--noheader", "--allocations", "--format=state").split()
        assert set(states) == {"COMPLETED"}
        return
    code, said = run(demo, repository, "--jobs", "4")
    assert code == 0, said[-5000:]
    assert (demo / "results/demo/report/index.html").stat().st_size > 100_000
    submitted = re.findall(r"has been submitted with SLURM jobid \d+ \(log: .*?/rule_(\w+?)/", said)
    assert {"check", "tile", "extract", "bag", "train", "predict", "score", "figure", "report"} <= set(submitted)
    assert "Nothing to be done" in run(demo, repository, "--dry-run")[1]


class Doomed:
    """A run that makes one site's tiles, whose job is held once it works, so that it can be killed."""

    def __init__(self, folder, demo, repository, *arguments):
        for path in (demo / "results").rglob("*"):
            target = folder / path.relative_to(demo)
            if path.is_file() and "sites/north/t" not in str(path) and "/attention/" not in str(path):
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, target)
        (folder / "data").symlink_to(demo / "data")
        shutil.copy(demo / "small.yaml", folder)
        shutil.rmtree(folder / "results/demo/sites/north/features", ignore_errors=True)
        self.folder, self.repository = folder, repository
        with open(folder / "said.txt", "w") as out:
            self.process = subprocess.Popen(
                command(repository, TILES, *arguments), cwd=folder, env=environment(repository), stdout=out, stderr=out
            )

    @property
    def slides(self):
        return {path: path.stat().st_mtime_ns for path in self.folder.glob("results/demo/sites/north/tiles/*.h5")}

    def hold(self):
        """Stop the job's process after its first slide; the finished slides. The process is known before: the other slides take parts of a second."""
        end, process = time.monotonic() + 240, None
        while time.monotonic() < end and self.process.poll() is None:
            process = process or self.job()
            if process and self.slides:
                os.kill(process, signal.SIGSTOP)
                return self.slides
            time.sleep(0.01 if process else 0.05)
        raise AssertionError((self.folder / "said.txt").read_text()[-5000:])

    def job(self):
        """Number of the process that makes the tiles; None before it has begun."""
        for status in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (status / "cmdline").read_bytes().split(b"\0")
                if TILES.encode() in words and (status / "cwd").readlink() == self.folder and b"tile" in words[:4]:
                    return int(status.name)
        return None

    def end(self):
        """Exit code, and what was said."""
        code = self.process.wait(timeout=400)
        return code, (self.folder / "said.txt").read_text()

    def again(self):
        """The same command once more, and nothing that was finished is made again."""
        before = self.slides
        code, said = run(self.folder, self.repository, TILES)
        assert code == 0, said[-5000:]
        assert before.items() <= self.slides.items()


def submitted(said):
    """How often the job of the tiles was given to Slurm."""
    return len(re.findall(r"has been submitted with SLURM jobid \d+ \(log: .*?/rule_tile/", said))


def cause(said):
    """The line of the failed job among the last lines."""
    lines = [line for line in said.splitlines()[-8:] if line.startswith(LOG)]
    assert len(lines) == 1, said[-3000:]
    return lines[0]


def test_a_cancelled_job_is_named_and_goes_on(slurm, demo, repository, tmp_path):
    doomed = Doomed(tmp_path, demo, repository, "--retries", "0")
    doomed.hold()
    slurm.say("scancel", "--user=root")
    code, said = doomed.end()
    assert code == 1
    assert "cancelled, as by scancel" in cause(said)
    last = (tmp_path / LOG).read_text().splitlines()[-1]
    assert "error: terminated (SIGTERM)" in last
    doomed.again()


@pytest.fixture
def plain(slurm):
    """The Slurm without accounting; Snakemake asks `squeue` in both."""
    if slurm.accounting:
        pytest.skip("run once, without accounting: Snakemake asks squeue in both")
    return slurm


def test_a_job_at_its_time_limit_is_named_and_goes_on(plain, demo, repository, tmp_path):
    doomed = Doomed(tmp_path, demo, repository, "--retries", "0", "--set-resources", "tile:runtime=1")
    doomed.hold()
    code, said = doomed.end()
    assert code == 1
    assert "time: it reached its time limit" in cause(said)
    doomed.again()


def test_a_job_that_is_killed_for_memory_is_named_and_tried_again_with_more(plain, demo, repository, tmp_path):
    """The job's Snakemake alone takes more than 100 MB, until the job ends: Slurm, which looks each second, sees it however short the rule is."""
    code, said = Doomed(tmp_path, demo, repository, "--retries", "0", "--set-resources", "tile:mem_mb=100").end()
    assert code == 1
    assert "memory: it took more than it was given" in cause(said)
    code, said = run(tmp_path, repository, TILES, "--set-resources", "tile:mem_mb=100*attempt**5")
    assert code == 0, said[-5000:]
    assert submitted(said) == 2


def test_a_job_whose_node_fails_is_started_again_by_slurm(plain, demo, repository, tmp_path):
    doomed = Doomed(tmp_path, demo, repository, "--retries", "0")
    before = doomed.hold()
    plain.fail_node()
    plain.start_node()
    code, said = doomed.end()
    assert code == 0, said[-5000:]
    assert submitted(said) == 1
    assert before.items() <= doomed.slides.items()


def test_a_preempted_job_is_started_again_by_slurm(plain, demo, repository, tmp_path):
    doomed = Doomed(tmp_path, demo, repository, "--retries", "0")
    before = doomed.hold()
    plain.say("sbatch", "--partition=urgent", "--cpus-per-task=8", "--output=/dev/null", "--wrap=sleep 2")
    code, said = doomed.end()
    assert code == 0, said[-5000:]
    assert submitted(said) == 1
    assert before.items() <= doomed.slides.items()
