"""What every pair of a round needs on the device: its learner, bag, target, covariates, weight in the loss, seed of dropout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mil.endpoints import Endpoint
from mil.training.data import Data
from mil.training.dropout import step_keys
from mil.training.folding import Folding
from mil.training.learners import Learners
from mil.training.packing import Places
from mil.training.pairs import PairTable
from mil.training.reach import upload


class Given(NamedTuple):
    """What the head is given of each pair besides tiles; all with a leading axis of pairs."""

    sizes: Tensor
    patients: Tensor
    keys: Tensor
    """Seeds of dropout (pairs,) int64."""
    covariates: Tensor | None
    mean: Tensor | None
    """(pairs, 1, width), with `deviation`, where the scaling of features is not in the weights."""
    deviation: Tensor | None


@dataclass
class Lessons:
    """Tensors (pairs, ...) in the order of the pairs' table."""

    learner: Tensor
    slot: Tensor
    sizes: Tensor
    bag: Tensor
    keys: Tensor
    patients: Tensor
    targets: Tensor
    """(pairs, 1, columns)"""
    covariates: Tensor | None
    present: Tensor
    """(pairs, 1), all true."""
    balance: Tensor
    """Weight of each bag in the loss (pairs, 1)."""
    counts: Tensor
    """What each bag adds to the number that a summed loss is divided by (pairs, 1)."""
    share: Tensor
    """`balance` over the batch's count (pairs, 1)."""
    losses: Tensor
    """Losses times `balance` (pairs, 1), as they become known."""
    pairs: PairTable

    @classmethod
    def of(
        cls,
        pairs: PairTable,
        learners: Learners,
        streams: Sequence[int] | None,
        data: Data,
        endpoint: Endpoint,
        places: Places,
    ) -> "Lessons":
        """One upload for all pairs; without `streams` there is no dropout."""
        keys, device = np.zeros_like(pairs.learner), data.targets.device
        if streams is not None:
            keys = step_keys(np.array(streams, np.uint64)[pairs.learner], pairs.step)
        number = pairs.step * len(learners.rows) + pairs.learner
        host = np.stack([pairs.learner, pairs.slot, pairs.tiles, pairs.place % places.bags, keys, number])
        learner, slot, sizes, bag, keys_there, batch = upload(host, device).unbind()
        targets = data.targets[bag].unsqueeze(1)
        present = torch.ones((len(bag), 1), dtype=torch.bool, device=device)
        balance = present.float()
        if streams is not None:
            balance = learners.balance[learner].gather(-1, endpoint.class_of(targets))
        buffers = {name: value[learner] for name, value in learners.buffers.items() if not name.startswith("features")}
        if endpoint.scaled and streams is not None:
            targets = (targets - buffers["target.mean"].unsqueeze(1)) / buffers["target.deviation"].unsqueeze(1)
        counts = endpoint.counts(targets, present).float()
        batches = torch.zeros(pairs.steps() * len(learners.rows), device=device).index_add_(0, batch, counts[:, 0])
        share = balance / batches[batch].clamp(min=1).unsqueeze(-1)
        covariates = data.known(bag.unsqueeze(-1), buffers)
        losses = torch.zeros_like(balance)
        patients = data.patients[bag]
        return cls(
            learner,
            slot,
            sizes,
            bag,
            keys_there,
            patients,
            targets,
            covariates,
            present,
            balance,
            counts,
            share,
            losses,
            pairs,
        )

    def given(self, part: slice, learners: Learners, folding: Folding, sites: Tensor | None) -> Given:
        """Of some neighbouring pairs."""
        mean = deviation = None
        if not folding.folds(learners):
            learner = self.learner[part]
            mean, deviation = folding.scale(learners)
            if mean.dim() == 3 and sites is not None:
                site = sites[self.bag[part]]
                mean, deviation = mean[learner, site], deviation[learner, site]
            else:
                mean, deviation = mean[learner], deviation[learner]
            mean, deviation = mean.unsqueeze(1), deviation.unsqueeze(1)
        covariates = None if self.covariates is None else self.covariates[part]
        return Given(self.sizes[part], self.patients[part], self.keys[part], covariates, mean, deviation)

    def means(self, learners: int) -> np.ndarray:
        """Mean loss of every learner over the round; the one time that the host waits for the round."""
        losses, counts = torch.cat([self.losses, self.counts], dim=1).double().cpu().numpy().T
        total, seen = (np.bincount(self.pairs.learner, part, learners) for part in (losses, counts))
        with np.errstate(invalid="ignore", divide="ignore"):
            return (total / seen).astype(np.float32)  # 0 / 0 is NaN
