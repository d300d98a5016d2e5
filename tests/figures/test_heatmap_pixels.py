"""The picture under a heat map."""

from types import SimpleNamespace

import numpy as np
import tifffile
from test_slide_readers import texture

from mil.figures.heatmaps import _pixels
from mil.slides import slide as slides


def test_a_large_slide_is_read_from_a_level_that_is_coarse_enough(tmp_path, monkeypatch):
    """From 16,000 x 16,000 pixels on it was the thumbnail, with the outlines and squares that are drawn on that."""
    whole = texture(2800, 2100)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for level in (whole, whole[::4, ::4]):
            reduced = {"subfiletype": int(level is not whole), "metadata": None}
            file.write(level, photometric="rgb", tile=(128, 128), **reduced)
    monkeypatch.setattr(slides, "MAX_REGION_PIXELS", 1_000_000)
    files = SimpleNamespace(
        slide_path=lambda *_: tmp_path / "a.tif", thumbnail=lambda *_: np.zeros((9, 9, 3), np.uint8)
    )
    found, scale = _pixels(SimpleNamespace(files=files), "A", "a", np.array([0.0, 0, 2800, 2100]), {"mpp": 0.5})
    assert (found.shape, scale) == ((525, 700, 3), 0.25)
    np.testing.assert_array_equal(found, whole[::4, ::4])
