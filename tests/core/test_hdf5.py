import hashlib
import json
import os
import subprocess
import sys

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


def summed(path):
    """The checksum as it is described, from the file's arrays and attributes: files of yesterday must hold tomorrow."""
    with h5py.File(path) as file:
        digests, about = {}, {"": dict(file.attrs)}
        about[""].pop("checksum")
        for name, dataset in file.items():
            kind = f"{name}|{dataset.dtype.str}|{dataset.shape[1:]}"
            digests[name] = hashlib.sha256(kind.encode() + dataset[()].tobytes()).hexdigest()
            about[name] = dict(dataset.attrs)
    plain = {
        one: {key: getattr(value, "item", value.__str__)() for key, value in of.items()} for one, of in about.items()
    }
    return hashlib.sha256(json.dumps([digests, plain], sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("rows", [1, 5000])
def test_the_checksum_is_of_names_types_shapes_bytes_and_attributes(rows, tmp_path):
    write(tmp_path / "a.h5", rows)
    assert hdf5.verify(tmp_path / "a.h5") == summed(tmp_path / "a.h5")


def test_the_checksum_does_not_depend_on_the_order_of_settings(tmp_path):
    sums = set()
    for keys in ("ab", "ba"):
        with hdf5.writing(tmp_path / "a.h5") as writer:
            writer.append("features", np.zeros((3, 2)))
            writer.annotate({"spec": dict.fromkeys(keys, 1)})
        sums.add(hdf5.verify(tmp_path / "a.h5"))
    assert len(sums) == 1


def test_attributes_come_back_as_they_went(tmp_path):
    about = {
        "number": 0.25,
        "whole": 7,
        "text": "7",
        "blank": "",
        "list": [1, "b"],
        "none": None,
        "odd": "[b",
        "yes": True,
    }
    with hdf5.writing(tmp_path / "a.h5") as writer:
        writer.append("coords", np.zeros((3, 2)))
        writer.annotate(about)
        writer.annotate({"level": np.int64(2)}, on="coords")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file.attrs["none"] == "null"
    found = hdf5.attributes(tmp_path / "a.h5")
    found.pop("checksum")
    assert found == about | {"none": "null"}
    assert hdf5.attributes(tmp_path / "a.h5", on="coords") == {"level": 2}


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
        hdf5._checked.clear()  # the clock of a file system may not tell two writes in one test apart
        try:
            read = hdf5.read(path, "features", "coords")
            read_about = hdf5.attributes(path)
        except CorruptFile:
            found += 1
            continue
        assert np.array_equal(read[0], features)
        assert np.array_equal(read[1], coords)
        assert read_about == about
    assert found > 150


def test_a_file_is_checked_once_and_again_when_it_changed(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    write(path)
    hdf5._checked.clear()
    calls = []
    checked = hdf5._check
    monkeypatch.setattr(hdf5, "_check", lambda *arguments: calls.append(1) or checked(*arguments))
    for _ in range(3):
        hdf5.read(path, "coords")
        hdf5.attributes(path)
    assert len(calls) == 1
    with h5py.File(path, "r+") as file:
        file["features"][7, 3] += 1
    with pytest.raises(CorruptFile, match=r"a\.h5: checksum [0-9a-f]{12} differs"):
        hdf5.read(path, "coords")


def test_a_group_is_no_dataset(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("features")
    for call in (hdf5.verify, hdf5.attributes, lambda path: hdf5.read(path, "features")):
        with pytest.raises(CorruptFile, match="'features' is a group"):
            call(tmp_path / "a.h5")


LIMITED = """
import resource, sys
sys.dont_write_bytecode = True
import numpy as np
from mil import hdf5
from mil.errors import MilError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for rows in (10, 97, 2000):
    try:
        with hdf5.writing(sys.argv[1]) as writer:
            writer.append("features", np.random.default_rng(0).normal(size=(rows, 256)))
            writer.annotate({"note": "x" * 9000})
    except MilError as error:
        print(error)
"""


def test_a_limit_on_file_sizes_is_one_line_and_no_crash(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "a.h5")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 3
    assert done.stdout.count("a.h5: cannot be written (File too large)") == 3
    assert list(tmp_path.iterdir()) == []


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
        zeros = file.create_dataset("features", (1 << 16, 1024), "f4", compression="gzip", chunks=(1 << 16, 64))
        zeros[:, :64] = 0
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
    with pytest.raises(CorruptFile, match="'attention' is missing; it has coords, features"):
        hdf5.described(tmp_path / "a.h5", "attention")
    shape, kind, about = hdf5.described(tmp_path / "a.h5", "features")
    assert (shape, kind, about["mpp"]) == ((1500, 8), "float16", 0.25)


def test_a_foreign_file_is_looked_into_where_asked_and_no_further(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", track_order=True) as file:
        group = file.create_group("features", track_order=True)
        group["virchow"] = np.arange(6).reshape(3, 2)
        group["conch"] = np.arange(3)
        group["conch"].attrs["mpp"] = b"half"
        file["coords"] = np.arange(4)
        file["nothing"] = h5py.Empty("f4")
        file["list"] = np.zeros(3)
        file["list"].attrs["sides"] = np.array([1, 2])
        file.attrs["name"] = "{x"
    assert hdf5.names_under(path, "features") == ["conch", "virchow"]
    assert hdf5.names_under(path, "coords") == []
    assert hdf5.names_under(path, "absent") == []
    wanted = (
        "features/virchow",
        "features/conch",
        "features",
        "features/absent",
        "absent/conch",
        "coords/conch",
        "list",
    )
    arrays, about = hdf5.read_foreign(path, *wanted)
    assert list(arrays) == ["features/virchow", "features/conch", "list"]
    assert arrays["features/virchow"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert (about[""], about["features/conch"]) == ({"name": "{x"}, {"mpp": "half"})
    assert about["list"]["sides"].tolist() == [1, 2]
    with pytest.raises(CorruptFile, match="'nothing' has no shape"):
        hdf5.read_foreign(path, "nothing")


@pytest.mark.parametrize(("megabytes", "is_refused"), [((100,), False), ((150, 150), True)])
def test_what_unpacks_to_too_much_is_a_bomb_in_pieces_too(megabytes, is_refused, tmp_path):
    """Zeros shrink a thousand times; 200 MB are allowed of any file, however small."""
    with hdf5.writing(tmp_path / "a.h5") as writer:
        writer.append("coords", np.zeros((3, 2)))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        for number, size in enumerate(megabytes):
            file.create_dataset(f"{number}", (size, 2**20), "u1", chunks=(1, 2**20), compression="gzip")
    with pytest.raises(CorruptFile, match="decompression bomb" if is_refused else "checksum"):
        hdf5.read(tmp_path / "a.h5", "coords")
