"""What patient-level differential privacy costs a cohort of the workflow: AUROC against epsilon, with and without noise.

    python benchmarks/privacy_results.py results/demo [--rounds 15] [--noises 3]

FedAvg of the default head on a results folder's bags and features, by the hospitals' own private update (Poisson sampling,
clipping and noise a patient, epsilon by the privacy-loss distribution). It is a simulation: the floor of 20 patients an update, which
a hospital would not send less than, is not applied, so that small cohorts can be looked at too. For each epsilon the noise is sought that
spends it exactly; everything else is the same, the first weights and the order of patients included.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd
import torch
from made_hospitals import federated
from scipy.optimize import brentq

from mil.hospital.config import FederationSpec
from mil.hospital.forms import Shapes, slots
from mil.hospital.local import LocalWork
from mil.hospital.models import Refit, run_of
from mil.hospital.privacy import Charge, spent, steps_of
from mil.predictions.predict import predict
from mil.results.results import Results
from mil.statistics import delong, held_out
from mil.statistics.arms import patient_scores
from mil.training.store import FeatureStore

DELTA, BATCH, CLIP = 1e-2, 8.0, 1.0
EPSILONS = (None, 100.0, 30.0, 8.0, 2.0)


@dataclass
class Cohort:
    """What all runs share."""

    results: Results
    bags: pd.DataFrame
    store: FeatureStore
    sites: list[str]

    @classmethod
    def of(cls, folder: str) -> "Cohort":
        """The main experiment's bags and features."""
        results = Results.open(folder)
        bags = results.bags(results.endpoint)
        store = FeatureStore.open(bags, results.folder / "sites", results.experiments[results.main].encoder)
        return cls(results, bags, store, results.training_sites)

    def protocol(self, rounds: int, noise: float | None) -> FederationSpec:
        """As hospitals would agree on; `noise` none: not private."""
        main = self.results.experiments[self.results.main]
        training = {"rounds": rounds, "batch_size": int(BATCH), "lr": 0.003, "optimiser": "adam", "scaling": "none"}
        stanza = {"encoder": main.encoder, "endpoint": main.endpoint, "model": "gated_attention", "strategy": "fedavg"}
        privacy = {"noise": noise, "clip": CLIP, "expected_batch": BATCH, "epsilon": 1e9, "delta": DELTA}
        return FederationSpec.model_validate(
            {
                "federation": "simulated",
                "server": {"host": "localhost"},
                "trust": "coordinator",
                "sites": {site: {"role": "train", "organisation": site} for site in self.sites},
                "experiment": stanza | {"training": training},
                "endpoint": self.results.endpoints[self.results.endpoint].model_dump(mode="json"),
                "privacy": privacy if noise else None,
            }
        )

    def work(self, protocol: FederationSpec) -> dict[str, LocalWork]:
        """Of every training site, its own patients."""
        shapes, found = Shapes(protocol, self.store.width), {}
        for site in self.sites:
            own = self.bags[self.bags["site"] == site].reset_index(drop=True)
            there = FeatureStore.open(own, self.results.folder / "sites", protocol.experiment.encoder)
            found[site] = LocalWork(protocol, shapes, site, own, there)
        return found


def run(cohort: Cohort, rounds: int, noise: float | None, seed: int) -> pd.DataFrame:
    """All outer folds' models after `rounds`; a row for every model and patient that it may judge."""
    protocol = cohort.protocol(rounds, noise)
    work, wanted = cohort.work(protocol), slots(protocol, "refit")
    models = federated(protocol, work, rounds, seed)
    refit = Refit([], [rounds] * len(wanted), dict(cohort.store.about))
    trained = run_of(protocol, models, refit)
    return predict(trained, cohort.bags, cohort.store).table


def charges(cohort: Cohort, rounds: int, noise: float) -> list[Charge]:
    """Of a patient of the smallest site, who is in the models of all outer folds but one."""
    protocol = cohort.protocol(rounds, noise)
    assert protocol.privacy is not None
    wanted, found = slots(protocol, "refit"), []
    for one in cohort.work(protocol).values():
        counts = [len(one.train_patients(slot)) for slot in wanted]
        steps = rounds * sum(sorted((steps_of(protocol.privacy, count) for count in counts), reverse=True)[:-1])
        found.append(Charge(min(1.0, BATCH / min(counts)), noise, steps))
    return [max(found, key=lambda charge: spent([charge], DELTA).epsilon)]


def noise_for(cohort: Cohort, rounds: int, epsilon: float) -> float:
    """The noise that spends `epsilon`."""
    (charge,) = charges(cohort, rounds, 1.0)

    def excess(noise: float) -> float:
        return spent([Charge(charge.rate, noise, charge.steps)], DELTA).epsilon - epsilon

    return float(brentq(excess, 0.1, 300.0, xtol=0.01))


def auroc(table: pd.DataFrame, split: str) -> tuple[float, float, float]:
    """Within sites with its interval: of held-out patients pairs within folds, of external ones DeLong's on the logit scale."""
    own = table[table["split"] == split]
    if split == "held_out":
        return held_out.interval(held_out.pairs_of(own))[:3]
    scores = patient_scores(own)
    return delong.logit_interval(
        scores["label"].to_numpy(), scores["score"].to_numpy(), strata=scores["site"].to_numpy()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--noises", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cohort = Cohort.of(options.results)
    numbers = cohort.bags.groupby(["role", "site"]).size()
    print(", ".join(f"{site} {count} ({role})" for (role, site), count in numbers.items()), "patients")
    print(
        f"{options.rounds} rounds, delta {DELTA}, clip {CLIP}, {BATCH:g} patients a step on average; {options.noises} draws of noise"
    )
    print("| epsilon (PLD) | Renyi bound | noise | held out [95 %] | all draws | external [95 %] | all draws |")
    print("|---|---|---|---|---|---|---|")
    for epsilon in EPSILONS:
        noise = None if epsilon is None else noise_for(cohort, options.rounds, epsilon)
        cost = None if noise is None else spent(charges(cohort, options.rounds, noise), DELTA)
        draws = [run(cohort, options.rounds, noise, seed) for seed in range(1 if noise is None else options.noises)]
        cells = ["no noise", "", ""] if cost is None else [f"{cost.epsilon:.1f}", f"{cost.renyi:.1f}", f"{noise:.2f}"]
        for split in ("held_out", "external"):
            areas = [auroc(table, split) for table in draws]
            cells += ["{:.2f} [{:.2f}, {:.2f}]".format(*areas[0]), ", ".join(f"{area[0]:.2f}" for area in areas)]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
