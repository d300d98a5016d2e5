import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from feature_slides import SIZE, SPEC, make_shard, write_slide, write_tiles

from mil import hdf5
from mil.config import EncoderSpec
from mil.encoders.build import build
from mil.errors import MilError
from mil.features.engine import EncoderEngine
from mil.features.pipeline import Pipeline
from mil.features.plan import parts_of
from mil.features.readers import ProcessReaders, SharedMemory, ThreadReaders
from mil.features.shard import extract_shard
from mil.progress import quiet
from mil.schemas import MANIFEST
from mil.slides.fingerprint import fingerprint

COLOUR = EncoderSpec(name="colour")


def extract(slides, root, spec=COLOUR, **options):
    return extract_shard(slides, root / "tiles", spec, root / "features", quiet(), **options)


def test_a_shard_becomes_a_file_a_slide_and_a_manifest(tmp_path):
    slides = make_shard(tmp_path, {"a": 9, "b": 1})
    manifest = extract(slides, tmp_path)
    assert list(manifest.columns) == list(MANIFEST)
    assert list(manifest.num_tiles) == [36, 4]
    features, coords = hdf5.read(tmp_path / "features" / "a.h5", "features", "coords")
    assert (features.dtype, features.shape) == (np.float16, (36, 6))
    (tiled,) = hdf5.read(tmp_path / "tiles" / "a.h5", "coords")
    assert coords.dtype == np.int64
    assert np.array_equal(coords, tiled)
    pixels = write_slide(tmp_path / "again.tif", 9) / 255
    for row in (0, 17, 35):
        x, y = coords[row]
        tile = pixels[y : y + SIZE, x : x + SIZE]
        assert features[row] == pytest.approx([*tile.mean((0, 1)), *tile.std((0, 1))], abs=1e-3)
    about = hdf5.attributes(tmp_path / "features" / "a.h5")
    assert about["encoder"] == "colour"
    assert about["num_tiles"] == 36
    assert about["fingerprint"] == slides.fingerprint[0]
    assert about["checksum"] == manifest.checksum[0]
    assert hdf5.attributes(tmp_path / "features" / "a.h5", on="coords")["patch_size_level0"] == SIZE


def test_batches_that_cross_slides_change_nothing(tmp_path):
    slides = make_shard(tmp_path, {"a": 40, "b": 1, "c": 35, "d": 2})
    together = extract(slides, tmp_path, COLOUR.model_copy(update={"batch_size": 100}))
    for slide_id, num_tiles in zip(together.slide_id, together.num_tiles, strict=True):
        one = slides[slides.slide_id == slide_id]
        assert extract_shard(one, tmp_path / "tiles", COLOUR, tmp_path / "alone", quiet()).num_tiles[0] == num_tiles
        for name in ("features", "coords"):
            (apart,) = hdf5.read(tmp_path / "alone" / f"{slide_id}.h5", name)
            assert np.array_equal(hdf5.read(tmp_path / "features" / f"{slide_id}.h5", name)[0], apart)


@pytest.mark.parametrize("kind", [ProcessReaders, ThreadReaders])
def test_processes_and_threads_read_the_same(kind, tmp_path):
    slides = make_shard(tmp_path, {"a": 4})
    (coords,) = hdf5.read(tmp_path / "tiles" / "a.h5", "coords")
    order = {"path": slides.path[0], "slide_mpp": None, "size_px": SIZE, "mpp": 0.5, "reading": {}}
    memory = SharedMemory(20 * SIZE * SIZE * 3)
    readers = kind(2, memory)
    readers.order(order | {"number": 1, "coords": coords[:12].tolist(), "offset": 0})
    readers.order(order | {"number": 2, "coords": coords[12:].tolist(), "offset": 12 * SIZE * SIZE * 3})
    readers.order(order | {"number": 3, "path": "/nowhere.tif", "coords": [], "offset": 0})
    answers = {}
    while len(answers) < 3:
        answers |= {answer["number"]: answer for answer in readers.answers(60)}
    readers.close()
    assert answers[3]["error"][0] == "unreadable"
    assert answers[1]["error"] is answers[2]["error"] is None
    tiles = np.frombuffer(memory.map, np.uint8).reshape(20, SIZE, SIZE, 3)[:16]
    pixels = write_slide(tmp_path / "again.tif", 4)
    assert all(
        np.array_equal(tile, pixels[y : y + SIZE, x : x + SIZE]) for tile, (x, y) in zip(tiles, coords, strict=True)
    )


def test_parts_fill_batches_in_order_and_leave_failed_slides_out(tmp_path):
    class Tiling:
        def __init__(self, tiles):
            self.coords = np.zeros((tiles, 2))

    class Slide:
        def __init__(self, tiles):
            self.tiling = Tiling(tiles)
            self.error = None

    works = [Slide(150), Slide(7), Slide(200)]
    batches = list(parts_of(works, 100, failed=lambda work: work.error is not None))
    assert [[(works.index(part.work), part.first, part.count, part.offset) for part in batch] for batch in batches] == [
        [(0, 0, 100, 0)],
        [(0, 100, 50, 0), (1, 0, 7, 50), (2, 0, 43, 57)],
        [(2, 43, 100, 0)],
        [(2, 143, 57, 0)],
    ]
    plan = parts_of(works, 100, failed=lambda work: work.error is not None)
    next(plan)
    works[0].error = ("unreadable", "")
    assert [(works.index(part.work), part.first) for part in next(plan)] == [(1, 0), (2, 0)]


def test_files_that_are_up_to_date_are_left_alone(tmp_path):
    slides = make_shard(tmp_path, {"a": 3})
    first = extract(slides, tmp_path)
    path = tmp_path / "features" / "a.h5"
    written = path.stat().st_mtime_ns
    assert extract(slides, tmp_path, EncoderSpec(name="colour", batch_size=3)).equals(first)
    assert path.stat().st_mtime_ns == written
    write_tiles(tmp_path / "tiles", "a", tmp_path / "a.tif", 11)
    assert extract(slides, tmp_path).num_tiles[0] == 11


def test_existence_does_not_make_a_file_up_to_date(tmp_path):
    slides = make_shard(tmp_path, {"a": 3})
    manifest = extract(slides, tmp_path)
    path = tmp_path / "features" / "a.h5"
    whole = path.read_bytes()
    (features,) = hdf5.read(path, "features")
    at = whole.index(features.tobytes()[:64])
    path.write_bytes(whole[: at + 5] + bytes([whole[at + 5] ^ 1]) + whole[at + 6 :])
    assert extract(slides, tmp_path).equals(manifest)
    assert path.read_bytes()[at : at + 64] == whole[at : at + 64]
    path.write_bytes(whole[:1000])
    assert extract(slides, tmp_path).equals(manifest)


def test_a_slide_that_fails_is_a_row_and_no_file(tmp_path):
    slides = make_shard(tmp_path, {"good": 5, "gone": 3, "stale": 3, "empty": 3})
    (tmp_path / "gone.tif").unlink()
    write_slide(tmp_path / "stale.tif", 4, seed=9)
    slides.loc[slides.slide_id == "stale", "fingerprint"] = "that of the new file"
    write_tiles(tmp_path / "tiles", "empty", tmp_path / "empty.tif", 0)
    extra = [
        {"slide_id": "untiled", "path": "x", "state": "ok", "reason": "", "fingerprint": ""},
        {"slide_id": "bad", "path": "x", "state": "no_mpp", "reason": "no mpp", "fingerprint": ""},
    ]
    slides = pd.concat([slides, pd.DataFrame(extra)], ignore_index=True)
    manifest = extract(slides, tmp_path)
    assert dict(zip(manifest.slide_id, manifest.state, strict=True)) == {
        "good": "ok",
        "gone": "unreadable",
        "stale": "stale_tiles",
        "empty": "no_tissue",
        "untiled": "no_tiles",
        "bad": "no_mpp",
    }
    assert manifest.reason[1].startswith(str(tmp_path / "gone.tif"))
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["good.h5"]


def test_a_slide_that_breaks_half_way_leaves_nothing_and_the_others_go_on(tmp_path):
    slides = make_shard(tmp_path, {"a": 40, "broken": 80, "c": 40})
    path = tmp_path / "broken.tif"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])  # its header is at the beginning
    tiles = tmp_path / "tiles/broken.h5"
    (coords,), about, on_coords = hdf5.read(tiles, "coords"), hdf5.attributes(tiles), hdf5.attributes(tiles, "coords")
    with hdf5.writing(tiles) as file:  # tiled as it is now
        file.append("coords", coords)
        file.annotate(on_coords, on="coords")
        file.annotate(
            {name: value for name, value in about.items() if name != "checksum"} | {"fingerprint": fingerprint(path)}
        )
    slides.loc[1, "fingerprint"] = ""
    manifest = extract(slides, tmp_path, COLOUR.model_copy(update={"batch_size": 64}))
    assert list(manifest.state[[0, 2]]) == ["ok", "ok"]
    assert manifest.state[1] in {"unreadable_region", "unreadable"}
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == ["a.h5", "c.h5"]


def test_a_slide_replaced_after_it_was_tiled_has_no_features(tmp_path):
    slides = make_shard(tmp_path, {"a": 3, "b": 3, "c": 2})
    (tmp_path / "a.tif").write_bytes(
        (tmp_path / "b.tif").read_bytes()
    )  # as large, and every tile of `a` could be read from it
    table = extract(slides, tmp_path).set_index("slide_id")
    assert table["state"].to_dict() == {"a": "changed", "b": "ok", "c": "ok"}
    assert "a.tif: is not the file that was checked" in table.loc["a", "reason"]
    assert not (tmp_path / "features/a.h5").exists()


def test_ids_that_stand_twice_are_refused(tmp_path):
    slides = make_shard(tmp_path, {"a": 1})
    with pytest.raises(MilError, match="'a' stands twice"):
        extract(pd.concat([slides, slides]), tmp_path)


def test_a_tile_has_the_same_vector_whatever_stands_beside_it():
    spec = EncoderSpec(name="efficientnet_lite0")
    engine = EncoderEngine(build(spec), spec)
    tiles = np.random.default_rng(1).integers(0, 255, (37, 96, 96, 3)).astype(np.uint8)
    together = engine(tiles)
    for index in (0, 5, 20, 36):
        assert np.array_equal(engine(tiles[index : index + 1])[0], together[index])
    assert np.array_equal(engine(tiles[::-1]), together[::-1])


def test_resizing_and_cutting_follow_the_card():
    spec = EncoderSpec(name="prov_gigapath", weights="random", precision="fp32")
    encoder = build(EncoderSpec(name="colour"))
    cut = EncoderEngine(type(encoder)(**{**vars(encoder), "input_px": 32, "resize_px": 48}), spec, torch.device("cpu"))
    tiles = np.zeros((1, 48, 48, 3), np.uint8)
    tiles[:, 8:40, 8:40] = 255  # the middle 32 pixels
    assert cut(tiles)[0].tolist() == [1, 1, 1, 0, 0, 0]


def test_a_value_beyond_float16_fails_its_slide(tmp_path):
    code = tmp_path / "big.py"
    code.write_text(
        "import torch\nclass Big(torch.nn.Module):\n    def forward(self, tiles):\n        return tiles.mean((2, 3)) * 1e6\n"
    )
    slides = make_shard(tmp_path, {"a": 2})
    spec = EncoderSpec(name=f"python:{code}:Big", precision="fp32", mean=(0, 0, 0), std=(1, 1, 1))
    manifest = extract(slides, tmp_path, spec)
    assert list(manifest.state) == ["not_finite"]
    assert "tile at (0, 0)" in manifest.reason[0]
    assert not (tmp_path / "features").exists()


@pytest.mark.extended
def test_memory_does_not_grow_with_the_tiles_of_a_slide_and_its_file_grows_as_they_do(repository):
    script = repository / "benchmarks/features_memory.py"
    done = subprocess.run([sys.executable, script, "3000", "15000"], capture_output=True, text=True, check=True)
    few, many = map(json.loads, done.stdout.splitlines())
    assert (
        many["peak_mb"] < few["peak_mb"] + 60
    )  # holding the tiles would take 150 MB more, two readers' share each more still
    assert many["file_bytes"] / few["file_bytes"] == pytest.approx(5, rel=0.15)


def test_a_slide_that_is_replaced_while_its_tiles_are_read_has_no_features(tmp_path, monkeypatch):
    slides = make_shard(tmp_path, {"a": 3, "b": 3})

    class Replacing(Pipeline):
        def run(self, progress):
            write_slide(tmp_path / "a.tif", 3, seed=9)
            os.utime(tmp_path / "b.tif")
            super().run(progress)

    monkeypatch.setattr("mil.features.shard.Pipeline", Replacing)
    manifest = extract(slides, tmp_path)
    assert list(manifest.state) == ["changed", "ok"]
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["b.h5"]


def test_a_tile_that_cannot_be_decoded_is_left_out_where_the_tiling_says_so_and_counted(tmp_path):
    """`tiles.unreadable: drop` held for the overview, which a coarser level may give, and not for the features: the slide was refused."""
    slides = make_shard(tmp_path, {"a": 3})
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        write_slide(path, 3),
        photometric="rgb",
        tile=(SIZE, SIZE),
        compression="deflate",
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
    )
    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages.first.dataoffsets[7]
    data = bytearray(path.read_bytes())
    data[start : start + 8] = bytes(8)
    path.write_bytes(data)
    slides["fingerprint"] = fingerprint(path)
    states = {}
    for unreadable in ("refuse", "drop"):
        spec = SPEC.model_copy(update={"unreadable": unreadable})
        coords = write_tiles(tmp_path / "tiles", "a", path, spec=spec)
        states[unreadable] = extract(slides, tmp_path).iloc[0]
    assert states["refuse"].state == "unreadable_region"
    assert (states["drop"].state, states["drop"].num_tiles) == ("ok", 11)
    assert states["drop"].reason == "1 of 12 tiles cannot be decoded and were left out"
    assert extract(slides, tmp_path).iloc[0].equals(states["drop"])  # kept, as it was
    kept = hdf5.read(tmp_path / "features" / "a.h5", "coords")[0]
    np.testing.assert_array_equal(kept, np.delete(coords, 7, axis=0))
