"""Patient-level differential privacy: a patient's gradient is clipped, the sum over a Poisson sample of patients gets noise.

The unit is the patient: all of a patient's slides are one bag, so one gradient (DP-SGD, Abadi et al. 2016, doi
10.1145/2976749.2978318). What each update costs is counted before it is sent, over all runs at the site, and nothing is
sent once the budget would be exceeded. Epsilon comes from the privacy-loss distribution (Koskela et al. 2020, by
dp-accounting), which is an upper bound and tight; Renyi's, looser, stands beside it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mil.errors import MilError
from mil.hospital.config import FederationSpec, PrivacySpec
from mil.hospital.forms import Slot
from mil.hospital.keys import PartyKey
from mil.hospital.noise import SecretStream
from mil.hospital.parties import SiteSpec
from mil.hospital.payload import Refusal
from mil.hospital.record import LedgerFile
from mil.models.head import Inputs
from mil.strategies.aggregation import State
from mil.training.client import Job, SiteData, Update
from mil.training.dropout import combined, step_key
from mil.training.layout import RowLayout
from mil.training.ledger import parsed
from mil.training.optimisers import OPTIMISERS, OptimiserState, clip, schedule
from mil.training.packing import Places, pack
from mil.training.plans import dropout_stream

GRID = 1e-3
"""Of the privacy-loss distribution; it is rounded up, and 1e-4 changes the third decimal place of epsilon."""
NUMBERS = 2**24
"""Most numbers of patients' gradients that are held at once."""
ORDERS = [2 + x / 4 for x in range(40)] + list(range(12, 64)) + [128, 256, 512, 1024]


class BudgetSpent(Refusal):
    """Another update would cost more than patients were promised."""

    code = "budget"


@dataclass(frozen=True)
class Charge:
    """`steps` times: patients drawn with chance `rate`, noise of standard deviation `noise` x the clipping norm."""

    rate: float
    noise: float
    steps: int


@dataclass(frozen=True)
class Spent:
    """Epsilon at a delta; `renyi` is the looser bound."""

    epsilon: float
    renyi: float


def spent(charges: Sequence[Charge], delta: float) -> Spent:
    """What all charges together cost a patient (neighbours: one patient more or less)."""
    return _spent(tuple(charge for charge in charges if charge.steps), delta)


@lru_cache(maxsize=64)
def _spent(charges: tuple[Charge, ...], delta: float) -> Spent:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent  # seconds to import, and few runs need them
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    if not charges:
        return Spent(0.0, 0.0)
    accountant = PLDAccountant(value_discretization_interval=GRID)
    renyi = RdpAccountant(ORDERS)
    for charge in charges:
        event = PoissonSampledDpEvent(charge.rate, GaussianDpEvent(charge.noise))
        accountant.compose(event, charge.steps)
        renyi.compose(event, charge.steps)
    return Spent(float(accountant.get_epsilon(delta)), float(renyi.get_epsilon(delta)))


class Budget:
    """What a site's patients have been charged so far, in all runs; a hash-chained file that outlives every process."""

    def __init__(self, path: str | Path, site: str, key: PartyKey, epsilon: float, delta: float) -> None:
        self.record = LedgerFile(path, site, key)
        self.epsilon, self.delta = epsilon, delta

    def charge(self, run: str, number: int, question: str, spec: PrivacySpec, patients: Mapping[Slot, int]) -> Spent:
        """Count a round's updates of these slots before they are made; `BudgetSpent` if that is too much.

        The same question again costs nothing more: the answer will be the same, noise included.
        """
        entry = {"run": run, "round": number, "question": question}
        self.record.refresh()
        known = self._charges()
        if not any(entry.items() <= line.items() for line in known):
            rate = min(1.0, spec.expected_batch / min(patients.values()))
            steps = {slot.name: steps_of(spec, count) for slot, count in patients.items()}
            new = {**entry, "rate": rate, "noise": spec.noise, "steps": steps}
            after = spent(_worst([*known, new]), self.delta)
            if after.epsilon > self.epsilon:
                raise BudgetSpent(
                    f"site {self.record.actor}: round {number} of run {run} would bring epsilon to {after.epsilon:.3f} at "
                    f"delta {self.delta:g}, over the budget of {self.epsilon:g}; nothing was sent, and nothing more will be"
                )
            self.record.add(new)
        return self.so_far()

    def hold_against(self, ledger: Sequence[str]) -> None:
        """Raise where the site's ledger has rounds that stand in no charge, or a larger epsilon: charges were cut off the account."""
        known = [entry for line in ledger if '"epsilon"' in line and "epsilon" in (entry := json.loads(line))]
        most = max((line["epsilon"] for line in known if line.get("delta") == self.delta), default=0.0)
        lost = {(line["run"], line["round"]) for line in known if "round" in line} - {
            (charge["run"], charge["round"]) for charge in self._charges()
        }
        if lost or (most > 0 and self.so_far().epsilon < most - 1e-9):
            raise BudgetSpent(
                f"{self.record.path}: epsilon {self.so_far().epsilon:.3f}, but the site's ledger has {most:.3f} and {len(lost)} rounds "
                "that were not charged; charges were cut off, so nothing more is sent. Restore the file from the workspace's backup"
            )

    def so_far(self) -> Spent:
        """Of the patient who was charged most."""
        return spent(_worst(self._charges()), self.delta)

    def _charges(self) -> list[dict]:
        return [line for line in parsed(self.record.lines, str(self.record.path)) if "steps" in line]


def open_budget(
    protocol: FederationSpec, site: SiteSpec, key: PartyKey, patients: int, ledger: Sequence[str]
) -> Budget | None:
    """The site's account, compared with its `ledger`; none where the protocol has no privacy."""
    privacy = protocol.privacy
    if privacy is None:
        return None
    if privacy.delta * patients >= 1:
        raise MilError(
            f"federation.yaml: privacy.delta {privacy.delta:g} promises nothing to {patients} patients; it must be well below "
            f"{1 / patients:.2g}"
        )
    most = min(privacy.epsilon, site.epsilon or privacy.epsilon)
    budget = Budget(Path(site.workspace) / "privacy.jsonl", site.site, key, most, privacy.delta)
    budget.hold_against(ledger)
    return budget


def _worst(lines: Sequence[Mapping]) -> list[Charge]:
    """Charges of the patient who is in the most models: of every round, all but the cheapest of its outer folds.

    A patient is held out of one outer fold of each repeat, always the same. Where the folds of a run and repeat were not
    charged alike in every round, nothing is left out.
    """
    rounds: dict[tuple[str, str], list[tuple[float, float, dict[str, int]]]] = {}
    for line in lines:
        repeats: dict[str, dict[str, int]] = {}
        for name, steps in line["steps"].items():
            repeats.setdefault(name.rsplit("/", 1)[0], {})[name] = steps
        for repeat, folds in repeats.items():
            rounds.setdefault((line["run"], repeat), []).append((line["rate"], line["noise"], folds))
    totals: dict[tuple[float, float], int] = {}
    for charges in rounds.values():
        alike = len(charges[0][2]) > 1 and all(folds == charges[0][2] for _, _, folds in charges)
        for rate, noise, folds in charges:
            steps = sum(folds.values()) - (min(folds.values()) if alike else 0)
            totals[rate, noise] = totals.get((rate, noise), 0) + steps
    return [Charge(rate, noise, steps) for (rate, noise), steps in sorted(totals.items())]


def steps_of(spec: PrivacySpec, patients: int) -> int:
    """Steps a round: as many as make one pass over the patients on average."""
    return max(1, round(patients / min(spec.expected_batch, patients)))


def private_update(state: State, job: Job, site: SiteData, spec: PrivacySpec, stream: SecretStream) -> Update:
    """`client_update` with privacy: the update tells of no patient more than the noise allows. It carries no loss."""
    layout = RowLayout({name: value.numpy() for name, value in state.items()})
    rows = torch.from_numpy(layout.flat({name: value.numpy() for name, value in state.items()}))[None]
    start, training = rows.clone(), site.training
    optimise = OPTIMISERS[training.optimiser]
    memory = OptimiserState.zeros(rows, second=training.optimiser != "sgd")
    rate = job.lr * schedule(training.schedule, job.number - 1, training.rounds, training.warmup)
    lr, decay = torch.tensor([[rate]]), torch.tensor([[job.weight_decay]])
    count = steps_of(spec, len(site.bags))
    expected = min(spec.expected_batch, len(site.bags))
    dropped = dropout_stream(training.seed, job.task, job.site, job.number)
    at_once = max(1, NUMBERS // layout.size)
    for number in range(count):
        drawn = site.bags[stream.uniform(len(site.bags)) < expected / len(site.bags)]
        total, key = torch.zeros(layout.size, dtype=torch.float64), step_key(dropped, number)
        for at in range(0, len(drawn), at_once):
            gradients = patient_gradients(layout.views(rows), drawn[at : at + at_once], site, key)
            total += clipped(gradients, spec.clip).double().sum(0)
        noise = torch.from_numpy(stream.normal(layout.size)) * (spec.noise * spec.clip)
        gradient = ((total + noise) / expected).float()[None]
        gradient += job.mu * (rows - start)
        if training.clip_norm is not None:
            clip(gradient, training.clip_norm)
        optimise(rows, gradient, memory, lr, decay, training.momentum)
    final = {name: view[0].clone() for name, view in layout.views(rows).items()}
    return Update(final, len(site.bags), count, 0.0)


def patient_gradients(weights: Mapping[str, Tensor], bags: np.ndarray, site: SiteData, key: int) -> Tensor:
    """Gradient of each patient's loss, all slides together, as rows (bags, size): a model of its own for each of them.

    `weights` (1, ...): the model that all of them have. A row follows from the patient's own tiles alone: padding is the patient's
    first tile, as another's would carry an overflow over.
    """
    models = {
        name: value[0].detach().expand(len(bags), *value.shape[1:]).requires_grad_() for name, value in weights.items()
    }
    places = Places.of(site.store.starts[bags], site.store.sizes[bags])
    packed = pack(torch.arange(len(bags))[:, None], places, int(places.sizes.max()))
    rows = torch.where(packed.mask.squeeze(1), packed.rows, places.starts[:, None])
    source = site.source or site.store.source(torch.device("cpu"))
    tiles = source.take(rows.flatten()).float().view(*rows.shape, -1)
    tiles = (tiles - site.buffers["features.mean"]) / site.buffers["features.deviation"]
    keys = None
    if site.head.dropout:
        keys = combined(torch.tensor(key), site.store.patient_keys()[bags][packed.owner], packed.rank)
    output = site.head(models, Inputs(tiles, packed.mask, None, True, keys))
    targets, present = site.targets[bags][:, None], torch.ones(len(bags), 1, dtype=torch.bool)
    losses = site.head.losses(output, targets, present, site.endpoint)
    parts = torch.autograd.grad(losses.sum(), list(models.values()), allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(value) if part is None else part).flatten(1)
            for part, value in zip(parts, models.values(), strict=True)
        ],
        dim=1,
    )


def clipped(gradients: Tensor, norm: float) -> Tensor:
    """The gradients (..., size), each shortened to `norm` where it is longer; 0 for one that is not finite.

    NaN would be refused, and a refusal without noise tells who is in the batch.
    """
    kept = gradients.where(gradients.isfinite().all(-1, keepdim=True), 0.0)
    return kept * (norm / kept.norm(dim=-1, keepdim=True)).clamp(max=1.0)
