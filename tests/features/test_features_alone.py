"""A cohort that starts from features alone: no slide is opened, no tile made, and predictions come out all the same."""

import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import yaml
from features_alone import LAYOUTS, WEIGHTS, make_features, write_stamp
from forks import run_main
from warm_workflow import run_workflow

from mil import hdf5
from mil.config import Config, EncoderSpec, SlidesSpec, merge, parse, read_yaml
from mil.convert.convert import convert_in
from mil.convert.foreign import ForeignFeatures
from mil.errors import MilError
from mil.progress import quiet
from mil.slides.check import check_slides
from mil.slides.sheet import read_cohort
from mil.training.store import FeatureStore

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(tmp_path, repository):
    """The cohort's config as a mapping, the experiments' stanzas below it."""
    return merge(read_yaml(repository / "configs/experiments.yaml"), make_features(tmp_path))


def snakemake(folder, repository, *arguments):
    words = ["--snakefile", str(repository / "Snakefile"), "--configfile", "config.yaml", "--cores", "2", *arguments]
    return run_main("snakemake.cli", words, folder) if "--dry-run" in words else run_workflow(folder, words)


def text_of(done):
    """What a run that succeeded printed."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_from_the_features_of_three_tools_to_predictions(tmp_path, repository):
    config = make_features(tmp_path / "data") | {"run": ["attention_pooled"], "results": "my results"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    predictions = tmp_path / "my results/alone/predictions/attention_pooled.csv"
    text_of(snakemake(tmp_path, repository, "my results/alone/predictions/attention_pooled.csv"))
    assert set(pd.read_csv(predictions).site) == set(LAYOUTS)
    sites = tmp_path / "my results/alone/sites"
    assert not [path for name in ("tiles", "thumbnails") for path in sites.glob(f"*/{name}")]
    for site in LAYOUTS:
        about = hdf5.attributes(sites / site / "features/uni" / f"{site}-p1-s1.h5")
        stated = (about["encoder"], about["weights_sha256"], about["size_px"], about["tile_mpp"])
        assert stated == ("uni", WEIGHTS, 256, 0.5)
        assert (sites / site / "attention/attention_pooled" / f"{site}-p1-s1.h5").is_file()
    flow = pd.read_csv(tmp_path / "my results/alone/bags/response.flow.csv")
    assert dict(flow[flow.reason == "no_features"].set_index("site").slides) == dict.fromkeys(LAYOUTS, 1)

    target = "my results/alone/predictions/attention_pooled.csv"
    assert "Nothing to be done" in text_of(snakemake(tmp_path, repository, target, "--dry-run"))
    write_stamp(tmp_path / "data/north", "north-p1-s1", np.ones((9, 16), np.float16))
    everything = text_of(snakemake(tmp_path, repository, "--dry-run"))
    assert everything.count("rule convert:") == 1
    assert not any(f"rule {name}:" in everything for name in ("tile", "extract", "contact_sheet"))
    assert "rule report:" in everything


@pytest.mark.extended
def test_a_second_workflow_of_a_cohort_is_refused_and_one_of_another_cohort_runs_beside_it(tmp_path, repository):
    config = make_features(tmp_path / "data")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(config | {"cohort": "other"}))
    target = "results/alone/predictions/attention_pooled.csv"
    words = ["--snakefile", str(repository / "Snakefile"), "--configfile", "config.yaml", "--cores", "2", target]
    command = [sys.executable, "-m", "snakemake", *words]
    with (
        open(tmp_path / "first.log", "w") as log,
        subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT) as first,
    ):
        while not list(tmp_path.glob(".snakemake/locks/*")):
            assert first.poll() is None
            time.sleep(0.1)
        first.send_signal(signal.SIGSTOP)  # or it might end before the second one has looked
        second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        first.send_signal(signal.SIGCONT)
        beside = snakemake(tmp_path, repository, "results/other/bags/response.csv", "--configfile", "other.yaml")
        first.wait()
    assert second.returncode != 0
    assert "cannot be locked" in second.stderr
    text_of(beside)
    assert first.returncode == 0, (tmp_path / "first.log").read_text()
    assert "Nothing to be done" in text_of(snakemake(tmp_path, repository, target, "--dry-run"))


def test_the_line_of_a_job_that_failed_stands_at_the_end(tmp_path, repository):
    config = make_features(tmp_path / "data")
    for path in (tmp_path / "data/north").rglob("north-p[1357]-s1*"):  # all who respond
        path.unlink()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = snakemake(tmp_path, repository, "results/alone/bags/response.csv")
    assert done.returncode != 0
    after = (done.stdout + done.stderr).partition("Exiting because a job execution failed")[2]
    assert "results/alone/logs/bag/response.log: error: site north: all 4 patients have response = 0" in after


def test_no_rule_gives_the_shell_a_path_with_blanks_bare(repository):
    """Numbers need no quotes, and what `foreign_features` makes has them."""
    bare = {"threads", "resources.batch_size", "params.source"}
    for path in (repository / "workflow/rules").glob("*.smk"):
        shells = re.findall(r"    shell:\n((?: +\".*\n)+)", path.read_text())
        found = {name for shell in shells for name in re.findall(r"\{([^}]*)\}", shell)}
        assert {name for name in found if not name.endswith(":q")} <= bare, path


def test_rows_of_such_a_site_need_no_path_and_no_slide(settings):
    config = parse(Config, settings, "here")
    cohort = read_cohort(config.slides, ["response"])
    table = check_slides(cohort.at("north"), config.slides, quiet())
    assert set(table.state) == {"ok"}
    assert set(table.format) == {"features (stamp)"}
    assert set(table.mpp) == {0.25}
    without = SlidesSpec(**(config.slides.model_dump() | {"features": {}}))
    with pytest.raises(MilError, match="column 'path' is blank"):
        read_cohort(without, ["response"])


@pytest.mark.parametrize(
    ("over", "said"),
    [
        (
            {"slides": {"features": {"nort": {"layout": "stamp", "folder": "f"}}}},
            "unknown site 'nort'; did you mean 'north'",
        ),
        ({"slides": {"features": {"north": {"layout": "stmp", "folder": "f"}}}}, "'stmp' is refused"),
        ({"slides": {"features": {"north": {"weights_sha256": "abc"}}}}, "'abc' is refused"),
        (
            {
                "encoders": {"two": {"name": "phikon"}},
                "experiments": {"attention_fedavg": {"encoder": "two"}},
            },
            "holds the features of one encoder, but the experiments use two, uni; put {encoder} into it",
        ),
    ],
)
def test_what_is_wrong_with_the_settings_is_one_line(over, said, settings):
    with pytest.raises(MilError) as caught:
        parse(Config, merge(settings, over), "here")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_features_of_two_tools_mix_only_where_their_weights_are_told(tmp_path):
    make_features(tmp_path / "data")
    bags = pd.DataFrame({"patient_id": ["a", "b"], "site": ["north", "east"], "slides": ["north-p1-s1", "east-p1-s1"]})

    def converted(name, **told):
        for site in ("north", "east"):
            source = ForeignFeatures(tmp_path / "data" / site, encoder="uni", mpp=0.25, tile_mpp=0.5, **told)
            convert_in(LAYOUTS[site], source, tmp_path / name / site / "features" / "uni", quiet())
        return FeatureStore.open(bags, tmp_path / name, "uni")

    with pytest.raises(MilError, match=r"weights_sha256 is unknown \(TRIDENT, uni\), but unknown \(STAMP, uni\) in"):
        converted("unknown")
    assert converted("told", weights_sha256=WEIGHTS).sizes.tolist() == [24, 24]


def test_only_the_slides_of_the_sheet_are_converted_each_with_its_own_scale(tmp_path):
    make_features(tmp_path / "data")
    rows = [("north-p2-s1", "ok", "", 0.5), ("gone", "ok", "", None), ("north-p3-s1", "no_label", "why", None)]
    slides = pd.DataFrame(rows, columns=["slide_id", "state", "reason", "mpp"])
    manifest = convert_in(
        "stamp", ForeignFeatures(tmp_path / "data/north", mpp=0.25), tmp_path / "ours", quiet(), slides
    )
    assert list(manifest.state) == ["ok", "no_features", "no_label"]
    assert "holds no features named 'gone'" in manifest.reason[1]
    assert [path.name for path in (tmp_path / "ours").glob("*.h5")] == ["north-p2-s1.h5"]
    assert hdf5.read(tmp_path / "ours/north-p2-s1.h5", "coords")[0].max() == 5 * 256


@pytest.mark.parametrize(
    ("expected", "told", "said"),
    [
        (
            ("effnet", EncoderSpec()),
            {},
            "are of encoder 'uni' (1024 numbers a tile), but the cohort's encoder 'effnet' is efficientnet_lite0; add",
        ),
        (
            ("uni", EncoderSpec(name="uni2_h")),
            {},
            "has 1024 numbers a tile, but uni2_h (the cohort's encoder 'uni') gives 1536",
        ),
        (
            ("uni", EncoderSpec(name="uni")),
            {"weights_sha256": "ab" * 32},
            "was made with weights abababababab, but those of uni are",
        ),
    ],
)
def test_features_of_another_encoder_than_the_cohort_names_are_not_converted(tmp_path, expected, told, said):
    make_features(tmp_path / "data", patients_a_site=1)
    source = ForeignFeatures(
        tmp_path / "data/north", encoder="uni" if told else None, mpp=0.25, expected=expected, **told
    )
    with pytest.raises(MilError) as caught:
        convert_in("stamp", source, tmp_path / "ours", quiet())
    assert said in str(caught.value)
    assert "north-p0-s1.h5" in str(caught.value)
    assert not list((tmp_path / "ours").glob("*.h5"))


def test_the_expected_encoder_is_what_the_files_say_afterwards(tmp_path):
    make_features(tmp_path / "data", patients_a_site=1)
    source = ForeignFeatures(tmp_path / "data/east", mpp=0.25, expected=("uni_v1", EncoderSpec(name="uni")))
    convert_in("trident", source, tmp_path / "ours", quiet())
    assert hdf5.attributes(tmp_path / "ours/east-p0-s1.h5")["encoder"] == "uni"
