"""A named pipe, whatever it is called, is one clear line: opening it would wait for a writer without end."""

import os
import signal

import numpy as np
import pandas as pd
import pytest

from mil import hdf5
from mil.config import SlidesSpec, TileSpec, TruthSpec, read_yaml
from mil.convert.convert import convert_in
from mil.convert.foreign import ForeignFeatures
from mil.errors import CorruptFile, MilError, SlideError
from mil.features.validate import validate
from mil.progress import quiet
from mil.public_cohorts import build_cohort
from mil.slides.check import look_at
from mil.tables import read_table, read_text_table
from mil.tiles.shard import mask_of
from mil.tiles.truth import load_truth
from mil.tissue.masks import read_mask

WHAT = "is a pipe, socket or device, not a file"


@pytest.fixture(autouse=True)
def no_waiting():
    """A call that waits for the pipe's writer fails after ten seconds."""

    def give_up(*_: object) -> None:
        raise TimeoutError("waits for a writer")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "opening",
    [
        hdf5.verify,
        hdf5.attributes,
        lambda path: hdf5.read(path, "features"),
        lambda path: hdf5.described(path, "features"),
        lambda path: hdf5.read_foreign(path, "features"),
        lambda path: hdf5.names_under(path, "features"),
        read_yaml,
        read_table,
        lambda path: read_text_table(path, "slide sheet"),
        lambda path: read_mask(path, (8, 8), (80, 80)),
        lambda path: mask_of("a", TileSpec.model_validate({"tissue": {"masks": f"{path.parent}/{{slide_id}}.h5"}})),
        lambda path: load_truth(TruthSpec(masks=str(path), mask_mpp=1.0), path.parent).mask("a"),
        lambda path: load_truth(TruthSpec(table=str(path), square_um=1.0), path.parent),
    ],
)
def test_a_pipe_is_refused_unopened(tmp_path, opening):
    os.mkfifo(tmp_path / "a.h5")
    with pytest.raises(MilError, match=WHAT) as raised:
        opening(tmp_path / "a.h5")
    assert "\n" not in str(raised.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(CorruptFile, match="is a folder, not a file"):
        hdf5.verify(tmp_path)


def test_validate_goes_on_beside_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "a.h5")
    os.mkfifo(tmp_path / "shard0.csv")
    with hdf5.writing(tmp_path / "b.h5") as writer:
        writer.append("features", np.ones((2, 3), np.float32))
    table = validate(tmp_path, quiet(), repair=True)
    assert list(table["state"]) == ["broken", "ok", "broken"]
    assert table["reason"].str.contains(WHAT).tolist() == [True, False, True]
    assert list(validate(tmp_path, quiet())["state"]) == ["ok"]


@pytest.mark.parametrize("name", ["a.svs", "a.dcm", "a.mrxs", "a.vms", "a.png"])
def test_a_slide_that_is_a_pipe_is_a_row(tmp_path, name):
    os.mkfifo(tmp_path / name)
    found = look_at(tmp_path / name, "", SlidesSpec())
    assert (found["state"], WHAT in str(found["reason"])) == ("unreadable", True)


def test_a_mirax_slide_whose_settings_are_a_pipe_is_a_row(tmp_path):
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "Slidedat.ini")
    (tmp_path / "a.mrxs").write_bytes(b"\xff\xd8\xff\xe0")
    found = look_at(tmp_path / "a.mrxs", "", SlidesSpec())
    assert (found["state"], f"Slidedat.ini {WHAT}" in str(found["reason"])) == ("unreadable", True)


@pytest.mark.parametrize("part", ["a(1,0).jpg", "a_map.jpg", "a.opt"])
def test_a_slide_of_several_files_one_of_which_is_a_pipe_is_a_row(tmp_path, part):
    (tmp_path / "a.vms").write_text(
        "[Virtual Microscope Specimen]\nImageFile(1,0)=a(1,0).jpg\nMapFile=a_map.jpg\nOptimisationFile=a.opt\n"
    )
    os.mkfifo(tmp_path / part)
    found = look_at(tmp_path / "a.vms", "", SlidesSpec())
    assert (found["state"], f"{part} {WHAT}" in str(found["reason"])) == ("unreadable", True)


def test_a_pipe_beside_a_dicom_file_is_a_row(tmp_path):
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM")
    os.mkfifo(tmp_path / "b.dcm")
    found = look_at(tmp_path / "a.dcm", "", SlidesSpec())
    assert (found["state"], f"b.dcm beside it {WHAT}" in str(found["reason"])) == ("unreadable", True)


def test_foreign_features_and_tables_of_a_public_cohort_that_are_pipes(tmp_path):
    (tmp_path / "s1.svs").mkdir()
    os.mkfifo(tmp_path / "s1.svs" / "features.npy")
    with pytest.raises(MilError, match="no features of HistoSSLscaling"):
        convert_in("histossl", ForeignFeatures(tmp_path), tmp_path / "out", quiet())
    slides = tmp_path / "download"
    slides.mkdir()
    (slides / "T001.svs").touch()
    os.mkfifo(slides / "labels.csv")
    with pytest.raises(MilError, match=WHAT):
        build_cohort("transneo", slides)


def test_a_brought_mask_that_is_no_file_is_not_passed_over(tmp_path):
    (tmp_path / "a.png").mkdir()
    spec = TileSpec.model_validate({"tissue": {"masks": f"{tmp_path}/{{slide_id}}.png"}})
    with pytest.raises(SlideError, match="is a folder, not a file"):
        mask_of("a", spec)
    assert mask_of("b", spec) is None


def test_what_was_read_before_stays_readable(tmp_path):
    pd.DataFrame({"slide_id": ["a"]}).to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    assert list(read_table(tmp_path / "link.csv")["slide_id"]) == ["a"]
