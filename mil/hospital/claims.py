"""What a site says of itself, in numbers that can be true: counts, losses, metrics. The first that cannot is refused."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mil.endpoints import build_endpoint
from mil.hospital.config import FLOOR_STEPS, FederationSpec
from mil.hospital.forms import groups_of
from mil.hospital.masking import CLEAR
from mil.hospital.payload import Message, PayloadError, check_updates
from mil.hospital.stages import Stages

LARGEST = float(torch.finfo(torch.float32).max)
"""Largest number that is taken: beyond it no model could be scaled, and the state of the run would be lost."""
HIGHEST_VARIANCE = 0.25
"""Of an AUROC: no number between 0 and 1 varies more."""
ROUNDING = 1e-9
METRICS = ("positives", "metric", "variance", "logrank_difference", "logrank_variance")


def check_claims(protocol: FederationSpec, stages: Stages, site: str, message: Message) -> None:
    """Raise `PayloadError` for an answer whose numbers cannot be, or would let the site outweigh the others."""
    kind, tensors = message.kind, message.tensors
    for name, value in tensors.items():
        if "masked_sha256" in message.values and name not in CLEAR:
            continue
        counted = name in {"num_bags", "num_steps", "classes"} or name.endswith((".count", ".squares"))
        if (counted or name.startswith("watched_")) and (value < 0).any():
            raise PayloadError(f"site {site}: '{name}' is negative")
        if value.dtype == torch.float64 and not (value.abs() <= LARGEST).all():
            raise PayloadError(f"site {site}: '{name}' holds numbers beyond {LARGEST:.2g}")
    if "num_bags" in tensors:
        _check_counts(protocol, stages, site, kind, tensors)
    masked = "masked_sha256" in message.values
    if "watched_count" in tensors and not masked:
        _check_watched(protocol, stages, site, tensors)
    if kind == "finish":
        _check_metrics(protocol, stages, site, message)
    fewest = FLOOR_STEPS if protocol.privacy is None else 1
    if "num_steps" in tensors and (tensors["num_steps"] < fewest).any():
        raise PayloadError(f"site {site}: an update from fewer than {fewest} steps")


def _check_counts(
    protocol: FederationSpec, stages: Stages, site: str, kind: str, tensors: Mapping[str, Tensor]
) -> None:
    least, most, counts = protocol.payload.min_patients, _most(protocol, stages, site), tensors["num_bags"]
    if (counts < least).any():
        raise PayloadError(f"site {site}: an update from fewer than {least} patients")
    if most is not None and (counts > most).any():
        raise PayloadError(f"site {site}: counts with {int(counts.max())} patients, but the protocol knows of {most}")
    if kind == "train":
        known = stages.progress.num_bags.get(site)
        if known is not None and counts.tolist() != [known[number] for number in stages.live]:
            raise PayloadError(f"site {site}: counts with other patients than it began with")
        if protocol.trust == "coordinator":
            states = {name: tensors[name] for name in stages.state}
            check_updates(states, stages.models(), protocol.payload.max_update, f"site {site}")
    if "classes" in tensors and protocol.trust == "coordinator" and (tensors["classes"].sum(1) != counts).any():
        raise PayloadError(f"site {site}: its classes are not its patients")


def _most(protocol: FederationSpec, stages: Stages, site: str) -> int | None:
    """Most patients that a site may count with: those of the protocol or those that it joined with."""
    known = (protocol.sites[site].patients, stages.progress.patients.get(site))
    return min((one for one in known if one is not None), default=None)


def _check_watched(protocol: FederationSpec, stages: Stages, site: str, tensors: Mapping[str, Tensor]) -> None:
    """Every patient of an outer fold's training set is watched once: their number follows from the training counts."""
    live, known = set(stages.live), stages.progress.num_bags.get(site)
    inner, largest = protocol.endpoint.inner_folds, build_endpoint(protocol.endpoint).largest_error
    for number, group in enumerate(groups_of(protocol, stages.progress.phase)):
        count, error = float(tensors["watched_count"][number]), float(tensors["watched_error"][number])
        expected = 0.0
        if live & set(group):
            expected = sum(known[slot] for slot in group) / (inner - 1) if known is not None else count
        events = protocol.endpoint.kind == "survival"  # only these are counted there
        if count > expected + ROUNDING or (count < expected - ROUNDING and not events):
            raise PayloadError(
                f"site {site}: 'watched_count' is {count:g}, but {expected:g} of its patients are watched"
            )
        if error > (largest * count if count else 0.0) + ROUNDING * count:
            raise PayloadError(
                f"site {site}: 'watched_error' is {error:g} over {count:g} patients; at most {largest:g} of each is possible"
            )


def _check_metrics(protocol: FederationSpec, stages: Stages, site: str, message: Message) -> None:
    values, most = message.values, _most(protocol, stages, site)
    patients, positives = values["patients"], values["positives"]
    if patients is None:
        given = [name for name, value in values.items() if name in METRICS and value is not None]
        if given:
            raise PayloadError(f"site {site}: '{given[0]}' of no stated number of patients")
        return
    total = int(str(patients))
    if total < protocol.payload.small_cells or (most is not None and total > most):
        allowed = (
            f"{protocol.payload.small_cells} to {most}"
            if most is not None
            else f"{protocol.payload.small_cells} or more"
        )
        raise PayloadError(f"site {site}: metrics of {total} patients; {allowed} are allowed")
    if positives is not None and not 0 < int(str(positives)) < total:
        raise PayloadError(f"site {site}: {positives} positive patients of {total}")
    highest = {"metric": 1.0, "variance": HIGHEST_VARIANCE, "logrank_variance": float(total)}
    for name, top in highest.items():
        value = values[name]
        if value is not None and not 0.0 <= float(str(value)) <= top:
            raise PayloadError(f"site {site}: '{name}' is {value}; 0 to {top:g} are possible")
    difference = values["logrank_difference"]
    if difference is not None and abs(float(str(difference))) > total:
        raise PayloadError(f"site {site}: 'logrank_difference' is {difference} with {total} patients")
