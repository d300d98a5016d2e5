"""The container recipes name files that are there, the lock, and a Python that the project allows. They are not built in the tests."""

import re
import tomllib

import pytest


@pytest.mark.parametrize("recipe", ["Dockerfile", "apptainer.def"])
def test_a_recipe_installs_the_lock_from_files_that_are_there(repository, recipe):
    text = (repository / recipe).read_text()
    if recipe == "Dockerfile":
        copied = {name for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for name in line.split()[:-1]}
    else:
        copied = set(
            re.findall(r"^    (\S+) /opt/mil", text.partition("%files")[2].partition("%post")[0], re.MULTILINE)
        )
    assert {"requirements.lock", "pyproject.toml", "mil", "Snakefile", "workflow", "configs"} <= copied
    assert all((repository / name).exists() for name in copied)
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= copied  # the build of the package reads them
    assert "-r /opt/mil/requirements.lock -e /opt/mil" in text
    version = tuple(map(int, re.search(r"python:(\d+)\.(\d+)-", text).groups()))
    assert version >= tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
