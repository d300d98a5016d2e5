"""Tiles a second on one GPU: the encoder alone, from slide to file with our pipeline, and the peers' way, side by side.

    python benchmarks/features_gpu.py [--minutes 8] [--models vit_l,vit_b,resnet50]

Random weights, a synthetic 40x slide in JPEG tiles, 512 px of level 0 -> 256 px at 0.5 microns -> 224 px. Peers' way: OpenSlide
in DataLoader workers, one a core, fp16 autocast, features to HDF5. Prints as it goes; a part that fails prints why and the
next begins. With OUT set, results go to $OUT/features_gpu.json too.
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

import h5py
import numpy as np
import pandas as pd
import timm
import torch
from synthetic_slide import grid, write_slide

from mil import hdf5
from mil.config import EncoderSpec
from mil.encoders import build
from mil.features.engine import Engine
from mil.features.readers import ProcessReaders, SharedMemory
from mil.features.shard import extract, sorted_out
from mil.progress import Reporter

SIDE = 32_768
READ_PX, TILE_PX, MPP = 512, 256, 0.5
BATCH = 256
MODELS = {
    "vit_l": ("uni", "vit_large_patch16_224", {"init_values": 1e-5}),
    "vit_b": ("phikon", "vit_base_patch16_224", {}),
    "resnet50": ("resnet50", "resnet50", {}),
}
RESULTS: dict[str, Any] = {}
BEGAN = time.time()


def note(key: str, value: Any, unit: str = "") -> None:
    """Print and keep one result."""
    RESULTS[key] = value
    shown = (
        f"{value:,.4g}"
        if isinstance(value, float) and value < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else value
    )
    print(f"[{time.time() - BEGAN:5.0f} s] {key}: {shown} {unit}".rstrip(), flush=True)
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


def rate_of(step: Callable[[], Any], tiles: int, seconds: float = 4.0) -> float:
    """Tiles a second of `step`, after a warm-up."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(8):
            step()
        steps += 8
        torch.cuda.synchronize()
    return tiles * steps / (time.perf_counter() - began)


def encoder_alone(architecture: str, settings: dict[str, Any], way: str) -> float:
    """The plain network of timm on batches that lie on the GPU: compiled bf16, or fp16 autocast as peers run it."""
    net = timm.create_model(architecture, pretrained=False, num_classes=0, **settings).cuda().eval()
    tiles = torch.randn(BATCH, 3, 224, 224, device="cuda")
    with torch.inference_mode():
        if way == "compiled":
            net = net.bfloat16().to(memory_format=torch.channels_last)
            tiles = tiles.bfloat16().to(memory_format=torch.channels_last)
            fast = torch.compile(net, dynamic=False)
            return rate_of(lambda: fast(tiles), BATCH)
        with torch.autocast("cuda", torch.float16):
            return rate_of(lambda: net(tiles), BATCH)


class Shard:
    """A folder with slides (one file under many names) and their tiles files."""

    def __init__(self, folder: Path, slides: int) -> None:
        self.folder = folder
        self.slide = write_slide(folder / "slide.tif", SIDE)
        self.coords = grid(SIDE, READ_PX)
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
                writer.annotate(about | {"fingerprint": "f", "recipe": "r", "num_tiles": len(self.coords)})
        return folder

    def table(self, count: int) -> pd.DataFrame:
        names = self.names[:count]
        return pd.DataFrame({"slide_id": names, "path": [str(self.folder / f"{name}.tif") for name in names]}).assign(
            state="ok", reason="", fingerprint="f"
        )


def ours(engine: Engine, shard: Shard, slides: int, decoding: str, readers: int, key: str) -> float:
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


class OpenSlideTiles(torch.utils.data.Dataset):
    """What peers' datasets do: open the slide in the worker, read a region, resize with Pillow, normalise."""

    def __init__(self, paths: list[str], coords: np.ndarray) -> None:
        from torchvision import transforms

        self.paths, self.coords, self.slides = paths, coords, {}
        self.transform = transforms.Compose(
            [
                transforms.Resize(224),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths) * len(self.coords)

    def __getitem__(self, index: int) -> torch.Tensor:
        import openslide

        path = self.paths[index // len(self.coords)]
        if path not in self.slides:
            self.slides = {path: openslide.OpenSlide(path)}
        x, y = self.coords[index % len(self.coords)]
        region = self.slides[path].read_region((int(x), int(y)), 0, (READ_PX, READ_PX)).convert("RGB")
        return self.transform(region)


def peers(architecture: str, settings: dict[str, Any], shard: Shard, workers: int, seconds: float) -> float:
    """The peers' way for `seconds`, start of the workers not counted."""
    net = timm.create_model(architecture, pretrained=False, num_classes=0, **settings).cuda().eval()
    tiles = OpenSlideTiles([str(shard.folder / f"{name}.tif") for name in shard.names], shard.coords)
    loader = torch.utils.data.DataLoader(
        tiles, batch_size=BATCH, num_workers=workers, pin_memory=True, prefetch_factor=2
    )
    found, count, began = [], 0, 0.0
    with torch.inference_mode(), torch.autocast("cuda", torch.float16):
        for number, batch in enumerate(loader):
            found.append(net(batch.cuda(non_blocking=True)).cpu().numpy())
            if number == 2:
                torch.cuda.synchronize()
                began, count = time.perf_counter(), 0
            elif number > 2:
                count += len(batch)
                if time.perf_counter() - began > seconds:
                    break
    with h5py.File(shard.folder / "peers.h5", "w") as file:
        file.create_dataset("features", data=np.concatenate(found))
    rate = count / (time.perf_counter() - began)
    del loader
    return rate


def readers_alone(shard: Shard, readers: int, decoding: str, seconds: float = 6.0) -> float:
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
                order = {"number": number, "path": str(shard.folder / f"s{number % 4}.tif"), "slide_mpp": None}
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
            if began and time.perf_counter() - began > seconds:
                return done / (time.perf_counter() - began)
    finally:
        pool.close()
        memory.close()


def agreement(entry: str) -> None:
    """Cosine of every tile's features: bf16 against fp32 on the GPU, and the CPU's fp32 against the GPU's."""
    tiles = np.random.default_rng(0).integers(0, 255, (512, TILE_PX, TILE_PX, 3)).astype(np.uint8)
    spec = EncoderSpec(name=entry, weights="random", precision="fp32", batch_size=128)
    encoder = build(spec)

    def features(precision: str, device: str, count: int = 512, tiles_to_come: int = 0) -> torch.Tensor:
        engine = Engine(encoder, spec.model_copy(update={"precision": precision}), torch.device(device), tiles_to_come)
        return torch.from_numpy(engine(tiles[:count])).float()

    exact = features("fp32", "cuda")
    short = features("bf16", "cuda")
    note(f"{entry} bf16 against fp32, smallest cosine of 512 tiles", float(torch.cosine_similarity(exact, short).min()))
    host = features("fp32", "cpu", 32)
    note(f"{entry} CPU against CUDA (fp32), smallest of 32", float(torch.cosine_similarity(exact[:32], host).min()))
    host = features("bf16", "cpu", 32)
    note(f"{entry} CPU against CUDA (bf16), smallest of 32", float(torch.cosine_similarity(short[:32], host).min()))


def memory_halving() -> None:
    """A batch that cannot fit is halved until it does."""
    spec = EncoderSpec(name="kaiko_vits16", weights="random", batch_size=64)
    engine = Engine(build(spec), spec, torch.device("cuda"), reporter=Reporter(stream=sys.stdout))
    tiles = np.zeros((64, TILE_PX, TILE_PX, 3), np.uint8)
    want = engine(tiles)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**25) / total)
    torch.cuda.empty_cache()
    engine.spec, engine.step = spec, 4096
    try:
        got = engine(np.zeros((4096, TILE_PX, TILE_PX, 3), np.uint8))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    note("out of memory: went on with a step of", engine.step)
    note("out of memory: same vectors", bool(np.allclose(got[:64].astype(float), want.astype(float), atol=2e-2)))


def make_engine(entry: str) -> Engine:
    """Our engine with the entry's random weights, to be compiled."""
    spec = EncoderSpec(name=entry, weights="random", batch_size=BATCH)
    return Engine(build(spec), spec, torch.device("cuda"), 10**9, Reporter(stream=sys.stdout))


def with_all_cores(model: str, shard: Shard, cores: int, in_time: Callable[[float], bool]) -> Engine | None:
    """One model: alone, ours in both ways of decoding, the peers' way."""
    entry, architecture, settings = MODELS[model]
    alone = part(model, encoder_alone, architecture, settings, "compiled")
    if alone:
        note(f"{model} encoder alone, compiled bf16", alone, "tiles/s")
    engine = part(model, make_engine, entry)
    best = 0.0
    for decoding in ("full", "scaled"):
        if engine is None or not in_time(40):
            break
        key = f"{model} ours, {cores} cores, {decoding}"
        slides = {"vit_l": 8, "vit_b": 20, "resnet50": 24}[model]
        found = part(model, ours, engine, shard, slides, decoding, max(cores - 1, 1), key)
        if found:
            best = max(best, found)
            note(key, found, "tiles/s")
        if found and alone:
            note(f"{key}: of the encoder alone", found / alone)
    usual = part(model, peers, architecture, settings, shard, cores, 8.0)
    if usual:
        note(f"{model} peers' way, {cores} workers", usual, "tiles/s")
        note(f"{model} ours / peers' way", best / usual)
    return engine


def with_four_cores(model: str, engine: Engine, shard: Shard) -> None:
    """One model where the job has four cores, as clusters give to a GPU."""
    _, architecture, settings = MODELS[model]
    key = f"{model} ours, 4 cores, scaled"
    few = part(model, ours, engine, shard, 4, "scaled", 4, key)
    usual = part(model, peers, architecture, settings, shard, 4, 8.0)
    if few:
        note(key, few, "tiles/s")
    if usual:
        note(f"{model} peers' way, 4 cores", usual, "tiles/s")
    if few and usual:
        note(f"{model} ours / peers' way, 4 cores", few / usual)


def main() -> None:
    """All parts, the most wanted first, within the minutes given."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--minutes", type=float, default=8.0)
    arguments.add_argument("--models", default="vit_l,vit_b,resnet50")
    options = arguments.parse_args()

    def in_time(seconds: float) -> bool:
        return time.time() - BEGAN + seconds < options.minutes * 60

    every = sorted(os.sched_getaffinity(0))
    software = f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}"
    note("machine", f"{torch.cuda.get_device_name()}, {len(every)} cores, {software}")
    models = options.models.split(",")
    with tempfile.TemporaryDirectory() as folder:
        shard = Shard(Path(folder), 40)
        note("slide", f"{SIDE} px square, {len(shard.coords)} tiles, {shard.slide.stat().st_size / 1e6:.0f} MB")
        for decoding in ("full", "scaled"):
            found = part("readers", readers_alone, shard, max(len(every) - 1, 1), decoding)
            if found:
                note(f"{max(len(every) - 1, 1)} readers alone, {decoding}", found, "tiles/s")
        engines = {model: with_all_cores(model, shard, len(every), in_time) for model in models if in_time(60)}
        for model in models:
            if in_time(20):
                part("agreement", agreement, MODELS[model][0])
        part("memory", memory_halving)
        note("peak memory of this process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "GiB")
        os.sched_setaffinity(0, set(every[:4]))
        for model, engine in reversed(engines.items()):
            if engine is not None and in_time(35):
                with_four_cores(model, engine, shard)
        for model in models:
            _, architecture, settings = MODELS[model]
            found = part(model, encoder_alone, architecture, settings, "fp16 autocast") if in_time(15) else None
            if found:
                note(f"{model} encoder alone, fp16 autocast", found, "tiles/s")
    note("done in", time.time() - BEGAN, "s")


if __name__ == "__main__":
    main()
