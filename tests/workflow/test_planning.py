"""`mil doctor` names what is missing and the way out; `mil plan` does its arithmetic on the slides' headers."""

import json
import shutil

import pytest
import yaml
from typer.testing import CliRunner

from mil import cli
from mil.bench.slide import write_slide
from mil.config import Config, defaults, load, merge, parse
from mil.errors import MilError
from mil.slides.sheet import read_cohort
from mil.workflow import prepare
from mil.workflow.doctor import _slurm
from mil.workflow.plan import plan


def run(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def test_the_doctor_looks_at_every_part_and_gives_a_way_out(in_folder, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no Slurm, no nvidia-smi
    done = run("doctor", "--json")
    parts = {part["what"]: part for part in json.loads(done.stdout)}
    assert {"mil", "GPU", "memory", "open files", "results", "Slurm", "hub"} <= set(parts)
    assert all(part["mend"] for part in parts.values() if part["state"] == "missing")
    assert parts["Slurm"]["state"] == "note"
    assert parts["Slurm"]["mend"]
    asked = run("doctor", "--json", "--slurm")
    assert {"what": "Slurm", "state": "missing"}.items() <= next(
        part for part in json.loads(asked.stdout) if part["what"] == "Slurm"
    ).items()
    assert "Slurm" in str(asked.exception)
    assert not list(in_folder.iterdir())


def test_a_slurm_that_does_not_answer_fails_only_who_asks_for_it(tmp_path, monkeypatch):
    for name in ("sbatch", "sinfo"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert [one.state for one in _slurm(False)] == ["note"]
    assert [one.state for one in _slurm(True)] == ["missing"]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert [one.state for one in _slurm(False)] == ["missing"]


@pytest.fixture
def cohort(in_folder):
    """Two sites of four patients; each slide is a square of 0.512 mm."""
    write_slide(in_folder / "slide.tif", 2048)
    lines = ["slide_id,patient_id,site,path,response"]
    lines += [f"s{k},p{k},{'ab'[k % 2]},slide{k}.tif,{k // 2 % 2}" for k in range(16)]
    for k in range(16):
        shutil.copy(in_folder / "slide.tif", in_folder / f"slide{k}.tif")
    (in_folder / "slides.csv").write_text("\n".join(lines) + "\n")
    stanza = {"encoder": "effnet", "model": "gated_attention", "strategy": "pooled", "endpoint": "response"}
    settings = {
        "cohort": "c",
        "slides": {"sheet": "slides.csv", "roles": {"a": "train", "b": "train"}},
        "tiles": {"size_px": 128, "mpp": 0.5},
        "endpoints": {"response": {"folds": 2, "inner_folds": 2}},
        "experiments": {"attention": stanza},
        "run": ["attention"],
    }
    (in_folder / "c.yaml").write_text(yaml.safe_dump(settings))
    return in_folder


def test_the_plan_counts_tiles_bytes_and_jobs(cohort):
    done = run("plan", "c.yaml")
    assert done.exit_code == 0, done.output
    # 16 slides x 0.512 mm squared x 30 % tissue / (0.064 mm squared) = 307
    assert "16 slides; about 307 tiles, from the headers of 16 slides" in done.stdout
    assert any(line.split()[:3] == ["extract", "effnet", "2"] for line in done.stdout.splitlines())
    assert "one H100 with 16 cores" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("enough")


def test_the_plan_leaves_out_what_the_check_refuses_or_has_refused(cohort):
    settings = yaml.safe_load((cohort / "c.yaml").read_text())
    sheet = (cohort / "slides.csv").read_text().splitlines()
    sheet = [f"{sheet[0]},mpp", *(f"{line}," for line in sheet[1:])]
    sheet[1] += "352"  # implausible: 1,408 times as wide as the others
    sheet[2] += "2.0"  # too coarse for tiles of 0.5 microns a pixel
    (cohort / "slides.csv").write_text("\n".join(sheet) + "\n")
    told = [run("plan", "c.yaml").stdout.splitlines()[0]]
    (cohort / "results/c/sites/a").mkdir(parents=True)
    (cohort / "results/c/sites/a/slides.csv").write_text("slide_id,state\ns2,not_a_slide\ns4,ok\n")
    told.append(run("plan", "c.yaml").stdout.splitlines()[0])
    assert told[0].startswith("16 slides, about 2 of them refused (`mil check` says which and why); about 269 tiles")
    assert told[1].startswith("16 slides, about 3 of them refused (`mil check` says which and why); about 250 tiles")
    features = {site: {"layout": "stamp", "folder": str(cohort)} for site in "ab"}
    settings["slides"]["features"] = features
    config = parse(Config, merge(defaults(), settings), "here")
    found = plan(config, read_cohort(config.slides, ["response"]), {})
    assert [stage.stage for stage in found.stages] == ["train to report"]  # nothing is tiled


def test_the_plan_takes_the_rates_of_mil_bench(cohort):
    rate = {"stage": "extraction", "encoder": "efficientnet_lite0", "rate": 0.1, "device": "a slow machine", "cores": 1}
    (cohort / "rates.json").write_text(json.dumps({"rates": [rate]}))
    done = run("plan", "c.yaml", "--rates", "rates.json")
    assert "0.85" in done.stdout  # hours of 307 tiles at 0.1 tiles/s
    assert "a slow machine" in done.stdout
    (cohort / "bad.json").write_text("{")
    refused = run("plan", "c.yaml", "--rates", "bad.json")
    assert isinstance(refused.exception, MilError)
    assert "bad.json" in str(refused.exception)


def test_a_disk_that_is_too_small_is_said_before_the_first_tile(cohort, monkeypatch):
    free = shutil.disk_usage(cohort)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free._replace(free=1_000_000))
    with pytest.raises(MilError, match=r"results/c will take about 0\.5 GB, and 0\.0 GB are free there"):
        prepare(load("c.yaml"))
    refused = run("check", "c.yaml")
    assert "are free there" in str(refused.exception)
    (cohort / "results/c/sites/a/features/effnet").mkdir(parents=True)
    (cohort / "results/c/sites/a/features/effnet/shard0.csv").touch()  # a run that has begun knows better
    assert prepare(load("c.yaml")) == {"a": [0], "b": [0]}
