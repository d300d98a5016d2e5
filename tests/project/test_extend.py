"""The examples of docs/extend.md work as they stand there."""

import re

import pytest
import torch
import yaml

from mil.config import EncoderSpec, parse
from mil.encoders.build import build, make_random
from mil.encoders.table import FILE, read_table


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
