"""Peak memory, seconds and bytes of extraction by the number of tiles of one slide: memory flat, the others linear.

    python benchmarks/features_memory.py [1000 10000 50000 200000]

One small slide, tiles of 64 px that overlap as much as the number asks for, the weightless `colour` encoder, two reader
processes. Each number runs in a process of its own; its peak and twice that of its largest reader are added. Prints a line of
JSON a number.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tifffile

from mil import hdf5

SIDE, TILE_PX, READERS = 2048, 64, 2


def write_slide(path: Path) -> None:
    """A slide of 0.5 microns a pixel, stored without loss."""
    coarse = np.random.default_rng(0).integers(60, 230, (SIDE // 16, SIDE // 16, 3)).astype(np.uint8)
    pixels = coarse.repeat(16, 0).repeat(16, 1)
    tifffile.imwrite(
        path, pixels, tile=(256, 256), photometric="rgb", resolution=(2e4, 2e4), resolutionunit="CENTIMETER"
    )


def write_tiles(path: Path, tiles: int) -> None:
    """A tiles file with so many corners, row by row, every fourth pixel."""
    across = (SIDE - TILE_PX) // 4
    corners = np.stack(np.divmod(np.arange(tiles), across)[::-1], axis=1).astype(np.int64) * 4
    with hdf5.writing(path) as writer:
        writer.append("coords", corners)
        writer.annotate({"patch_size": TILE_PX}, on="coords")
        about = {"stage": "tiles", "slide_id": "s", "spec": {"size_px": TILE_PX, "mpp": 0.5}, "fingerprint": ""}
        writer.annotate(about | {"mpp": 0.5, "mpp_source": "header", "recipe": "r", "num_tiles": tiles})


def extract(folder: Path, tiles: int) -> dict[str, float]:
    """Extract in this process; what it took."""
    import pandas as pd

    from mil.config import EncoderSpec
    from mil.features.shard import extract_shard
    from mil.progress import quiet

    slides = [{"slide_id": "s", "path": str(folder / "s.tif"), "state": "ok", "reason": "", "fingerprint": ""}]
    began = time.perf_counter()
    encoder = EncoderSpec(name="colour")
    made = extract_shard(pd.DataFrame(slides), folder / "tiles", encoder, folder / "out", quiet(), threads=READERS)
    assert list(made.num_tiles) == [tiles], made.to_string()
    largest = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "tiles": tiles,
        "seconds": round(time.perf_counter() - began, 2),
        "peak_mb": round(largest[0] + READERS * largest[1]),
        "file_bytes": (folder / "out" / "s.h5").stat().st_size,
    }


def main() -> None:
    """Every number in a process of its own."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("tiles", nargs="*", type=int, default=[1000, 10_000, 50_000, 200_000])
    arguments.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.here is not None:
        print(json.dumps(extract(options.here, *options.tiles)))
        return
    for tiles in options.tiles:
        with tempfile.TemporaryDirectory() as home:
            folder = Path(home)
            write_slide(folder / "s.tif")
            write_tiles(folder / "tiles" / "s.h5", tiles)
            command = [sys.executable, __file__, str(tiles), "--here", home]
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
