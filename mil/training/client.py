"""What a site does in a round, as a plain loop over steps: the definition that the vectorised engine is held to.

Nothing in here knows of other sites, other models or a network. One model, `torch.optim`, one batch after the other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mil.endpoints import Endpoint
from mil.models.head import Head, Inputs
from mil.specs.experiments import TrainingSpec
from mil.strategies.aggregation import State
from mil.strategies.scaffold import control_after
from mil.training.dropout import step_key, tile_keys
from mil.training.optimisers import BETA1, BETA2, EPSILON, schedule
from mil.training.packing import Places
from mil.training.plans import Rounds, dropout_stream
from mil.training.sources import Source
from mil.training.store import FeatureStore

CPU = torch.device("cpu")


@dataclass(frozen=True)
class SiteData:
    """A site's own patients: features, targets, covariates, and what depends on which of them are training."""

    head: Head
    endpoint: Endpoint
    training: TrainingSpec
    store: FeatureStore
    targets: Tensor
    """(bags, columns)"""
    bags: np.ndarray
    """Numbers of the training bags."""
    buffers: Mapping[str, Tensor]
    """Mean and deviation of features, covariates and target: the same at all sites."""
    balance: Tensor
    """Weight of each class in the loss (classes,)."""
    covariates: Tensor | None = None
    source: Source | None = None
    """Where tiles are read; none: from the store, anew for every step."""
    device: torch.device = CPU
    """Where the steps are computed. What goes in and comes out lies in the host's memory."""


@dataclass(frozen=True)
class Job:
    """What the server asks for: the round, and the settings that are not in the training spec."""

    task: str
    site: str
    number: int
    lr: float
    weight_decay: float
    mu: float = 0.0
    sampling: bool = False


@dataclass(frozen=True)
class Update:
    """What a site answers: nothing but named tensors, counts and the loss."""

    state: dict[str, Tensor]
    patients: int
    steps: int
    loss: float
    control_change: dict[str, Tensor] | None = None


def client_update(
    state: State, job: Job, site: SiteData, control: State | None = None, own_control: State | None = None
) -> tuple[Update, dict[str, Tensor] | None]:
    """Train `state` on the site's bags for one round; the update, and the control variate that the site keeps."""
    state = {name: value.to(site.device) for name, value in state.items()}
    control, own_control = moved(control, site.device), moved(own_control, site.device)
    weights = {name: value.clone().requires_grad_() for name, value in sorted(state.items())}
    rate = job.lr * schedule(site.training.schedule, job.number - 1, site.training.rounds, site.training.warmup)
    optimiser = _optimiser(list(weights.values()), site.training, rate, job.weight_decay)

    def bent(name: str, weight: Tensor, gradient: Tensor) -> Tensor:
        if job.mu:
            gradient = gradient + job.mu * (weight.detach() - state[name])
        if control is not None and own_control is not None:
            gradient = gradient + (control[name] - own_control[name])
        return gradient

    batches, loss = _round(weights, optimiser, job, site, bent)
    final = {name: weight.detach() for name, weight in weights.items()}
    kept, change = None, None
    if control is not None and own_control is not None:
        kept = dict(own_control)
        if batches:
            travelled = rate * batches
            kept = {
                name: control_after(own_control[name], control[name], state[name], value, travelled)
                for name, value in final.items()
            }
        change = {name: kept[name] - own_control[name] for name in kept}
    final, change, kept = (moved(part, CPU) for part in (final, change, kept))
    assert final is not None
    return Update(final, len(site.bags), batches, loss, change), kept


def moved(named: State | None, device: torch.device) -> dict[str, Tensor] | None:
    """The tensors on a device; those that are there already as they are."""
    return None if named is None else {name: value.to(device) for name, value in named.items()}


def finetune(state: State, job: Job, site: SiteData, epochs: int) -> dict[str, Tensor]:
    """`state` after so many more rounds' local work at this site alone, at the plain learning rate; it stays there."""
    weights = {name: value.to(site.device).clone().requires_grad_() for name, value in sorted(state.items())}
    optimiser = _optimiser(list(weights.values()), site.training, job.lr, job.weight_decay)
    for epoch in range(epochs):
        alone = replace(job, number=site.training.rounds + 1 + epoch)
        _round(weights, optimiser, alone, site, lambda _, __, gradient: gradient)
    return {name: weight.detach().cpu() for name, weight in weights.items()}


def _round(
    weights: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    job: Job,
    site: SiteData,
    bent: Callable[[str, Tensor, Tensor], Tensor],
) -> tuple[int, float]:
    """The steps of a round, in place: their number, and the mean loss. `bent` (name, weight, gradient) -> gradient."""
    plans = Rounds(site.training, site.store)
    balance = _sampling_weights(site) if job.sampling else None
    batches = plans.batches(site.bags, job.number, balance, f"{job.task}/{job.site}")
    places = plans.places(job.number, plans.epochs(len(site.bags)))
    stream = dropout_stream(site.training.seed, job.task, job.site, job.number)
    total, seen = 0.0, 0.0
    for number, batch in enumerate(batches):
        losses, count = _losses(weights, batch, places, site, step_key(stream, number))
        optimiser.zero_grad()
        (losses.sum() / max(count, 1.0)).backward()
        for name, weight in weights.items():
            gradient = weight.grad if weight.grad is not None else torch.zeros_like(weight)
            weight.grad = bent(name, weight, gradient)
        if site.training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(weights.values()), site.training.clip_norm)
        optimiser.step()
        total, seen = total + float(losses.detach().sum()), seen + count
    return len(batches), total / seen if seen else float("nan")


def _losses(
    weights: Mapping[str, Tensor], batch: np.ndarray, places: Places, site: SiteData, key: int
) -> tuple[Tensor, float]:
    """Weighted loss of each bag of a batch, and the number to divide their sum by."""
    starts, sizes = places.starts[batch].tolist(), places.sizes[batch].tolist()
    rows = torch.cat([torch.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)])
    rows = rows if places.rows is None else places.rows[rows]
    dtype, device = next(iter(weights.values())).dtype, site.device
    buffers = {name: value.to(device) for name, value in site.buffers.items()}
    source = site.source or site.store.source(CPU)
    tiles = source.take(rows).to(device, dtype)
    tiles = (tiles - buffers["features.mean"]) / buffers["features.deviation"]
    mask = torch.block_diag(*[torch.ones(1, size, dtype=torch.bool) for size in sizes]).bool().to(device)
    bags = torch.from_numpy(batch % places.bags)
    targets = site.targets[bags].to(device, dtype)
    covariates = None
    if site.covariates is not None:
        known = site.covariates[bags].to(device, dtype) - buffers["covariates.mean"]
        covariates = (known / buffers["covariates.deviation"]).nan_to_num(0.0)
    keys = None
    if site.head.dropout:
        keys = tile_keys(torch.tensor(key), site.store.patient_keys()[bags], torch.tensor(sizes)).to(device)
    output = site.head(weights, Inputs(tiles, mask, covariates, True, keys))
    balance = site.balance.to(device)[site.endpoint.class_of(targets)]
    if site.endpoint.scaled:
        targets = (targets - buffers["target.mean"]) / buffers["target.deviation"]
    present = torch.ones(len(batch), dtype=torch.bool, device=device)
    losses = site.head.losses(output, targets, present, site.endpoint)
    return losses * balance, float(site.endpoint.counts(targets, present).sum())


def _optimiser(weights: list[Tensor], training: TrainingSpec, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    if training.optimiser == "sgd":
        return torch.optim.SGD(weights, lr=lr, momentum=training.momentum, weight_decay=weight_decay)
    kind = torch.optim.AdamW if training.optimiser == "adamw" else torch.optim.Adam
    return kind(weights, lr=lr, betas=(BETA1, BETA2), eps=EPSILON, weight_decay=weight_decay)


def _sampling_weights(site: SiteData) -> np.ndarray:
    return site.balance[site.endpoint.class_of(site.targets[torch.from_numpy(site.bags)])].numpy().astype(np.float64)
