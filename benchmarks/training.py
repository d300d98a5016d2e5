"""Training a grid of small models on two CPU cores: the loop that people write, and ours, on the same bags in one run.

    python benchmarks/training.py [results/idc] [--rounds 30] [--part 2] [--precision fp32]

The grid is the real-tissue cohort's: gated attention and a linear layer on the mean over the embedded encoder (local, pooled,
FedAvg), gated attention over colour alone (pooled, FedAvg), each over 2 repeats x 5 folds x (4 inner folds + the refit). With the
cohort's results folder its bags and features are used; without, random numbers of its shape (121 training patients of 3 to 36
tiles, 12 on average, 192 and 6 wide). The loop takes one bag a step with `torch.optim` in fp32 and watches the inner fold after
every epoch, as ours does; it is timed on the first models for `--part` epochs and scaled to the model-bags of the grid. Both have
the threads that torch gives them, the loop also one thread, and the better of its two is the one compared. On a machine that does
other work as well the ratio of CPU times is the one to trust: the loop's with one thread, over all of ours.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mil.bags.table import deal_folds, read_bags
from mil.endpoints import build_endpoint
from mil.progress import quiet
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec
from mil.training.cohort import TrainingCohort
from mil.training.protocol import Task, candidates, groups, inner_tasks
from mil.training.run import train
from mil.training.store import FeatureStore

ENDPOINT = EndpointSpec(column="tumour", repeats=2)
WIDTHS = {"effnet": 192, "colour": 6}
GRID = [
    *(("effnet", "gated_attention", strategy) for strategy in ("local", "pooled", "fedavg")),
    *(("effnet", "mean", strategy) for strategy in ("local", "pooled", "fedavg")),
    *(("colour", "gated_attention", strategy) for strategy in ("pooled", "fedavg")),
]


class GatedAttention(torch.nn.Module):
    """What a notebook has: one bag in, one logit out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = torch.nn.Sequential(torch.nn.Linear(width, 128), torch.nn.ReLU())
        self.tanh = torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.Tanh())
        self.gate = torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.Sigmoid())
        self.weigh = torch.nn.Linear(128, 1)
        self.score = torch.nn.Linear(128, 1)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tiles)
        attention = torch.softmax(self.weigh(self.tanh(hidden) * self.gate(hidden)), dim=0)
        return self.score((attention * hidden).sum(0))


class Mean(torch.nn.Module):
    """A linear layer on the mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = torch.nn.Linear(width, 1)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return self.score(tiles.mean(0))


def loop(
    kind: str, tasks: list[Task], bags: list[torch.Tensor], labels: torch.Tensor, epochs: int
) -> tuple[float, float]:
    """Model-bags a second, and a CPU second, of training these tasks one by one, one bag a step."""
    began, cpu, steps = time.perf_counter(), time.process_time(), 0
    for task in tasks:
        torch.manual_seed(0)
        tiles = torch.cat([bags[patient] for patient in task.train])
        mean, deviation = tiles.mean(0), tiles.std(0).clamp(min=1e-6)
        scaled = [(bag - mean) / deviation for bag in bags]
        model = {"gated_attention": GatedAttention, "mean": Mean}[kind](tiles.shape[1])
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
        criterion = torch.nn.BCEWithLogitsLoss()
        for _ in range(epochs):
            for patient in np.random.default_rng(0).permutation(task.train):
                optimiser.zero_grad()
                criterion(model(scaled[patient]), labels[patient]).backward()
                optimiser.step()
                steps += 1
            with torch.no_grad():
                sum(criterion(model(scaled[patient]), labels[patient]).item() for patient in task.watched)
    return steps / (time.perf_counter() - began), steps / (time.process_time() - cpu)


def cohort_of(folder: Path | None, encoder: str) -> tuple[pd.DataFrame, FeatureStore]:
    """Training rows and features, from a results folder or drawn at random."""
    if folder is not None:
        bags = read_bags(folder / "bags" / "tumour.csv")
        bags = bags[bags["role"] == "train"].reset_index(drop=True)
        return bags, FeatureStore.open(bags, folder / "sites", encoder)
    generator = np.random.default_rng(0)
    patients = [f"{'AB'[k % 2]}{k:03d}" for k in range(121)]
    table = pd.DataFrame(
        {"patient_id": patients, "slides": patients, "site": [p[0] for p in patients], "role": "train"}
    )
    table["label"] = (generator.random(121) < 0.45).astype(int)
    sizes = np.clip(generator.poisson(12, 121), 3, 36).tolist()
    width = WIDTHS[encoder]
    tiles = {p: generator.normal(size=(n, width)).astype(np.float16) for p, n in zip(patients, sizes, strict=True)}
    return deal_folds(table, ENDPOINT), FeatureStore.of(tiles)


def loop_rates(kind: str, table: pd.DataFrame, store: FeatureStore, part: int) -> dict[int, tuple[float, float]]:
    """Model-bags a second and a CPU second of the loop, by number of threads."""
    cohort = TrainingCohort.of(table, ENDPOINT, build_endpoint(ENDPOINT))
    tasks = inner_tasks(
        cohort, groups(cohort, [tuple(cohort.sites)]), candidates(stanza("effnet", kind, "pooled", 1)), 1
    )
    bags = [torch.from_numpy(store.bag(number)).float() for number in store.require(cohort.patients)]
    labels, threads, rates = torch.from_numpy(cohort.targets), torch.get_num_threads(), {}
    for number in sorted({1, threads}):
        torch.set_num_threads(number)
        loop(kind, tasks[:1], bags, labels, 1)
        rates[number] = loop(kind, tasks[:2], bags, labels, part)
    torch.set_num_threads(threads)
    return rates


def stanza(encoder: str, model: str, strategy: str, rounds: int, precision: str = "fp32") -> ExperimentSpec:
    base = {"encoder": encoder, "endpoint": "tumour", "model": model, "strategy": strategy}
    return ExperimentSpec.model_validate(base | {"training": {"rounds": rounds, "precision": precision}})


def model_bags(table: pd.DataFrame, store: FeatureStore, wanted: ExperimentSpec) -> tuple[int, float, float]:
    """Model-bags, seconds and CPU seconds of one experiment of ours."""
    began, cpu = time.perf_counter(), time.process_time()
    run = train(wanted, ENDPOINT, table, store, quiet())
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    rounds = run.rounds[(run.rounds["phase"] == "inner")]
    cohort = TrainingCohort.of(table, ENDPOINT, build_endpoint(ENDPOINT))
    sites = [(site,) for site in cohort.sites] if wanted.strategy.name == "local" else [tuple(cohort.sites)]
    tasks = inner_tasks(cohort, groups(cohort, sites), candidates(wanted), wanted.training.rounds)
    selected = sum(len(task.train) * task.rounds for task in tasks)
    assert rounds["round"].max() == wanted.training.rounds
    return selected + sum(model.rounds * model.patients for model in run.models.itertuples()), seconds, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--part", type=int, default=2, help="epochs of the loop that are timed")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="ours; the loop's is fp32")
    options = parser.parse_args()
    rates, result = {}, {"threads": torch.get_num_threads(), "precision": options.precision, "experiments": []}
    theirs = ours = theirs_cpu = ours_cpu = 0.0
    print(f"{torch.get_num_threads()} threads; ours in {options.precision}; load {os.getloadavg()[0]:.1f}")
    for encoder, model, strategy in GRID:
        table, store = cohort_of(options.results, encoder)
        if (encoder, model) not in rates:
            found = loop_rates(model, table, store, options.part)
            rates[encoder, model] = max(rate for rate, _ in found.values()), found[1][1]
            shown = ", ".join(
                f"{rate:,.0f} ({cpu:,.0f} a CPU second) with {k} thread(s)" for k, (rate, cpu) in found.items()
            )
            print(
                f"loop, {model} over {encoder} ({len(store.sizes)} bags, {int(store.sizes.sum()):,} tiles x {store.width}): {shown} model-bags/s"
            )
        wanted = stanza(encoder, model, strategy, options.rounds, options.precision)
        passes, seconds, cpu = model_bags(table, store, wanted)
        expected, expected_cpu = (passes / rate for rate in rates[encoder, model])
        theirs, ours = theirs + expected, ours + seconds
        theirs_cpu, ours_cpu = theirs_cpu + expected_cpu, ours_cpu + cpu
        name = f"{model} over {encoder}, {strategy}"
        found = {"model_bags": passes, "seconds": seconds, "cpu": cpu, "loop": expected, "loop_cpu": expected_cpu}
        result["experiments"].append({"name": name} | found)
        print(
            f"ours, {name}: {passes:,} model-bags in {seconds:.1f} s (cpu {cpu:.1f}); the loop: {expected:,.0f} s "
            f"(cpu {expected_cpu:,.0f}); {expected / seconds:.1f} times by the clock, {expected_cpu / cpu:.1f} by CPU time",
            flush=True,
        )
    print(
        f"the grid (the loop scaled from a part): {theirs / ours:.1f} times by the clock ({ours:.0f} s, the loop {theirs:,.0f} s), "
        f"{theirs_cpu / ours_cpu:.1f} times by CPU time ({ours_cpu:.0f} s, the loop {theirs_cpu:,.0f} s); bar: 8 times"
    )
    result |= {"clock_ratio": theirs / ours, "cpu_ratio": theirs_cpu / ours_cpu}
    if "OUT" in os.environ:
        Path(os.environ["OUT"], "training.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
