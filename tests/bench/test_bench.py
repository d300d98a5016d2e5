"""`mil bench` measures every stage and names the bottleneck."""

import json

import pytest
from typer.testing import CliRunner

from mil import cli
from mil.bench import rates


@pytest.mark.slow
def test_every_stage_has_a_rate_and_the_bottleneck_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "SIDE", 2048)
    out = tmp_path / "rates.json"
    done = CliRunner().invoke(cli.app, ["bench", "--encoder", "colour", "--seconds", "0.01", "--out", str(out)])
    assert done.exit_code == 0, done.output
    measured = json.loads(out.read_text())["rates"]
    stages = {rate["stage"] for rate in measured}
    assert stages == {"decoding", "reading", "encoder", "extraction", "training"}
    assert all(rate["rate"] > 0 and rate["unit"] for rate in measured)
    assert "extraction: bottleneck: " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_seconds_that_are_no_time_are_refused():
    assert "give a positive number" in str(CliRunner().invoke(cli.app, ["bench", "--seconds", "0"]).exception)
