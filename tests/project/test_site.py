"""The site is built without a warning, and its reference has every key, command, column and figure."""

import os
import re
import subprocess
import sys

import pytest
import typer

from mil import schemas
from mil.cli import app
from mil.config import Config
from mil.encoders.table import ENCODERS
from mil.workflow.figures import figure_inputs

pytestmark = pytest.mark.slow
pytest.importorskip("material", reason="mkdocs-material is not installed: pip install -e '.[docs]'")


@pytest.fixture(scope="module")
def site(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    process = subprocess.run(build, cwd=repository, capture_output=True, text=True, check=False, env=environment)
    assert process.returncode == 0, process.stderr
    assert "WARNING" not in process.stderr
    return folder


def text_of(site, page):
    return re.sub(r"<[^>]+>", "", (site / page).read_text())


def keys(schema):
    for section in (schema, *schema["$defs"].values()):
        yield from (key for key in section.get("properties", {}) if key != "version")


def leaves(group, path=()):
    for name, command in group.commands.items():
        yield from leaves(command, (*path, name)) if hasattr(command, "commands") else [" ".join((*path, name))]


def test_the_reference_is_complete(site):
    settings, commands = text_of(site, "reference/config.html"), text_of(site, "reference/commands.html")
    assert [key for key in keys(Config.model_json_schema()) if key not in settings] == []
    assert [name for name in leaves(typer.main.get_command(app)) if f"mil {name}" not in commands] == []
    figures, tables = text_of(site, "figures.html"), text_of(site, "reference/tables.html")
    assert [name for name in figure_inputs() if name not in figures] == []
    columns = {column for value in vars(schemas).values() if isinstance(value, tuple) for column in value}
    assert [column for column in columns if column not in tables] == []
    assert [name for name in ENCODERS if name not in text_of(site, "reference/encoders.html")] == []


def test_search_works_without_a_network_and_nothing_is_asked_of_one(site):
    assert (site / "search/search_index.json").is_file()
    for page in site.rglob("*.html"):
        asked = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']?(https?://[^\"' >]+)", page.read_text())
        assert not asked, (page, asked)
