"""The built wheel holds the whole package, and `mil demo` runs from it in an empty environment."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = f"import hatchling.build as backend; print(backend.build_wheel({str(folder)!r}))"
    made = subprocess.run([sys.executable, "-c", build], cwd=repository, capture_output=True, text=True, check=True)
    return folder / made.stdout.split()[-1]


def test_the_wheel_holds_every_file_of_the_package(wheel, repository):
    wanted = {
        path.relative_to(repository).as_posix()
        for path in (repository / "mil").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= set(zipfile.ZipFile(wheel).namelist())


def test_the_demo_runs_from_the_wheel_in_an_empty_environment(wheel, tmp_path):
    """The dependencies come from this environment; `mil` itself, installed editable here, does not."""
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env/bin/python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    zipfile.ZipFile(wheel).extractall(packages)
    (packages / "dependencies.pth").write_text(str(Path(pd.__file__).parents[1]))
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments):
        ran = subprocess.run([python, *arguments], cwd=tmp_path, env=bare, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert Path(run("-c", "import mil; print(mil.__file__)").strip()).is_relative_to(packages)
    run("-m", "mil.cli", "demo", "data", "--patients", "2")
    slides = pd.read_csv(tmp_path / "data/slides.csv")
    assert all((tmp_path / "data" / path).stat().st_size > 10_000 for path in slides["path"])
