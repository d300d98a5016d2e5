"""Features of other tools -> ours and back: every layout, and real files."""

import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from foreign_features import COORDS, FEATURES, LAYOUTS, atlaspatch, clam, slide2vec, stamp, trident

from mil import convert, hdf5
from mil.config import EncoderSpec
from mil.convert.convert import convert_in, convert_out
from mil.convert.foreign import READERS, ForeignFeatures
from mil.convert.readers import clam_tiling
from mil.convert.writers import WRITERS
from mil.errors import MilError
from mil.features.identity import names
from mil.progress import Reporter, quiet


def test_every_layout_is_tested():
    assert {layout for _, layout, _ in LAYOUTS.values()} == set(READERS) == set(convert.LAYOUTS)
    assert set(WRITERS) == set(convert.LAYOUTS_BACK)
    assert set(WRITERS) == {"trident", "stamp"}


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_layout_becomes_files_of_ours(case, tmp_path):
    make, layout, encoder = LAYOUTS[case]
    source = make(tmp_path / "theirs")
    manifest = convert_in(layout, source, tmp_path / "ours", quiet())
    assert manifest[["slide_id", "state", "num_tiles"]].to_numpy().tolist() == [["s1", "ok", 30]]
    path = tmp_path / "ours" / "s1.h5"
    assert hdf5.verify(path) == manifest.checksum[0]
    features, coords = hdf5.read(path, "features", "coords")
    assert np.array_equal(features, FEATURES.astype(np.float16))
    assert np.array_equal(coords, COORDS)
    about = hdf5.attributes(path)
    assert about["encoder"] == encoder
    assert encoder in about["weights_sha256"]
    assert hdf5.attributes(path, on="coords")["patch_size_level0"] == pytest.approx(512)
    written = path.stat().st_mtime_ns
    assert convert_in(layout, source, tmp_path / "ours", quiet()).equals(manifest)
    assert path.stat().st_mtime_ns == written


@pytest.mark.parametrize("layout", ["trident", "stamp"])
def test_round_trips(layout, tmp_path):
    convert_in("atlaspatch", atlaspatch(tmp_path / "theirs"), tmp_path / "ours", quiet())
    with h5py.File(tmp_path / "ours" / "s1.h5") as file:
        assert file.attrs["mpp"] == 0.25
    if layout == "stamp":
        with pytest.raises(MilError, match="STAMP's layout needs"):
            convert_out("stamp", tmp_path / "ours", tmp_path / "out", quiet())
        (tmp_path / "ours" / "s1.h5").unlink()
        source = atlaspatch(tmp_path / "again")
        told = ForeignFeatures(source.folder, tile_mpp=0.5)
        convert_in("atlaspatch", told, tmp_path / "ours", quiet())
    (out,) = convert_out(layout, tmp_path / "ours", tmp_path / "out", quiet())
    back = convert_in(layout, ForeignFeatures(out.parent, mpp=0.25), tmp_path / "back", quiet())
    assert list(back.state) == ["ok"]
    for name in ("features", "coords"):
        (before,), (after,) = (hdf5.read(tmp_path / folder / "s1.h5", name) for folder in ("ours", "back"))
        assert np.array_equal(before, after)
    for key in ("encoder", "size_px"):
        assert hdf5.attributes(tmp_path / "ours" / "s1.h5")[key] == hdf5.attributes(tmp_path / "back" / "s1.h5")[key]


def test_our_files_are_read_as_tridents_as_they_are(tmp_path):
    convert_in("trident", trident(tmp_path / "theirs"), tmp_path / "ours", quiet())
    arrays, attributes = hdf5.read_foreign(tmp_path / "ours" / "s1.h5", "features", "coords")
    assert arrays["features"].shape == (30, 16)
    assert attributes["coords"]["patch_size_level0"] == 512


def test_a_leading_axis_of_one_and_empty_bags_are_read(tmp_path):
    source = trident(tmp_path / "theirs")
    folder = tmp_path / "theirs" / "features_uni_v1"
    for name, rows in (("s2", 30), ("s3", 0)):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["features"] = FEATURES[None, :rows]
            file["coords"] = COORDS[None, :rows]
    manifest = convert_in("trident", source, tmp_path / "ours", quiet())
    assert list(manifest.num_tiles) == [30, 30, 0]


@pytest.mark.parametrize("layout", ["trident", "stamp"])
def test_unknown_coordinates_are_not_written_as_zeros(layout, tmp_path):
    source = trident(tmp_path / "theirs")
    with h5py.File(tmp_path / "theirs/features_uni_v1/s1.h5", "a") as file:
        del file["coords"]
    convert_in("trident", source, tmp_path / "ours", quiet())
    with pytest.raises(MilError, match=r"s1\.h5.*coordinates are not known"):
        convert_out(layout, tmp_path / "ours", tmp_path / "back", quiet())


def test_what_the_files_do_not_say_is_asked_for(tmp_path):
    source = clam(tmp_path / "theirs")
    with pytest.raises(MilError, match="does not say which encoder"):
        convert_in("clam", ForeignFeatures(source.folder), tmp_path / "ours", quiet())
    with pytest.raises(MilError, match="empty is no folder; give the one that holds the features of STAMP"):
        convert_in("stamp", ForeignFeatures(tmp_path / "empty"), tmp_path / "ours", quiet())
    (tmp_path / "empty").mkdir()
    with pytest.raises(MilError, match="no features of STAMP found"):
        convert_in("stamp", ForeignFeatures(tmp_path / "empty"), tmp_path / "ours", quiet())
    with pytest.raises(MilError, match="unknown layout 'tridant'; did you mean 'trident'"):
        convert_in("tridant", source, tmp_path / "ours", quiet())


def test_what_stands_beside_the_features_is_read_again(tmp_path):
    source, ours = slide2vec(tmp_path / "theirs"), tmp_path / "ours"
    convert_in("slide2vec", source, ours, quiet())
    then = (ours / "s1.h5").stat().st_mtime_ns
    convert_in("slide2vec", source, ours, quiet())
    assert (ours / "s1.h5").stat().st_mtime_ns == then
    meta = tmp_path / "theirs/tile_embeddings/s1.meta.json"
    meta.write_text(meta.read_text().replace("0.5", "1.0"))
    np.savez(tmp_path / "theirs/tiles/s1.coordinates.npz", x=COORDS[:, 0] + 1, y=COORDS[:, 1])
    convert_in("slide2vec", source, ours, quiet())
    assert hdf5.attributes(ours / "s1.h5")["tile_mpp"] == 1.0
    np.testing.assert_array_equal(hdf5.read(ours / "s1.h5", "coords")[0], COORDS + np.array([1, 0]))


def test_real_files_of_stamp(shared, tmp_path):
    folder = shared / "data/mil/stamp_ctranspath_h5"
    manifest = convert_in("stamp", ForeignFeatures(folder, mpp=0.25, tile_mpp=2.0), tmp_path, quiet())
    assert list(manifest.state) == ["ok", "ok"]
    for slide_id in manifest.slide_id:
        features, coords = hdf5.read(tmp_path / f"{slide_id}.h5", "features", "coords")
        assert features.shape[1] == 768
        assert len(np.unique(coords, axis=0)) == len(coords)  # the augmented copies are gone
        assert (coords % (224 * 8) == 0).all()
        assert hdf5.attributes(tmp_path / f"{slide_id}.h5")["encoder"].endswith("ctranspath-7c998680")


def test_what_real_files_of_stamp_do_not_state_is_not_guessed(shared, tmp_path):
    folder = shared / "data/mil/stamp_ctranspath_h5"
    with pytest.raises(
        MilError, match=r"does not state the size of its tiles .* give their microns a pixel with `tile_mpp`"
    ):
        convert_in("stamp", ForeignFeatures(folder, mpp=0.25), tmp_path, quiet())
    convert_in("stamp", ForeignFeatures(folder, tile_mpp=2.0), tmp_path, quiet())
    about = hdf5.attributes(next(tmp_path.glob("*.h5")))
    assert (about["tile_mpp"], about["mpp"], about["coords_known"]) == (2.0, "", 0)


def test_a_stated_encoder_counts_where_the_files_name_it_in_their_own_way(shared, tmp_path):
    source = ForeignFeatures(
        shared / "data/mil/stamp_ctranspath_h5", tile_mpp=2.0, expected=("ctp", EncoderSpec(name="ctranspath"))
    )
    with pytest.raises(MilError, match="if that is ctranspath, state `encoder: ctranspath` for the site"):
        convert_in("stamp", source, tmp_path, quiet())
    convert_in("stamp", replace(source, encoder="ctranspath"), tmp_path, quiet())
    assert {hdf5.attributes(path)["encoder"] for path in tmp_path.glob("*.h5")} == {"ctranspath"}
    with pytest.raises(MilError, match=r"add `STAMP-extract.*: {name: ctranspath}` under `encoders:`"):
        convert_in("stamp", replace(source, expected=("uni", EncoderSpec(name="uni"))), tmp_path, quiet())


@pytest.mark.parametrize(
    ("made_by", "name", "held"),
    [
        ("STAMP-extract-001_xiyuewang-ctranspath-7c998680", "ctranspath", True),
        ("uni_v1", "uni", True),
        ("conch_v1_5", "conch", False),
        ("virchow2", "virchow", False),
        ("virchow-2", "virchow", False),
        ("unity", "uni", False),
    ],
)
def test_a_longer_name_names_an_encoder_by_whole_words(made_by, name, held):
    assert names(made_by, name) is held


@pytest.mark.parametrize("layout", ["clam", "slide2vec"])
def test_slideflow_s_positions_are_said_not_to_be_read(layout, tmp_path, capsys):
    torch.save(torch.ones(4, 8), tmp_path / "s1.pt")
    np.savez(tmp_path / "s1.index.npz", np.ones((4, 2)))
    manifest = convert_in(layout, ForeignFeatures(tmp_path, encoder="uni"), tmp_path / "ours", Reporter())
    assert manifest[["slide_id", "state"]].to_numpy().tolist() == [["s1", "ok"]]
    assert "Slideflow's positions of tiles (*.index.npz) are not read" in capsys.readouterr().err


def test_a_file_of_ours_is_found_again_by_its_slide_s_id(tmp_path):
    """Signs that no file name may hold are coded in the names that `mil convert --back` writes; the slide was `no_features`."""
    source = stamp(tmp_path / "theirs")
    (source.folder / "s1.h5").rename(source.folder / "s%201%3Cb%3E.h5")
    slides = pd.DataFrame({"slide_id": ["s 1<b>"], "state": "ok", "reason": "", "mpp": 0.25})
    assert list(convert_in("stamp", source, tmp_path / "ours", quiet(), slides)["state"]) == ["ok"]


def test_real_coordinates_of_clam(shared):
    for path in sorted((shared / "data/reference/clam_coords_h5").glob("*.h5")):
        coords, size_px, side_level0 = clam_tiling(path)
        assert (size_px, side_level0) == (512, 512)
        assert len(coords) in {1481, 7856, 8470}


def test_features_in_hdf5_are_converted_without_torch(tmp_path):
    """A site is a job of its own, so 20 sites would import it 20 times."""
    stamp(tmp_path / "theirs")
    code = (
        "import sys; from pathlib import Path; from mil.convert.convert import convert_in; from mil.convert.foreign import ForeignFeatures; "
        "from mil.progress import quiet; found = convert_in('stamp', ForeignFeatures(Path(sys.argv[1])), sys.argv[2], quiet()); "
        "print(list(found['state']), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "theirs", tmp_path / "ours"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["['ok']", "False"]
