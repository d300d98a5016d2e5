"""Model-bags a second on one GPU: the loops that people write and our engine, side by side in one run.

    python benchmarks/training_gpu.py [--minutes 7] [--tiles 4096] [--bags 64] [--models 1,10,100,200]

Gated attention 1024-512-256 (embedding 512, branches 256), bags of 4,096 tiles x 1,024 in fp16. The loops take one bag a step with
AdamW under bf16 autocast: from host memory, and resident on the GPU. Ours trains 1, 10, 100, 200 models at once, 16 patients a
step, in bf16 with fp32 weights, every model with its own bags, from the store on the GPU. Then the grid of the paper's
protocol (5 repeats x 5 folds x (4 inner + refit), two training sites, local, pooled, FedAvg, FedProx, SCAFFOLD, 600 patients, 50
epochs): measured with all its models for as many rounds as the time allows and scaled to 50, beside the loop's time, scaled from
its part. With `--protocol N` the same grid also through `mil.training.run.train` itself, N rounds of every strategy (SCAFFOLD with
SGD, the others with AdamW, everything else as by default), scaled to 50, compiling counted and said by itself; `--spread 0`: bags of one
size. And the first layer over bags of different sizes by padded groups, as ours is, beside `torch._grouped_mm`. Needs torch, numpy, pandas, scipy, h5py, pydantic and this repository. Prints as it
goes; a part that fails prints why and the next one begins. With OUT set, results go to $OUT/training_gpu.json too.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
import torch
from plain_loop import ATTENTION, HIDDEN, WIDTH, loop_rate, synchronise

from mil.bags.table import deal_folds
from mil.endpoints import build_endpoint
from mil.models import build
from mil.progress import Reporter
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec
from mil.specs.models import GatedAttentionSpec
from mil.training.engine import Data, Engine, Learners, Method, Plan
from mil.training.packing import Places
from mil.training.run import train
from mil.training.sources import Pinned, Resident, Source
from mil.training.store import FeatureStore

BATCH = 16
# Multiply-adds of a tile: forward, and backward without the input's gradient; two operations each.
OPERATIONS = 2 * (2 * WIDTH * HIDDEN + 3 * HIDDEN * 2 * ATTENTION)
PATIENTS, SITES, REPEATS, FOLDS, INNER, EPOCHS = 600, 2, 5, 5, 4, 50
CENTRE = (torch.zeros(WIDTH), torch.ones(WIDTH))  # drawn standard normal
RESULTS: dict[str, Any] = {}
BEGAN = time.time()


def note(key: str, value: Any, unit: str = "") -> None:
    """Print and keep one result."""
    RESULTS[key] = value
    shown = (
        f"{value:,.4g}"
        if isinstance(value, float) and value < 1000
        else f"{value:,.0f}"
        if isinstance(value, int | float)
        else value
    )
    print(f"[{time.time() - BEGAN:5.0f} s] {key}: {shown} {unit}", flush=True)
    if "OUT" in os.environ:
        Path(os.environ["OUT"], "training_gpu.json").write_text(json.dumps(RESULTS, indent=1))


def attempt(name: str, part: Callable[[], None]) -> None:
    """Run a part; where it fails, say so and go on."""
    try:
        part()
    except Exception:  # noqa: BLE001  a benchmark's parts do not depend on one another
        note(f"{name} failed", traceback.format_exc(limit=4))
        torch.cuda.empty_cache()


class Fleet:
    """Our engine with `models` learners on `count` bags."""

    def __init__(
        self, source: Source, count: int, size: int, models: int, device: torch.device, compiled: bool
    ) -> None:
        head = build(GatedAttentionSpec(hidden=HIDDEN, attention=ATTENTION), WIDTH, 1)
        endpoint = build_endpoint(EndpointSpec())
        targets = torch.arange(count, device=device).remainder(2).float()[:, None]
        data = Data(source, WIDTH, targets, torch.arange(count, device=device))
        method = Method("adamw", precision="bf16")
        self.engine = Engine(head, endpoint, data, method, device, float("inf") if compiled else 0.0)
        self.count, self.models = count, models
        first = torch.from_numpy(self.engine.layout.flat(head.initial(np.random.default_rng(0))))
        ones = torch.ones(models, 1, device=device)
        buffers = {"features.mean": torch.zeros(models, WIDTH), "features.deviation": torch.ones(models, WIDTH)}
        self.learners = Learners(
            first.repeat(models, 1).to(device),
            {name: value.to(device) for name, value in buffers.items()},
            1e-4 * ones,
            1e-4 * ones,
            torch.ones(models, 2, device=device),
        )
        self.state = self.engine.fresh(self.learners.rows)
        self.places = Places.of(np.arange(count) * size, np.full(count, size))
        self.generator = np.random.default_rng(0)

    def round(self, steps: int) -> int:
        """Train every model for some steps on bags of its own; the model-bags of it."""
        bags = [
            self.generator.permutation(np.tile(np.arange(self.count), -(-steps * BATCH // self.count)))
            for _ in range(self.models)
        ]
        plans = [Plan([own[k * BATCH : (k + 1) * BATCH] for k in range(steps)]) for own in bags]
        losses = self.engine.train(self.learners, self.state, plans, self.places)
        if not np.isfinite(losses).all():
            raise FloatingPointError("a loss is not finite")
        return self.models * steps * BATCH

    def rate(self, seconds: float) -> float:
        """Model-bags a second, after the compiler has done its work."""
        device = self.engine.device
        self.round(1)
        synchronise(device)
        began = time.perf_counter()
        self.round(1)
        synchronise(device)
        steps = max(1, int(seconds / (time.perf_counter() - began)))
        began = time.perf_counter()
        passes = self.round(steps)
        synchronise(device)
        return passes / (time.perf_counter() - began)


def grid_model_bags() -> dict[str, int]:
    """Model-bags of the paper's grid: every strategy trains the selection's models and the refits on its share of patients."""
    outer = PATIENTS * (FOLDS - 1) // FOLDS
    inner = outer * (INNER - 1) // INNER
    a_strategy = REPEATS * FOLDS * (INNER * inner + outer) * EPOCHS
    # Local: a model a site, each on half of the patients: as many model-bags as one pooled model.
    return dict.fromkeys(("local", "pooled", "fedavg", "fedprox", "scaffold"), a_strategy)


def parsed() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=7)
    parser.add_argument("--tiles", type=int, default=4096)
    parser.add_argument("--bags", type=int, default=64)
    parser.add_argument("--models", default="1,10,100,200")
    parser.add_argument("--uncompiled", action="store_true")
    parser.add_argument(
        "--protocol", type=int, default=0, help="rounds of the whole grid through `train`; none: left out"
    )
    parser.add_argument(
        "--spread", type=float, default=0.5, help="of --protocol: bags of 1 - SPREAD to 1 + SPREAD times --tiles"
    )
    parser.add_argument("--patients", type=int, default=PATIENTS, help="of --protocol")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of --protocol that are run, scaled to all")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    note("device", torch.cuda.get_device_name() if device.type == "cuda" else "cpu")
    note("torch", torch.__version__)
    generator = torch.Generator().manual_seed(0)
    host = torch.randn(options.bags * options.tiles, WIDTH, generator=generator).half()
    if device.type == "cuda":
        attempt("matrix rate", lambda: matrix_rate(device))
        attempt("jagged products", lambda: jagged(device, options.tiles))
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    resident = host.to(device)
    short = 3.0 if device.type == "cuda" else 0.5

    def loops() -> None:
        note("loop, bags in host memory", loop_rate(host, options.bags, device, short), "bags/s")
        note("loop, bags on the device", loop_rate(resident, options.bags, device, short), "bags/s")

    attempt("loops", loops)
    compiled = not options.uncompiled and device.type == "cuda"
    rates(host, resident, options, device, compiled)
    attempt("grid", lambda: grid(resident, options, device, compiled))
    if options.protocol:
        attempt("protocol", lambda: protocol(options))


def rates(
    host: torch.Tensor, resident: torch.Tensor, options: argparse.Namespace, device: torch.device, compiled: bool
) -> None:
    """Model-bags per second of every number of models, and of the most without compilation and with bags in host memory."""

    def rate(models: int, source: Source, compiled: bool, label: str) -> None:
        attempt(label, lambda: fleet_rate(models, source, options, device, compiled, label))

    def within(share: float) -> bool:
        return time.time() - BEGAN < options.minutes * 60 * share

    numbers = [int(part) for part in options.models.split(",")]
    for models in numbers:
        if within(0.7):
            rate(models, Resident(resident, device, CENTRE), compiled, f"ours, {models} models")
        else:
            note(f"ours, {models} models", "left out: out of time")
    few = min(max(numbers), 100)
    if within(0.75):
        rate(few, Resident(resident, device, CENTRE), False, f"ours, {few} models, not compiled")
    if within(0.8):
        rate(few, Pinned(host, device, CENTRE), compiled, f"ours, {few} models, bags in pinned host memory")


def fleet_rate(
    models: int, source: Source, options: argparse.Namespace, device: torch.device, compiled: bool, label: str
) -> None:
    """Note the rate, arithmetic and peak memory of `models` models."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    fleet = Fleet(source, options.bags, options.tiles, models, device, compiled)
    rate = fleet.rate(6.0 if device.type == "cuda" else 1.0)
    note(label, rate, "model-bags/s" + (" (bar: 20,000)" if models == 100 else ""))
    note(f"{label}, arithmetic", rate * OPERATIONS * options.tiles / 1e12, "TFLOP/s")
    if device.type == "cuda":
        note(f"{label}, peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
    del fleet
    if device.type == "cuda":
        torch.cuda.empty_cache()


def grid(resident: torch.Tensor, options: argparse.Namespace, device: torch.device, compiled: bool) -> None:
    """All models of one strategy's selection at once, for as many steps as the time left allows; scaled to the grid."""
    left = options.minutes * 60 - (time.time() - BEGAN) - 15
    models = REPEATS * FOLDS * INNER if device.type == "cuda" else 4
    fleet = Fleet(Resident(resident, device, CENTRE), options.bags, options.tiles, models, device, compiled)
    rate = fleet.rate(max(2.0, min(left - 10, 60)))
    passes = sum(grid_model_bags().values())
    note("grid, model-bags", passes)
    note("grid, ours, measured with all models of a selection", rate, "model-bags/s")
    note("grid, ours", passes / rate / 60, "min (scaled from a part; bar: less than 8)")
    best = max(RESULTS.get(f"loop, bags {where}", 0.0) for where in ("in host memory", "on the device"))
    usual = RESULTS.get("loop, bags in host memory", best)
    if best:
        note("grid, the loop from host memory", passes / usual / 60, "min (scaled from a part)")
        note("grid, times the loop from host memory", rate / usual, "(bar: 100)")
        note("grid, times the resident loop", rate / best)


def protocol(options: argparse.Namespace) -> None:
    """Rounds of the whole grid through `train`, selection and refit, bags of differing sizes; scaled to all epochs."""
    generator = np.random.default_rng(0)
    names = [f"{'AB'[k % SITES]}{k:04d}" for k in range(options.patients)]
    limits = (round(options.tiles * (1 - options.spread)), round(options.tiles * (1 + options.spread)) + 1)
    sizes = generator.integers(*limits, len(names)).tolist()
    drawn = {
        name: generator.random((size, WIDTH), np.float32).astype(np.float16)
        for name, size in zip(names, sizes, strict=True)
    }
    endpoint = EndpointSpec(repeats=options.repeats, folds=FOLDS, inner_folds=INNER)
    table = pd.DataFrame({"patient_id": names, "slides": names, "site": [name[0] for name in names], "role": "train"})
    table = deal_folds(table.assign(label=np.arange(len(names)) // SITES % 2), endpoint)
    store, total = FeatureStore.of(drawn), 0.0
    model = {"name": "gated_attention", "hidden": HIDDEN, "attention": ATTENTION}
    for strategy in ("local", "pooled", "fedavg", "fedprox", "scaffold"):
        training = {"rounds": options.protocol, "batch_size": BATCH}
        training |= {"optimiser": "sgd"} if strategy == "scaffold" else {}
        stanza = {"encoder": "none", "endpoint": "label", "model": model, "strategy": strategy, "training": training}
        began = time.perf_counter()
        train(ExperimentSpec.model_validate(stanza), endpoint, table, store, Reporter(stream=sys.stdout))
        seconds = (time.perf_counter() - began) * REPEATS / options.repeats
        total += seconds
        note(f"protocol, {strategy}, {options.protocol} rounds", seconds, "s (all repeats)")
    note(
        "protocol, the whole grid",
        total * EPOCHS / options.protocol / 60,
        "min (scaled to 50 epochs; bar: less than 8)",
    )


def jagged(device: torch.device, tiles: int, pairs: int = 96, groups: int = 12) -> None:
    """The first layer of a model per bag, bags of 0.5 to 1.5 times `tiles`, and its weights' gradient: both ways of laying them out."""
    sizes = np.sort(np.random.default_rng(0).integers(tiles // 2, tiles * 3 // 2, pairs))
    starts = sizes.cumsum() - sizes
    held = torch.randn(int(sizes.sum()), WIDTH, device=device, dtype=torch.bfloat16)
    weights = (torch.randn(pairs, WIDTH, HIDDEN, device=device, dtype=torch.bfloat16) / 32).requires_grad_()
    ends = torch.from_numpy(sizes.cumsum()).to(device, torch.int32)
    parts = np.array_split(np.arange(pairs), groups)
    laid = [starts[part, None] + np.minimum(np.arange(sizes[part].max()), sizes[part, None] - 1) for part in parts]
    rows = [torch.from_numpy(own).to(device) for own in laid]

    def padded() -> list[torch.Tensor]:
        gathered = (held.index_select(0, own.flatten()).view(*own.shape, WIDTH) for own in rows)
        return [x @ weights[part[0] : part[-1] + 1] for x, part in zip(gathered, parts, strict=True)]

    def grouped() -> list[torch.Tensor]:
        return [torch._grouped_mm(held, weights, offs=ends)]

    cut = [made[k, :size] for made, part in zip(padded(), parts, strict=True) for k, size in enumerate(sizes[part])]
    assert torch.allclose(torch.cat(cut), grouped()[0], rtol=1e-2, atol=1e-2)
    for name, way in (("padded groups", padded), ("torch._grouped_mm", grouped)):
        slopes = [torch.ones_like(made) for made in way()]
        synchronise(device)
        began, calls = time.perf_counter(), 0
        while time.perf_counter() - began < 2:
            torch.autograd.grad(way(), weights, slopes)
            synchronise(device)
            calls += 1
        note(
            f"first layer, bags of different sizes, {name}",
            calls * pairs / (time.perf_counter() - began),
            "model-bags/s",
        )


def matrix_rate(device: torch.device) -> None:
    """What the card's matrix units reach on a product that suits them."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    synchronise(device)
    began = time.perf_counter()
    for _ in range(20):
        a @ b
    synchronise(device)
    note("matrix product 8192 x 8192 x 8192 bf16", 20 * 2 * 8192**3 / (time.perf_counter() - began) / 1e12, "TFLOP/s")


if __name__ == "__main__":
    main()
