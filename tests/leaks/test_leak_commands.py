"""Leaks planted into the files of a results folder are found by the commands."""

import shutil

import numpy as np
import pandas as pd
import pytest
from cohort_results import shared_results
from copies import copied
from typer.testing import CliRunner

from mil import hdf5
from mil.cli import app
from mil.config import Config
from mil.errors import MilError
from mil.files import write_text
from mil.tables import read_table, write_table

pytestmark = pytest.mark.slow


@pytest.fixture
def results(tmp_path_factory, tmp_path):
    """A copy of a clean results folder, to spoil; its patient table stands beside it."""
    shared = shared_results(tmp_path_factory.getbasetemp())
    copy = copied(shared.folder, tmp_path / "results")
    shutil.copyfile(shared.folder.parent / "patients.csv", tmp_path / "patients.csv")
    slides = shared.config.slides.model_copy(update={"patients": str(tmp_path / "patients.csv")})
    write_text(copy / "config.json", shared.config.model_copy(update={"slides": slides}).to_json())
    return copy


def patients_of(results):
    path = results.parent / "patients.csv"
    return path, read_table(path, text=("patient_id", "response", "t_stage", "n_stage"))


def clinical_column_from_the_label(results):
    path, patients = patients_of(results)
    patients["ki67"] = patients["response"].map({"1": 80, "0": 20, "": 50})
    write_table(patients, path)


def bag_size_from_the_label(results):
    bags = read_table(results / "bags/response.csv", text=("patient_id", "slides", "site", "role")).set_index(
        "patient_id"
    )
    for path in (results / "census").iterdir():
        table = read_table(
            path, text=("slide_id", "patient_id", "site", "state", "reason", "stage", "mpp_source", "format")
        )
        labels = table["patient_id"].map(bags["label"]).fillna(0)
        write_table(table.assign(num_tiles=100 + 300 * labels.astype(int)), path)


def file_names_from_the_label(results):
    bags = read_table(results / "bags/response.csv", text=("patient_id", "slides", "site", "role")).set_index(
        "patient_id"
    )
    for path in (results / "sites").glob("*/slides.csv"):
        table = read_table(path, text=("slide_id", "patient_id", "site", "path", "fingerprint", "state", "reason"))
        kind = table["patient_id"].map(bags["label"]).map({1: "good", 0: "poor"}).fillna("poor")
        write_table(table.assign(path="/scans/" + kind + "/" + table["slide_id"] + ".tiff"), path)


def sheet_in_the_order_of_the_label(results):
    """As many registries export it: responders first."""
    bags = read_table(results / "bags/response.csv", text=("patient_id", "slides", "site", "role")).set_index(
        "patient_id"
    )
    for path in (results / "sites").glob("*/slides.csv"):
        table = read_table(path, text=("slide_id", "patient_id", "site", "path", "fingerprint", "state", "reason"))
        table["label"] = table["patient_id"].map(bags["label"]).fillna(0)
        write_table(table.sort_values("label", ascending=False).drop(columns="label"), path)


def a_feature_that_shows_the_label(results):
    """As an easy endpoint (tumour or none) has it with a good encoder."""
    bags = read_table(results / "bags/response.csv", text=("patient_id", "slides", "site", "role"))
    for row in bags.itertuples():
        for slide in str(row.slides).split(";"):
            path = results / f"sites/{row.site}/features/effnet/{slide}.h5"
            (features, coords), about = hdf5.read(path, "features", "coords"), hdf5.attributes(path)
            features[:, 0] = 4 * row.label + np.linspace(0, 1, len(features))
            with hdf5.writing(path) as writer:
                writer.append("features", features)
                writer.append("coords", coords)
                writer.annotate({name: value for name, value in about.items() if name != hdf5.CHECKSUM})


def patient_in_two_folds(results):
    path = results / "bags/response.csv"
    bags = read_table(path, text=("patient_id", "slides", "site", "role"))
    twice = bags[bags["role"] == "train"].head(1).assign(repeat0=lambda table: (table["repeat0"] + 1) % 3)
    write_table(pd.concat([bags, twice]), path)


def slide_under_two_patients(results):
    first, second = (
        sorted((results / "sites" / site / "features/effnet").glob("*.h5"))[0] for site in ("north", "west")
    )
    features, coords = hdf5.read(first, "features", "coords")
    about = hdf5.attributes(second)
    with hdf5.writing(second) as writer:
        writer.append("features", features)
        writer.append("coords", coords)
        writer.annotate({name: value for name, value in about.items() if name != hdf5.CHECKSUM})


@pytest.mark.parametrize(
    ("plant", "check", "state"),
    [
        (clinical_column_from_the_label, "patient table", "leak"),
        (bag_size_from_the_label, "bag size and files", "leak"),
        (file_names_from_the_label, "names of patients, slides and files", "suspect"),
        (sheet_in_the_order_of_the_label, "bag size and files", "suspect"),
        (a_feature_that_shows_the_label, "features effnet", "leak"),
        (patient_in_two_folds, "patients", "leak"),
        (slide_under_two_patients, "copies, features effnet", "leak"),
    ],
)
def test_the_command_finds_what_was_planted(results, plant, check, state):
    out = results / "inputs.csv"
    clean = CliRunner().invoke(app, ["check", "--inputs", str(results), "--out", str(out)])
    assert clean.exit_code == 0, clean.output
    assert set(read_table(out, text=("check", "subject"))["state"]) <= {"ok", "not judged"}
    plant(results)
    found = CliRunner().invoke(app, ["check", "--inputs", str(results), "--out", str(out)])
    assert isinstance(found.exception, MilError) == (state == "leak")
    table = read_table(out, text=("check", "subject"))
    assert check in set(table.loc[table["state"] == state, "check"]), table


def test_all_leaks_are_named_at_once_before_training_and_are_not_looked_for_twice(results, monkeypatch):
    """Without any run: of the patient table and of the features; then `--deep` takes them from the table."""
    for folder in ("runs", "predictions"):
        shutil.rmtree(results / folder)
    clinical_column_from_the_label(results)
    a_feature_that_shows_the_label(results)
    out = results / "inputs.csv"
    stopped = str(CliRunner().invoke(app, ["check", "--inputs", str(results), "--out", str(out)]).exception)
    assert stopped.startswith("2 leaks: ")
    assert "patient table: ki67" in stopped
    assert "features effnet: 0 ranks" in stopped
    assert "metrics.on_leak: flag" in stopped
    monkeypatch.setattr("mil.leaks.deep_check._probe", lambda *_: [])  # its own tests are above
    monkeypatch.delattr("mil.leaks.deep_check.input_checks")
    found = CliRunner().invoke(app, ["check", "--deep", str(results), "--known", str(out), "--out", str(out)])
    assert "2 leaks: " in str(found.exception)
    assert "patient table: ki67" in str(found.exception)
    assert "features effnet: 0 ranks" in str(found.exception)


def test_a_leak_ends_the_run_unless_the_config_says_otherwise(results):
    a_feature_that_shows_the_label(results)
    config = Config.model_validate_json((results / "config.json").read_text())
    metrics = config.metrics.model_copy(update={"on_leak": "flag"})
    write_text(results / "config.json", config.model_copy(update={"metrics": metrics}).to_json())
    gone_on = CliRunner().invoke(app, ["check", "--inputs", str(results)])
    assert gone_on.exit_code == 0
    assert "leak: features effnet" in gone_on.output


def test_a_column_that_is_filled_for_one_class_only_is_found(results):
    path, patients = patients_of(results)
    patients["ki67"] = patients["response"].map({"1": "20", "0": "", "": ""})
    write_table(patients, path)
    found = CliRunner().invoke(app, ["check", "--inputs", str(results)])
    assert "whether ki67 is filled" in str(found.exception)
