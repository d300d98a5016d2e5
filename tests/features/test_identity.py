"""`mil bag` refuses features that are another slide's, or of another encoder, by name, width, hash and stain."""

import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mil import hdf5
from mil.cli import app
from mil.config import EncoderSpec
from mil.encoders.table import ENCODERS
from mil.tables import write_table

ENTRY = ENCODERS["uni2_h"]
OWN = {
    "encoder": "uni2_h",
    "weights_sha256": ENTRY.source.sha256.ljust(64, "0"),
    "spec": EncoderSpec(name="uni2_h").model_dump(mode="json"),
}


def write(folder, slide, width=ENTRY.width, **about):
    path = folder / "sites/A/features/uni" / f"{slide}.h5"
    path.unlink(missing_ok=True)
    with hdf5.writing(path) as file:
        file.append("features", np.full((3, width), len(slide), np.float16))
        file.annotate(OWN | {"slide_id": slide} | about)
    return path


def bag(folder, *more):
    """Exit code and what was said; a cohort of four patients at one site with features."""
    slides = [f"s{number}" for number in range(8)]
    rows = [{"slide_id": slide, "patient_id": f"p{slide}", "site": "A", "path": ""} for slide in slides]
    write_table(pd.DataFrame(rows).assign(state="ok", reason="", stage="features", num_tiles=3), folder / "census.csv")
    write_table(pd.DataFrame(rows).assign(response=[0, 1] * 4), folder / "slides.csv")
    told = f'{{"sheet": "{folder}/slides.csv", "roles": {{"A": "train"}}, "features": {{"A": {{"layout": "stamp", "folder": "x"}}}}}}'
    arguments = ["bag", folder / "census.csv", "--slides", told, "--spec", '{"folds": 2, "inner_folds": 2}', *more]
    outputs = ["--out", folder / "bags.csv", "--flow", folder / "flow.csv"]
    done = CliRunner().invoke(app, [str(one) for one in (*arguments, *outputs)])
    return done.exit_code, str(done.exception or "")


@pytest.fixture
def folder(tmp_path):
    for number in range(8):
        write(tmp_path, f"s{number}")
    return tmp_path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder": "virchow2"}, "its features are of encoder 'virchow2'"),
        ({"width": 64}, "has 64 numbers a tile, but uni2_h"),
        ({"weights_sha256": "7" * 64}, "was made with weights 777777777777"),
        ({"spec": {"stain": "macenko"}}, "was made with stain macenko"),
        ({"tile_mpp": 1.0}, "tile_mpp is 1.0, but not stated in"),
        ({"slide_id": "s4"}, "is the file of slide 's4'"),
    ],
)
def test_features_of_another_encoder_or_slide_are_refused(folder, change, said):
    sites = ("--sites", folder / "sites", "--encoder", "uni=uni2_h")
    write(folder, "s3", **change)
    code, message = bag(folder, *sites)
    assert code == 1
    assert said in message
    assert "s3.h5" in message
    assert "\n" not in message
    assert not (folder / "bags.csv").exists()
    assert not (folder / "flow.csv").exists()


def test_a_whole_file_of_another_slide_and_one_that_the_manifest_does_not_list_are_refused(folder):
    sites = ("--sites", folder / "sites", "--encoder", "uni=uni2_h")
    shutil.copy(folder / "sites/A/features/uni/s1.h5", folder / "sites/A/features/uni/s2.h5")
    assert "s2.h5: is the file of slide 's1'" in bag(folder, *sites)[1]
    kept = hdf5.verify(write(folder, "s2"))
    rows = [
        (f"s{number}", "ok", "", 3, hdf5.verify(folder / f"sites/A/features/uni/s{number}.h5")) for number in range(8)
    ]
    columns = ["slide_id", "state", "reason", "num_tiles", "checksum"]
    write_table(pd.DataFrame(rows, columns=columns), folder / "sites/A/features/uni/shard0.csv")
    assert bag(folder, *sites)[0] == 0
    write(folder, "s2", extra=1)
    assert f"the manifest beside it lists {kept[:12]}" in bag(folder, *sites)[1]


def test_encoder_and_sites_belong_together(folder):
    assert bag(folder)[0] == 0
    assert "give both" in bag(folder, "--encoder", "uni=uni2_h")[1]
