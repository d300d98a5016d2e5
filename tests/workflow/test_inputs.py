"""Files that the rules depend on: rewritten when their content changes, and only then."""

import os
from types import SimpleNamespace

import pandas as pd
import pytest

from mil.config import Config
from mil.files import file_name, write_text
from mil.results.leftovers import of_this_run
from mil.results.results import Results
from mil.slides.fingerprint import WHOLE, fingerprint
from mil.slides.sheet import Cohort, read_shard
from mil.tables import write_table
from mil.workflow.again import order_again
from mil.workflow.inputs import put, settle, write_inputs
from mil.workflow.shards import read_rows, write_shards


def time_of(path):
    return path.stat().st_mtime_ns


def aged(path, seconds=1000):
    os.utime(path, ns=(time_of(path) - seconds * 10**9,) * 2)
    return time_of(path)


def test_the_same_content_keeps_its_time_and_a_dry_run_leaves_no_trace(tmp_path):
    path = tmp_path / "inputs/tiles.json"
    put(path, "A")
    then = aged(path)
    put(path, "A")
    assert time_of(path) == then
    put(path, "B")  # a dry run with another setting, and a third
    put(path, "C")
    assert time_of(path) > then
    put(path, "A")
    assert (path.read_text(), time_of(path)) == ("A", then)
    put(path, "B")
    settle(tmp_path)  # a run has started with B
    put(path, "A")
    assert time_of(path) > then
    assert path.read_text() == "A"


def test_a_site_without_a_slide_in_the_sheet_is_no_site_of_the_results(tmp_path):
    """What an earlier run left of it would stand in the report."""
    made = make(
        tmp_path,
        slides={"roles": {"A": "train", "gone": "external"}, "features": {"gone": {"folder": "f", "layout": "stamp"}}},
    )
    write_inputs(made.config, made.cohort, made.results)
    stated = Results.open(str(made.results)).config.slides
    assert (stated.roles, dict(stated.features)) == ({"A": "train"}, {})


def test_files_of_names_that_the_settings_no_longer_have_are_left_over(tmp_path):
    encoder = SimpleNamespace(encoder="colour")
    results = SimpleNamespace(
        folder=tmp_path, sites=["A", "B.C"], experiments={"run.a": encoder}, endpoints=["response"]
    )
    kept = ["sites/A/features/colour/shard0.csv", "sites/B.C/slides.csv", "runs/run.a/models.csv", "metrics/run.a.folds.csv",
            "figures/heatmaps.B.C.png", "figures/roc_by_site.png", "bags/response.flow.csv"]  # fmt: skip
    left = ["sites/B/slides.csv", "sites/A/features/old/shard0.csv", "runs/run/models.csv", "metrics/run.csv",
            "metrics/run.folds.csv", "figures/heatmaps.B.png", "bags/grade.flow.csv", "bags/grade.csv"]  # fmt: skip
    for name in kept + left:
        write_text(tmp_path / name, "")
    assert list(of_this_run(results, [tmp_path / name for name in kept + left])) == [tmp_path / name for name in kept]


def make(tmp_path, count=7, **over):
    """A cohort of one site, its config, and a function that writes its shards again."""
    rows = []
    for number in range(count):
        path = tmp_path / f"s{number}.svs"
        if not path.exists():
            path.write_bytes(bytes([number]) * 100)
        rows.append((f"s{number}", f"p{number}", "A", str(path), "", True))
    table = pd.DataFrame(rows, columns=["slide_id", "patient_id", "site", "path", "mpp", "listed"])
    config = Config(cohort="c", results=str(tmp_path / "results"), **over)
    cohort = Cohort(table, pd.DataFrame({"patient_id": table["patient_id"]}), "patients.csv")
    return SimpleNamespace(config=config, cohort=cohort, results=tmp_path / "results/c")


def members(made):
    write_shards(made.config, made.cohort, made.results)
    folder = made.results / "sites/A/shards"
    return {int(path.stem): [row["slide_id"] for row in read_rows(path)] for path in sorted(folder.glob("*.csv"))}


def test_a_slide_stays_in_its_shard(tmp_path):
    before = members(make(tmp_path, 7, shard_size=3))
    assert before == {0: ["s0", "s1", "s2"], 1: ["s3", "s4", "s5"], 2: ["s6"]}
    assert members(make(tmp_path, 7, shard_size=5)) == before
    grown = make(tmp_path, 9, shard_size=3)
    grown.cohort = Cohort(grown.cohort.slides.iloc[::-1].drop(index=1), grown.cohort.patients, "patients.csv")
    assert members(grown) == {0: ["s2", "s0"], 1: ["s5", "s4", "s3"], 2: ["s8", "s7", "s6"]}


def test_only_the_shard_of_a_replaced_slide_is_rewritten_and_a_touched_one_is_not(tmp_path):
    made = make(tmp_path, 6, shard_size=3)
    members(made)
    shards = [made.results / f"sites/A/shards/{number}.csv" for number in (0, 1)]
    then = [aged(path) for path in shards]
    (made.results / "sites/A/slides").mkdir()
    known = fingerprint(tmp_path / "s0.svs")
    (made.results / "sites/A/slides/0.csv").write_text(f"slide_id,fingerprint\ns0,{known}\ns1,another\n")
    os.utime(tmp_path / "s0.svs", ns=(1, 1))
    for _ in range(2):
        members(made)
        assert [time_of(path) for path in shards] == then
    (tmp_path / "s0.svs").write_bytes(b"x" * 100)
    members(made)
    assert time_of(shards[0]) > then[0]
    assert time_of(shards[1]) == then[1]


def test_a_manifest_that_lists_a_missing_file_is_dropped(tmp_path, capsys):
    folder = tmp_path / "sites/A/features/colour"
    folder.mkdir(parents=True)
    for number, slide in enumerate(("s0", "s1")):
        (folder / f"shard{number}.csv").write_text(
            f"slide_id,state,reason,num_tiles,checksum\n{slide},ok,,3,abc\nbad,no_mpp,,0,\n"
        )
        (folder / f"{slide}.h5").write_bytes(b"")
    order_again(tmp_path, {"A": [0, 1]}, ["colour"], [])
    assert len(list(folder.glob("shard*.csv"))) == 2
    (folder / "s1.h5").unlink()
    order_again(tmp_path, {"A": [0, 1]}, ["colour"], [])
    assert [path.name for path in folder.glob("shard*.csv")] == ["shard0.csv"]
    assert [path.name for path in tmp_path.glob("sites/A/shards/again/*")] == ["features.colour.1"]
    assert "shard1.csv lists 1 files that are not there (features/colour/s1.h5)" in capsys.readouterr().err


def test_ids_as_hospitals_write_them_are_known_again_and_no_cell_of_a_shard_is_a_formula(tmp_path, capsys):
    made = make(tmp_path, 3, shard_size=3)
    names = ["S 12 (a)", "=1+1", "50% [x]"]
    made.cohort.slides["slide_id"] = names
    assert members(made) == members(made) == {0: names}
    shard, folder = made.results / "sites/A/shards/0.csv", made.results / "sites/A/tiles"
    assert "\n'=1+1," in shard.read_text()
    assert list(read_shard(shard)["slide_id"]) == names
    write_table(pd.DataFrame({"slide_id": names, "checksum": "abc"}), folder / "shard0.csv")
    for place, suffix in ((folder, "h5"), (folder.with_name("thumbnails"), "jpg")):
        for name in names:
            write_text(place / f"{file_name(name)}.{suffix}", "")
    order_again(made.results, {"A": [0]}, [], [])
    assert capsys.readouterr().err == ""
    (folder / f"{file_name('=1+1')}.h5").unlink()
    order_again(made.results, {"A": [0]}, [], [])
    assert "(tiles/%3D1%2B1.h5)" in capsys.readouterr().err


def test_the_fingerprint_of_a_large_file_sees_its_ends_directories_and_size(tmp_path):
    """A sparse TIFF of one directory far from both ends: every kind of change but one deep inside a tile is seen."""
    path, at = tmp_path / "large.tif", 40 << 20
    size = WHOLE + (8 << 20)
    entries = b"".join(
        tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little") + bytes(4)
        for tag in (256, 257)
    )
    with open(path, "wb") as file:
        file.write(b"II*\0" + at.to_bytes(4, "little"))
        file.seek(at + 777_777)  # between two blocks
        file.write((2).to_bytes(2, "little") + entries + bytes(4))
        file.truncate(size)
    with open(path, "r+b") as file:
        file.seek(4)
        file.write((at + 777_777).to_bytes(4, "little"))
    seen = {fingerprint(path)}
    for place in (9, at + 777_777 + 6, size - 3):
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(b"\x07")
        seen.add(fingerprint(path))
    with open(path, "r+b") as file:
        file.truncate(size + 1)
    assert len(seen | {fingerprint(path)}) == 5
    assert fingerprint(path, full=True) not in seen


@pytest.mark.parametrize("name", ["python:{}:net", "torchscript:{}"])
def test_an_encoder_s_own_file_is_followed(tmp_path, name):
    made, code = make(tmp_path), tmp_path / "mine"
    experiments = {"e": {"encoder": "mine", "endpoint": "x", "model": {"name": "mean"}, "strategy": {"name": "pooled"}}}
    encoders = {"mine": {"name": name.format(code)}}
    endpoints = {"x": {"kind": "binary", "column": "label", "positive": ["1"]}}
    config = Config(cohort="c", encoders=encoders, endpoints=endpoints, experiments=experiments, run=["e"])
    patients = made.cohort.patients.assign(label="1")
    told = made.results / "inputs/encoders/mine.json"
    code.write_text("a")
    write_inputs(config, Cohort(made.cohort.slides, patients, "patients.csv"), made.results)
    then = aged(told)
    write_inputs(config, Cohort(made.cohort.slides, patients, "patients.csv"), made.results)
    assert time_of(told) == then
    code.write_text("other code")
    write_inputs(config, Cohort(made.cohort.slides, patients, "patients.csv"), made.results)
    assert time_of(told) > then
