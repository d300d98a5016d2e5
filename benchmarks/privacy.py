"""What patient-level differential privacy costs: AUROC and membership attack against epsilon, beside the same rounds without noise.

    python benchmarks/privacy.py [--patients 50 200 1000] [--epsilons 30 8 2] [--picture PATH]
    python benchmarks/privacy.py --tissue

The real server and the real sites in one process, with masked sums and every site's own account. Two hospitals of so many made
patients train (`made_hospitals.py`), a third one with 240 patients judges. Two outer folds, so that each patient is in one model,
and a model learns from half of a site's patients. For each epsilon the noise is computed that spends it in all rounds. The last table
gives a run half of the budget that it needs: the round before which the sites stop, and what was spent. Membership is the loss threshold of
`membership.py` on the final models. One run each: differences of a few hundredths are chance.

`--tissue`: real tissue of about 50 patients a hospital, three outer folds, in place of made patients.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/oracles"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))

import inprocess
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from hospitals import Hospitals, make_hospitals, rewrite_protocol
from made_hospitals import MODEL, TRAINING, confidences, logits, make, noise_for
from membership import attack
from scipy.special import expit
from tissue import make_tissue_hospitals, write_tissue

from mil import hdf5
from mil.bags.table import deal_folds, read_bags
from mil.hospital.server import Server, SitesMissing
from mil.hospital.site import Site
from mil.specs.endpoints import EndpointSpec
from mil.statistics import delong
from mil.tables import write_table
from mil.training.artefact import Run
from mil.training.ledger import read

SHARED = Path(os.environ.get("MIL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
ROUNDS, FRESH, CLIP = 20, 240, 1.0
TISSUE = {"batch_size": 8, "lr": 0.003, "optimiser": "adam", "scaling": "none"}
SHOWN = (1, 2, 5, 10, 15, 20)


@dataclass
class Outcome:
    """What a run came to."""

    models: Run | None
    """None: it stopped at the budget."""
    spent: list[float]
    """Epsilon after each round, by the account of the site that spent most."""


@dataclass
class Setting:
    """How a cohort is trained: patients whom the smallest model learns from per site, and models that a patient is in."""

    inside: int
    models: int
    delta: float

    @property
    def batch(self) -> float:
        """Eight steps a round where batches then have eight patients or more."""
        return max(8.0, self.inside / 8)

    def privacy(self, epsilon: float) -> dict[str, float]:
        """Stanza whose noise spends `epsilon` in `ROUNDS` rounds."""
        known = {"clip": CLIP, "expected_batch": self.batch, "delta": self.delta}
        return {
            **known,
            "noise": noise_for(epsilon, known, self.inside, ROUNDS, self.models),
            "epsilon": 1.02 * epsilon,
        }


def write_made(results: Path, site: str, role: str, patients: int, endpoint: EndpointSpec) -> None:
    """A made site's feature files and bag table."""
    made = make(site, role, patients)
    for patient, tiles in made.tiles.items():
        with hdf5.writing(results / "sites" / site / "features" / "made" / f"{patient}.h5") as file:
            file.append("features", tiles)
            file.annotate({"encoder": "made", "weights_sha256": "0" * 64, "tile_mpp": 0.5, "size_px": 224})
    write_table(deal_folds(made.bags, endpoint), results / "bags" / "response.csv")


def outcome(hospitals: Hospitals, folder: Path, privacy: Mapping[str, float] | None) -> Outcome:
    """A hospital's first run under `privacy`."""
    with rewrite_protocol(hospitals, privacy=privacy):
        sites = list(hospitals.protocol.sites)
        for site in sites:
            workspace = Path(hospitals.site(site).workspace)
            shutil.rmtree(workspace / "runs", ignore_errors=True)
            for record in ("privacy.jsonl", "ledger.jsonl"):
                (workspace / record).unlink(missing_ok=True)
        server, found = Server(hospitals.protocol, folder.name, folder), None
        try:
            inprocess.run(server, {site: Site.open(hospitals.site(site)) for site in sites})
            found = Run.load(folder / "result")
        except SitesMissing as error:
            if set(error.missing.values()) != {"refused: budget"}:
                raise
        lines = [
            read(Path(hospitals.site(site).workspace) / "ledger.jsonl") for site in hospitals.protocol.training_sites
        ]
    rounds = [[line["epsilon"] for line in own if line.get("kind") == "train" and "epsilon" in line] for own in lines]
    return Outcome(found, [max(column) for column in zip(*rounds, strict=True)])


@contextmanager
def made_hospitals(patients: int) -> Iterator[Hospitals]:
    """Two training hospitals of so many patients and an external one."""
    stanza = {"encoder": "made", "endpoint": "response", "model": MODEL, "strategy": "fedavg"}
    training = {**TRAINING, "rounds": ROUNDS, "batch_size": int(Setting(patients // 2, 1, 0.1).batch)}
    sites = {**dict.fromkeys("AB", ("train", patients)), "C": ("external", FRESH)}
    with tempfile.TemporaryDirectory() as folder:
        inner = 10 if patients < 100 else 4  # a model learns from 20 patients or more
        experiment, endpoint = {**stanza, "training": training}, {"folds": 2, "inner_folds": inner}
        yield make_hospitals(Path(folder), 8002, sites, write_made, experiment=experiment, endpoint=endpoint)


def judged(hospitals: Hospitals, run: Run, patients: int) -> list[tuple[float, float, float]]:
    """AUROC of the external patients by the mean of the models, and of the membership attack, each with its interval."""
    weights, protocol = dict(run.families[0].weights), hospitals.protocol
    fresh = {"C": make("C", "external", FRESH)}
    scores = expit(logits(protocol, weights, fresh)).mean(axis=0)
    made = {site: make(site, "train", patients) for site in "AB"}
    bags = pd.concat([read_bags(Path(hospitals.site(s).results) / "bags" / "response.csv") for s in made])
    order = pd.concat([one.bags for one in made.values()])["patient_id"]
    folds = bags.set_index("patient_id").loc[order, "repeat0"].astype(int).to_numpy()
    member = np.stack([(folds != fold).astype(int) for fold in run.models["fold"]])
    labels = fresh["C"].bags["label"].to_numpy()
    return [delong.logit_interval(labels, scores), attack(confidences(protocol, weights, made), member)]


def price(patients: int, epsilons: list[float]) -> list[dict]:
    """The rows of one size of cohort, printed as they come."""
    setting, rows = Setting(patients // 2, 1, 0.2 / patients), []
    with made_hospitals(patients) as hospitals, tempfile.TemporaryDirectory() as folder:
        for epsilon in (None, *epsilons):
            privacy = None if epsilon is None else setting.privacy(epsilon)
            found = outcome(hospitals, Path(folder) / f"run-{epsilon}", privacy)
            assert found.models is not None
            use, membership = judged(hospitals, found.models, patients)
            row = {"patients": patients, "epsilon": epsilon, "spent": found.spent, "use": use, "membership": membership}
            rows.append(row)
            shown = [epsilon or "none", "" if privacy is None else f"{privacy['noise']:.2f}"]
            after = [f"{found.spent[number - 1]:.2f}" if found.spent else "" for number in SHOWN]
            shown += ["{:.2f} [{:.2f}, {:.2f}]".format(*part) for part in (use, membership)]
            print(f"| {patients} | {' | '.join(map(str, [*shown, *after]))} |", flush=True)
        privacy = setting.privacy(epsilons[-1])
        stopped = outcome(hospitals, Path(folder) / "half", {**privacy, "epsilon": epsilons[-1] / 2})
        assert stopped.models is None
        told = f"budget {epsilons[-1] / 2:g} with noise {privacy['noise']:.2f}: no model; stopped before round {len(stopped.spent) + 1}"
        print(f"| {patients} | {told} of {ROUNDS}, {stopped.spent[-1]:.3f} spent |", flush=True)
        rows.append({"patients": patients, "stopped": stopped.spent, "budget": epsilons[-1] / 2})
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """Left: AUROC and the attack's AUROC against epsilon; right: epsilon after every round, and where runs stop."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.0), layout="constrained")
    colours = dict(zip(sorted({row["patients"] for row in rows}), ("#0072b2", "#d55e00", "#009e73"), strict=False))
    for patients, colour in colours.items():
        own = [row for row in rows if row["patients"] == patients and "use" in row]
        ticks = [str(row["epsilon"] and f"{row['epsilon']:g}") for row in own]
        for part, style, name in (("use", "o-", "new patients"), ("membership", "s:", "membership")):
            values = np.array([row[part] for row in own])
            errors = np.abs(values[:, 1:] - values[:, :1]).T
            places = np.arange(len(own)) + 0.06 * (list(colours).index(patients) - 1)
            left.errorbar(places, values[:, 0], errors, fmt=style, color=colour, ms=4, label=f"{patients}, {name}")
        left.set_xticks(range(len(own)), [tick.replace("None", "none") for tick in ticks])
        for row in (row for row in rows if row["patients"] == patients and row.get("spent")):
            right.plot(range(1, ROUNDS + 1), row["spent"], color=colour, lw=1)
        for row in (row for row in rows if row["patients"] == patients and "stopped" in row):
            spent = row["stopped"]
            right.plot(
                range(1, len(spent) + 1),
                spent,
                "x",
                color=colour,
                ms=4,
                label=f"{patients}, stops at {row['budget']:g}",
            )
    left.axhline(0.5, color="0.7", lw=0.8)
    left.set(xlabel="epsilon of a patient (none: no noise)", ylabel="AUROC", ylim=(0.3, 1.0))
    right.set(xlabel="round", ylabel="epsilon spent", yscale="log")
    right.yaxis.set_major_formatter("{x:g}")
    right.xaxis.get_major_locator().set_params(integer=True)
    for axes, columns in ((left, 3), (right, 1)):
        place = {"loc": "upper left", "bbox_to_anchor": (0, -0.2)} if columns > 1 else {"loc": "lower right"}
        axes.legend(fontsize=7, title="patients per site", title_fontsize=7, ncols=columns, **place)
    figure.savefig(path, dpi=150)


def tissue(epsilons: list[float]) -> None:
    """The table on real tissue: AUROC at each site by its own ledger."""
    setting = Setting(32, 2, 1e-2)
    stanza = {"endpoint": "response", "model": "gated_attention", "strategy": "fedavg"}
    with tempfile.TemporaryDirectory() as temporary:
        experiment = {**stanza, "training": {**TISSUE, "rounds": ROUNDS}}
        hospitals = make_tissue_hospitals(Path(temporary), 8002, experiment, payload={"max_mb_a_round": 50.0})
        write_tissue(hospitals, SHARED)
        print("| epsilon | noise | spent | AUROC A | AUROC B | AUROC C (external) |\n|---|---|---|---|---|---|")
        for epsilon in (None, *epsilons):
            privacy = None if epsilon is None else setting.privacy(epsilon)
            found = outcome(hospitals, Path(temporary) / f"run-{epsilon}", privacy)
            ledgers = [Path(hospitals.site(site).workspace) / "ledger.jsonl" for site in hospitals.protocol.sites]
            areas = [[line["metric"] for line in read(path) if line["event"] == "result"][-1] for path in ledgers]
            shown = [epsilon or "none", "" if privacy is None else f"{privacy['noise']:.2f}"]
            shown += [f"{found.spent[-1]:.2f}" if found.spent else "", *(f"{area:.2f}" for area in areas)]
            print(f"| {' | '.join(map(str, shown))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, nargs="+", default=[50, 200, 1000], help="patients per site")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[30.0, 8.0, 2.0])
    parser.add_argument("--picture", type=Path, help="draw the tables here too")
    parser.add_argument("--rows", type=Path, help="JSON file of earlier calls' rows: drawn too, and these are added")
    parser.add_argument("--tissue", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    if options.tissue:
        tissue(options.epsilons)
        return
    after = " | ".join(f"after round {number}" for number in SHOWN)
    print(f"| patients per site | epsilon | noise | AUROC, new patients | membership attack | {after} |")
    print("|---" * (5 + len(SHOWN)) + "|")
    rows = json.loads(options.rows.read_text()) if options.rows and options.rows.exists() else []
    rows += [row for patients in options.patients for row in price(patients, options.epsilons)]
    if options.rows:
        options.rows.write_text(json.dumps(rows))
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
