"""One site's part of the rounds: global models in, the site's updates out. Knows patients and features, and no network.

The arithmetic is `client_update`, the same that the reference driver calls.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mil.hospital.config import FLOOR_STEPS, FederationSpec
from mil.hospital.forms import BALANCE, CONTROL, PARTS, Shapes, Slot
from mil.hospital.noise import SecretStream
from mil.hospital.parties import SiteSpec
from mil.hospital.payload import TooFewPatients
from mil.hospital.privacy import private_update
from mil.hospital.sums import has_few
from mil.statistics.moments import Moments
from mil.training.client import CPU, Job, SiteData, Update, client_update, finetune
from mil.training.cohort import TrainingCohort
from mil.training.engine import Data, Engine, Learners
from mil.training.packing import Places
from mil.training.plans import first_weights, reach
from mil.training.precision import Computing
from mil.training.protocol import candidates
from mil.training.store import FeatureStore

Named = Mapping[str, Tensor]
Trained = tuple[Update, dict[str, Tensor] | None]
"""A slot's update, and the control variate that the site keeps."""


def device_of(spec: SiteSpec, protocol: FederationSpec) -> torch.device:
    """Where a site trains: the CPU, unless its own file wants a card and no noise has to be drawn alike again."""
    return CPU if spec.device == "cpu" or protocol.privacy is not None else Computing.best("fp32").device


class LocalWork:
    """A training site's cohort, in the shapes of the protocol's models."""

    def __init__(
        self,
        protocol: FederationSpec,
        shapes: Shapes,
        site: str,
        bags: pd.DataFrame,
        features: FeatureStore,
        device: torch.device = CPU,
    ) -> None:
        self.device, self.source = device, features.source(device)
        self.protocol, self.shapes, self.site, self.bags, self.features = protocol, shapes, site, bags, features
        self.training = protocol.experiment.training
        self.candidates = candidates(protocol.experiment)
        self.cohort = TrainingCohort.of(bags, protocol.endpoint, shapes.endpoint, protocol.experiment.covariates)
        self.bag = features.require(self.cohort.patients)
        order = np.argsort(self.bag)  # the patient of every bag
        self.targets = torch.from_numpy(self.cohort.targets[order])
        known = self.cohort.covariates[order]
        self.covariates = torch.from_numpy(known) if known.shape[1] else None
        self.measured: dict[str, Moments] = {}

    def train_patients(self, slot: Slot) -> np.ndarray:
        """Patient numbers that a slot's model learns from."""
        seen, inner = self._seen(slot)
        return seen if slot.inner is None else seen[inner != slot.inner]

    def watched_patients(self, slot: Slot) -> np.ndarray:
        """Patient numbers whose loss selects the number of rounds; none in the refit."""
        seen, inner = self._seen(slot)
        return seen[:0] if slot.inner is None else seen[inner == slot.inner]

    def check_patients(self, chosen: Sequence[Slot], kind: str, least: int) -> None:
        """Raise `TooFewPatients` where a model would learn from fewer than `least` patients, or by a single step."""
        for slot in chosen:
            patients = len(self.train_patients(slot))
            steps, seen = reach(self.training, patients)
            if self.protocol.privacy is not None:
                seen = patients
            elif kind == "train" and steps < FLOOR_STEPS:
                raise TooFewPatients(
                    f"site {self.site}: {slot.name} would be {steps} step of {patients} patients, which is their gradient; "
                    "nothing was sent. Use smaller batches or more local work"
                )
            if seen < least:
                raise TooFewPatients(
                    f"site {self.site}: {slot.name} would learn from {seen} patients, fewer than {least}; nothing was sent"
                )

    def moments_of(self, slots: Sequence[Slot], small_cells: int) -> dict[str, Tensor]:
        """Of each slot: its patients' number, moments, and the sizes of its classes where the protocol weighs classes.

        Raise `TooFewPatients` for a class with fewer than `small_cells` patients, and for a covariate that is known of fewer.
        """
        patients = [self.train_patients(slot) for slot in slots]
        tensors = {"num_bags": torch.tensor([len(rows) for rows in patients], dtype=torch.int64)}
        for name in self.shapes.measured:
            parts = Moments.stacked([self._moments(name).merged(rows) for rows in patients])
            tensors |= {f"{name}.{part}": torch.from_numpy(getattr(parts, part)) for part in PARTS}
            if ((parts.count > 0) & (parts.count < small_cells)).any():
                raise TooFewPatients(
                    f"site {self.site}: of {name} too little is known: a model would be told the mean of fewer than {small_cells} "
                    "patients; nothing was sent. Leave the column out"
                )
        columns = (
            [] if self.shapes.masked else [column[rows] for column in self.cohort.covariates.T for rows in patients]
        )
        if any(has_few(column, small_cells) for column in columns):
            raise TooFewPatients(
                f"site {self.site}: a covariate has a value of fewer than {small_cells} patients that a model would learn from, and its "
                "mean tells their number; nothing was sent. Leave the column out, or use trust: sites, where only sums over all sites are seen"
            )
        if self.shapes.balanced:
            classes = self.shapes.endpoint.class_of(torch.from_numpy(self.cohort.targets)).numpy()
            counts = [np.bincount(classes[rows], minlength=self.shapes.endpoint.classes) for rows in patients]
            tensors["classes"] = torch.from_numpy(np.stack(counts).astype(np.int64))
            if ((tensors["classes"] > 0) & (tensors["classes"] < small_cells)).any():
                raise TooFewPatients(
                    f"site {self.site}: a model would learn from fewer than {small_cells} patients of a class, "
                    "and imbalance asks for their number; nothing was sent. Use imbalance none, or fewer folds"
                )
        return tensors

    def counts_of(self, updates: Sequence[Update], with_loss: bool) -> dict[str, Tensor]:
        """What is sent beside the weights: changes of control variates, numbers of patients and steps, and losses."""
        tensors = {
            "num_bags": torch.tensor([update.patients for update in updates]),
            "num_steps": torch.tensor([update.steps for update in updates]),
        }
        if self.shapes.controls:
            changes = [update.control_change or {} for update in updates]
            names = self.shapes.state
            tensors |= {f"{CONTROL}{name}": torch.stack([change[name] for change in changes]) for name in names}
        if with_loss:
            tensors["train_loss"] = torch.tensor([update.loss for update in updates], dtype=torch.float64)
        return tensors

    def first(self, slot: Slot) -> dict[str, Tensor]:
        """The layers that never leave the site, before the first round: the same at all sites."""
        drawn = self.shapes.head.initial(first_weights(self.training.seed, slot.repeat, slot.fold, slot.replica))
        return {name: torch.from_numpy(drawn[name]) for name in self.shapes.own}

    def completed(self, models: Named, layers_of: Sequence[Named]) -> dict[str, Tensor]:
        """Models as they were sent (slots, ...), with the site's own layers of each slot beside them."""
        return {**models, **{name: torch.stack([layers[name] for layers in layers_of]) for name in self.shapes.own}}

    def train(
        self, models: Named, slots: Sequence[Slot], number: int, controls: Sequence[tuple[Named, Named] | None]
    ) -> list[Trained]:
        """Every slot's whole model after round `number` on the site's own patients.

        `controls`: of each slot the server's control variate and the site's own, where the strategy has them.
        """
        trained = []
        for row, (slot, control) in enumerate(zip(slots, controls, strict=True)):
            state, data = self._of(models, slot, row)
            trained.append(client_update(state, self._job(slot, number), data, *(control or ())))
        return trained

    def train_privately(
        self, models: Named, slots: Sequence[Slot], number: int, stream: Callable[[Slot], SecretStream]
    ) -> list[Trained]:
        """The same with patient-level differential privacy; `stream` makes a slot's sampling and noise."""
        privacy = self.protocol.privacy
        assert privacy is not None
        trained = []
        for row, slot in enumerate(slots):
            state, data = self._of(models, slot, row)
            trained.append((private_update(state, self._job(slot, number), data, privacy, stream(slot)), None))
        return trained

    def finetuned(self, models: Named, slots: Sequence[Slot], epochs: int) -> dict[str, Tensor]:
        """Final models (slots, ...), trained on at this site alone."""
        trained = []
        for row, slot in enumerate(slots):
            state, data = self._of(models, slot, row)
            trained.append(finetune(state, self._job(slot, self.training.rounds), data, epochs))
        return {**models, **{name: torch.stack([model[name] for model in trained]) for name in self.shapes.whole}}

    def _job(self, slot: Slot, number: int) -> Job:
        chosen = self.candidates[slot.choice]
        rates = (chosen.lr, chosen.weight_decay, self.shapes.strategy.pull)
        return Job(slot.name, self.site, number, *rates, self.training.imbalance == "sampling")

    def _of(self, models: Named, slot: Slot, row: int) -> tuple[dict[str, Tensor], SiteData]:
        """A slot's state and the site's data for it, from stacked models."""
        state = {name: models[name][row] for name in self.shapes.whole}
        return state, self.site_data(slot, {name: models[name][row] for name in self.shapes.buffers})

    def site_data(self, slot: Slot, buffers: Named) -> SiteData:
        """What `client_update` needs to know of the site for a slot's model."""
        scales = {name: value for name, value in buffers.items() if name != BALANCE} | self._own_scales(slot)
        bags = self.bag[self.train_patients(slot)]
        model = (self.shapes.head, self.shapes.endpoint, self.training)
        about = (self.features, self.targets, bags, scales, buffers[BALANCE], self.covariates)
        return SiteData(*model, *about, self.source, self.device)

    def rehearse(self, models: Named, slot: Slot) -> None:
        """A slot's model on all patients there are, to see that it works; what comes of it is dropped."""
        state, data = self._of(models, slot, 0)
        client_update(state, self._job(slot, 1), replace(data, bags=self.bag))

    def watch(self, models: Named, slots: Sequence[Slot], groups: Sequence[Sequence[Slot]]) -> dict[str, Tensor]:
        """Error over the site's patients of the inner folds, and what to divide it by, summed over each group's slots."""
        if not groups:
            return {}
        sums = dict(zip(slots, self._errors(models, slots), strict=True))
        totals = torch.tensor(
            [[sum(sums[slot][part] for slot in group if slot in sums) for group in groups] for part in (0, 1)],
            dtype=torch.float64,
        )
        return {"watched_error": totals[0], "watched_count": totals[1]}

    def _errors(self, models: Named, slots: Sequence[Slot]) -> list[tuple[float, float]]:
        """Summed error of each slot's model over its watched patients, and the number to divide it by."""
        endpoint = self.shapes.endpoint
        keys, covariates = self.features.patient_keys(), self.covariates
        if self.device.type != "cpu":
            keys, covariates = keys.to(self.device), None if covariates is None else covariates.to(self.device)
        data = Data(self.source, self.features.width, self.targets.to(self.device), keys, covariates)
        engine = Engine(self.shapes.head, endpoint, data, device=self.device)
        rows = torch.cat([models[name].reshape(len(slots), -1) for name in engine.layout.shapes], dim=1)
        scales = {name: models[name] for name in self.shapes.buffers if name != BALANCE}
        own = [self._own_scales(slot) for slot in slots]
        scales |= {name: torch.stack([values[name] for values in own]) for name in own[0]}
        none = torch.zeros(len(rows), 1, device=self.device)
        patients = [self.watched_patients(slot) for slot in slots]
        places = Places.of(self.features.starts, self.features.sizes)
        scales_there = {name: value.to(self.device) for name, value in scales.items()}
        judges = Learners(rows.to(self.device), scales_there, none, none, none)
        predicted = engine.logits(judges, [self.bag[own] for own in patients], places)
        sums = []
        for row, (logits, own) in enumerate(zip(predicted, patients, strict=True)):
            targets = torch.from_numpy(self.cohort.targets[own]).double()
            if endpoint.scaled:
                targets = (targets - scales["target.mean"][row]) / scales["target.deviation"][row]
            sums.append(endpoint.sums(logits, targets)[1:])
        return sums

    def _own_scales(self, slot: Slot) -> dict[str, Tensor]:
        """Where features are scaled site by site, those of the slot's training patients here; they stay here."""
        if self.training.scaling != "site":
            return {}
        mean, deviation = self._moments("features").merged(self.train_patients(slot)).scale()
        return {"features.mean": torch.from_numpy(mean), "features.deviation": torch.from_numpy(deviation)}

    def _seen(self, slot: Slot) -> tuple[np.ndarray, np.ndarray]:
        seen = self.cohort.outer_train([self.site], slot.repeat, slot.fold)
        return seen, self.cohort.inner[seen, slot.repeat, slot.fold]

    def _moments(self, name: str) -> Moments:
        """Moments with a group for every patient, in the cohort's order."""
        if name not in self.measured:
            if name == "features":
                moments = Moments.of_bags(self.features)
                moments = Moments(moments.count[self.bag], moments.mean[self.bag], moments.squares[self.bag])
            else:
                moments = Moments.of_table(self.cohort.covariates if name == "covariates" else self.cohort.targets)
            self.measured[name] = moments
        return self.measured[name]
