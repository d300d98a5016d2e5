"""Predicting with what no longer fits: each case ends with one line that names the file or patient and the way out."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from training_cohort import ENDPOINT, experiment, make_cohort, training_part
from typer.testing import CliRunner

from mil import hdf5
from mil.bags.table import deal_folds
from mil.cli import app
from mil.config import EndpointSpec
from mil.errors import MilError
from mil.predictions.predict import predict as predict_run
from mil.progress import quiet
from mil.statistics.thresholds import choose_thresholds, read_inner
from mil.tables import read_table, write_table
from mil.training.rounds import Driver
from mil.training.run import train as train_run
from mil.training.store import FeatureStore

BAGS, ARRAYS = make_cohort()
TRAINING = training_part(BAGS, ARRAYS)
SITES3 = {"A": "train", "B": "train", "C": "train"}


def write_sites(folder, bags, arrays, **about):
    stated = {"encoder": "e", "weights_sha256": "w", "size_px": 224, "tile_mpp": 0.5} | about
    for row in bags.itertuples():
        path = folder / "sites" / row.site / "features" / "e" / f"{row.slides}.h5"
        path.unlink(missing_ok=True)
        with hdf5.writing(path) as file:
            file.append("features", arrays[row.patient_id].astype(np.float16))
            file.append("coords", np.arange(2 * len(arrays[row.patient_id])).reshape(-1, 2))
            file.annotate({"stage": "extract", "slide_id": row.slides, **stated})


def mil(*arguments):
    """Exit code 0, or the error's line."""
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def train(folder, bags, **changes):
    write_table(bags, folder / "bags.csv")
    spec = experiment(training={"rounds": 2}, **changes).to_json()
    mil(
        "train", folder / "bags.csv", "--sites", folder / "sites", "--spec", spec, "--endpoint", ENDPOINT.to_json(),
        "--folder", folder / "run",
    )  # fmt: skip


def predict(folder, bags="bags.csv"):
    mil(
        "predict", folder / "run", "--bags", folder / bags, "--sites", folder / "sites", "--out", folder / "out.csv"
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    write_sites(folder, BAGS, ARRAYS)
    train(folder, BAGS)
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def test_an_untouched_run_predicts_everybody(folder):
    predict(folder)
    assert read_table(folder / "out.csv", text=("patient_id",))["patient_id"].nunique() == len(BAGS)


def without(name):
    return lambda folder: (folder / "run" / name).unlink()


def shorten(name):
    def change(folder):
        path = folder / "run" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return change


def rows_lost(folder):
    path = folder / "run" / "models.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def other_weights(folder):
    path = folder / "run" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x40
    path.write_bytes(bytes(data))


def new_folds(folder):
    plain = BAGS[["patient_id", "slides", "site", "role", "label"]]
    write_table(deal_folds(plain, ENDPOINT.model_copy(update={"seed": 5})), folder / "bags.csv")


def new_label(folder):
    bags = BAGS.copy()
    bags.loc[bags["patient_id"] == "A03", "label"] = 0
    write_table(bags, folder / "bags.csv")


def new_patient(folder):
    more = BAGS[BAGS["patient_id"] == "A03"].assign(patient_id="A99")
    write_table(pd.concat([BAGS, more]), folder / "bags.csv")


def other_encoder(folder):
    write_sites(folder, BAGS, ARRAYS, weights_sha256="other")


def narrower(folder):
    write_sites(folder, BAGS, {patient: tiles[:, :6] for patient, tiles in ARRAYS.items()})


def patient_gone(folder):
    (folder / "sites/C/features/e/C05.h5").unlink()


def half_a_file(folder):
    path = folder / "sites/C/features/e/C05.h5"
    path.write_bytes(path.read_bytes()[:700])


def spec_of_another(folder):
    path = folder / "run" / "spec.json"
    spec = json.loads(path.read_text())
    spec["experiment"]["model"] = {"name": "mean"}
    spec["heads"] = [{"name": "mean"}]
    path.write_text(json.dumps(spec))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("spec.json"), "not finished; run `mil train`"),
        (without("weights.safetensors"), "weights.safetensors"),
        (without("models.csv"), "models.csv"),
        (without("inner.csv"), "inner.csv"),
        (without("ledger.jsonl"), "ledger.jsonl"),
        (shorten("spec.json"), "spec.json"),
        (shorten("weights.safetensors"), "weights.safetensors"),
        (shorten("models.csv"), "models.csv"),
        (rows_lost, "models.csv is not as it was written"),
        (other_weights, "weights.safetensors is not as it was written"),
        (spec_of_another, "run `mil train` again"),
        (new_folds, "when the run was trained; run `mil train` again"),
        (new_label, "patient A03 has label 0, but had 1"),
        (new_patient, "patient A99 of training site A was not there"),
        (other_encoder, "weights_sha256 is 'other', but the run was trained on 'w'"),
        (narrower, "6 numbers a tile do not fit the run's weights"),
        (patient_gone, "C05.h5"),
        (half_a_file, "C05.h5"),
    ],
)
def test_what_no_longer_fits_is_one_line(folder, change, said):
    change(folder)
    with pytest.raises(MilError) as caught:
        predict(folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "out.csv").exists()


def test_a_bag_table_without_the_external_sites_is_enough(folder):
    write_table(BAGS[BAGS["role"] == "train"], folder / "bags.csv")
    predict(folder)
    assert set(read_table(folder / "out.csv", text=("split",))["split"]) == {"held_out"}


def test_external_patients_need_no_folds_of_the_run(folder):
    predict(folder)
    text = ("patient_id", "split")
    before = read_table(folder / "out.csv", text=text).query("split == 'external'").reset_index(drop=True)
    external = BAGS[BAGS["role"] == "external"]
    write_table(external[[name for name in BAGS if not name.startswith("repeat")]], folder / "bags.csv")
    predict(folder)
    pd.testing.assert_frame_equal(read_table(folder / "out.csv", text=text), before)


def with_patients_without_a_label(folder):
    """Two patients without a label at training site A and one at external site C more in the bag table, and their features."""
    later = {"A02x": "A", "A13": "A", "C03x": "C"}
    rows = BAGS.set_index("patient_id").loc[["A02", "A03", "C03"]]
    rows = rows.assign(**{name: "" for name in rows if name == "label" or name.startswith("repeat")})
    more = rows.assign(patient_id=list(later), slides=list(later)).reset_index(drop=True)
    random = np.random.default_rng(5)
    write_sites(folder, more, {patient: random.normal(size=(9, 8)) for patient in later})
    write_table(pd.concat([BAGS, more]).sort_values(["site", "patient_id"]), folder / "bags.csv")
    return later


def test_patients_without_a_label_are_predicted_and_change_nothing_else(folder, monkeypatch):
    """The others' rows, attention and run are the same byte by byte; of the new ones no model was trained on any."""
    predict(folder)
    attention = {path: path.read_bytes() for path in folder.glob("sites/*/attention/out/*.h5")}
    lines = (folder / "out.csv").read_text().splitlines()
    later = with_patients_without_a_label(folder)
    monkeypatch.setattr(Driver, "run", lambda *_: pytest.fail("the run was trained again"))
    spec = json.loads((folder / "run/spec.json").read_text())["experiment"]
    mil(
        "train", folder / "bags.csv", "--sites", folder / "sites", "--spec", json.dumps(spec), "--endpoint", ENDPOINT.to_json(),
        "--folder", folder / "run",
    )  # fmt: skip
    predict(folder)
    assert {path: path.read_bytes() for path in attention} == attention
    assert set(folder.glob("sites/*/attention/out/*.h5")) - set(attention) == {
        folder / f"sites/{site}/attention/out/{patient}.h5" for patient, site in later.items()
    }
    now = (folder / "out.csv").read_text().splitlines()
    assert [line for line in now if not set(line.split(",")) & set(later)] == lines
    new = read_table(folder / "out.csv").query("patient_id in @later")
    assert new["label"].isna().all()
    assert new.groupby("patient_id")["split"].agg(set).to_dict() == {
        "A02x": {"held_out"}, "A13": {"held_out"}, "C03x": {"external"},
    }  # fmt: skip
    assert (new.groupby("patient_id")["fold"].nunique() == 3).all()  # every model
    table = read_table(folder / "out.patients.csv").set_index("patient_id")
    assert len(table) == len(BAGS) + 3
    assert set(table.index[table["label"].isna()]) == set(later)
    means = read_table(folder / "out.csv").groupby("patient_id")["score"].mean()
    assert np.allclose(table["probability"], means[table.index])


def test_a_patient_whose_label_was_taken_away_is_not_judged_by_models_that_know_it(folder):
    bags = BAGS.astype(object)
    bags.loc[bags["patient_id"] == "A03", [name for name in bags if name == "label" or name.startswith("repeat")]] = ""
    write_table(bags, folder / "bags.csv")
    with pytest.raises(MilError, match="patient A03 has no label, but had one when the run was trained"):
        predict(folder)


@pytest.mark.parametrize("strategy", ["local", "pooled"])
def test_scaling_by_site_takes_the_moments_of_labelled_patients(strategy):
    """An external site's labelled patients keep their scores; where none has a label, all of them are what scales."""
    run = train_run(
        experiment(strategy=strategy, training={"rounds": 2, "scaling": "site"}), ENDPOINT, *TRAINING, quiet()
    )
    store = FeatureStore.of(ARRAYS, {"encoder": "e"})
    whole = predict_run(run, BAGS, store).table.set_index(["trained_on", "patient_id", "fold"])["score"]
    c_alone = BAGS[BAGS["role"] == "external"].reset_index(drop=True)
    blank = c_alone.assign(label=c_alone["label"].where(c_alone["patient_id"] < "C06").astype("Int64"))
    few = FeatureStore.of({one: ARRAYS[one] for one in c_alone["patient_id"] if one < "C06"}, {"encoder": "e"})
    half = predict_run(run, blank, store).table.set_index(["trained_on", "patient_id", "fold"])["score"]
    alone = predict_run(run, blank[blank["label"].notna()], few).table
    assert np.array_equal(
        alone["score"], half[list(map(tuple, alone[["trained_on", "patient_id", "fold"]].to_numpy()))]
    )
    none = predict_run(run, c_alone.assign(label=pd.NA), store).table
    keys = list(map(tuple, none[["trained_on", "patient_id", "fold"]].to_numpy()))
    assert np.allclose(none["score"], whole[keys], atol=1e-6)


def test_inner_folds_give_every_model_a_threshold(folder):
    inner = read_inner(folder / "run" / "inner.csv")
    bags = BAGS.set_index("patient_id")
    joined = inner.join(bags[["repeat0", "role"]], on="patient_id")
    assert (joined["role"] == "train").all()
    assert (joined["repeat0"].astype(int) != joined["fold"]).all()  # nobody whom the model is to judge
    assert joined.groupby("fold")["patient_id"].nunique().tolist() == [16, 16, 16]
    assert not joined.duplicated(["fold", "patient_id"]).any()
    assert choose_thresholds(inner)["threshold"].between(0, 1).all()
    predict(folder)
    mil(
        "score", folder / "out.csv", "--inner", folder / "run/inner.csv", "--experiment", experiment().to_json(),
        "--spec", '{"bootstrap": 100}', "--out", folder / "metrics.csv",
    )  # fmt: skip
    metrics = read_table(folder / "metrics.csv", text=("site", "metric", "method", "split"))
    assert {"sensitivity", "specificity", "balanced_accuracy"} <= set(metrics["metric"])
    row = metrics[(metrics["metric"] == "balanced_accuracy") & (metrics["site"] == "C")].iloc[0]
    assert row["low"] < row["value"] < row["high"]


def test_a_score_that_depends_on_who_else_is_in_the_sheet_comes_with_a_warning(folder):
    """C has one patient less: with `scaling: site` the others' scores change, and it is said; else they do not."""
    fewer = BAGS[BAGS["patient_id"] != "C00"]
    for scaling in ("standard", "site"):
        run = train_run(experiment(training={"rounds": 2, "scaling": scaling}), ENDPOINT, *TRAINING, quiet())
        both = [
            predict_run(run, bags, FeatureStore.of({one: ARRAYS[one] for one in bags["patient_id"]}, {"encoder": "e"}))
            for bags in (BAGS, fewer)
        ]
        of_one = [found.table.set_index(["patient_id", "repeat", "fold"])["score"]["C01"].to_numpy() for found in both]
        assert np.allclose(*of_one, atol=1e-6) == (scaling == "standard")
        warnings = [found.warnings for found in both]
        if scaling == "standard":
            assert warnings == [(), ()]
        else:
            assert [len(one) for one in warnings] == [1, 1]
            assert "site C: features are scaled by the moments of the 11 patients" in warnings[1][0]


def test_leaving_one_site_out_judges_each_site_by_the_others(tmp_path):
    bags, arrays = make_cohort(sites=SITES3)
    write_sites(tmp_path, bags, arrays)
    (tmp_path / "sites/D").mkdir()  # none of its slides can be used
    (tmp_path / "sites/D/slides.csv").write_text("slide_id,patient_id,site,state\nD00,D00,D,unreadable\n")
    train(tmp_path, bags, strategy="fedavg", protocol="leave_one_site_out")
    models = read_table(tmp_path / "run/models.csv", text=("trained_on",))
    assert set(models["trained_on"]) == {"A+B", "A+C", "B+C"}
    inner = read_inner(tmp_path / "run/inner.csv")
    assert all(row.site in row.trained_on.split("+") for row in inner.itertuples())  # selection saw no other site
    predict(tmp_path)
    table = read_table(tmp_path / "out.csv", text=("trained_on", "patient_id", "site", "split"))
    assert set(zip(table["trained_on"], table["site"], strict=True)) == {("A+B", "C"), ("A+C", "B"), ("B+C", "A")}
    assert set(table["split"]) == {"transfer"}
    assert table["patient_id"].is_unique
    assert (tmp_path / "sites/C/attention/out/C00.h5").is_file()
    assert (tmp_path / "sites/D/attention/out").is_dir()


def test_leaving_one_site_out_of_two_is_refused(tmp_path):
    write_sites(tmp_path, BAGS, ARRAYS)
    with pytest.raises(MilError, match="needs three training sites, and there are 2"):
        train(tmp_path, BAGS, protocol="leave_one_site_out")
    with pytest.raises(ValueError, match="strategy local has one for each"):
        experiment(strategy="local", protocol="leave_one_site_out")


def test_training_opens_no_file_of_an_external_site(tmp_path):
    write_sites(tmp_path, BAGS, ARRAYS)
    shutil.rmtree(tmp_path / "sites/C")
    train(tmp_path, BAGS)
    assert (tmp_path / "run/spec.json").is_file()


def test_covariates_that_the_bags_lack_are_named(tmp_path):
    write_sites(tmp_path, BAGS, ARRAYS)
    with pytest.raises(MilError, match="column 'age' is missing"):
        train(tmp_path, BAGS, covariates=["age"])
    assert EndpointSpec().kind == "binary"
