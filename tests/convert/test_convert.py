import io
import json
import subprocess
import sys
import zipfile
from contextlib import suppress

import h5py
import numpy as np
import pytest
import torch

from mil import convert, hdf5
from mil.convert.convert import convert_in, convert_out
from mil.convert.foreign import READERS, ForeignFeatures
from mil.convert.readers import clam_tiling
from mil.convert.writers import WRITERS
from mil.errors import MilError
from mil.progress import quiet

GENERATOR = np.random.default_rng(0)
FEATURES = GENERATOR.normal(size=(30, 16)).astype(np.float32)
COORDS = np.stack(np.meshgrid(np.arange(6), np.arange(5)), axis=-1).reshape(-1, 2) * 512


def trident(folder):
    (folder / "features_uni_v1").mkdir(parents=True)
    with h5py.File(folder / "features_uni_v1" / "s1.h5", "w") as file:
        file.create_dataset("features", data=FEATURES, chunks=(1, 16))
        file["features"].attrs.update({"name": "s1", "savetodir": "x", "encoder": "uni_v1"})
        file.create_dataset("coords", data=COORDS)
        file["coords"].attrs.update({"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40})
    return ForeignFeatures(folder, mpp=0.25)


def clam(folder):
    (folder / "h5_files").mkdir(parents=True)
    (folder / "patches").mkdir()
    with h5py.File(folder / "h5_files" / "s1.h5", "w") as file:
        file.create_dataset("features", data=FEATURES, maxshape=(None, 16), chunks=(32, 16))
        file.create_dataset("coords", data=COORDS.astype(np.int32))
    with h5py.File(folder / "patches" / "s1.h5", "w") as file:
        file.create_dataset("coords", data=COORDS)
        file["coords"].attrs.update(
            {"patch_size": 256, "patch_level": 1, "downsample": np.array([2.0, 2.0]), "name": "s1"}
        )
    return ForeignFeatures(folder, encoder="resnet50_layer3", mpp=0.25)


def clam_pt(folder):
    source = clam(folder)
    (folder / "pt_files").mkdir()
    torch.save(torch.from_numpy(FEATURES), folder / "pt_files" / "s1.pt")
    (folder / "h5_files" / "s1.h5").unlink()
    return source


def stamp(folder):
    folder.mkdir(parents=True)
    with h5py.File(folder / "s1.h5", "w") as file:
        file["feats"] = FEATURES.astype(np.float16)
        file["coords"] = (COORDS * 0.25).astype(np.float32)
        file.attrs.update({"stamp_version": "2.1.0", "extractor": "uni", "unit": "um"})
        file.attrs.update({"tile_size_um": 128.0, "tile_size_px": 256, "feat_type": "tile"})
    return ForeignFeatures(folder, mpp=0.25)


def marugoto(folder):
    folder.mkdir(parents=True)
    with h5py.File(folder / "s1.h5", "w") as file:
        file["feats"] = np.concatenate([FEATURES, FEATURES + 1])
        file["coords"] = np.concatenate([COORDS // 512 * 224] * 2)
        file["augmented"] = np.repeat([False, True], 30)
        file.attrs["extractor"] = "ctranspath"
    return ForeignFeatures(folder, mpp=0.25, tile_mpp=512 * 0.25 / 224)


def histossl(folder):
    place = folder / "phikon" / "tcga" / "s1.svs"
    place.mkdir(parents=True)
    address = np.concatenate([np.full((30, 1), 16), COORDS // 512], axis=1)
    np.save(place / "features.npy", np.concatenate([address, FEATURES], axis=1).astype(np.float32))
    return ForeignFeatures(folder, mpp=0.21875, tile_mpp=0.5)


def slide2vec(folder):
    (folder / "tile_embeddings").mkdir(parents=True)
    (folder / "tiles").mkdir()
    torch.save(torch.from_numpy(FEATURES), folder / "tile_embeddings" / "s1.pt")
    meta = {
        "encoder_name": "virchow2",
        "requested_tile_size_px": 256,
        "requested_spacing_um": 0.5,
        "tile_size_lv0": 512,
    }
    (folder / "tile_embeddings" / "s1.meta.json").write_text(json.dumps(meta))
    np.savez(folder / "tiles" / "s1.coordinates.npz", x=COORDS[:, 0], y=COORDS[:, 1])
    return ForeignFeatures(folder, mpp=0.25)


def slide2vec_npz(folder):
    source = slide2vec(folder)
    (folder / "tile_embeddings" / "s1.pt").unlink()
    np.savez(folder / "tile_embeddings" / "s1.npz", features=FEATURES)
    return source


def atlaspatch(folder):
    (folder / "patches").mkdir(parents=True)
    with h5py.File(folder / "patches" / "s1.h5", "w") as file:
        file["coords"] = np.concatenate([COORDS, np.full((30, 2), 256), np.ones((30, 1))], axis=1).astype(np.int32)
        file["passports"] = ["p"] * 30
        file["features/h0_mini"] = FEATURES
        file.attrs.update({"patch_size": 256, "patch_size_level0": 512, "mpp": 0.25})
    return ForeignFeatures(folder)


LAYOUTS = {
    "trident": (trident, "trident", "uni_v1"),
    "clam": (clam, "clam", "resnet50_layer3"),
    "clam, pt": (clam_pt, "clam", "resnet50_layer3"),
    "stamp": (stamp, "stamp", "uni"),
    "marugoto": (marugoto, "marugoto", "ctranspath"),
    "histossl": (histossl, "histossl", "phikon"),
    "slide2vec": (slide2vec, "slide2vec", "virchow2"),
    "slide2vec, npz": (slide2vec_npz, "slide2vec", "virchow2"),
    "atlaspatch": (atlaspatch, "atlaspatch", "h0_mini"),
}


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


def test_files_that_cannot_be_read_are_rows(tmp_path):
    source = trident(tmp_path / "theirs")
    folder = tmp_path / "theirs" / "features_uni_v1"
    (folder / "broken.h5").write_bytes(b"no hdf5")
    with h5py.File(folder / "nan.h5", "w") as file:
        file["features"] = np.full((2, 2), np.nan)
    with h5py.File(folder / "big.h5", "w") as file:
        file["features"] = np.full((2, 2), 1e9)
    with h5py.File(folder / "short.h5", "w") as file:
        file["features"], file["coords"] = FEATURES, COORDS[:-1]
    manifest = convert_in("trident", source, tmp_path / "ours", quiet()).set_index("slide_id")
    assert manifest.state["s1"] == "ok"
    for name, reason in {"broken": "HDF5 cannot", "nan": "not finite", "big": "float16", "short": "30 tiles"}.items():
        assert manifest.state[name] == "unreadable_features"
        assert reason in manifest.reason[name]


STATED = {
    "trident": ("features_uni_v1/s1.h5", "coords", ("patch_size", "patch_size_level0")),
    "clam": ("patches/s1.h5", "coords", ("patch_size", "custom_downsample", "downsample")),
    "stamp": ("s1.h5", "/", ("tile_size_um", "tile_size_px", "unit")),
    "atlaspatch": ("patches/s1.h5", "/", ("patch_size", "patch_size_level0", "mpp")),
}


@pytest.mark.parametrize("layout", STATED)
def test_what_a_file_states_and_cannot_be_true_is_a_row(layout, tmp_path):
    """Sides, scales and units that are no positive numbers, coordinates that are none, and arrays of no shape."""
    name, on, keys = STATED[layout]
    odd = [
        0,
        -1,
        np.nan,
        np.inf,
        1e300,
        1e-300,
        "abc",
        "",
        b"\xff",
        np.zeros(0),
        [1, 2, 3],
        True,
        1 + 2j,
        h5py.Empty("f4"),
    ]
    source = LAYOUTS[layout][0](tmp_path / "theirs")

    def stated(change):
        path = tmp_path / "theirs" / name
        kept = path.read_bytes()
        with h5py.File(path, "a") as file:
            change(file)
        row = convert_in(layout, source, tmp_path / "ours", quiet()).iloc[0]
        path.write_bytes(kept)
        return row["state"], "theirs" in row["reason"]

    def coords(values):
        def change(file):
            attributes = dict(file["coords"].attrs)
            del file["coords"]
            file["coords"] = values
            file["coords"].attrs.update(attributes)

        return change

    for key in keys:
        for value in odd[:-4] if key == "downsample" else odd:  # a level's, along x and y: the first counts
            change = lambda file: file[on].attrs.__setitem__(key, value)  # noqa: B023, E731  called at once
            assert stated(change) == ("unreadable_features", True), (key, value)
    wide = np.ones((30, 5))
    for values in (wide * np.nan, wide * np.inf, wide * 2.0**40, wide.astype(bool), h5py.Empty("f4"), np.array(1.0)):
        assert stated(coords(values)) == ("unreadable_features", True), values
    assert convert_in(layout, source, tmp_path / "ours", quiet()).state.iloc[0] == "ok"


@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("value", [-1, 0.5])
def test_addresses_that_are_none_are_a_row(column, value, tmp_path):
    source = histossl(tmp_path / "theirs")
    path = next(tmp_path.rglob("features.npy"))
    table = np.load(path)
    table[3, column] = value
    np.save(path, table)
    row = convert_in("histossl", source, tmp_path / "ours", quiet()).iloc[0]
    assert row["state"] == "unreadable_features"
    assert "DeepZoom addresses of one level" in row["reason"]


@pytest.mark.parametrize("mpp", [0, -0.25, np.nan, np.inf])
def test_microns_that_are_none_are_refused(mpp, tmp_path):
    with pytest.raises(MilError, match="positive number of microns"):
        ForeignFeatures(tmp_path, mpp=mpp)


@pytest.mark.parametrize("layout", ["trident", "stamp"])
def test_unknown_coordinates_are_not_written_as_zeros(layout, tmp_path):
    source = trident(tmp_path / "theirs")
    with h5py.File(tmp_path / "theirs/features_uni_v1/s1.h5", "a") as file:
        del file["coords"]
    convert_in("trident", source, tmp_path / "ours", quiet())
    with pytest.raises(MilError, match=r"s1\.h5.*coordinates are not known"):
        convert_out(layout, tmp_path / "ours", tmp_path / "back", quiet())


def test_a_folder_and_a_link_to_nowhere_are_no_features(tmp_path):
    source = trident(tmp_path / "theirs")
    folder = tmp_path / "theirs" / "features_uni_v1"
    (folder / "folder.h5").mkdir()
    (folder / "link.h5").symlink_to("link.h5")
    manifest = convert_in("trident", source, tmp_path / "ours", quiet())
    assert {"folder", "link"}.isdisjoint(manifest.slide_id)


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


def header(shape):
    """A `.npy` file that states a shape and holds 64 bytes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(64)


@pytest.mark.parametrize("shape", [(8, 1024), (10**13, 1024), (10**30, 2)])
def test_arrays_that_state_more_than_they_hold_are_rows(shape, tmp_path):
    theirs, ours = histossl(tmp_path / "histossl"), slide2vec_npz(tmp_path / "slide2vec")
    next(theirs.folder.rglob("features.npy")).write_bytes(header(shape))
    with zipfile.ZipFile(ours.folder / "tile_embeddings/s1.npz", "w") as archive:
        archive.writestr("features.npy", header(shape))
    for layout, source in (("histossl", theirs), ("slide2vec", ours)):
        manifest = convert_in(layout, source, tmp_path / "ours", quiet())
        assert list(manifest.state) == ["unreadable_features"]


@pytest.mark.parametrize("suffix", ["pt", "npz"])
def test_archives_that_unpack_to_far_more_than_they_take_are_refused_unread(suffix, tmp_path):
    source = slide2vec(tmp_path / "theirs") if suffix == "pt" else slide2vec_npz(tmp_path / "theirs")
    path = tmp_path / f"theirs/tile_embeddings/s1.{suffix}"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in (entries | {"zeros": bytes(300 << 20)}).items():
            archive.writestr(name, content)
    manifest = convert_in("slide2vec", source, tmp_path / "ours", quiet())
    assert "refused as a decompression bomb" in manifest.reason[0]


def test_damaged_arrays_and_descriptions_are_rows_or_as_written(tmp_path):
    for change in ("npz", "meta.json"):
        source = slide2vec_npz(tmp_path / change)
        path = source.folder / f"tile_embeddings/s1.{change}"
        whole, stream = path.read_bytes(), np.random.default_rng(0)
        for at in stream.integers(len(whole), size=40):
            path.write_bytes(whole[: int(at)] + bytes([int(stream.integers(256))]) + whole[int(at) + 1 :])
            with suppress(MilError):  # where no encoder is named
                state = convert_in("slide2vec", source, tmp_path / "ours", quiet()).state[0]
                assert state in {"ok", "unreadable_features"}
        path.write_bytes(b'{"tile_size_lv0": "x"}' if change == "meta.json" else b"PK")
        assert convert_in("slide2vec", source, tmp_path / "ours", quiet()).state[0] == "unreadable_features"


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


def test_a_tensor_file_with_code_in_it_is_refused(tmp_path):
    source = clam_pt(tmp_path / "theirs")
    (tmp_path / "theirs" / "pt_files" / "s1.pt").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(MilError, match="cannot be read"):
        convert_in("clam", source, tmp_path / "ours", quiet())


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


def test_real_coordinates_of_clam(shared):
    for path in sorted((shared / "data/reference/clam_coords_h5").glob("*.h5")):
        coords, size_px, side_level0 = clam_tiling(path)
        assert (size_px, side_level0) == (512, 512)
        assert len(coords) in {1481, 7856, 8470}


def test_one_file_under_two_names_is_no_slide_s(tmp_path):
    source = stamp(tmp_path / "in")
    (tmp_path / "in/s2.h5").write_bytes((tmp_path / "in/s1.h5").read_bytes())
    with h5py.File(tmp_path / "in/s3.h5", "w") as other, h5py.File(tmp_path / "in/s1.h5") as file:
        for name in file:
            other[name] = file[name][()] + np.float16(1)
        other.attrs.update(file.attrs)
    table = convert_in("stamp", source, tmp_path / "out", quiet()).set_index("slide_id")
    assert list(table["state"]) == ["unreadable_features", "unreadable_features", "ok"]
    assert "the files of 's1' and 's2' are equal to the byte" in table.loc["s2", "reason"]
    assert table.loc["s1", "checksum"] == ""


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
