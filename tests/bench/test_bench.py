"""`mil bench` measures every stage and names the bottleneck."""

import json
from types import SimpleNamespace

import pytest
import torch
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
    assert ": bottleneck: " in done.stdout
    assert "cores to keep up with the encoder" in done.stdout
    found = {(rate["encoder"], rate["form"]) for rate in measured if rate["stage"] == "extraction"}
    assert found == {("colour", form) for form in rates.FORMATS}
    assert all(
        rate["busy"] and rate["first_tile_s"] and rate["memory_mb"]
        for rate in measured
        if rate["stage"] == "extraction"
    )
    assert {rate["cores"] for rate in measured if rate["stage"] == "reading"} == {1, measured[-1]["cores"]}
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_energy_is_what_nvidia_smi_tells(tmp_path, monkeypatch):
    told = tmp_path / "nvidia-smi"
    told.write_text("#!/bin/sh\necho 350.00\n")
    told.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(uuid="1"))
    assert rates.joules(torch.device("cuda"), 3500.0) == 0.1
    told.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert rates.joules(torch.device("cuda"), 3500.0) is None
    assert rates.joules(torch.device("cpu"), 3500.0) is None


def test_seconds_that_are_no_time_are_refused():
    assert "give a positive number" in str(CliRunner().invoke(cli.app, ["bench", "--seconds", "0"]).exception)
