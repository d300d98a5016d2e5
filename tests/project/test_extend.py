"""The examples of docs/extend.md work as they stand there."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from cohort_results import shared_results

import mil
from mil.config import EncoderSpec, ExperimentSpec, parse
from mil.encoders.build import build, make_random
from mil.encoders.table import FILE, read_table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(repository):
    return (repository / "docs/extend.md").read_text()


def block(page, language, begins):
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if text.startswith(begins))


def test_an_encoder_of_a_users_file(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_encoder.py").write_text(block(page, "python", "# my_encoder.py"))
    settings = yaml.safe_load(block(page, "yaml", "encoders:"))["encoders"]["mine"]
    encoder = build(parse(EncoderSpec, settings, "page"))
    assert encoder.width == 3
    assert encoder.module(torch.ones(2, 3, 32, 32)).shape == (2, 3)


def test_an_entry_of_the_table_of_encoders(page, tmp_path):
    table = tmp_path / "encoders.toml"
    table.write_text(FILE.read_text() + "\n" + block(page, "toml", "[vit_tiny_example]"))
    entry = read_table(table)["vit_tiny_example"]
    module = make_random(entry)
    assert sum(parameter.numel() for parameter in module.parameters()) == entry.parameters
    assert module(torch.zeros(1, 3, 224, 224)).shape == (1, entry.width)
    assert (entry.gated, entry.pooling, entry.source.pinned) == (False, "class token", False)


def test_a_head_of_a_users_file(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_head.py").write_text(block(page, "python", "# my_head.py"))
    stanza = parse(ExperimentSpec, yaml.safe_load(block(page, "yaml", "experiments:"))["experiments"]["mine"], "page")
    numbers, labels = np.random.default_rng(0), np.tile([0, 1], 18)
    bags = [numbers.normal(2.0 * label, 1, (4, 3)) for label in labels]
    settings = stanza.model.model_dump(mode="json")
    model = mil.MILClassifier(model=settings, strategy=stanza.strategy.name, folds=2, rounds=10, lr=0.1)
    model.fit(bags, labels, np.repeat(["a", "b", "c"], 12))
    assert mil.auroc(labels, model.predict_proba(bags)[:, 1]).value > 0.8
    assert model.run_.experiment.model.settings == {"sharpness": 2.0}


def run_in_copy(repository, folder, file, text, code, *arguments):
    """What `code` prints in a copy of the package that has `text` as `file`."""
    shutil.copytree(repository / "mil", folder / "mil", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / file).write_text(text)
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.split()


def test_a_strategy_is_one_file(page, repository, tmp_path):
    """In a copy of the package, so that the file is beside the others as the page says."""
    code = """
import numpy as np, mil
numbers, labels = np.random.default_rng(0), np.tile([0, 1], 18)
bags = [numbers.normal(2.0 * label, 1, (4, 3)) for label in labels]
model = mil.MILClassifier(strategy="medoid", folds=2, rounds=3, lr=0.02).fit(bags, labels, np.repeat(["a", "b", "c"], 12))
print(mil.__file__, model.run_.experiment.strategy.title, mil.auroc(labels, model.predict_proba(bags)[:, 1]).value)
"""
    text = block(page, "python", "# mil/strategies/medoid.py")
    file, title, value = run_in_copy(repository, tmp_path, "mil/strategies/medoid.py", text, code)
    assert file.startswith(str(tmp_path))
    assert (title, float(value) > 0.8) == ("Medoid", True)


def test_a_figure_is_one_file(page, repository, tmp_path, tmp_path_factory):
    """It is listed, drawn with its table, and shown in the chapter that it states."""
    results = shared_results(tmp_path_factory.getbasetemp())
    code = """
import sys
from mil.figures import FIGURES
from mil.results.results import Results
from mil.report.story import STORY
results = Results.open(sys.argv[1])
drawn = FIGURES["slides_per_patient"].draw(results, results.config.figures)
chapter = next(one.name for one in STORY if "slides_per_patient" in one.figures)
print(chapter, drawn.data["patients"].sum(), len(results.bags(results.endpoint)), drawn.figure is not None)
"""
    text = block(page, "python", "# mil/figures/slides_per_patient.py")
    name = "mil/figures/slides_per_patient.py"
    chapter, drawn, patients, pictured = run_in_copy(repository, tmp_path, name, text, code, results.folder)
    assert (chapter, drawn, pictured) == ("cohort", patients, "True")
