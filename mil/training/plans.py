"""Who is seen when: the order of a round's patients, their batches, and which of their tiles are drawn.

Every stream is named by what it is for, so a site alone draws exactly what it draws in a simulation of all sites.
"""

import numpy as np

from mil.rng import rng, seed_of
from mil.specs.experiments import TrainingSpec
from mil.training.packing import Places
from mil.training.store import FeatureStore


class Rounds:
    """Plans of one store's patients under one spec."""

    def __init__(self, training: TrainingSpec, store: FeatureStore) -> None:
        self.training, self.store = training, store
        self.order: dict[tuple[int, int], np.ndarray] = {}

    def epochs(self, fewest: int) -> int:
        """Epochs a round may reach into, for a learner with at least `fewest` patients."""
        if self.training.local_steps is None:
            return self.training.local_epochs
        batches = -(-max(fewest, 1) // self.training.batch_size)
        return -(-self.training.local_steps // batches)

    def batches(self, bags: np.ndarray, number: int, balance: np.ndarray | None, stream: str) -> list[np.ndarray]:
        """Places of the batches of round `number` for these bags: epoch after epoch, or the first `local_steps` of them.

        With `balance` (bags,), patients are drawn with replacement by these weights, from a stream of this name.
        """
        batches: list[np.ndarray] = []
        wanted = self.training.local_steps
        for epoch in range(self.epochs(len(bags)) if len(bags) else 0):
            if balance is None:
                chosen = bags[np.argsort(self._keys(number, epoch)[bags], kind="stable")]
            else:
                drawn = rng(self.training.seed, "sampling", stream, number, epoch)
                chosen = drawn.choice(bags, size=len(bags), p=balance / balance.sum())
            places = chosen + epoch * len(self.store.sizes) if self.training.max_tiles is not None else chosen
            size = self.training.batch_size
            batches += [places[start : start + size] for start in range(0, len(places), size)]
        return batches if wanted is None else batches[:wanted]

    def places(self, number: int, epochs: int) -> Places:
        """All bags as they are; or, with `max_tiles`, a place for every bag and epoch with its own draw of tiles."""
        starts, sizes, most = self.store.starts, self.store.sizes, self.training.max_tiles
        if most is None:
            return Places.of(starts, sizes)
        rows = []
        for epoch in range(epochs):
            for patient, start, size in zip(self.store.patients, starts.tolist(), sizes.tolist(), strict=True):
                if size <= most:
                    rows.append(np.arange(start, start + size))
                else:
                    drawn = rng(self.training.seed, "tiles", number, epoch, patient)
                    rows.append(start + np.sort(drawn.choice(size, most, replace=False)))
        counts = np.array([len(tiles) for tiles in rows], np.int64)
        begins = np.concatenate([[0], np.cumsum(counts)[:-1]])
        return Places.of(begins, counts, np.concatenate(rows), len(sizes))

    def _keys(self, number: int, epoch: int) -> np.ndarray:
        """A key of each patient, drawn from the patient's own name; patients are visited by rising key."""
        if (number, epoch) not in self.order:
            if all(round_number != number for round_number, _ in self.order):
                self.order.clear()  # a round is over
            seed = self.training.seed
            keys = [seed_of(seed, "order", number, epoch, patient) for patient in self.store.patients]
            self.order[number, epoch] = np.array(keys)
        return self.order[number, epoch]


def reach(training: TrainingSpec, patients: int) -> tuple[int, int]:
    """Steps of a round at a site with so many patients, and how many of them it sees if nobody is drawn twice."""
    steps = training.local_epochs * -(-patients // training.batch_size)
    steps = steps if training.local_steps is None else training.local_steps
    return steps, min(patients, steps * training.batch_size)


def dropout_stream(seed: int, task: str, site: str, number: int) -> int:
    """Seed of a learner's dropout in a round."""
    return seed_of(seed, "dropout", task, site, number)


def first_weights(seed: int, repeat: int, fold: int, replica: int) -> np.random.Generator:
    """The stream of a model's first weights: the same at all sites, for all inner folds and candidates of a head."""
    return rng(seed, "initial", repeat, fold, *([replica] if replica else []))
