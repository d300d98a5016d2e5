"""How a round between hospitals grows with the number of sites and with the size of the head: seconds, bytes, peak memory.

    python benchmarks/hospital_growth.py --sites 2 5 20              # a light head of 3,000 numbers
    python benchmarks/hospital_growth.py --sites 2 3 --hidden 2048   # a head of 10 million numbers
    python benchmarks/hospital_growth.py --sites 3 --hidden 512 --folds 4    # 16 models in a message

The real server and the real sites with masked sums, one process for the coordinator and one for each site, on one machine. Messages
are files, as FLARE's side handles them (`mil/hospital/flare/pieces.py`); the network, TLS and FLARE's own memory are left out, so
that 20 sites fit. Two outer and two inner folds: a message carries four models (`--folds`: as many of either; their product). Peak memory of a process is its largest resident set
less the one that it began with; a site's is the largest of all sites. A round is from one question to the next, all sites at once.
"""

import argparse
import logging
import multiprocessing
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))

import numpy as np
import pandas as pd
import torch
from hospitals import Hospitals, make_hospitals

from mil import hdf5
from mil.bags.table import deal_folds
from mil.hospital.server import Server
from mil.hospital.site import Site
from mil.specs.endpoints import EndpointSpec
from mil.tables import write_table

PATIENTS, TILES = 88, 4
"""Patients of a site: a model of an inner fold then learns from 22, and 20 is the floor."""


def write_site(results: Path, site: str, role: str, patients: int, endpoint: EndpointSpec, width: int) -> None:
    """Features of random numbers and the bag table."""
    generator, rows = np.random.default_rng([ord(letter) for letter in site]), []
    for number in range(patients):
        name = f"{site}{number:03d}"
        with hdf5.writing(results / "sites" / site / "features" / "made" / f"{name}.h5") as file:
            file.append("features", generator.normal(size=(TILES, width)).astype(np.float16))
            file.annotate({"encoder": "made", "weights_sha256": "0" * 64, "tile_mpp": 0.5, "size_px": 224})
        rows.append({"patient_id": name, "slides": name, "site": site, "role": role, "label": number % 2})
    write_table(deal_folds(pd.DataFrame(rows), endpoint), results / "bags" / "response.csv")


def make(folder: Path, sites: int, hidden: int, width: int, rounds: int, folds: int) -> Hospitals:
    """So many training hospitals."""
    model = {"name": "gated_attention", "hidden": hidden, "attention": hidden}
    experiment = {"encoder": "made", "endpoint": "response", "model": model, "strategy": "fedavg"}
    return make_hospitals(
        folder,
        8002,
        {f"S{number:02d}": ("train", PATIENTS) for number in range(sites)},
        lambda *given: write_site(*given, width),
        experiment={**experiment, "training": {"rounds": rounds, "batch_size": 16}},
        endpoint={"folds": folds, "inner_folds": folds},
        payload={"max_mb_a_round": 4000.0},
        metrics="sums",
    )


def peak() -> float:
    """Largest resident set of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def serve(hospitals: Hospitals, name: str, line: Connection) -> None:
    """A site's process: paths of questions in, paths of answers and its memory out."""
    torch.set_num_threads(1)
    before, site = peak(), Site.open(hospitals.site(name))
    for question in iter(line.recv, None):
        answer = Path(site.spec.workspace) / "answer"
        site.answer_file(question, answer)
        line.send((answer, peak() - before))


def measure(sites: int, hidden: int, width: int, rounds: int, folds: int) -> None:
    """Print the row of so many sites."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        hospitals = make(folder, sites, hidden, width, rounds, folds)
        lines, processes = {}, []
        for name in hospitals.protocol.sites:
            here, there = multiprocessing.Pipe()
            processes.append(multiprocessing.Process(target=serve, args=(hospitals, name, there), daemon=True))
            processes[-1].start()
            lines[name] = here
        before, server, most = peak(), Server(hospitals.protocol, "run", folder / "run"), 0.0
        seconds, sizes = [], (0, 0)
        while server.kind != "done" and len(seconds) < rounds:
            started, kind = time.monotonic(), server.kind
            question = server.question_file()
            for name in server.asked:
                lines[name].send(question)
            told = {name: lines[name].recv() for name in server.asked}
            answers = {name: answer for name, (answer, _) in told.items()}
            server.receive(answers, {})
            most = max(most, *(used for _, used in told.values()))
            if kind == "train":
                seconds.append(time.monotonic() - started)
                sizes = question.stat().st_size, next(iter(answers.values())).stat().st_size
        own = peak() - before
        numbers = sum(value[0].numel() for value in server.stages.state.values())
        for line in lines.values():
            line.send(None)
        for process in processes:
            process.join(10)
    cells = [
        f"{sites}",
        f"{folds * folds}",
        f"{numbers:,}",
        f"{seconds[-1]:.1f}",
        f"{sizes[0] / 1e6:,.1f}",
        f"{sizes[1] / 1e6:,.1f}",
    ]
    print(f"| {' | '.join([*cells, f'{own:,.0f}', f'{most:,.0f}'])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 5, 20])
    parser.add_argument("--hidden", type=int, default=32, help="width of the embedding and of attention")
    parser.add_argument("--folds", type=int, default=2, help="outer folds, and as many inner ones")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork")
    print(
        "| sites | models | numbers of a head | s a round | MB to a site | MB from a site | coordinator, MB | site, MB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for sites in options.sites:
        width = 32 if options.hidden < 1024 else 1024
        row = multiprocessing.Process(
            target=measure, args=(sites, options.hidden, width, options.rounds, options.folds)
        )
        row.start()  # a process of its own, so that its peak memory is this row's
        row.join()
        if row.exitcode:
            raise SystemExit(row.exitcode)


if __name__ == "__main__":
    main()
