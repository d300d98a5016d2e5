"""What a round between hospitals costs: seconds beside the same round in one process, and bytes beside the features' size.

    python benchmarks/federation.py [--rounds 4] [--width 1024] [--tiles 200]

Three sites on the loopback interface as real processes with mutual TLS, and the same server and sites in this process; the
default head, five outer and four inner folds, so that a message carries 20 models. Bytes of other strategies are counted
in process: they are the same bytes.
"""

import argparse
import contextlib
import itertools
import os
import statistics
import sys
import tempfile
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/oracles"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import inprocess
import numpy as np
import pandas as pd
import torch
from deployment import Deployment, free_port
from hospitals import Hospitals, make_hospitals, rewrite_protocol

from mil import hdf5
from mil.bags.table import deal_folds
from mil.config import EndpointSpec
from mil.hospital import coordinator as hospital
from mil.hospital.server import Server
from mil.hospital.site import Site
from mil.progress import quiet
from mil.tables import write_table
from mil.training.ledger import read

ROOT = Path(__file__).resolve().parents[1]
SITES = {"A": ("train", 64), "B": ("train", 64), "C": ("train", 64)}
STRATEGIES = {"fedavg": {}, "scaffold": {"optimiser": "sgd"}, "fedadam": {}}


def make(folder: Path, port: int, width: int, tiles: int, rounds: int) -> Hospitals:
    """Three hospitals with features of random numbers."""

    def write(results: Path, site: str, role: str, patients: int, endpoint: EndpointSpec) -> None:
        generator = np.random.default_rng(ord(site))
        rows = []
        for number in range(patients):
            with hdf5.writing(results / "sites" / site / "features" / "toy" / f"{site}-{number}.h5") as file:
                file.append("features", generator.normal(size=(tiles, width)).astype(np.float16))
                file.annotate({"encoder": "toy", "weights_sha256": "0" * 64, "tile_mpp": 0.5, "size_px": 224})
            row = {"patient_id": f"{site}{number:03d}", "slides": f"{site}-{number}", "site": site, "role": role}
            rows.append({**row, "label": number % 2})
        write_table(deal_folds(pd.DataFrame(rows), endpoint), results / "bags" / "response.csv")

    training = {"rounds": rounds, "lr": 0.001}
    experiment = {"encoder": "toy", "endpoint": "response", "model": "gated_attention", "strategy": "fedavg"}
    return make_hospitals(
        folder,
        port,
        SITES,
        write,
        experiment={**experiment, "training": training},
        endpoint={"folds": 5, "inner_folds": 4},
        payload={"max_mb_a_round": 1000.0},
        rounds={"timeout_s": 600},
    )


def seconds_a_round(server: Path, sites: list[Path]) -> tuple[float, float]:
    """Median seconds from one round of selection to the next, and of what is left of them after the slowest site's work."""
    lines = [line for line in read(server) if line["event"] == "answered" and line["kind"] == "train"]
    lines = [line for line in lines if line["phase"] == "inner"]
    own: dict[int, float] = {}
    place = {"event": "answered", "kind": "train", "phase": "inner", "run": lines[0]["run"]}.items()
    for line in (line for path in sites for line in read(path) if place <= line.items()):
        own[line["round"]] = max(own.get(line["round"], 0.0), line["seconds"])
    times = [datetime.fromisoformat(line["time"]) for line in lines]
    whole = [(b - a).total_seconds() for a, b in itertools.pairwise(times)]
    left = [seconds - own[line["round"]] for seconds, line in zip(whole, lines[1:], strict=True)]
    return statistics.median(whole), statistics.median(left)


def bytes_a_round(sites: Path, answers: str) -> tuple[int, int]:
    """Bytes of one round's question and of one site's answers in it (opening the sum included), by the site's ledger."""
    lines = [line for line in read(sites) if line["event"] == "answered" and line.get("round") == 2]
    own = [
        line
        for line in lines
        if line["kind"] in {"train", "open"} and line["run"] == answers and line["phase"] == "inner"
    ]
    return sum(line["bytes_received"] for line in own), sum(line["bytes_sent"] for line in own)


def in_process(hospitals: Hospitals, name: str, folder: Path) -> Path:
    """The run in this process; its ledger."""
    sites = {site: Site.open(hospitals.site(site)) for site in SITES}
    server = Server(hospitals.protocol, name, folder)

    def stop(server: Server) -> None:
        if server.stages.progress.phase == "refit":
            raise StopIteration

    with contextlib.suppress(StopIteration):
        inprocess.run(server, sites, stop)
    return folder / "ledger.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tiles", type=int, default=200)
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["HOME"] = str(folder)
        hospitals = make(folder / "federation", free_port(), options.width, options.tiles, options.rounds)
        features = sum(path.stat().st_size for path in hospitals.folder.rglob("*.h5")) / len(SITES)
        ledgers = [Path(hospitals.site(site).workspace) / "ledger.jsonl" for site in SITES]
        plain, _ = seconds_a_round(in_process(hospitals, "plain", folder / "plain"), ledgers)
        deployment = Deployment(hospitals)
        try:
            deployment.provision()
            deployment.start("server", *SITES)
            deployment.wait_for(*SITES)
            hospital.run(hospitals.server, "flare", quiet(), 120, rehearse=False)
            server = Path(hospitals.server.workspace) / "runs" / "flare" / "ledger.jsonl"
            flare, left = seconds_a_round(server, ledgers)
        finally:
            deployment.stop()
        print(f"seconds a round, 3 sites, 20 models, width {options.width}, {options.tiles} tiles a patient:")
        print(f"  in one process, one site after the other  {plain:8.2f}")
        print(f"  NVIDIA FLARE, mutual TLS, sites at once   {flare:8.2f}")
        print(f"  of these beside the slowest site's work   {left:8.2f}")
        print("\nMB a round and site (to the site, from the site), and in 30 rounds of selection from the site:")
        ledger = Path(hospitals.site("A").workspace) / "ledger.jsonl"
        for name, training in STRATEGIES.items():
            experiment = hospitals.protocol.experiment.model_dump(mode="json")
            experiment |= {"strategy": {"name": name}, "training": {**experiment["training"], **training, "rounds": 2}}
            with rewrite_protocol(hospitals, experiment=experiment):
                in_process(hospitals, f"bytes-{name}", folder / name)
            show(name, *bytes_a_round(ledger, f"bytes-{name}"))
        print(
            f"  features of one site's {SITES['A'][1]} patients, if they were uploaded instead: {features / 1e6:.1f} MB"
        )


def show(name: str, received: int, sent: int) -> None:
    print(f"  {name:20s} {received / 1e6:8.2f} {sent / 1e6:8.2f} {30 * sent / 1e6:10.1f}")


if __name__ == "__main__":
    main()
