"""Features of other tools that are damaged, impossible or dangerous: a row with a reason, or refused."""

import io
import json
import zipfile
from contextlib import suppress

import h5py
import numpy as np
import pytest
import torch
from foreign_features import COORDS, FEATURES, LAYOUTS, clam_pt, histossl, slide2vec, slide2vec_npz, stamp, trident

from mil import hdf5
from mil.convert.convert import convert_in
from mil.convert.foreign import ForeignFeatures
from mil.errors import MilError
from mil.progress import quiet


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


def test_a_folder_and_a_link_to_nowhere_are_no_features(tmp_path):
    source = trident(tmp_path / "theirs")
    folder = tmp_path / "theirs" / "features_uni_v1"
    (folder / "folder.h5").mkdir()
    (folder / "link.h5").symlink_to("link.h5")
    manifest = convert_in("trident", source, tmp_path / "ours", quiet())
    assert {"folder", "link"}.isdisjoint(manifest.slide_id)


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


def test_a_tensor_file_with_code_in_it_is_refused(tmp_path):
    source = clam_pt(tmp_path / "theirs")
    (tmp_path / "theirs" / "pt_files" / "s1.pt").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    row = convert_in("clam", source, tmp_path / "ours", quiet()).iloc[0]
    assert (row.state, "cannot be read" in row.reason) == ("unreadable_features", True)
    torch.save(FEATURES, tmp_path / "theirs" / "pt_files" / "s1.pt")  # an array of NumPy
    row = convert_in("clam", source, tmp_path / "ours", quiet()).iloc[0]
    assert "hold other objects than tensors" in row.reason
    assert row.reason.isprintable()  # PyTorch's text has bold letters, and advises to run the file's code


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


TENSORS = {
    "a gradient": lambda features: features.requires_grad_(),
    "sparse": lambda features: features.to_sparse(),
    "quantised": lambda features: torch.quantize_per_tensor(features, 0.1, 0, torch.qint8),
    "without memory": lambda features: features.to("meta"),
    "of integers": lambda features: features.to(torch.int64),
    "complex": lambda features: features.to(torch.complex64),
    "damaged": lambda features: b"no tensor",
    "a dict": lambda features: {"features": features, "coords": features[:, :2]},
    "twice": lambda features: torch.cat([features, features]),
}


@pytest.mark.filterwarnings("ignore:.*quantize")
@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_file_of_another_kind_is_a_row_and_the_others_are_converted(kind, tmp_path):
    source = clam_pt(tmp_path / "theirs")
    good = next(source.folder.rglob("*.pt"))
    made = TENSORS[kind](torch.load(good) + 1)
    bad = good.with_name("bad.pt")
    bad.write_bytes(made) if isinstance(made, bytes) else torch.save(made, bad)
    rows = convert_in("clam", source, tmp_path / "ours", quiet()).set_index("slide_id")
    assert rows.state[good.stem] == "ok"
    assert rows.state["bad"] == ("ok" if kind == "a gradient" else "unreadable_features")
    assert "\n" not in rows.reason["bad"]


COPIES = {
    "appended": (np.vstack([FEATURES[:7], FEATURES]), np.vstack([COORDS[:7], COORDS]), "tile 7 is tile 0 again"),
    "one corner": (FEATURES, COORDS * 0, "all its 30 tiles have one corner, [0, 0]"),
    "zeros": (FEATURES * 0, COORDS, "its largest feature is 0, which float16 does not hold"),
    "tiny": (FEATURES * 1e-6, COORDS, "e-06, which float16 does not hold"),
}


@pytest.mark.parametrize("kind", COPIES)
def test_features_that_are_not_those_of_tiles_each_once_are_a_row(kind, tmp_path):
    """A job that was started again appends to CLAM's file; what is below float16 became zeros; both were `ok`."""
    features, coords, said = COPIES[kind]
    source = trident(tmp_path / "theirs")
    with h5py.File(source.folder / "features_uni_v1" / "bad.h5", "w") as file:
        file["features"], file["coords"] = features, coords
    rows = convert_in("trident", source, tmp_path / "ours", quiet()).set_index("slide_id")
    assert rows.state.to_dict() == {"bad": "unreadable_features", "s1": "ok"}
    assert said in rows.reason["bad"]


@pytest.mark.parametrize("kind", ["slide", "patient"])
def test_stamp_s_features_of_a_whole_slide_are_no_tile(kind, tmp_path):
    source = stamp(tmp_path / "theirs")
    with h5py.File(source.folder / "s1.h5", "a") as file:
        file.attrs["feat_type"] = kind
    row = convert_in("stamp", source, tmp_path / "ours", quiet()).iloc[0]
    assert row.state == "unreadable_features"
    assert f"holds features of a whole {kind}, not of its tiles" in row.reason


def test_the_description_of_an_id_with_dots_is_its_own(tmp_path):
    """`S.1.npz` was read with the description of slide `S`."""
    source = slide2vec_npz(tmp_path / "theirs")
    folder = source.folder / "tile_embeddings"
    described = json.loads((folder / "s1.meta.json").read_text())
    with np.load(folder / "s1.npz") as arrays:
        np.savez(folder / "s1.2.npz", features=arrays["features"] + 1)
    (folder / "s1.2.meta.json").write_text(json.dumps(described | {"requested_spacing_um": 0.25}))
    convert_in("slide2vec", source, tmp_path / "ours", quiet())
    found = {name: hdf5.attributes(tmp_path / "ours" / f"{name}.h5")["tile_mpp"] for name in ("s1", "s1.2")}
    assert found == {"s1": 0.5, "s1.2": 0.25}
