"""The command line: instant help, and every fault one line, exit code 1 and nothing half-written."""

import subprocess
import sys

import numpy as np
import pytest
from features_alone import write_trident
from typer.testing import CliRunner

from mil import __version__
from mil.cli import app

COMMANDS = [
    "init", "demo", "check", "tile", "contact", "extract", "census", "bag", "train", "predict", "score", "compare", "localise",
    "plot", "report", "config", "baseline", "validate", "convert", "encoders", "server", "site", "ledger",
    "clinical",
]  # fmt: skip


def mil(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "mil.cli", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_every_command_is_listed_and_explained():
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command in result.output
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_help_needs_no_heavy_import():
    code = "import sys, mil.cli; print([m for m in ('torch', 'pandas', 'matplotlib', 'snakemake') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_version():
    assert CliRunner().invoke(app, ["--version"]).output.strip() == f"mil {__version__}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "--spec", '{"sheet": "none.csv"}'], "slide sheet none.csv does not exist"),
        (["check", "--spec", '{"shet": "x"}'], "unknown key 'shet'; did you mean 'sheet'?"),
        (["check", "--spec", "none.yaml"], "config none.yaml does not exist"),
        (["tile", "none.csv", "--folder", "t", "--thumbnails", "t", "--out", "t.csv"], "table none.csv does not exist"),
        (["config", "show", "none.yaml"], "config none.yaml does not exist"),
    ],
)
def test_a_fault_is_one_line_and_exit_code_1(tmp_path, arguments, said):
    process = mil(*arguments, cwd=tmp_path)
    assert process.returncode == 1
    assert process.stderr.startswith("error: ")
    assert said in process.stderr
    assert process.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_and_a_log_that_cannot_be_written_are_one_line_each(tmp_path):
    """A limit on the size of files stands for the full disk: HDF5 tells of both in several lines."""
    write_trident(tmp_path / "theirs", "s1", np.random.default_rng(0).normal(size=(400, 64)))
    arguments = ["convert", "trident", "theirs", "ours", "--mpp", "0.25"]
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); from mil.cli import main; main()"
    full = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    said = full.stderr.strip().splitlines()
    assert full.returncode != 0  # HDF5 complains before, and may crash at the end, where it cannot close its file
    assert said[-1].startswith("error: ours/s1.h5: cannot be written (")
    assert said[-1].endswith("); nothing was left there")
    assert list((tmp_path / "ours").iterdir()) == []
    (tmp_path / "file").write_text("")
    process = mil(*arguments, "--log", "file/convert.log", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (1, "error: file: File exists\n")


def test_strict_check_of_a_corrupt_slide_names_it(tmp_path):
    (tmp_path / "broken.svs").write_bytes(b"not a slide")
    (tmp_path / "slides.csv").write_text("slide_id,patient_id,site,path\ns1,p1,A,broken.svs\n")
    spec = '{"sheet": "slides.csv", "roles": {"A": "train"}}'
    flagged = mil("check", "--spec", spec, "--out", "out.csv", cwd=tmp_path)
    assert flagged.returncode == 1  # nothing usable is left
    assert "s1" in (tmp_path / "out.csv").read_text()
    strict = mil("check", "--spec", spec, "--strict", cwd=tmp_path)
    assert strict.returncode == 1
    last = strict.stderr.strip().splitlines()[-1]
    assert last.startswith("error: 1 of 1 slides cannot be used; the first: slide s1 (broken.svs): ")


def test_the_log_gets_the_error_too(tmp_path):
    process = mil("check", "--spec", '{"sheet": "none.csv"}', "--log", "check.log", cwd=tmp_path)
    assert process.returncode == 1
    assert "error: slide sheet none.csv does not exist" in (tmp_path / "check.log").read_text()
