"""YAML as it looks, or one short line."""

from pathlib import Path

import pytest
import yaml

from mil.config import read_spec
from mil.errors import MilError
from mil.specs.slides import SlidesSpec
from mil.strict_yaml import load_yaml

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{after}: &{after} [{','.join([f'*{before}'] * 9)}]" for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: key 'a' stands in line 1 already"),
        ("x: {roles: {A: train,\n  A: external}}", "line 2: key 'A' stands in line 1 already"),
        ("a: 010", "line 1: 010 is read by YAML as another number"),
        ("a: [1, 1:30]", "1:30 is read by YAML as another number"),
        ("a: 1_0", "1_0 is read by YAML as another number"),
        ("a: 1_0.5", "1_0.5 is read by YAML as another number"),
        ("a: 190:20:30.15", "190:20:30.15 is read by YAML as another number"),
        ("a: " + "9" * 5000, "a number of 5,000 digits"),
        ("a: " + "[" * 2000 + "]" * 2000, "nested too deep"),
        (BOMB, "more than 100,000 values"),
        ("a: &x [*x]", "an alias holds itself"),
        ("a: 2024-13-01", "put the value in quotes"),
        ("a: !!python/object/apply:os.system [ls]", "is not valid YAML"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_what_would_be_read_otherwise_than_it_looks_is_one_short_line(text, said):
    with pytest.raises(MilError) as caught:
        load_yaml(text, "config c.yaml")
    assert said in str(caught.value)
    assert str(caught.value).startswith("config c.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_all_else_is_read_as_ever(repository: Path):
    for path in (repository / "configs").rglob("*.yaml"):
        text = path.read_text()
        assert load_yaml(text, str(path)) == yaml.safe_load(text), path
    text = "a: [0, -3, 0.5, .5, 1., 1.5e-3, .inf, yes, '010', null]\nb: {<<: &d {x: 1}, y: *d}"
    assert load_yaml(text, "here") == yaml.safe_load(text)
    assert load_yaml("", "here") is None


@pytest.mark.parametrize(
    "text", ['{"mpp_min": ' + "9" * 5000 + "}", '{"roles": ' * 3000, '{"sheet": ' + '["x' + "x" * 9999 + '"]}']
)
def test_settings_on_the_command_line_are_refused_in_a_short_line(text):
    with pytest.raises(MilError) as caught:
        read_spec(SlidesSpec, text)
    assert len(str(caught.value)) < 500
