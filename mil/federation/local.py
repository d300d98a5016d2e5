"""One site's part of the rounds: global models in, the site's updates out. Knows patients and features, and no network."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mil.endpoints import build_endpoint
from mil.federation.config import FederationSpec
from mil.federation.forms import SCALE, Slot
from mil.models import build
from mil.rng import seed_of
from mil.training.cohort import Cohort
from mil.training.engine import Engine, Learners
from mil.training.optimisers import OptimiserState
from mil.training.scaling import Moments
from mil.training.store import FeatureStore


@dataclass(frozen=True)
class Update:
    """A site's answer about some models: their states (models, ...), patients, steps and mean training loss (models,)."""

    state: dict[str, Tensor]
    num_bags: Tensor
    num_steps: Tensor
    train_loss: Tensor


class LocalWork:
    """A training site's cohort and engine."""

    def __init__(self, protocol: FederationSpec, site: str, bags: pd.DataFrame, features: FeatureStore) -> None:
        endpoint = build_endpoint(protocol.endpoint)
        self.site, self.training = site, protocol.experiment.training
        self.cohort = Cohort.of(bags, protocol.endpoint, endpoint)
        store = features.only(self.cohort.patients)
        self.moments = Moments.of(store)
        head = build(protocol.experiment.model, features.width, endpoint.outputs)
        if head.only_mean and self.training.max_tiles is None:
            store = store.means()
        self.engine = Engine(head, endpoint, self.training, store, self.cohort.targets)
        self.bag = np.array([store.index()[patient] for patient in self.cohort.patients])

    def train_patients(self, slot: Slot) -> np.ndarray:
        """Patient numbers that a slot's model learns from."""
        seen, inner = self._seen(slot)
        return seen if slot.inner is None else seen[inner != slot.inner]

    def watched_patients(self, slot: Slot) -> np.ndarray:
        """Patient numbers whose loss selects the number of rounds; none in the refit."""
        seen, inner = self._seen(slot)
        return seen[:0] if slot.inner is None else seen[inner == slot.inner]

    def moments_of(self, slots: Sequence[Slot]) -> dict[str, Tensor]:
        """Number, mean and sum of squared deviations of the tiles that each slot's model learns from."""
        parts = [self.moments.merged(self.bag[self.train_patients(slot)]) for slot in slots]
        together = Moments.stacked(parts)
        patients = torch.tensor([len(self.train_patients(slot)) for slot in slots], dtype=torch.int64)
        return {
            "count": torch.from_numpy(together.count),
            "mean": torch.from_numpy(together.mean),
            "squares": torch.from_numpy(together.squares),
            "num_bags": patients,
        }

    def train(self, models: dict[str, Tensor], slots: Sequence[Slot], number: int) -> Update:
        """Every slot's global model, trained for round `number` on the site's own patients with a fresh optimiser."""
        learners = self._learners(models)
        order = self._order(number)
        plans, streams = [], []
        for slot in slots:
            patients = self.train_patients(slot)
            plan: list[np.ndarray] = []
            for epoch in order:
                chosen = self.bag[patients[np.argsort(epoch[patients], kind="stable")]]
                size = self.training.batch_size
                plan += [chosen[k : k + size] for k in range(0, len(chosen), size)]
            plans.append(plan)
            names = (slot.repeat, slot.fold, slot.inner, self.site, number)
            streams.append(seed_of(self.training.seed, "dropout", *names))
        losses = self.engine.train(learners, OptimiserState.zeros(learners.rows), plans, streams)
        return Update(
            {name: view.clone() for name, view in self.engine.layout.views(learners.rows).items()},
            torch.tensor([len(self.train_patients(slot)) for slot in slots], dtype=torch.int64),
            torch.tensor([len(plan) for plan in plans], dtype=torch.int64),
            torch.from_numpy(losses),
        )

    def rehearse(self, models: dict[str, Tensor]) -> None:
        """One step of the models on all bags there are, to see that it works; what comes of it is dropped."""
        learners = self._learners(models)
        plans = [[self.bag] for _ in range(len(learners.rows))]
        self.engine.train(learners, OptimiserState.zeros(learners.rows), plans, [0] * len(plans))

    def watch(
        self, models: dict[str, Tensor], slots: Sequence[Slot], groups: Sequence[Sequence[int]]
    ) -> dict[str, Tensor]:
        """Sum of the loss over the site's patients of the inner folds, and their number, for each group of slots."""
        if not groups:
            return {}
        patients = [self.watched_patients(slot) for slot in slots]
        logits = self.engine.logits(self._learners(models), [self.bag[group] for group in patients])
        endpoint = self.engine.endpoint
        sums = [
            endpoint.losses(
                torch.from_numpy(found).double(), torch.from_numpy(self.cohort.targets[group]).double()
            ).sum()
            for found, group in zip(logits, patients, strict=True)
        ]
        return {
            "watched_loss": torch.stack([torch.stack([sums[number] for number in group]).sum() for group in groups]),
            "watched_bags": torch.tensor([sum(len(patients[number]) for number in group) for group in groups]),
        }

    def _seen(self, slot: Slot) -> tuple[np.ndarray, np.ndarray]:
        seen = self.cohort.outer_train([self.site], slot.repeat, slot.fold)
        return seen, self.cohort.inner[seen, slot.repeat, slot.fold]

    def _order(self, number: int) -> list[np.ndarray]:
        """For every local epoch a key of each patient, drawn from the patient's own name; patients are visited by rising key."""
        return [
            np.array([seed_of(self.training.seed, "order", number, epoch, patient) for patient in self.cohort.patients])
            for epoch in range(self.training.local_epochs)
        ]

    def _learners(self, models: dict[str, Tensor]) -> Learners:
        rows = torch.cat([models[name].reshape(len(models[name]), -1) for name in self.engine.layout.shapes], dim=1)
        mean, deviation = (models[name] for name in SCALE)
        lr, decay = self.training.lr, self.training.weight_decay
        return Learners(rows, mean, deviation, torch.full((len(rows), 1), lr), torch.full((len(rows), 1), decay))
