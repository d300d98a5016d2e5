"""Training a grid of small models on two CPU cores: the loop that people write, and ours, on the same bags in one run.

    python benchmarks/training.py [results/idc] [--rounds 30] [--part 2]

With a cohort's results folder its bags and embedded features are used; without, random numbers of the real-tissue cohort's
shape (123 training patients of 10 to 36 tiles, 1280 wide). The grid is the protocol's: repeats x folds x (inner folds + the
refit), gated attention 128-128. The loop takes one bag a step with `torch.optim` in fp32 and watches the inner fold after
every epoch, as ours does; it is timed on the first models for `--part` epochs and scaled to the model-bags of the grid. Both
have the threads that torch gives them, the loop also one thread, and the better of its two is the one compared.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mil.bags import TEXT, deal_folds
from mil.endpoints import build_endpoint
from mil.progress import quiet
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec
from mil.tables import read_table
from mil.training.cohort import Cohort
from mil.training.protocol import Task, candidates, groups, inner_tasks
from mil.training.run import train
from mil.training.store import FeatureStore

ENDPOINT = EndpointSpec(column="tumour", repeats=2)


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


def loop(tasks: list[Task], bags: list[torch.Tensor], labels: torch.Tensor, epochs: int) -> tuple[float, int]:
    """Seconds and model-bags of training these tasks one by one, one bag a step."""
    began, steps = time.perf_counter(), 0
    for task in tasks:
        torch.manual_seed(0)
        tiles = torch.cat([bags[patient] for patient in task.train])
        mean, deviation = tiles.mean(0), tiles.std(0).clamp(min=1e-6)
        scaled = [(bag - mean) / deviation for bag in bags]
        model = GatedAttention(tiles.shape[1])
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
    return time.perf_counter() - began, steps


def cohort_of(folder: Path | None) -> tuple[pd.DataFrame, FeatureStore]:
    """Training rows and features, from a results folder or drawn at random."""
    if folder is not None:
        bags = read_table(folder / "bags" / "tumour.csv", text=TEXT)
        bags = bags[bags["role"] == "train"].reset_index(drop=True)
        return bags, FeatureStore.open(bags, folder / "sites", "effnet")
    generator = np.random.default_rng(0)
    patients = [f"{'AB'[k % 2]}{k:03d}" for k in range(123)]
    table = pd.DataFrame(
        {"patient_id": patients, "slides": patients, "site": [p[0] for p in patients], "role": "train"}
    )
    table["label"] = (generator.random(123) < 0.45).astype(int)
    tiles = {p: generator.normal(size=(int(generator.integers(10, 37)), 1280)).astype(np.float16) for p in patients}
    return deal_folds(table, ENDPOINT), FeatureStore.of(tiles)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--part", type=int, default=2, help="epochs of the loop that are timed")
    options = parser.parse_args()
    table, store = cohort_of(options.results)
    base = {"encoder": "effnet", "endpoint": "tumour", "model": "gated_attention", "strategy": "pooled"}
    stanza = ExperimentSpec.model_validate(base | {"training": {"rounds": options.rounds}})
    endpoint = build_endpoint(ENDPOINT)
    cohort = Cohort.of(table, ENDPOINT, endpoint)
    tasks = inner_tasks(cohort, groups(cohort, [tuple(cohort.sites)]), candidates(stanza), options.rounds)
    bags = [torch.from_numpy(store.bag(number)).float() for number in store.require(cohort.patients)]
    labels = torch.from_numpy(cohort.targets)
    tiles = int(store.sizes.sum())
    print(
        f"{len(bags)} bags, {tiles:,} tiles x {store.width}; {len(tasks)} models for selection, {options.rounds} rounds"
    )

    threads, rates = torch.get_num_threads(), {}
    for number in sorted({1, threads}):
        torch.set_num_threads(number)
        loop(tasks[:1], bags, labels, 1)
        seconds, steps = loop(tasks[:2], bags, labels, options.part)
        rates[number] = steps / seconds
        print(f"loop, {number} thread(s): {rates[number]:,.0f} model-bags/s ({steps} steps in {seconds:.1f} s)")
    torch.set_num_threads(threads)

    result = {"bags": len(bags), "width": store.width, "loop": rates, "threads": threads}
    best = max(rates.values())
    for strategy in ("pooled", "fedavg"):
        changed = stanza.model_validate(stanza.model_dump() | {"strategy": strategy})
        began, cpu = time.perf_counter(), time.process_time()
        run = train(changed, ENDPOINT, table, store, quiet())
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        refits = sum(model.rounds * model.patients for model in run.models.itertuples())
        passes = refits + sum(len(task.train) * task.rounds for task in tasks)
        ratio = passes / seconds / best
        result[strategy] = {"seconds": seconds, "cpu_seconds": cpu, "model_bags": passes, "ratio": ratio}
        print(
            f"ours, {strategy}: {passes / seconds:,.0f} model-bags/s, {seconds:.1f} s (cpu {cpu:.1f} s) for the whole grid of "
            f"{passes:,} model-bags; the loop would take {passes / best:,.0f} s: {ratio:.1f} times"
        )
    if "OUT" in os.environ:
        Path(os.environ["OUT"], "training.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
