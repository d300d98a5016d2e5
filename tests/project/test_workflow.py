"""The workflow as a user meets it: a real run, nothing to do afterwards, and exactly what depends on a change."""

import re
import shutil
from urllib.parse import unquote

import pandas as pd
import pytest
import yaml
from forks import run_main
from rocrate.rocrate import ROCrate
from warm_workflow import run_workflow
from workflow_changes import (
    add_slide,
    change_age,
    change_label,
    copied,
    delete_attention,
    delete_attention_of_a_site,
    delete_features,
    delete_manifest,
    delete_site_table,
    delete_slide_table,
    edit_truth,
    join_without_labels,
    replace_slide,
    touch_slide,
    with_and_without_record,
)

from mil.config import merge
from mil.files import sha256_of
from mil.synthetic import make_cohort
from mil.tables import read_table
from mil.version import __version__

pytestmark = pytest.mark.slow

CONFIG = {
    "cohort": "tiny",
    "slides": {
        "sheet": "data/slides.csv",
        "patients": "data/patients.csv",
        "roles": {"north": "train", "south": "train", "east": "external", "west": "external"},
    },
    "truth": {"masks": "data/truth/{slide_id}.png", "mask_mpp": 8.0, "positive_share": 0.3},
    "tiles": {"size_px": 128, "mpp": 0.5},
    "shard_size": 10,  # two shards at north, one at every other site
    "endpoints": {"response": {"column": "response", "repeats": 1, "folds": 2, "inner_folds": 2}},
    "experiments": {
        name: {"encoder": "colour", "training": {"rounds": 2}}
        for name in ("attention_local", "attention_pooled", "attention_fedavg")
    },
    "run": ["attention_local", "attention_pooled", "attention_fedavg"],
    "metrics": {"bootstrap": 100, "permutations": 10},
    "figures": {
        **{"formats": ["png"], "dpi": 72, "slides_a_site": 1, "tiles_a_site": 2, "review_tiles": 2},
        **{"clusters": 3, "resamplings": 2},
    },
    "report": {"viewer_slides": 1, "viewer_px": 512},
}


def snakemake(folder, repository, *arguments, over=None):
    """Run the workflow in `folder` on the tiny config, `over` laid on it; the finished process."""
    (folder / "config.yaml").write_text(yaml.safe_dump(merge(CONFIG, over or {})))
    words = ["--snakefile", str(repository / "Snakefile"), "--configfile", "config.yaml", "--cores", "2", *arguments]
    without_jobs = {"--dry-run", "--lint", "--unlock"} & set(words)
    return run_main("snakemake.cli", words, folder) if without_jobs else run_workflow(folder, words)


def jobs(process):
    """Rule -> number of jobs that a dry run would do."""
    assert process.returncode == 0, process.stdout + process.stderr
    table = re.search(r"Job stats:\n.*?\n-.*?\n(.*?)\n\n", process.stdout + process.stderr, re.DOTALL)
    rows = [line.split() for line in table[1].splitlines()] if table else []
    return {name: int(count) for name, count in rows if name not in ("total", "all")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, repository):
    """A folder in which the whole workflow has run on a tiny cohort with its flaws."""
    folder = tmp_path_factory.mktemp("workflow")
    make_cohort(folder / "data", seed=8, patients_per_site=9)
    process = snakemake(folder, repository)
    assert process.returncode == 0, process.stdout + process.stderr
    assert f"\nThe report: {folder}/results/tiny/report/index.html\n" in process.stderr
    return folder


def test_the_report_is_there(finished):
    report = finished / "results/tiny/report/index.html"
    assert report.stat().st_size > 10_000


def test_the_run_is_described_by_a_crate(finished):
    """The `rocrate` library reads it; every file is there with its digest, every slide with its fingerprint."""
    results = finished / "results/tiny"
    crate = ROCrate(results)
    files = [entity for entity in crate.data_entities if entity.type == "File"]
    assert {"report/index.html", "config.json", "predictions/attention_local.csv"} <= {entity.id for entity in files}
    assert all(sha256_of(results / unquote(entity.id)) == entity["sha256"] for entity in files)
    (action,) = crate.root_dataset["mentions"]
    assert action["instrument"]["version"] == __version__
    assert set(map(str, action["result"])) == set(map(str, files))
    stated = {slide["name"]: slide["identifier"] for slide in action["object"]}
    tables = [pd.read_csv(path, dtype=str, keep_default_na=False) for path in results.glob("sites/*/slides.csv")]
    assert stated == dict(pd.concat(tables)[["slide_id", "fingerprint"]].to_numpy())
    assert str(finished) not in (results / "ro-crate-metadata.json").read_text()


def test_second_run_has_nothing_to_do(finished, repository):
    process = snakemake(finished, repository, "--dry-run")
    assert "Nothing to be done" in process.stdout + process.stderr


def test_a_figure_is_drawn_alone_by_its_name(finished, repository, tmp_path):
    asked = jobs(snakemake(finished, repository, "--dry-run", "roc_by_site", "heatmaps", "F4a"))
    assert asked == {"roc_by_site": 1, "heatmaps": 1, "F4a": 1, "one_figure_of_site": 4}  # F4a: these heat maps
    folder = copied(finished, tmp_path / "copy", record=True)  # whose figures become newer than its report
    drawn = snakemake(folder, repository, "F1b", "F4b")  # a figure of the cohort; one per site alone
    assert (drawn.returncode, "one_figure_of_site" in drawn.stderr) == (0, True), drawn.stdout + drawn.stderr


PUT_TOGETHER = {"compare": 1, "baseline": 1, "deep_check": 1, "figure": 1, "figure_of_site": 4, "report": 1, "crate": 1}
TRAINED = {"train": 3, "predict": 3, "score": 3, "localise": 3} | PUT_TOGETHER
BAGGED = {"bag": 1, "input_check": 1} | TRAINED
EXTRACTED = {"extract": 5, "census": 4} | BAGGED
OF_ONE_SHARD = {"extract": 1, "census": 1} | BAGGED
OF_ONE_SLIDE = {"check": 1, "slides": 1, "tile": 1, "contact_sheet": 1} | OF_ONE_SHARD


SETTINGS = {
    "title": ({"report": {"title": "Another title"}}, {"report": 1, "crate": 1}),
    "metrics": ({"metrics": {"bootstrap": 200}}, {"score": 3, "localise": 3} | PUT_TOGETHER),
    "lr": (
        {"experiments": {"attention_pooled": {"training": {"lr": 0.01}}}},
        TRAINED | {"train": 1, "predict": 1, "score": 1, "localise": 1},
    ),
    "tiles": ({"tiles": {"mpp": 1.0}}, EXTRACTED | {"tile": 5, "contact_sheet": 4}),
    "encoder": ({"encoders": {"colour": {"stain": "macenko"}}}, EXTRACTED),
    "dpi": ({"figures": {"dpi": 80}}, {"figure": 1, "figure_of_site": 4, "report": 1, "crate": 1}),
    "size_of_batches_and_shards": ({"encoders": {"colour": {"batch_size": 64}}, "shard_size": 5}, {}),
}


@pytest.mark.parametrize(("name", "record"), with_and_without_record(SETTINGS, {"lr", "tiles"}))
def test_a_changed_setting_runs_what_depends_on_it(finished, bare, repository, name, record):
    """Without the record: as in a fresh checkout over old results."""
    folder, (over, expected) = finished if record else bare, SETTINGS[name]
    assert jobs(snakemake(folder, repository, "--dry-run", over=over)) == expected
    if over.get("tiles"):  # a dry run leaves no trace
        assert jobs(snakemake(folder, repository, "--dry-run")) == {}


@pytest.fixture(scope="module")
def bare(finished, tmp_path_factory):
    """The finished run as a fresh checkout sees it: without Snakemake's record."""
    return copied(finished, tmp_path_factory.mktemp("bare") / "copy", record=False)


FILES = {
    "nothing": (lambda folder: None, {}),
    "added": (add_slide, OF_ONE_SLIDE),
    "replaced": (replace_slide, OF_ONE_SLIDE),
    "touched": (touch_slide, {}),
    "label": (change_label, BAGGED),
    "age": (change_age, PUT_TOGETHER),
    "features": (delete_features, OF_ONE_SHARD),
    "manifest": (delete_manifest, OF_ONE_SHARD),
    "slide_table": (delete_slide_table, OF_ONE_SLIDE),
    "site_table": (delete_site_table, {"slides": 1, "contact_sheet": 1, "census": 1} | BAGGED),
    "attention": (delete_attention, {"predict": 1, "score": 1, "localise": 1} | PUT_TOGETHER),
    "attention_of_a_site": (delete_attention_of_a_site, {"predict": 1, "score": 1, "localise": 1} | PUT_TOGETHER),
    "truth": (edit_truth, {"localise": 3, "figure": 1, "figure_of_site": 4, "report": 1, "crate": 1}),
}


@pytest.mark.parametrize(
    ("name", "record"), with_and_without_record(FILES, {"nothing", "replaced", "label", "features", "attention"})
)
def test_a_changed_file_runs_what_depends_on_it(finished, repository, tmp_path, name, record):
    folder, (change, expected) = copied(finished, tmp_path / "copy", record), FILES[name]
    change(folder)
    assert jobs(snakemake(folder, repository, "--dry-run")) == expected


def test_moved_results_are_still_finished(finished, repository, tmp_path):
    folder = copied(finished, tmp_path / "copy", record=True)
    (folder / "results").rename(folder / "elsewhere")
    assert jobs(snakemake(folder, repository, "--dry-run", over={"results": "elsewhere"})) == {}


def test_only_training_and_prediction_cross_the_wall(finished, repository):
    """In the dry run of everything, no other rule's job reads from more than one site's folder."""
    process = snakemake(finished, repository, "--dry-run", "--forceall")
    assert process.returncode == 0, process.stdout + process.stderr
    crossing = set()
    for rule, inputs in re.findall(r"rule (\w+):\n\s+input: (.*)", process.stdout + process.stderr):
        if len(set(re.findall(r"/sites/([^/]+)/", inputs))) > 1:
            crossing.add(rule)
    # the baselines and the leak checks train and predict too, and compare sites; `all` only names what is to be there
    assert crossing - {"all"} <= {"train", "predict", "baseline", "input_check", "deep_check"}
    training = re.findall(r"rule train:\n\s+input: (.*)", process.stdout + process.stderr)
    assert training
    assert not any("/sites/east/" in inputs or "/sites/west/" in inputs for inputs in training)


def test_a_new_slide_recomputes_only_itself(finished, repository, tmp_path):
    """Tiles of the slides that were there keep their files; only the new slide gets one."""
    folder = tmp_path / "grown"
    shutil.copytree(finished, folder)
    sheet = (folder / "data/slides.csv").read_text().splitlines()
    row = dict(zip(sheet[0].split(","), next(line for line in sheet[1:] if ",north," in line).split(","), strict=True))
    shutil.copy(folder / "data" / row["path"], folder / "data" / "copy.tif")
    new = row | {"slide_id": "new-slide", "path": "copy.tif"}
    (folder / "data/slides.csv").write_text("\n".join([*sheet, ",".join(new.values())]) + "\n")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("results/tiny/sites/*/tiles/*.h5")}
    process = snakemake(folder, repository, "--until", "tile")
    assert process.returncode == 0, process.stdout + process.stderr
    after = {path: path.stat().st_mtime_ns for path in folder.glob("results/tiny/sites/*/tiles/*.h5")}
    assert {path.stem for path in set(after) - set(before)} == {"new-slide"}
    assert all(after[path] == time for path, time in before.items())


def test_a_hospital_without_labels_joins_a_finished_run(finished, repository, tmp_path):
    """Nothing is trained again, no number of the others changes, and each new patient has a score and attention."""
    folder = copied(finished, tmp_path / "copy", record=True)
    patients = join_without_labels(folder)
    names = [
        "predictions/attention_fedavg.csv",
        "metrics/attention_fedavg.csv",
        "runs/attention_fedavg/weights.safetensors",
    ]
    before = {name: (folder / "results/tiny" / name).read_bytes() for name in names}
    over = {"slides": {"roles": {"centre": "external"}}}
    process = snakemake(folder, repository, "results/tiny/metrics/attention_fedavg.csv", over=over)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "it is taken as it is" in (folder / "results/tiny/logs/train/attention_fedavg.log").read_text()
    now = {name: (folder / "results/tiny" / name).read_bytes() for name in names}
    assert [line for line in now[names[0]].splitlines() if b",centre," not in line] == before[names[0]].splitlines()
    assert [name for name in names[1:] if now[name] != before[name]] == []
    table = read_table(folder / "results/tiny/predictions/attention_fedavg.patients.csv").set_index("patient_id")
    assert table.loc[patients, "label"].isna().all()
    assert table.loc[patients, "probability"].between(0, 1).all()
    assert len(list(folder.glob("results/tiny/sites/centre/attention/attention_fedavg/*.h5"))) == len(patients)
    flow = read_table(folder / "results/tiny/bags/response.flow.csv").query("site == 'centre'")
    assert flow[["step", "reason", "patients"]].fillna("").to_numpy().tolist() == [
        ["in_sheet", "", 2], ["excluded", "no_label", 2], ["used", "", 0],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"tiles": {"siez_px": 3}}, "did you mean 'size_px'"),
        ({"slides": {"sheet": "none.csv"}}, "slide sheet none.csv does not exist"),
        ({"slides": {"roles": {"north": "trane"}}}, "slides.roles.north: 'trane' is refused"),
        ({"cohort": ""}, "no cohort is named"),
        ({"run": []}, "no experiment is named"),
    ],
)
def test_a_bad_config_ends_in_one_clear_line(finished, repository, over, said):
    process = snakemake(finished, repository, "--dry-run", over=over)
    assert process.returncode != 0
    assert said in process.stdout + process.stderr


# Snakemake's advice that is not followed, and why.
KNOWN_ADVICE = {
    "Specify a conda environment or container for each rule.": "one environment serves all rules: .venv or environment.yml",
    "Mixed rules and functions in same snakefile.": "common.smk and figures.smk hold the few functions that name files",
    "Environment variable PATH used": "it is only extended, so that rules find the mil beside this Python",
}


def test_lint(finished, repository):
    process = snakemake(finished, repository, "--lint")
    advice = {line.strip(" *:") for line in re.findall(r"^    \* .*$", process.stdout + process.stderr, re.MULTILINE)}
    assert advice
    assert {text for text in advice if not text.startswith(tuple(KNOWN_ADVICE))} == set()


@pytest.mark.parametrize("profile", ["gpu", "local", "slurm"])
def test_profiles_are_understood(finished, repository, profile):
    process = snakemake(
        finished, repository, "--dry-run", "--workflow-profile", str(repository / "configs/profiles" / profile)
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_the_slurm_profile_needs_no_number_of_cores(finished, repository):
    """A dry run assumes cores and hides this; unlocking, like submitting, does not."""
    (finished / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    profile = str(repository / "configs/profiles/slurm")
    words = ["--snakefile", str(repository / "Snakefile"), "--unlock", "--configfile", "config.yaml"]
    process = run_main("snakemake.cli", [*words, "--workflow-profile", profile], finished)
    assert process.returncode == 0, process.stdout + process.stderr


MODULE = """
configfile: "config.yaml"


module wsi:
    snakefile: "{snakefile}"
    config: config
    prefix: "wsi"


use rule * from wsi as wsi_*


rule mine:
    default_target: True
    input: "wsi/results/tiny/census/west.csv"
    output: "mine.txt"
    shell: "cp {{input}} {{output}}"
"""


@pytest.mark.extended
def test_another_workflow_uses_this_one_as_a_module(repository, tmp_path, finished):
    """Under a prefix; all files are below it, and what was run once is not run again."""
    (tmp_path / "data").symlink_to(finished / "data")
    (tmp_path / "Snakefile").write_text(MODULE.format(snakefile=repository / "Snakefile"))
    over = {"run": ["attention_local"], "encoders": {"colour": {"name": "colour"}}}
    arguments = ["--snakefile", "Snakefile"]  # the last one holds
    process = snakemake(tmp_path, repository, *arguments, over=over)
    assert process.returncode == 0, process.stdout + process.stderr
    assert (tmp_path / "mine.txt").stat().st_size > 0
    assert {path.name for path in tmp_path.iterdir()} == {
        ".snakemake",
        "Snakefile",
        "config.yaml",
        "data",
        "mine.txt",
        "wsi",
    }
    process = snakemake(tmp_path, repository, *arguments, "--dry-run", over=over)
    assert "Nothing to be done" in process.stdout + process.stderr


def test_the_run_s_folder_can_be_elsewhere(finished, repository, tmp_path):
    """`--directory`: paths of the settings are relative to it."""
    process = snakemake(finished, repository, "--dry-run", "--directory", str(finished))
    assert "Nothing to be done" in process.stdout + process.stderr
    (tmp_path / "config.yaml").write_text((finished / "config.yaml").read_text())
    process = snakemake(tmp_path, repository, "--dry-run", "--directory", str(finished))
    assert "Nothing to be done" in process.stdout + process.stderr
