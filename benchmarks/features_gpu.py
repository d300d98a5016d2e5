"""Tiles a second on one GPU: the encoder alone, from slide to file with our pipeline, and the peers' way, side by side.

    python benchmarks/features_gpu.py [--minutes 8] [--models vit_l,uni2_h,vit_g,vit_b,resnet50]
    python benchmarks/features_gpu.py --tiny   # every part once, in small, on a machine without a GPU: do they run?

Random weights, a synthetic 40x slide in JPEG tiles, 512 px of level 0 -> 256 px at 0.5 microns -> 224 px. Peers' way: OpenSlide
in DataLoader workers, one a core, fp16 autocast, features to HDF5. nvJPEG: torchvision's decoder on the GPU, the same tiles as
JPEG files in memory, alone and in turns with the encoder; what it reaches beside four readers says whether the pipeline
should use it (it does not). Prints as it goes, the bar beside the figure; a part that fails prints why and the next begins.
With OUT set, results go to $OUT/features_gpu.json too.
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pandas as pd
import timm
import torch
from networks import COSINE_BAR, DEVICE, MODELS, RESNET_BAR, SIZE, encoder_alone, nvjpeg
from peers import READ_PX, peers

from mil import hdf5
from mil.bench.slide import grid, texture, write_slide
from mil.config import EncoderSpec
from mil.encoders.build import build
from mil.features.engine import EncoderEngine
from mil.features.readers import ProcessReaders, SharedMemory
from mil.features.shard import extract, sorted_out
from mil.progress import Reporter

TILE_PX, MPP = 256, 0.5


RESULTS: dict[str, Any] = {}
BEGAN = time.time()


def note(key: str, value: Any, unit: str = "", bar: float | None = None) -> None:
    """Print and keep one result, beside it the bar that it should reach."""
    RESULTS[key] = value
    shown = (
        f"{value:,.4g}"
        if isinstance(value, float) and value < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else value
    )
    wanted = (
        "" if bar is None or DEVICE.type != "cuda" else f" (bar {bar:,g}: {'reached' if value >= bar else 'MISSED'})"
    )
    print(f"[{time.time() - BEGAN:5.0f} s] {key}: {shown} {unit}".rstrip() + wanted, flush=True)
    if os.environ.get("OUT"):
        Path(os.environ["OUT"], "features_gpu.json").write_text(json.dumps(RESULTS, indent=2))


def part(name: str, run: Callable[..., Any], *arguments: Any) -> Any:
    """Run one part of the benchmark; say why it failed and go on."""
    try:
        return run(*arguments)
    except Exception as error:  # noqa: BLE001  the other parts' numbers are wanted all the same
        note(f"{name} FAILED", f"{type(error).__name__}: {str(error)[:300]}")
        traceback.print_exc()
        return None
    finally:
        torch.cuda.empty_cache()


class Shard:
    """A folder with slides (one file under many names) and their tiles files."""

    def __init__(self, folder: Path, slides: int) -> None:
        self.folder = folder
        self.slide = write_slide(folder / "slide.tif", SIZE.side)
        self.coords = grid(SIZE.side, READ_PX)
        self.names = [f"s{number}" for number in range(slides)]
        for name in self.names:
            (folder / f"{name}.tif").symlink_to(self.slide)

    def write_tiles(self, count: int, decoding: str) -> Path:
        """Tiles files of the first `count` slides."""
        folder = self.folder / f"tiles_{decoding}"
        for name in self.names[:count]:
            path = folder / f"{name}.h5"
            if path.exists():
                continue
            with hdf5.writing(path) as writer:
                writer.append("coords", self.coords)
                writer.annotate({"patch_size": TILE_PX}, on="coords")
                spec = {"size_px": TILE_PX, "mpp": MPP, "decoding": decoding}
                about = {"stage": "tiles", "slide_id": name, "spec": spec, "mpp": 0.25, "mpp_source": "header"}
                writer.annotate(about | {"fingerprint": "", "recipe": "r", "num_tiles": len(self.coords)})
        return folder

    def table(self, count: int) -> pd.DataFrame:
        names = self.names[:count]
        return pd.DataFrame({"slide_id": names, "path": [str(self.folder / f"{name}.tif") for name in names]}).assign(
            state="ok", reason="", fingerprint="f"
        )


def ours(engine: EncoderEngine, shard: Shard, slides: int, decoding: str, readers: int, key: str) -> float:
    """From slides to finished files with our pipeline, compiling not counted."""
    out = Path(tempfile.mkdtemp(dir=shard.folder))
    tiles = shard.write_tiles(slides, decoding)
    todo = sorted_out(shard.table(slides), tiles, engine.spec, engine.encoder, out)
    reporter = Reporter(stream=sys.stdout)
    with reporter.steps(key, slides, "slides") as steps:
        profile = extract(todo, engine, out, readers, reporter, steps, tell=True)
    written = list(out.glob("*.h5"))
    assert len(written) == slides, f"{len(written)} files for {slides} slides"
    note(f"{key} GPU busy", profile.seconds.get("encoder", 0.0) / profile.wall)
    for path in written:
        path.unlink()
    return profile.rate


def readers_alone(shard: Shard, readers: int, decoding: str) -> float:
    """What the reader processes deliver when nobody else works."""
    memory = SharedMemory(readers * 2 * 128 * TILE_PX * TILE_PX * 3)
    pool = ProcessReaders(readers, memory)
    number, done, began = 0, 0, 0.0
    free = list(range(readers * 2))
    places: dict[int, int] = {}
    try:
        while True:
            while free and pool.free():
                places[number] = free.pop()
                first = number * 128 % len(shard.coords)
                order = {
                    "number": number,
                    "path": str(shard.folder / f"{shard.names[number % len(shard.names)]}.tif"),
                    "slide_mpp": None,
                }
                order |= {"coords": shard.coords[first : first + 128].tolist(), "size_px": TILE_PX, "mpp": MPP}
                order |= {"reading": {"decoding": decoding}, "offset": places[number] * 128 * TILE_PX * TILE_PX * 3}
                pool.order(order)
                number += 1
            for answer in pool.answers(None):
                assert answer["error"] is None, answer["error"]
                free.append(places.pop(answer["number"]))
                done += 128
            if not began and number > readers * 4:
                began, done = time.perf_counter(), 0
            if began and time.perf_counter() - began > SIZE.seconds:
                return done / (time.perf_counter() - began)
    finally:
        pool.close()
        memory.close()


def agreement(entry: str) -> None:
    """Cosine of every tile's features: bf16 against fp32 on the GPU, and the CPU's against the GPU's."""
    picture = texture(4096, 1)
    corners = np.random.default_rng(0).integers(0, 4096 - TILE_PX, (SIZE.tiles, 2))
    tiles = np.stack([picture[y : y + TILE_PX, x : x + TILE_PX] for x, y in corners])
    spec = EncoderSpec(name=entry, weights="random", precision="fp32", batch_size=min(SIZE.batch, 128))

    def features(precision: str, device: torch.device, count: int = SIZE.tiles) -> torch.Tensor:
        engine = EncoderEngine(build(spec), spec.model_copy(update={"precision": precision}), device)
        return torch.from_numpy(engine(tiles[:count])).float()

    def smallest(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(torch.cosine_similarity(one[: len(other)], other).min())

    few, cpu = min(32, SIZE.tiles), torch.device("cpu")
    exact, short = features("fp32", DEVICE), features("bf16", DEVICE)
    note(f"{entry} bf16 against fp32, smallest cosine of {len(exact)} tiles", smallest(exact, short), bar=COSINE_BAR)
    for kind, there in (("fp32", exact), ("bf16", short)):
        found = smallest(there, features(kind, cpu, few))
        note(f"{entry} CPU against {DEVICE.type} ({kind}), smallest of {few}", found, bar=COSINE_BAR)


def memory_halving() -> None:
    """A batch that cannot fit is halved until it does."""
    if DEVICE.type != "cuda":
        note("out of memory", "needs a GPU; tests/features/test_engine.py has it without one")
        return
    spec = EncoderSpec(name="kaiko_vits16", weights="random", batch_size=64)
    engine = EncoderEngine(build(spec), spec, DEVICE, reporter=Reporter(stream=sys.stdout))
    want = engine(np.zeros((64, TILE_PX, TILE_PX, 3), np.uint8))
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**30) / total)
    engine.step = 4096
    try:
        got = engine(np.zeros((4096, TILE_PX, TILE_PX, 3), np.uint8))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    note("out of memory: went on with a step of", engine.step)
    note("out of memory: same vectors", bool(np.allclose(got[:64].astype(float), want.astype(float), atol=2e-2)))


def make_engine(entry: str) -> EncoderEngine:
    """Our engine with the entry's random weights, to be compiled."""
    spec = EncoderSpec(name=entry, weights="random", batch_size=SIZE.batch)
    return EncoderEngine(build(spec), spec, DEVICE, 10**9, Reporter(stream=sys.stdout))


def with_all_cores(name: str, shard: Shard, cores: int, in_time: Callable[[float], bool]) -> EncoderEngine | None:
    """One model: alone, ours in both ways of decoding, the peers' way."""
    model = MODELS[name]
    alone = part(name, encoder_alone, model, "compiled")
    if alone:
        note(f"{name} encoder alone, compiled bf16", alone, f"tiles/s; {model.alone:,} before")
    engine = part(name, make_engine, model.entry)
    best = 0.0
    for decoding in ("full", "scaled"):
        if engine is None or not in_time(40):
            break
        key = f"{name} ours, {cores} cores, {decoding}"
        slides = min(model.slides, len(shard.names))
        found = part(name, ours, engine, shard, slides, decoding, max(cores - 1, 1), key)
        if found:
            best = max(best, found)
            note(key, found, "tiles/s", RESNET_BAR if model.share is None else None)
        if found and alone:
            note(f"{key}: of the encoder alone", found / alone, bar=model.share)
    usual = part(name, peers, model, shard.folder, shard.names, shard.coords, cores)
    if usual:
        note(f"{name} peers' way, {cores} workers", usual, "tiles/s")
        note(f"{name} ours / peers' way", best / usual, bar=model.ratio)
    return engine


def with_four_cores(name: str, engine: EncoderEngine, shard: Shard) -> None:
    """One model where the job has four cores, as clusters give to a GPU; the best of its ways beside the peers'."""
    model = MODELS[name]
    slides = min(4, len(shard.names))
    ways = {
        way: part(name, ours, engine, shard, slides, way, 4, f"{name}, 4 cores, {way}") for way in ("full", "scaled")
    }
    ways["nvJPEG in turns with the encoder (not in the pipeline)"] = part(name, nvjpeg, model)
    found = {way: rate for way, rate in ways.items() if rate}
    for way, rate in found.items():
        note(f"{name} ours, 4 cores, {way}", rate, "tiles/s")
    usual = part(name, peers, model, shard.folder, shard.names, shard.coords, 4)
    if usual:
        note(f"{name} peers' way, 4 cores", usual, "tiles/s")
    if found and usual:
        note(f"{name} best with 4 cores", max(found, key=lambda way: found[way]))
        note(f"{name} ours (full) / peers' way, 4 cores", (ways["full"] or 0.0) / usual)


def main() -> None:
    """All parts, the most wanted first, within the minutes given."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=8.0)
    arguments.add_argument("--models")
    arguments.add_argument("--tiny", action="store_true", help="Every part in small; runs on a CPU.")
    options = arguments.parse_args()
    if options.tiny:
        SIZE.shrink()
    elif DEVICE.type != "cuda":
        sys.exit("no CUDA device here; --tiny tries every part in small on the CPU")

    def in_time(seconds: float) -> bool:
        return time.time() - BEGAN + seconds < options.minutes * 60

    every = sorted(os.sched_getaffinity(0))
    software = f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}"
    card = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "no GPU"
    note("machine", f"{card}, {len(every)} cores, {software}")
    models = (options.models or ("resnet50" if options.tiny else ",".join(MODELS))).split(",")
    with tempfile.TemporaryDirectory() as folder:
        shard = Shard(Path(folder), SIZE.slides)
        size = shard.slide.stat().st_size / 1e6
        note("slide", f"{SIZE.side} px square, {len(shard.coords)} tiles, {size:.0f} MB")
        for decoding in ("full", "scaled"):
            found = part("readers", readers_alone, shard, max(len(every) - 1, 1), decoding)
            if found:
                note(f"{max(len(every) - 1, 1)} readers alone, {decoding}", found, "tiles/s")
        found = part("nvJPEG", nvjpeg, None)
        if found:
            note("nvJPEG alone", found, "tiles/s")
        engines = {name: with_all_cores(name, shard, len(every), in_time) for name in models if in_time(60)}
        for name in models:
            if in_time(20):
                part("agreement", agreement, MODELS[name].entry)
        part("memory", memory_halving)
        note("peak memory of this process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "GiB")
        os.sched_setaffinity(0, set(every[:4]))
        for name, engine in reversed(engines.items()):
            if engine is not None and in_time(35):
                with_four_cores(name, engine, shard)
        for name in models:
            found = part(name, encoder_alone, MODELS[name], "fp16 autocast") if in_time(15) else None
            if found:
                note(f"{name} encoder alone, fp16 autocast", found, f"tiles/s; {MODELS[name].usual:,} before")
    note("done in", time.time() - BEGAN, "s")
    failed = [key for key in RESULTS if key.endswith("FAILED")]
    sys.exit(f"{len(failed)} parts failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
