import sys
import types

import numpy as np
import pandas as pd
import pytest

from mil import hdf5
from mil.config import EncoderSpec, TileSpec
from mil.encoders import build
from mil.errors import SlideError
from mil.features import Engine, extract_shard
from mil.progress import quiet

SIZE = 64


class PaintedSlide:
    """Stands in for `mil.slides.slide.Slide`: tiles whose colours follow from their place."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    def read_tiles(self, coords, size_px, mpp, threads=1):
        for start in range(0, len(coords), 10):
            index = np.arange(start, min(start + 10, len(coords)))
            if "broken" in self.path and start:
                raise SlideError("unreadable_region", "tile at (640, 0) cannot be decoded")
            tiles = np.stack(
                [
                    np.random.default_rng(int(x + 7 * y)).integers(0, 255, (size_px, size_px, 3))
                    for x, y in coords[index]
                ]
            )
            yield index, tiles.astype(np.uint8)


@pytest.fixture(autouse=True)
def painted(monkeypatch):
    module = types.ModuleType("mil.slides.slide")
    module.open_slide = lambda path, mpp=None: PaintedSlide(path)
    monkeypatch.setitem(sys.modules, "mil.slides.slide", module)


def write_tiles(folder, slide_id, num_tiles):
    coords = np.stack([np.arange(num_tiles) * SIZE, np.zeros(num_tiles, int)], axis=1).astype(np.int64)
    with hdf5.writing(folder / f"{slide_id}.h5") as writer:
        writer.append("coords", coords)
        writer.annotate({"patch_size": SIZE, "name": slide_id}, on="coords")
        writer.annotate(
            {
                "stage": "tiles",
                "slide_id": slide_id,
                "spec": TileSpec(size_px=SIZE).to_json(),
                "mpp": 0.25,
                "mpp_source": "header",
                "fingerprint": f"f-{slide_id}",
                "recipe": "r",
            }
        )
    return coords


def table(*slide_ids):
    return pd.DataFrame({"slide_id": slide_ids, "path": slide_ids, "state": "ok", "reason": ""})


def extract(slides, tmp_path, spec):
    return extract_shard(slides, tmp_path / "tiles", spec, tmp_path / "features", quiet())


def test_a_shard_becomes_a_file_a_slide_and_a_manifest(tmp_path):
    coords = write_tiles(tmp_path / "tiles", "a", 37)
    write_tiles(tmp_path / "tiles", "b", 1)
    manifest = extract(table("a", "b"), tmp_path, EncoderSpec(name="colour"))
    assert list(manifest.columns) == ["slide_id", "state", "reason", "num_tiles", "checksum"]
    assert list(manifest.num_tiles) == [37, 1]
    features, stored = hdf5.read(tmp_path / "features" / "a.h5", "features", "coords")
    assert features.dtype == np.float16
    assert features.shape == (37, 6)
    assert stored.dtype == np.int64
    assert np.array_equal(stored, coords)
    painted = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3)) / 255
    by_hand = [*painted.mean((0, 1)), *painted.std((0, 1))]
    assert features[0] == pytest.approx(by_hand, abs=2e-3)
    assert hdf5.attributes(tmp_path / "features" / "a.h5", on="coords") == {"patch_size": SIZE, "name": "a"}
    about = hdf5.attributes(tmp_path / "features" / "a.h5")
    assert about["encoder"] == "colour"
    assert about["fingerprint"] == "f-a"
    assert about["checksum"] == manifest.checksum[0]


def test_files_that_are_up_to_date_are_left_alone(tmp_path):
    write_tiles(tmp_path / "tiles", "a", 12)
    first = extract(table("a"), tmp_path, EncoderSpec(name="colour"))
    path = tmp_path / "features" / "a.h5"
    written = path.stat().st_mtime_ns
    assert extract(table("a"), tmp_path, EncoderSpec(name="colour", batch_size=3)).equals(first)
    assert path.stat().st_mtime_ns == written
    write_tiles(tmp_path / "tiles", "a", 13)
    assert extract(table("a"), tmp_path, EncoderSpec(name="colour")).num_tiles[0] == 13


def test_a_slide_that_fails_half_way_is_a_row_and_no_file(tmp_path):
    for slide_id in ("good", "broken"):
        write_tiles(tmp_path / "tiles", slide_id, 25)
    manifest = extract(table("good", "broken", "untiled"), tmp_path, EncoderSpec(name="colour"))
    assert list(manifest.state) == ["ok", "unreadable_region", "no_tiles"]
    assert "(640, 0)" in manifest.reason[1]
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["good.h5"]


def test_a_tile_has_the_same_vector_whatever_stands_beside_it(tmp_path):
    spec = EncoderSpec(name="efficientnet_lite0")
    engine = Engine(build(spec), spec)
    tiles = np.random.default_rng(1).integers(0, 255, (21, 224, 224, 3)).astype(np.uint8)
    together = engine(tiles)
    for index in (0, 5, 20):
        assert np.array_equal(engine(tiles[index : index + 1])[0], together[index])
    assert np.array_equal(engine(tiles[::-1]), together[::-1])
