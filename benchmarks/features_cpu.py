"""From slide to stored features on the CPU: ours beside the loop that people write, with the same encoder on the same tiles.

    python benchmarks/features_cpu.py --cmu ../shared/data/slides/cmu-1-small-region.svs [--cores 2] [--repeats 2]

The loop: OpenSlide, one region after another from level 0, torchvision's transforms, fp32 batches of 64 on all cores,
features to HDF5. Two slides: a synthetic one at 40x (512 px of level 0 a tile, JPEG 4:2:0, quality 80) and the real CMU
region at 20x (256 px a tile; its 80 tiles under several names). The encoder is the embedded EfficientNet-Lite0. Both ways
run in turns in one process; times are wall clock and CPU seconds, reader processes counted. Bar: twice the loop's rate.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np
import openslide
import pandas as pd
import torch
from torchvision import transforms

from mil import hdf5
from mil.bench.slide import write_slide
from mil.config import EncoderSpec
from mil.encoders.build import build
from mil.features.shard import extract_shard
from mil.progress import quiet
from mil.slides.slide import open_slide

TILE_PX, MPP, BATCH = 256, 0.5, 64


class Slides:
    """One slide file under several names, and its tiles files."""

    def __init__(self, folder: Path, slide: Path, names: int) -> None:
        self.folder = folder
        with open_slide(slide) as opened:
            assert opened.mpp is not None
            self.read_px = round(TILE_PX * MPP / opened.mpp)
            across, down, mpp, source = opened.width, opened.height, opened.mpp, opened.mpp_source
        columns, rows = across // self.read_px, down // self.read_px
        self.coords = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2) * self.read_px
        self.paths = [folder / f"s{number}{slide.suffix}" for number in range(names)]
        for path in self.paths:
            path.symlink_to(slide.resolve())
            with hdf5.writing(folder / "tiles" / f"{path.stem}.h5") as writer:
                writer.append("coords", self.coords.astype(np.int64))
                writer.annotate({"patch_size": TILE_PX}, on="coords")
                about = {"stage": "tiles", "slide_id": path.stem, "spec": {"size_px": TILE_PX, "mpp": MPP}}
                about |= {"mpp": mpp, "mpp_source": source, "fingerprint": "", "recipe": "r"}
                writer.annotate(about | {"num_tiles": len(self.coords)})

    @property
    def tiles(self) -> int:
        return len(self.paths) * len(self.coords)

    def table(self) -> pd.DataFrame:
        names = [path.stem for path in self.paths]
        return pd.DataFrame({"slide_id": names, "path": [str(path) for path in self.paths]}).assign(
            state="ok", reason="", fingerprint="f"
        )


def loop(slides: Slides, out: Path) -> None:
    """The loop that people write."""
    encoder = build(EncoderSpec(name="efficientnet_lite0"))
    steps = [
        transforms.Resize(encoder.input_px),
        transforms.ToTensor(),
        transforms.Normalize(encoder.mean, encoder.std),
    ]
    transform = transforms.Compose(steps)
    size = (slides.read_px, slides.read_px)
    for path in slides.paths:
        slide, found = openslide.OpenSlide(path), []
        for start in range(0, len(slides.coords), BATCH):
            corners = slides.coords[start : start + BATCH].tolist()
            regions = [slide.read_region((x, y), 0, size).convert("RGB") for x, y in corners]
            with torch.inference_mode():
                found.append(encoder.module(torch.stack([transform(region) for region in regions])).numpy())
        with h5py.File(out / f"{path.stem}.h5", "w") as file:
            file["features"], file["coords"] = np.concatenate(found), slides.coords


def ours(slides: Slides, out: Path) -> None:
    """Our extraction, as `mil extract` runs it."""
    spec = EncoderSpec(name="efficientnet_lite0")
    manifest = extract_shard(slides.table(), slides.folder / "tiles", spec, out, quiet())
    assert list(manifest.state) == ["ok"] * len(slides.paths), manifest.to_string()


def timed(run: Callable[[Slides, Path], None], slides: Slides) -> tuple[float, float, np.ndarray]:
    """Wall seconds, CPU seconds (children included), the first slide's features."""
    with tempfile.TemporaryDirectory(dir=slides.folder) as out:
        before, began = _cpu(), time.perf_counter()
        run(slides, Path(out))
        wall, cpu = time.perf_counter() - began, _cpu() - before
        with h5py.File(Path(out) / "s0.h5") as file:
            return wall, cpu, file["features"][()].astype(np.float32)


def _cpu() -> float:
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def compare(name: str, slides: Slides, repeats: int) -> None:
    """Both ways in turns; the best of each."""
    found: dict[str, list[tuple[float, float, np.ndarray]]] = {"the loop": [], "ours": []}
    for _ in range(repeats):
        found["the loop"].append(timed(loop, slides))
        found["ours"].append(timed(ours, slides))
    best = {way: (min(one[0] for one in times), min(one[1] for one in times)) for way, times in found.items()}
    for way, (wall, cpu) in best.items():
        print(f"{name}: {way}: {slides.tiles / wall:,.0f} tiles/s; {slides.tiles / cpu:,.0f} tiles a CPU second")
    ratios = [before / after for before, after in zip(best["the loop"], best["ours"], strict=True)]
    print(f"{name}: ours / the loop: {ratios[0]:.2f} by wall clock, {ratios[1]:.2f} by CPU time (bar 2)")
    a, b = (torch.from_numpy(found[way][0][2]) for way in found)
    print(f"{name}: cosine of the same tile's features: smallest {torch.cosine_similarity(a, b).min():.4f}", flush=True)


def main() -> None:
    """Both slides."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cmu", type=Path)
    arguments.add_argument("--cores", type=int, default=2)
    arguments.add_argument("--repeats", type=int, default=2)
    arguments.add_argument("--side", type=int, default=16_384, help="Side of the synthetic slide, a multiple of 2048.")
    options = arguments.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    torch.set_num_threads(options.cores)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        (folder / "a").mkdir()
        (folder / "b").mkdir()
        slide = write_slide(folder / "slide.tif", options.side)
        compare("synthetic, 40x", Slides(folder / "a", slide, 2), options.repeats)
        if options.cmu is not None:
            compare("CMU region, 20x", Slides(folder / "b", options.cmu, 10), options.repeats)


if __name__ == "__main__":
    main()
