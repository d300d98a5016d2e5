"""Small slides and their tiles files, for the tests of extraction."""

from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

from mil import hdf5
from mil.config import TileSpec
from mil.slides.fingerprint import fingerprint
from mil.slides.slide import open_slide
from mil.tiles.shard import trident_attributes

SIZE = 64
SPEC = TileSpec(size_px=SIZE, mpp=0.5)


def write_slide(path: Path, columns: int, rows: int = 4, seed: int = 0) -> np.ndarray:
    """A slide of 0.5 microns a pixel, stored without loss; its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(60, 230, (rows * 8, columns * 8, 3))
    pixels = np.kron(coarse, np.ones((SIZE // 8, SIZE // 8, 1))).astype(np.uint8)
    tifffile.imwrite(
        path, pixels, tile=(128, 128), photometric="rgb", resolution=(20_000, 20_000), resolutionunit="CENTIMETER"
    )
    return pixels


def write_tiles(
    folder: Path, slide_id: str, path: Path, num_tiles: int | None = None, spec: TileSpec = SPEC
) -> np.ndarray:
    """The tiles file of a slide: all squares of its grid, or the first `num_tiles`; their corners."""
    with open_slide(path) as slide:
        across, down = slide.width // spec.size_px, slide.height // spec.size_px
        attributes = trident_attributes(slide_id, slide, spec)
        mpp, source = slide.mpp, slide.mpp_source
    grid = np.stack(np.meshgrid(np.arange(across), np.arange(down)), axis=-1).reshape(-1, 2)
    coords = (grid * spec.size_px).astype(np.int64)[:num_tiles]
    with hdf5.writing(folder / f"{slide_id}.h5") as writer:
        writer.append("coords", coords)
        writer.annotate(attributes, on="coords")
        writer.annotate(
            {
                "stage": "tiles",
                "slide_id": slide_id,
                "spec": spec.model_dump(mode="json"),
                "mpp": mpp,
                "mpp_source": source,
                "fingerprint": fingerprint(path),
                "num_tiles": len(coords),
                "recipe": "of the tiles",
            }
        )
    return coords


def make_shard(root: Path, columns: dict[str, int]) -> pd.DataFrame:
    """Slides `root/{id}.tif` of so many columns of tiles, four rows each, with tiles in `root/tiles`; the slides table."""
    rows = []
    for seed, (slide_id, number) in enumerate(columns.items()):
        path = root / f"{slide_id}.tif"
        write_slide(path, number, seed=seed)
        write_tiles(root / "tiles", slide_id, path)
        rows.append(
            {"slide_id": slide_id, "path": str(path), "state": "ok", "reason": "", "fingerprint": fingerprint(path)}
        )
    return pd.DataFrame(rows)
