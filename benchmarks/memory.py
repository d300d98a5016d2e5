"""Memory of training, measured: many models on one copy of the bags, and a cohort four times larger than the memory given.

    python benchmarks/memory.py [--patients 32] [--tiles 4096]

Every measurement is the peak resident memory of a process of its own, less what the same process takes with two patients.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from mil import hdf5
from mil.bags.table import deal_folds
from mil.progress import quiet
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec
from mil.training.run import train
from mil.training.store import FeatureStore

WIDTH = 1024


def write_cohort(folder: Path, patients: int, tiles: int) -> None:
    """Feature files of one site in half precision."""
    for number in range(patients):
        with hdf5.writing(folder / "sites" / "A" / "features" / "e" / f"p{number:03d}.h5") as writer:
            writer.append(
                "features", np.random.default_rng(number).random((tiles, WIDTH), np.float32).astype(np.float16)
            )


def train_part(folder: Path, patients: int, replicas: int, memory: int | None) -> None:
    """Train on the first patients, one round; print the peak of resident memory in MiB and the digest of the weights."""
    endpoint = EndpointSpec(folds=2, inner_folds=2)
    names = [f"p{number:03d}" for number in range(patients)]
    table = pd.DataFrame({"patient_id": names, "slides": names, "site": "A", "role": "train"})
    table = deal_folds(table.assign(label=np.arange(patients) % 2), endpoint)
    store = FeatureStore.open(table, folder / "sites", "e", memory)
    training = {"rounds": 1, "replicas": replicas, "max_tiles": 256 if memory is None else None, "batch_size": 4}
    stanza = {"encoder": "e", "endpoint": "label", "model": {"name": "max"}, "strategy": "pooled", "training": training}
    run = train(ExperimentSpec.model_validate(stanza), endpoint, table, store, quiet())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(peak, run.models["sha256"][0])


def measured(folder: Path, patients: int, replicas: int = 1, memory: int | None = None) -> tuple[float, str]:
    """What `train_part` prints, from a process of its own."""
    call = f"import memory; from pathlib import Path; memory.train_part(Path({str(folder)!r}), {patients}, {replicas}, {memory})"
    done = subprocess.run(
        [sys.executable, "-c", call], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    peak, digest = done.stdout.split()
    return float(peak), digest


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--patients", type=int, default=32)
    parser.add_argument("--tiles", type=int, default=4096)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohort(folder, options.patients, options.tiles)
        size = options.patients * options.tiles * WIDTH * 2
        print(f"cohort: {options.patients} patients, {size / 2**20:.0f} MiB in half precision", flush=True)
        floor, _ = measured(folder, 4, memory=size)
        given = size // 4
        streamed, same = measured(folder, options.patients, memory=given)
        resident, digest = measured(folder, options.patients, memory=size)
        print(f"given {given / 2**20:.0f} MiB, streamed: {streamed - floor:+.0f} MiB over four patients in memory")
        print(f"in memory: {resident - floor:+.0f} MiB; the same weights: {same == digest}", flush=True)
        one, _ = measured(folder, options.patients)
        many, _ = measured(folder, options.patients, replicas=50)
        print(f"1 model a fold: {one - floor:+.0f} MiB, 50 models a fold (100 in all): {many - floor:+.0f} MiB")


if __name__ == "__main__":
    main()
