"""This machine -> rates of every stage: reading, decoding, encoder, whole extraction (tiles/s), training (model-bags/s)."""

import math
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
import torch

from mil import hdf5
from mil.bags.table import deal_folds
from mil.bench.slide import FORMATS, MPP, grid, write_slide
from mil.config import EncoderSpec
from mil.encoders.build import build
from mil.features.accelerate import choose_precision
from mil.features.device import best_device, describe
from mil.features.engine import EncoderEngine
from mil.features.shard import extract, sorted_out
from mil.machine import cores as cores_given
from mil.progress import quiet
from mil.slides.slide import Reading, open_slide
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec
from mil.training.ledger import parsed
from mil.training.precision import resolved
from mil.training.run import train
from mil.training.store import FeatureStore
from mil.version import __version__

SIDE = 8192  # pixels of the made slide: 256 tiles of 512 level-0 pixels
TILE_PX, TILE_MPP = 256, 0.5
MANY = 10**9  # tiles: a GPU compiles the encoder for so many
MOST_SLIDES = 200  # slides of 256 tiles
READ_PX = round(TILE_PX * TILE_MPP / MPP)


@dataclass(frozen=True)
class Rate:
    """How much of a stage's work is done per second."""

    stage: str
    rate: float
    unit: str
    device: str
    cores: int
    form: str = ""
    """Compression of the slide's tiles."""
    encoder: str = ""
    precision: str = ""
    busy: float | None = None
    """Share of the time in which the device worked."""
    first_tile_s: float | None = None
    """Seconds from the start to the first features."""
    memory_mb: float | None = None
    """Largest memory of the device (GPU) or of this process (CPU), in MB."""
    joules: float | None = None
    """Energy of the GPU per tile or model-bag, where `nvidia-smi` tells its power."""
    note: str = ""


def measure(
    encoders: Sequence[EncoderSpec], cores: int | None, seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Every stage for about `seconds` each: what was measured on which machine, as plain values for JSON."""
    given = cores_given(cores)
    device = best_device()
    rows = []
    with tempfile.TemporaryDirectory() as home:
        slides = {form: write_slide(Path(home) / f"{at}.tif", SIDE, form=form) for at, form in enumerate(FORMATS)}
        for rate in _rates(encoders, device, given, seconds, slides, Path(home)):
            say(f"{rate.stage} {rate.form or rate.encoder}: {rate.rate:,.0f} {rate.unit}")
            rows.append(asdict(rate))
    machine = {"processor": platform.processor() or platform.machine(), "cores": given, "device": describe(device)}
    return {"mil": __version__, "torch": torch.__version__, **machine, "rates": rows}


def table_of(rates: list[dict[str, Any]]) -> str:
    """The rates as lines of text, at most 100 characters wide. `1st s`: seconds to the first features; `J`: per tile or model-bag."""
    last = f"{'busy':>5}{'1st s':>6}{'MB':>7}{'J':>6}"
    lines = [f"{'stage':<11}{'of':<32}{'cores':>5} {'type':<5}{'rate':>9} {'unit':<12}{last}"]
    for rate in rates:
        what = ", ".join(filter(None, (rate["encoder"], rate["form"])))
        cells = [
            (rate["busy"], "5.0%"),
            (rate["first_tile_s"], "6.1f"),
            (rate["memory_mb"], "7,.0f"),
            (rate["joules"], "6.2g"),
        ]
        last = "".join(" " * int(form[0]) if value is None else format(value, form) for value, form in cells)
        start = f"{rate['stage']:<11}{what:<32}{rate['cores']:>5} {rate['precision']:<5}"
        lines.append(f"{start}{rate['rate']:>9,.0f} {rate['unit']:<12}{last}".rstrip())
    notes = {
        f"{rate['stage']} {rate['form'] or rate['precision']}: {rate['note']}": None for rate in rates if rate["note"]
    }
    return "\n".join([*lines, *notes])


def _rates(
    encoders: Sequence[EncoderSpec],
    device: torch.device,
    given: int,
    seconds: float,
    slides: dict[str, Path],
    home: Path,
) -> Iterator[Rate]:
    by_core = {}
    for form, slide in slides.items():
        for cores in sorted({1, given}):
            yield decoding(slide, form, cores, seconds)
            read = reading(slide, form, cores, seconds)
            yield read
            by_core.setdefault(form, read.rate)
    for spec in encoders:
        for precision in dict.fromkeys((choose_precision(spec.precision, device), "fp32")):
            variant = spec.model_copy(update={"precision": precision})
            if device.type == "cpu" and given > 1:
                yield encoding(EncoderEngine(build(variant), variant, device, MANY, quiet(), 1), 1, seconds)
            engine = EncoderEngine(build(variant), variant, device, MANY, quiet(), given)
            alone = encoding(engine, given, seconds)
            yield alone
            if precision == choose_precision(spec.precision, device):
                for form, slide in slides.items():
                    yield extraction(engine, alone, by_core[form], given, form, slide, seconds, home)
    yield training(device, given, seconds)


def repeated(work: Callable[[], int], seconds: float) -> float:
    """Amount per second of `work`, which returns its amount, called for about `seconds` after one call that is not counted."""
    work()
    started, amount = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds:
        amount += work()
    return amount / passed


def decoding(slide: Path, form: str, given: int, seconds: float) -> Rate:
    """Compressed tiles in memory -> pixels, per tile of `TILE_PX` at `TILE_MPP` (its share of compressed tiles)."""
    with tifffile.TiffFile(slide) as tiff:
        page = tiff.pages.first
        decode, tables = page.decode, page.jpegtables
        places = zip(page.dataoffsets[:32], page.databytecounts[:32], strict=True)
        compressed = [_bytes_at(tiff, offset, count) for offset, count in places]
    further = {} if tables is None else {"jpegtables": tables}
    per_tile = READ_PX * READ_PX / (256 * 256)

    def work() -> int:
        with ThreadPoolExecutor(given) as pool:
            list(pool.map(lambda pair: decode(pair[1], pair[0], **further), enumerate(compressed)))
        return len(compressed)

    return Rate("decoding", repeated(work, seconds) / per_tile, "tiles/s", "CPU", given, form)


def _bytes_at(tiff: tifffile.TiffFile, offset: int, count: int) -> bytes:
    tiff.filehandle.seek(offset)
    return tiff.filehandle.read(count)


def reading(slide: Path, form: str, given: int, seconds: float) -> Rate:
    """A slide's file -> tiles at `TILE_MPP`: read, decoded, resampled, by `given` threads."""
    corners = grid(SIDE, READ_PX)[:64]
    shares = [corners[at::given] for at in range(given)]

    def read(share: np.ndarray) -> int:
        with open_slide(slide) as opened:
            return sum(len(tiles) for _, tiles in opened.read_tiles(share, TILE_PX, TILE_MPP, how=Reading()))

    def work() -> int:
        with ThreadPoolExecutor(given) as pool:
            return sum(pool.map(read, shares))

    return Rate("reading", repeated(work, seconds), "tiles/s", "CPU", given, form)


def encoding(engine: EncoderEngine, given: int, seconds: float) -> Rate:
    """Tiles in memory -> features, by the encoder alone; on a GPU compiled, as for a large cohort."""
    compiling = engine.prepare(TILE_PX)
    tiles = np.random.default_rng(0).integers(0, 256, (engine.step * max(given, 1), TILE_PX, TILE_PX, 3), np.uint8)
    rate = repeated(lambda: len(engine(tiles)), seconds)
    return Rate(
        *("encoder", rate, "tiles/s", describe(engine.device), given, "", engine.encoder.name, engine.precision),
        memory_mb=memory_mb(engine.device),
        joules=joules(engine.device, rate),
        note=f"compiling took {compiling:.0f} s, not in the rate" if engine.compiled else "",
    )


def extraction(
    engine: EncoderEngine, alone: Rate, by_core: float, given: int, form: str, slide: Path, seconds: float, home: Path
) -> Rate:
    """Slides' files -> features on disk, as `mil extract` does it; the note names the slower of reader and encoder.

    `by_core`: tiles/s that one core reads of slides of this kind.
    """
    coords, device, name = grid(SIDE, READ_PX), engine.device, engine.encoder.name
    folder, names = home / form / engine.precision / name, []
    for number in range(min(MOST_SLIDES, max(1, round(alone.rate * seconds / len(coords))))):
        names.append(f"bench{number}")
        with hdf5.writing(folder / "tiles" / f"{names[-1]}.h5") as writer:
            writer.append("coords", coords)
            writer.annotate({"patch_size": TILE_PX}, on="coords")
            about = {"stage": "tiles", "slide_id": names[-1], "spec": {"size_px": TILE_PX, "mpp": TILE_MPP}}
            about |= {"mpp": MPP, "mpp_source": "tiff:resolution", "fingerprint": "", "recipe": "made"}
            writer.annotate(about | {"num_tiles": len(coords)})
    table = pd.DataFrame({"slide_id": names, "path": str(slide), "state": "ok", "reason": "", "fingerprint": ""})
    shard = sorted_out(table, folder / "tiles", engine.spec, engine.encoder, folder / "features")
    readers = max(given - 1, 1) if device.type == "cuda" else given
    with quiet().steps("bench", len(names), "slides") as steps:
        profile = extract(shard, engine, folder / "features", readers, quiet(), steps, False)
    reader = profile.tiles * readers / max(profile.seconds.get("reading", 0.0), 1e-9)
    slower = "readers" if reader < alone.rate else "encoder"
    return Rate(
        *("extraction", profile.rate, "tiles/s", describe(device), given, form, name, engine.precision),
        busy=profile.busy,
        first_tile_s=profile.first_tile_s,
        memory_mb=memory_mb(device),
        joules=joules(device, profile.rate),
        note=f"bottleneck: {slower}; reading takes {math.ceil(alone.rate / by_core)} cores to keep up with the encoder",
    )


def training(device: torch.device, given: int, seconds: float) -> Rate:
    """Gated attention on made bags of unequal size, all folds together, as `mil train` does it with its defaults."""
    large = device.type == "cuda"
    patients, tiles, width = (200, 4096, 1024) if large else (60, 64, 192)
    generator = np.random.default_rng(0)
    names = [f"{'AB'[k % 2]}{k:03d}" for k in range(patients)]
    table = pd.DataFrame({"patient_id": names, "slides": names, "site": [n[0] for n in names], "role": "train"})
    table["label"] = np.arange(patients) // 2 % 2
    endpoint = EndpointSpec(folds=5, inner_folds=4)
    sizes = generator.integers(tiles // 2, tiles * 3 // 2, patients).tolist()
    bags = {n: generator.normal(size=(size, width)).astype(np.float16) for n, size in zip(names, sizes, strict=True)}
    store, folds = FeatureStore.of(bags), deal_folds(table, endpoint)

    def trained(rounds: int) -> tuple[int, float]:
        stanza = {"encoder": "made", "endpoint": "response", "model": "gated_attention", "strategy": "pooled"}
        experiment = ExperimentSpec.model_validate(stanza | {"training": {"rounds": rounds}})
        started = time.perf_counter()
        run = train(experiment, endpoint, folds, store, quiet())
        entries = parsed(run.ledger.lines)  # a line per model, site and round, with the bags that it trained on
        return sum(entry["patients"] for entry in entries), time.perf_counter() - started

    few, first = trained(1)  # warm-up, and how long a round takes
    amount, passed = trained(max(2, round(seconds / first)))
    return Rate(
        *("training", amount / passed, "model-bags/s", describe(device), given),
        encoder=f"{width} numbers, {tiles} tiles a bag",
        precision=resolved(ExperimentSpec.model_fields["training"].default.precision, device),
        memory_mb=memory_mb(device),
        joules=joules(device, amount / passed),
        note=f"warm-up {first:.1f} s for {few} model-bags, not in the rate",
    )


def memory_mb(device: torch.device) -> float:
    """Largest memory so far: of the device, or of this process where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def joules(device: torch.device, rate: float) -> float | None:
    """Energy per unit of work at `rate` units per second, from the power that the GPU has just drawn; none: it is not told."""
    if device.type != "cuda":
        return None
    index = str(torch.cuda.get_device_properties(device).uuid)
    asked = [
        "nvidia-smi",
        f"--id=GPU-{index.removeprefix('GPU-')}",
        "--query-gpu=power.draw",
        "--format=csv,noheader,nounits",
    ]
    try:
        return float(subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout) / rate
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
