"""What depends on a model's training patients and is not learned by gradients: scales and class weights.

Each site sums over its own training patients; the sums are merged in the order of the sites' names, so that federated
models have the very numbers that pooled ones have, and no row leaves a site for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mil.endpoints import Endpoint
from mil.specs.experiments import TrainingSpec
from mil.statistics.moments import Moments
from mil.training.cohort import TrainingCohort
from mil.training.protocol import Task


@dataclass(frozen=True)
class Setup:
    """Makes the buffers and class weights of tasks."""

    cohort: TrainingCohort
    endpoint: Endpoint
    training: TrainingSpec
    features: Moments
    """A group for every patient, in the cohort's order."""

    def buffers(self, tasks: Sequence[Task]) -> dict[str, torch.Tensor]:
        """`{features,covariates,target}.{mean,deviation}` (tasks, width); those of features (tasks, sites, width) by site."""
        known = {"features": self.features if self.training.scaling == "standard" else None}
        if self.cohort.covariates.shape[1]:
            known["covariates"] = Moments.of_table(self.cohort.covariates)
        if self.endpoint.scaled:
            known["target"] = Moments.of_table(self.cohort.targets)
        buffers = {}
        for name, moments in known.items():
            width = self.features.mean.shape[1]
            scales = [
                (np.zeros(width), np.ones(width)) if moments is None else self._merged(moments, task) for task in tasks
            ]
            for part, values in zip(("mean", "deviation"), zip(*scales, strict=True), strict=True):
                buffers[f"{name}.{part}"] = torch.from_numpy(np.stack(values).astype(np.float32))
        if self.training.scaling == "site":
            by_site = [self._by_site(task) for task in tasks]
            for part, values in zip(("mean", "deviation"), zip(*by_site, strict=True), strict=True):
                buffers[f"features.{part}"] = torch.from_numpy(np.stack(values))
        return buffers

    def balance(self, tasks: Sequence[Task]) -> torch.Tensor:
        """Weight of each class (tasks, classes), inverse to its training patients and 1 on their average."""
        if self.training.imbalance == "none":
            return torch.ones(len(tasks), self.endpoint.classes)
        classes = self.endpoint.class_of(torch.from_numpy(self.cohort.targets)).numpy()
        counts = np.stack([np.bincount(classes[task.train], minlength=self.endpoint.classes) for task in tasks])
        return class_weights(counts)

    def _by_site(self, task: Task) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (sites, width) of each site's own training patients; 0 and 1 where the task has none."""
        site = self.cohort.site[task.train]
        scales = [self.features.merged(task.train[site == name]).scale() for name in self.cohort.sites]
        means, deviations = zip(*scales, strict=True)
        return np.stack(means), np.stack(deviations)

    def _merged(self, moments: Moments, task: Task) -> tuple[np.ndarray, np.ndarray]:
        site = self.cohort.site[task.train]
        return Moments.stacked([moments.merged(task.train[site == name]) for name in task.group.trained_on]).scale()


def class_weights(counts: np.ndarray) -> torch.Tensor:
    """Training patients of each class (models, classes) -> weights inverse to them, 1 on the patients' average."""
    there = (counts > 0).sum(1, keepdims=True)
    weights = counts.sum(1, keepdims=True) / (there * np.maximum(counts, 1))
    return torch.from_numpy(np.where(counts > 0, weights, 1.0).astype(np.float32))
