"""`mil report --compare`: runs side by side, from their settings and tables alone."""

import json
import re
import shutil
import subprocess
import sys
from urllib.parse import unquote

import pytest
from browser import needs_browser, opened, violations
from cohort_results import shared_results

from mil.errors import MilError
from mil.files import write_text
from mil.metrics.score import primary
from mil.report.run_comparison import compare_runs
from mil.tables import read_table, write_table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs: the second has another learning rate and seed, one experiment and a patient less, and other values of one arm."""
    shared = shared_results(tmp_path_factory.getbasetemp()).folder
    folder = tmp_path_factory.mktemp("runs")
    for name in ("one", "two"):
        for part in ("bags", "metrics", "baselines"):
            shutil.copytree(shared / part, folder / name / part)
        shutil.copy(shared / "config.json", folder / name)
    write_text(folder / "one/report/index.html", "<p>report</p>")
    edited(folder / "two", change)
    bags = read_table(folder / "two/bags/response.csv")
    write_table(bags.iloc[1:], folder / "two/bags/response.csv")
    metrics = read_table(folder / "two/metrics/attention_fedavg.csv")
    write_table(metrics.assign(value=metrics["value"] / 2), folder / "two/metrics/attention_fedavg.csv")
    return folder / "one", folder / "two"


def change(settings):
    settings["cohort"] = "<script>alert(1)</script>"
    settings["experiments"]["attention_fedavg"]["training"]["lr"] = 0.125
    settings["run"].remove("mean_fedavg")
    settings["figures"]["dpi"] = 111


def edited(folder, edit):
    settings = json.loads((folder / "config.json").read_text())
    edit(settings)
    (folder / "config.json").write_text(json.dumps(settings))


def rows_of(text, section):
    part = text[text.index(f'<section id="{section}">') :]
    body = part[part.index("<tbody>") : part.index("</tbody>")]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in body.split("</tr>")]
    return [[re.sub("<[^>]+>", "", cell) for cell in row] for row in cells if row]


def test_each_number_is_that_of_the_runs_tables(runs, tmp_path):
    text = compare_runs(runs, tmp_path / "page.html")
    rows = {tuple(row[:4]): row[5:] for row in rows_of(text, "measures")}
    shown = 0
    for column, folder in enumerate(runs):
        for path in [*folder.glob("metrics/*_*.csv"), *folder.glob("baselines/*/metrics.csv")]:
            if "." in path.stem or (path.stem == "mean_fedavg" and column == 1):
                continue
            for row in primary(read_table(path)).itertuples():
                cell = rows[row.experiment, row.trained_on, row.site, row.split.replace("_", "-")][column]
                assert cell.startswith("–" if row.value != row.value else f"{row.value:.2f}".replace("-", "−"))
                assert cell.endswith(f"n = {row.patients}")
                shown += 1
    assert shown > 30
    alone = [cells for (experiment, *_), cells in rows.items() if experiment == "mean_fedavg"]
    assert alone
    assert all(cells[1] == "–" for cells in alone)


def test_arms_of_several_endpoints_are_rows_of_their_own(runs, tmp_path):
    """Their baselines have the same names, and the second endpoint's stood for both."""
    for run in runs:
        shutil.copytree(run, tmp_path / run.name)
    folders = [tmp_path / run.name for run in runs]
    for folder in folders[:1]:
        edited(folder, lambda settings: settings["endpoints"].update(grade=settings["endpoints"]["response"]))
        edited(folder, lambda settings: settings["experiments"]["mean_fedavg"].update(endpoint="grade"))
        shutil.copy(folder / "bags/response.csv", folder / "bags/grade.csv")
        known = read_table(folder / "baselines/response/metrics.csv")
        write_table(known.assign(value=0.125), folder / "baselines/grade/metrics.csv")
    rows = rows_of(compare_runs(folders, tmp_path / "page.html"), "measures")
    of = [row for row in rows if row[1] == "clinical_pooled" and row[3] == "external sites"]
    assert [row[0] for row in of] == ["response", "grade"]
    assert [row[6].startswith("0.12") for row in of] == [False, True]
    assert [row[7].startswith("–") for row in of] == [False, True]  # the other run has no such endpoint


def test_settings_that_differ_and_no_others_are_listed(runs, tmp_path):
    keys = {row[0]: row[1:] for row in rows_of(compare_runs(runs, tmp_path / "page.html"), "settings")}
    assert keys.pop("experiments.attention_fedavg.training.lr")[1] == "0.125"
    assert keys.pop("figures.dpi") == ["110", "111"]
    assert {key.split(".")[0] for key in keys} == {"cohort", "run", "experiments"}
    assert all(key.startswith("experiments.mean_fedavg") for key in keys if key.startswith("experiments"))


def test_patients_are_compared_and_no_test_is_made(runs, tmp_path):
    text = compare_runs(runs, tmp_path / "page.html")
    assert re.search(r"do not analyse the same data: (\d+) and (\d+) patients, \2 of them in both", text)
    assert "there is no p value here" in text
    assert "<script>alert" not in text
    twin = tmp_path / "twin"
    shutil.copytree(runs[0], twin)
    same = compare_runs([runs[0], twin], tmp_path / "page.html")
    assert "analyse the same" in same
    assert "the runs have the same settings" in same
    edited(twin, lambda settings: settings["metrics"].update(bootstrap=201))
    assert "scored by other settings (metrics.bootstrap)" in compare_runs([runs[0], twin], tmp_path / "page.html")


def test_links_lead_to_reports_and_tables(runs, tmp_path):
    text = compare_runs(runs, tmp_path / "deep/page.html")
    links = [unquote(link) for link in re.findall(r'href="([^"#]+)"', text) if not link.startswith("data:")]
    assert len(links) > 7
    assert any(link.endswith("one/report/index.html") for link in links)
    (tmp_path / "deep").mkdir()
    assert all((tmp_path / "deep" / link).is_file() for link in links)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda settings: settings["endpoints"]["response"].update(kind="regression"), "different kinds"),
        (lambda settings: settings.update(run=["nobody"]), "holds no settings of a run"),
        (lambda settings: settings.update(run=[]), "no experiment was run"),
        (lambda settings: settings.pop("experiments"), "holds no settings of a run"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, tmp_path, edit, reason):
    shutil.copytree(runs[1], tmp_path / "bad")
    edited(tmp_path / "bad", edit)
    with pytest.raises(MilError, match=reason):
        compare_runs([runs[0], tmp_path / "bad"], tmp_path / "page.html")


def test_folders_that_are_no_two_finished_runs_are_refused(runs, tmp_path):
    for folders in ([runs[0]], [runs[0], runs[0]], [runs[0]] * 7):
        with pytest.raises(MilError, match="2 to 6 different"):
            compare_runs(folders, tmp_path / "page.html")
    for name, content in (("list", "[]"), ("broken", "{"), ("number", "3")):
        write_text(tmp_path / name / "config.json", content)
        with pytest.raises(MilError, match="holds no settings"):
            compare_runs([runs[0], tmp_path / name], tmp_path / "page.html")
    write_text(tmp_path / "young/config.json", (runs[0] / "config.json").read_text())
    with pytest.raises(MilError, match="finish the run"):
        compare_runs([runs[0], tmp_path / "young"], tmp_path / "page.html")


def test_the_command_refuses_in_one_line_and_writes_a_page(runs, tmp_path):
    command = [sys.executable, "-m", "mil.cli", "report"]
    for arguments, reason in (
        (["--compare", runs[0], tmp_path], "name a cohort's results folder"),
        ([*runs], "add --compare"),
    ):
        done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert reason in done.stderr
    done = subprocess.run(
        [*command, "--compare", *map(str, runs)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "comparison.html").is_file()


@needs_browser
def test_the_page_reads_well_in_light_dark_and_on_a_phone(runs, tmp_path):
    page = tmp_path / "page.html"
    write_text(page, compare_runs(runs, page))
    for width in (1366, 390):
        with opened(page.as_uri(), width, 800) as tab:
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            for scheme in ("light", "dark"):
                tab.emulate_media(color_scheme=scheme)
                assert violations(tab) == []
