"""Slides with flipped, cut and missing bytes: each is ok or a reason; none crashes, hangs, or gives white tiles for tissue."""

import faulthandler
import os

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_slide import write_slide
from test_slide_readers import texture, write_jpeg_tiles

from mil.config import SlidesSpec, TileSpec
from mil.errors import SlideError
from mil.rng import rng
from mil.slides.check import look_at
from mil.slides.slide import open_slide
from mil.specs.slides import QualitySpec, TissueSpec
from mil.tiles.grid import tile_slide

pytestmark = pytest.mark.slow

REPEATS = int(os.environ.get("REPEATS", "1"))
CASES = range(36 if REPEATS > 1 else 0, 36 * REPEATS)  # of a file; more repeats add to those of `make test`
STATES = {"ok", "unreadable", "unreadable_region", "not_a_slide", "unsupported", "implausible_size", "implausible_mpp", "too_many_tiles"}  # fmt: skip
SPEC = TileSpec(size_px=64, mpp=0.5, min_tissue=0.0, max_tiles=10_000, tissue=TissueSpec(mpp=4), quality=QualitySpec())


def tissue(width: int = 260, height: int = 200) -> np.ndarray:
    """All tissue: no pixel is white, so that a white tile can only be a fault."""
    return np.minimum(texture(width, height), 200)


def png(path):
    Image.fromarray(tissue()).save(path)


def jpeg(path):
    Image.fromarray(tissue()).save(path, format="JPEG", quality=90)


def ome(path):
    tifffile.imwrite(path, tissue(), photometric="rgb", tile=(128, 128), compression="deflate", ome=True, metadata={"axes": "YXS"})  # fmt: skip


KINDS = {
    "jpeg.svs": lambda path: write_jpeg_tiles(path, tissue(), tile=128),
    "tables.svs": lambda path: write_jpeg_tiles(path, tissue(), tile=128, tables=True),
    "pyramid.svs": lambda path: write_slide(path, tissue(), levels=(2,), tile=64),
    "lzw.svs": lambda path: write_slide(path, tissue(), tile=64, compression="lzw", predictor=True),
    "jpeg2000.svs": lambda path: write_slide(path, tissue(), tile=64, compression="aperio_jp2000_rgb"),
    "ome.tif": ome,
    "flat.tif": lambda path: tifffile.imwrite(path, tissue(), photometric="rgb", rowsperstrip=16, compression="lzw"),
    "a.png": png,
    "a.jpg": jpeg,
}


def damaged(data: bytes, case: int, name: str) -> bytes:
    """The file cut off, with bits flipped anywhere, with bytes changed in its tags, or with a piece taken out."""
    random, damaged = rng(0, name, case), bytearray(data)
    if case % 4 == 0:
        return bytes(damaged[: random.integers(0, len(data))])
    if case % 4 == 1:
        for place in random.integers(0, len(data), random.integers(1, 12)):
            damaged[place] ^= 1 << random.integers(0, 8)
    elif case % 4 == 2:
        ends = np.concatenate([np.arange(min(600, len(data))), np.arange(max(len(data) - 600, 0), len(data))])
        for place in random.choice(ends, 3):
            damaged[place] = random.integers(0, 256)
    else:
        start = random.integers(0, len(data))
        del damaged[start : start + random.integers(1, 400)]
    return bytes(damaged)


def outcome(path) -> str:
    """The state that the slide ends in after check, tile and a pass over its tiles, none of which may be white."""
    found = str(look_at(path, "0.5", SlidesSpec())["state"])
    if found != "ok":
        return found
    try:
        with open_slide(path, 0.5) as slide:
            tiles = tile_slide(slide, SPEC, threads=1)
            for _, pixels in slide.read_tiles(tiles.coords, 64, 0.5, 1):
                assert not (pixels > 250).all(axis=(1, 2, 3)).any(), "a white tile where all is tissue"
    except SlideError as error:
        return error.state
    return "ok"


@pytest.mark.repeated
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_end_as_ok_or_as_a_reason(tmp_path, kind):
    whole = tmp_path / kind
    KINDS[kind](whole)
    assert outcome(whole) == "ok"
    data = whole.read_bytes()
    path = tmp_path / f"damaged-{kind}"
    faulthandler.dump_traceback_later(60 * REPEATS, exit=True)
    for case in CASES:
        path.write_bytes(damaged(data, case, kind))
        assert outcome(path) in STATES, case
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize(
    "name",
    ["cmu-1-small-region.svs", "fluorescence.ndpi", "multi_frame_jpeg_camelyon_challenge_image.dcm", "boxes.tiff", "small.svs"],
)  # fmt: skip
def test_damaged_real_files_end_as_ok_or_as_a_reason(shared, tmp_path, name):
    data = (shared / "data" / "slides" / name).read_bytes()
    path = tmp_path / name
    for case in range(6 if len(data) > 1e6 else 12):
        path.write_bytes(damaged(data, case, name))
        assert look_at(path, "0.5", SlidesSpec())["state"] in STATES, case
