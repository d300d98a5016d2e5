"""The commands of the README and of docs/cluster.md are executed: make's targets as far as make plans them, all others for real.

What docs/cluster.md submits to Slurm runs on one in `test_slurm.py`.
"""

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mil.synthetic import make_cohort

pytestmark = pytest.mark.slow


def commands_of(page):
    """Lines of the page's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, repository):
    """A checkout as a user has it, and two patients a site to stand in for the user's own cohort."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("Snakefile", "Makefile", "pyproject.toml", "requirements.lock", "requirements.hashes", "README.md"):
        shutil.copy(repository / name, folder / name)
    for name in ("configs", "workflow", "profiles", "mil"):
        shutil.copytree(repository / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    make_cohort(folder / "theirs", patients_per_site=2)
    _copy_patients(folder / "theirs", 4)
    return folder


def _copy_patients(folder, copies):
    """Each patient and their slides `copies` times more, as the template's five folds need five patients of each class per site."""
    for name in ("slides.csv", "patients.csv"):
        header, *rows = (folder / name).read_text().splitlines()
        table = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
        for row in list(table):
            for number in range(copies):
                copy = row | {key: f"{row[key]}-{number}" for key in ("slide_id", "patient_id") if key in row}
                if "path" in row:
                    copy["path"] = str(Path(row["path"]).with_stem(copy["slide_id"]))
                    (folder / copy["path"]).hardlink_to(folder / row["path"])
                table.append(copy)
        (folder / name).write_text("\n".join([header, *(",".join(row.values()) for row in table)]) + "\n")


def run(command, folder):
    # the commands of this Python's environment, activated or not
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    arguments = shlex.split(command)
    return subprocess.run(
        [shutil.which(arguments[0], path=path) or arguments[0], *arguments[1:]],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_command_of_the_readme_runs(repository, folder):
    commands = commands_of(repository / "README.md")
    assert len(commands) >= 5
    for command in commands:
        if command.startswith(("git clone", "cd ", "pip ", "conda ", ". .venv")):
            continue  # getting the code and the environment: what the tests themselves stand on
        if command.startswith("make "):
            command = command.replace("make ", "make --dry-run ", 1)
        if "configs/cohorts/mine.yaml" in command:
            _fill_in(folder)
            command += " --dry-run"
        process = run(command, folder)
        assert process.returncode == 0, f"{command}\n{process.stdout}{process.stderr}"


ELSEWHERE = ("git clone", "python3 -m venv", "mil encoders fetch")
"""What the tests themselves stand on, and what needs a network (`encoders/test_encoder_downloads.py`)."""


@pytest.mark.extended
def test_every_command_of_the_cluster_page_runs(repository, folder):
    page = repository / "docs/cluster.md"
    if not (folder / "configs/cohorts/mine.yaml").exists():
        assert run("mil init mine", folder).returncode == 0
    _fill_in(folder)
    commands = [command for command in commands_of(page) if not command.startswith(ELSEWHERE)]
    commands += [
        text
        for text in re.findall(r"`(mil [^`]* [^`]*)`", " ".join(page.read_text().split()))
        if "mine" in text or "--out" in text
    ]
    assert len(commands) >= 7
    for command in commands:
        submits = command.startswith("snakemake") and "--dry-run" not in command
        process = run(f"{command} --dry-run" if submits else command, folder)
        no_slurm = (
            process.stderr == "error: missing: Slurm; see the lines above\n"
        )  # mil doctor, where Slurm is installed and does not run
        assert process.returncode == 0 or no_slurm, f"{command}\n{process.stdout}{process.stderr}"
        assert "Traceback" not in process.stderr, command


def _fill_in(folder):
    """What a user does after `mil init mine`: the sheets, and the sites' roles."""
    for name in ("slides.csv", "patients.csv"):
        shutil.copy(folder / "theirs" / name, folder / "data/mine" / name)
    for site in ("north", "south", "east", "west"):
        shutil.copytree(folder / "theirs" / site, folder / "data/mine" / site, dirs_exist_ok=True)
    config = folder / "configs/cohorts/mine.yaml"
    text = config.read_text()
    for ours, theirs in (
        ("hospital_a", "north"),
        ("hospital_b", "south"),
        ("hospital_c: external", "east: external\n    west: external"),
    ):
        text = text.replace(ours, theirs)
    config.write_text(text)


def test_every_file_that_the_readme_names_exists(repository):
    text = (repository / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (repository / target).exists(), target


def test_benchmarks_import_what_there_is(repository):
    scripts = sorted((repository / "benchmarks").glob("*.py"))
    assert len(scripts) > 10
    for script in scripts:
        for node in ast.walk(ast.parse(script.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mil":
                module = importlib.import_module(str(node.module))
                missing = [name.name for name in node.names if not hasattr(module, name.name)]
                for name in missing:
                    importlib.import_module(f"{node.module}.{name}")


def test_every_mutant_that_survives_has_a_reason_on_the_page(repository):
    measured = json.loads((repository / "benchmarks/mutants.json").read_text(encoding="utf-8"))
    page = (repository / "docs/mutants.md").read_text(encoding="utf-8")
    for module, found in measured.items():
        assert importlib.util.find_spec(module), module
        for words, reason in found["survivors"].items():
            assert reason, f"{module}: {words}"
            assert f"`{words.replace('|', '&#124;')}` | {reason} |" in page
        assert f"| `{module}` | {found['mutants']:,} |" in page
