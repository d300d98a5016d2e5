import h5py
import numpy as np
import pytest

from mil import hdf5
from mil.errors import CorruptFile, MilError


def write(path, rows=1500):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(rows, 8)).astype(np.float16)
    coords = generator.integers(0, 1 << 20, (rows, 2))
    with hdf5.writing(path) as writer:
        for start in range(0, rows, 400):
            writer.append("features", features[start : start + 400])
            writer.append("coords", coords[start : start + 400])
        writer.annotate({"spec": {"name": "colour"}, "mpp": 0.25, "note": "{not json"})
        writer.annotate({"patch_size": 224}, on="coords")
    return features, coords


def test_what_is_written_is_read(tmp_path):
    features, coords = write(tmp_path / "a.h5")
    read = hdf5.read(tmp_path / "a.h5", "features", "coords")
    assert np.array_equal(read[0], features)
    assert np.array_equal(read[1], coords)
    assert read[0].dtype == np.float16
    about = hdf5.attributes(tmp_path / "a.h5")
    assert about["spec"] == {"name": "colour"}
    assert about["note"] == "{not json"
    assert hdf5.attributes(tmp_path / "a.h5", on="coords") == {"patch_size": 224}
    assert hdf5.verify(tmp_path / "a.h5") == about["checksum"]
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["features"].chunks == (512, 8)


def test_the_checksum_does_not_depend_on_how_rows_came(tmp_path):
    features = np.arange(4000, dtype=np.float16).reshape(1000, 4)
    sums = []
    for step in (1000, 7):
        with hdf5.writing(tmp_path / f"{step}.h5") as writer:
            for start in range(0, 1000, step):
                writer.append("features", features[start : start + step])
        sums.append(hdf5.verify(tmp_path / f"{step}.h5"))
    assert sums[0] == sums[1]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupted():
        with hdf5.writing(tmp_path / "a.h5") as writer:
            writer.append("features", np.zeros((10, 2)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((MilError, NotADirectoryError)):
        write(tmp_path / "file" / "a.h5")


def test_every_flipped_byte_is_found_or_harmless(tmp_path):
    path = tmp_path / "a.h5"
    features, coords = write(path)
    whole, about = path.read_bytes(), hdf5.attributes(path)
    generator = np.random.default_rng(1)
    found = 0
    for at in generator.choice(len(whole), 250, replace=False):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << int(generator.integers(8)))]) + whole[at + 1 :])
        try:
            hdf5.verify(path)
        except CorruptFile:
            found += 1
            continue
        read = hdf5.read(path, "features", "coords")
        assert np.array_equal(read[0], features)
        assert np.array_equal(read[1], coords)
        assert hdf5.attributes(path) == about
    assert found > 150


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_truncated_files_are_corrupt(share, tmp_path):
    path = tmp_path / "a.h5"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CorruptFile, match=r"a\.h5"):
        hdf5.verify(path)


def test_a_file_without_checksum_is_not_finished(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = np.zeros((3, 2))
    with pytest.raises(CorruptFile, match="no checksum"):
        hdf5.verify(tmp_path / "a.h5")


def attacks(folder):
    secret = folder / "secret"
    secret.write_bytes(bytes(256))
    with h5py.File(folder / "other.h5", "w") as file:
        file["features"] = np.zeros((4, 4))
    with h5py.File(folder / "external storage.h5", "w") as file:
        file.create_dataset("features", (8, 8), "f4", external=[(str(secret), 0, 256)])
    with h5py.File(folder / "external link.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(folder / "other.h5"), "/features")
    with h5py.File(folder / "soft link.h5", "w") as file:
        file["features"] = h5py.SoftLink("/features")
    with h5py.File(folder / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((4, 4), "f8")
        layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "features", (4, 4))
        file.create_virtual_dataset("features", layout)
    with h5py.File(folder / "bomb.h5", "w") as file:
        file.create_dataset("features", (1 << 20, 1 << 20), "f4", chunks=(1024, 1024))
    with h5py.File(folder / "inflates.h5", "w") as file:
        file.create_dataset("features", data=np.zeros((1 << 16, 1024), "f4"), compression="gzip", chunks=(1 << 16, 64))
    with h5py.File(folder / "text.h5", "w") as file:
        file["features"] = ["a", "b"]
    return ["external storage", "external link", "soft link", "virtual", "bomb", "inflates", "text"]


def test_what_an_attacker_does_is_refused_before_it_is_read(tmp_path):
    for name in attacks(tmp_path):
        with pytest.raises(CorruptFile, match="refused"):
            hdf5.read(tmp_path / f"{name}.h5", "features")
        with pytest.raises(CorruptFile, match="refused"):
            hdf5.read_foreign(tmp_path / f"{name}.h5", "features")
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file["deep/features"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/features")
    with pytest.raises(CorruptFile, match="refused"):
        hdf5.read_foreign(tmp_path / "group.h5", "deep/features")


def test_missing_datasets_are_named(tmp_path):
    write(tmp_path / "a.h5")
    with pytest.raises(CorruptFile, match="'attention' is missing; it has coords, features"):
        hdf5.read(tmp_path / "a.h5", "attention")
    assert hdf5.read_foreign(tmp_path / "a.h5", "attention")[0] == {}
