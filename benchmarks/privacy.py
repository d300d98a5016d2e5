"""What patient-level differential privacy costs on real tissue: AUROC against epsilon, the same rounds with and without noise.

    python benchmarks/privacy.py [--rounds 15]

Three hospitals of about 50 patients (two train, one is external), the default head on the embedded encoder's features. For
each epsilon the noise is sought that spends it exactly; everything else is the same. One run each: differences of a few
hundredths are chance.
"""

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/oracles"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))

import inprocess
import torch
from hospitals import rewrite_protocol
from scipy.optimize import brentq
from tissue import SITES, make_tissue_hospitals, write_tissue

from mil.hospital.config import PrivacySpec
from mil.hospital.privacy import Charge, spent, steps_of
from mil.hospital.server import Server
from mil.hospital.site import Site
from mil.training.ledger import read

SHARED = Path(os.environ.get("MIL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
DELTA, BATCH, CLIP = 1e-2, 8.0, 1.0
FOLDS, FEWEST = 3, 32
"""Outer folds, and about the fewest patients that a model learns from."""


def noise_for(epsilon: float, rounds: int) -> float:
    """The noise that makes a patient, who is in the models of all folds but one, spend `epsilon` in `rounds`."""
    spec = PrivacySpec(noise=1.0, clip=CLIP, expected_batch=BATCH, epsilon=1.0, delta=DELTA)
    steps = (FOLDS - 1) * rounds * steps_of(spec, FEWEST)
    return brentq(
        lambda noise: spent([Charge(BATCH / FEWEST, noise, steps)], DELTA).epsilon - epsilon, 0.25, 200.0, xtol=0.01
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    training = {"rounds": options.rounds, "batch_size": 8, "lr": 0.003, "optimiser": "adam", "scaling": "none"}
    experiment = {"endpoint": "response", "model": "gated_attention", "strategy": "fedavg", "training": training}
    with tempfile.TemporaryDirectory() as temporary:
        hospitals = make_tissue_hospitals(Path(temporary), 8002, experiment, payload={"max_mb_a_round": 50.0})
        write_tissue(hospitals, SHARED)
        print("epsilon (delta 0.01)   noise   epsilon spent   AUROC A   AUROC B   AUROC C (external)")
        for wanted in (None, 100.0, 30.0, 8.0, 2.0):
            name = "off" if wanted is None else f"{wanted:g}"
            privacy, noise = None, 0.0
            if wanted is not None:
                noise = noise_for(wanted, options.rounds)
                parts = {"noise": noise, "clip": CLIP, "expected_batch": BATCH, "delta": DELTA}
                privacy = {**parts, "epsilon": 1e6}
            with rewrite_protocol(hospitals, privacy=privacy):
                for site in SITES:
                    for record in ("privacy.jsonl", "ledger.jsonl"):  # every row is a hospital's first run
                        (Path(hospitals.site(site).workspace) / record).unlink(missing_ok=True)
                sites = {site: Site.open(hospitals.site(site)) for site in SITES}
                inprocess.run(Server(hospitals.protocol, f"run-{name}", Path(temporary) / f"run-{name}"), sites)
            areas, epsilon = [], 0.0
            for site in SITES:
                lines = read(Path(hospitals.site(site).workspace) / "ledger.jsonl")
                areas.append([line["metric"] for line in lines if line["event"] == "result"][-1])
                epsilon = max(
                    [epsilon, *(line.get("epsilon", 0.0) for line in lines if line.get("run") == f"run-{name}")]
                )
            shown = "   ".join(f"{area:7.3f}" for area in areas)
            print(f"{name:>20s} {noise:7.2f} {epsilon:15.2f}   {shown}", flush=True)


if __name__ == "__main__":
    main()
