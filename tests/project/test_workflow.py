"""The workflow as a user meets it: a real run, nothing to do afterwards, and exactly what depends on a change."""

import re
import shutil
import subprocess
import sys

import pytest
import yaml

from mil.config import merge
from mil.synthetic import make_cohort

CONFIG = {
    "cohort": "tiny",
    "slides": {
        "sheet": "data/slides.csv",
        "patients": "data/patients.csv",
        "roles": {"north": "train", "south": "train", "east": "external", "west": "external"},
    },
    "truth": {"masks": "data/truth/{slide_id}.png", "mask_mpp": 8.0, "positive_share": 0.3},
    "tiles": {"size_px": 128, "mpp": 0.5},
    "shard_size": 5,
    "endpoints": {"response": {"column": "response", "repeats": 1, "folds": 2, "inner_folds": 2}},
    "experiments": {
        name: {"encoder": "colour", "training": {"rounds": 4}}
        for name in ("attention_local", "attention_pooled", "attention_fedavg")
    },
    "run": ["attention_local", "attention_pooled", "attention_fedavg"],
    "metrics": {"bootstrap": 100},
    "figures": {"formats": ["png"], "dpi": 72},
}


def snakemake(folder, repository, *arguments, over=None):
    """Run the workflow in `folder` on the tiny config, `over` laid on it; the finished process."""
    (folder / "config.yaml").write_text(yaml.safe_dump(merge(CONFIG, over or {})))
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(repository / "Snakefile"),
        "--configfile",
        "config.yaml",
    ]
    return subprocess.run(
        [*command, "--cores", "2", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


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
    make_cohort(folder / "data", seed=0, patients_a_site=10)
    process = snakemake(folder, repository)
    assert process.returncode == 0, process.stdout + process.stderr
    return folder


def test_the_report_is_there(finished):
    report = finished / "results/tiny/report/index.html"
    assert report.stat().st_size > 10_000


def test_second_run_has_nothing_to_do(finished, repository):
    process = snakemake(finished, repository, "--dry-run")
    assert "Nothing to be done" in process.stdout + process.stderr


def test_a_figure_is_drawn_alone_by_its_name(finished, repository):
    assert jobs(snakemake(finished, repository, "--dry-run", "roc_by_site")) == {"roc_by_site": 1}
    assert jobs(snakemake(finished, repository, "--dry-run", "heatmaps")) == {"heatmaps": 1, "one_figure_of_site": 4}


AFTER_SCORES = {"settings", "baseline", "deep_check", "figure", "figure_of_site", "report"}
ALWAYS_AFTER_TRAINING = {"train", "predict", "score", "compare", "localise"} | AFTER_SCORES


@pytest.mark.parametrize(
    ("over", "rules"),
    [
        ({"report": {"title": "Another title"}}, {"report"}),
        (
            {"metrics": {"bootstrap": 200}},
            {
                "settings",
                "score",
                "compare",
                "localise",
                "baseline",
                "deep_check",
                "figure",
                "figure_of_site",
                "report",
            },
        ),
        ({"experiments": {"attention_pooled": {"training": {"lr": 0.01}}}}, ALWAYS_AFTER_TRAINING),
        ({"tiles": {"min_tissue": 0.9}}, ALWAYS_AFTER_TRAINING | {"tile", "contact_sheet", "extract", "census", "bag"}),
        ({"encoders": {"colour": {"batch_size": 64}}}, ALWAYS_AFTER_TRAINING | {"extract", "census", "bag"}),
    ],
    ids=["title", "metrics", "lr", "tiles", "encoder"],
)
def test_a_changed_setting_runs_what_depends_on_it(finished, repository, over, rules):
    assert set(jobs(snakemake(finished, repository, "--dry-run", over=over))) == rules


def test_one_experiments_setting_leaves_the_others_alone(finished, repository):
    over = {"experiments": {"attention_pooled": {"training": {"lr": 0.01}}}}
    assert jobs(snakemake(finished, repository, "--dry-run", over=over))["train"] == 1


def test_only_training_and_prediction_cross_the_wall(finished, repository):
    """In the dry run of everything, no other rule's job reads from more than one site's folder."""
    process = snakemake(finished, repository, "--dry-run", "--forceall")
    assert process.returncode == 0, process.stdout + process.stderr
    crossing = set()
    for rule, inputs in re.findall(r"rule (\w+):\n\s+input: (.*)", process.stdout + process.stderr):
        if len(set(re.findall(r"/sites/([^/]+)/", inputs))) > 1:
            crossing.add(rule)
    # the baselines and the leak checks train and predict too; `all` only names what is to be there
    assert crossing - {"all"} <= {"train", "predict", "baseline", "deep_check"}
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
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(repository / "Snakefile"), "--unlock"]
    arguments = ["--configfile", "config.yaml", "--workflow-profile", profile]
    process = subprocess.run([*command, *arguments], cwd=finished, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
