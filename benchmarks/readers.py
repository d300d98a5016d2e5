"""Tiles per second of our reader and of OpenSlide, cuCIM, fastslide and tiffslide, side by side on the same file and cores.

    python benchmarks/readers.py [--threads 2] [--seconds 6] [--tiles 256]

512 px of level 0 are brought to 256 px (20x from a 40x slide). Every reader gets the same coordinates in the same order, the same
number of threads and OpenCV's area resampling; the rounds alternate, so that a busy machine is busy for all. cuCIM, fastslide
and tiffslide take part where they are installed.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import openslide
import tifffile

from mil.slides.slide import EXACT, Reading, open_slide

SHARED = Path(os.environ.get("MIL_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data/slides"
READ_PX, TILE_PX = 512, 256


def real_pixels() -> np.ndarray:
    """Real H&E (OpenSlide's CMU-1-Small-Region), turned and laid beside itself to 8192 x 8192."""
    with openslide.OpenSlide(SHARED / "cmu-1-small-region.svs") as slide:
        piece = np.asarray(slide.read_region((0, 0), 0, (2048, 2048)))[..., :3]
    row = np.concatenate([piece, piece[:, ::-1], piece[::-1], piece[::-1, ::-1]], axis=1)
    return np.concatenate([row, row[::-1], row[:, ::-1], row[::-1, ::-1]], axis=0)


def write(path: Path, pixels: np.ndarray, compression: str, level: int, **options) -> Path:
    description = "Aperio Image Library v12.0.0 |AppMag = 40|MPP = 0.25"
    tifffile.imwrite(
        path,
        pixels,
        tile=(256, 256),
        compression=compression,
        compressionargs={"level": level},
        metadata=None,
        description=description,
        **options,
    )
    return path


def aperio_tiles(path: Path) -> Path:
    """Aperio's own compressed tiles of 240 px (q30, RGB, shared tables), as they are, laid into a slide of 8640 x 8640."""
    source = SHARED / "cmu-1-small-region.svs"
    with tifffile.TiffFile(source) as tiff:
        page, data = tiff.pages[0], source.read_bytes()
        whole = [row * page.chunked[1] + column for row in range(12) for column in range(9)]
        streams = [data[page.dataoffsets[n] : page.dataoffsets[n] + page.databytecounts[n]] for n in whole]
        tables = page.jpegtables
    repeated = (streams[(row % 12) * 9 + column % 9] for row in range(36) for column in range(36))
    with tifffile.TiffWriter(path) as file:
        file.write(
            repeated,
            shape=(8640, 8640, 3),
            dtype=np.uint8,
            tile=(240, 240),
            photometric="rgb",
            compression="jpeg",
            subsampling=(2, 2),
            metadata=None,
            description="Aperio Image Library v12.0.0 |AppMag = 40|MPP = 0.25",
            extratags=[(347, 7, len(tables), tables, True)],
        )
    return path


def grid(width: int, height: int, offset: int) -> np.ndarray:
    x, y = np.meshgrid(
        np.arange(offset, width - READ_PX + 1, READ_PX), np.arange(offset, height - READ_PX + 1, READ_PX)
    )
    return np.stack([x.ravel(), y.ravel()], axis=1)


def brought_down(pixels: np.ndarray) -> np.ndarray:
    return cv2.resize(pixels, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA)


def with_threads(read: Callable[[int, int], np.ndarray], coords: np.ndarray, threads: int) -> Iterator[np.ndarray]:
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda corner: brought_down(read(int(corner[0]), int(corner[1]))), coords)


def of_openslide(path: Path, coords: np.ndarray, threads: int) -> Iterator[np.ndarray]:
    with openslide.OpenSlide(path) as slide:

        def read(x: int, y: int) -> np.ndarray:
            return np.asarray(slide.read_region((x, y), 0, (READ_PX, READ_PX)))[..., :3]

        yield from with_threads(read, coords, threads)


def of_ours(path: Path, coords: np.ndarray, threads: int, how: Reading = EXACT) -> Iterator[np.ndarray]:
    with open_slide(path, mpp=0.25) as slide:
        for _, tiles in slide.read_tiles(coords, TILE_PX, 0.5, threads, how):
            yield from tiles


def of_ours_scaled(path: Path, coords: np.ndarray, threads: int) -> Iterator[np.ndarray]:
    return of_ours(path, coords, threads, Reading(decoding="scaled"))


def of_tiffslide(path: Path, coords: np.ndarray, threads: int) -> Iterator[np.ndarray]:
    import tiffslide

    with tiffslide.TiffSlide(path) as slide:

        def read(x: int, y: int) -> np.ndarray:
            return slide.read_region((x, y), 0, (READ_PX, READ_PX), as_array=True)

        yield from with_threads(read, coords, threads)


def of_cucim(path: Path, coords: np.ndarray, threads: int) -> Iterator[np.ndarray]:
    from cucim import CuImage

    image = CuImage(str(path))
    for start in range(0, len(coords), 64):
        corners = [(int(x), int(y)) for x, y in coords[start : start + 64]]
        for region in image.read_region(corners, (READ_PX, READ_PX), level=0, num_workers=threads, batch_size=1):
            yield brought_down(np.asarray(region).reshape(READ_PX, READ_PX, 3))


def of_fastslide(path: Path, coords: np.ndarray, threads: int) -> Iterator[np.ndarray]:
    from fastslide import FastSlide

    slide = FastSlide.from_file_path(str(path))
    try:

        def read(x: int, y: int) -> np.ndarray:
            return np.asarray(slide.read_region((x, y), 0, (READ_PX, READ_PX)).numpy())[..., :3]

        yield from with_threads(read, coords, threads)
    finally:
        slide.close()


READERS = {"OpenSlide": of_openslide, "ours": of_ours, "ours, scaled": of_ours_scaled}
OPTIONAL = {
    "cucim": ("cuCIM", of_cucim),
    "fastslide": ("fastslide", of_fastslide),
    "tiffslide": ("tiffslide", of_tiffslide),
}


def race(path: Path, coords: np.ndarray, threads: int, seconds: float) -> dict[str, float]:
    """Best rate of each reader over alternating rounds."""
    readers = dict(READERS)
    for module, (name, read) in OPTIONAL.items():
        if importlib.util.find_spec(module):
            readers[name] = read
    best: dict[str, float] = {}
    cpu: dict[str, float] = {}
    pixels: dict[str, np.ndarray] = {}
    end = time.monotonic() + seconds * len(readers)
    while time.monotonic() < end or not best:
        for name, read in list(readers.items()):
            start, cpu_start = time.perf_counter(), time.process_time()
            try:
                tiles = list(read(path, coords, threads))
            except Exception as error:  # noqa: BLE001  another project's reader that cannot read this file
                print(f"    {name}: cannot read it: {type(error).__name__}: {str(error)[:80]}")
                del readers[name]
                continue
            best[name] = max(best.get(name, 0.0), len(tiles) / (time.perf_counter() - start))
            cpu[name] = min(cpu.get(name, np.inf), (time.process_time() - cpu_start) / len(tiles))
            pixels[name] = np.stack(tiles[:32])
    for name in pixels:
        apart = np.abs(pixels[name].astype(int) - pixels["OpenSlide"])
        print(
            f"    {name:12s} {best[name]:7.0f} tiles/s, {best[name] / best['OpenSlide']:5.2f} x OpenSlide; "
            f"{cpu[name] * 1e3:6.2f} ms of CPU a tile, {cpu['OpenSlide'] / cpu[name]:5.2f} x less; "
            f"pixels off OpenSlide's by {apart.mean():.2f} in the mean, {apart.max()} at most"
        )
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each reader and file")
    parser.add_argument("--tiles", type=int, default=1_000_000, help="read only the first tiles of each file")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    pixels = real_pixels()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        files = {
            "JPEG 4:2:0 q80, YCbCr": write(here / "a.svs", pixels, "jpeg", 80, photometric="ycbcr", subsampling=(2, 2)),
            "JPEG 4:4:4 q80, YCbCr": write(here / "b.svs", pixels, "jpeg", 80, photometric="ycbcr", subsampling=(1, 1)),
            "Aperio's own JPEG tiles, q30, 4:2:0, RGB, 240 px": aperio_tiles(here / "c.svs"),
            "Aperio JPEG q30 (CMU-1-Small-Region, 20 tiles: opening counts)": SHARED / "cmu-1-small-region.svs",
            "Aperio JPEG 2000 (TCGA-CR-7395)": SHARED / "tcga-cr-7395-01a-01-ts1.svs",
        }
        for name, path in files.items():
            with openslide.OpenSlide(path) as slide:
                width, height = slide.dimensions
            for where, offset in (("on the file's tiles", 0), ("across the file's tiles", 100)):
                coords = grid(width, height, offset)[: given.tiles]
                print(f"{name}: {len(coords)} tiles of {READ_PX} px to {TILE_PX} px, {where}, {given.threads} threads")
                race(path, coords, given.threads, given.seconds)


if __name__ == "__main__":
    main()
