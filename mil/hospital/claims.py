"""What a site says of itself, in numbers that can be true: counts, losses, metrics. The first that cannot is refused."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mil.endpoints import build_endpoint
from mil.hospital.config import FLOOR_STEPS, FederationSpec
from mil.hospital.masking import CLEAR
from mil.hospital.messages import AnyAnswer, FinishAnswer, FollowedAnswer
from mil.hospital.payload import Message, PayloadError, check_updates
from mil.hospital.stages import Stages

LARGEST = float(torch.finfo(torch.float32).max)
"""Largest number that is taken: beyond it no model could be scaled, and the state of the run would be lost."""
MOST_PATIENTS = 10_000_000
"""That any site may say it has."""
ROUNDING = 1e-9
STATED = {
    "binary": {"patients", "positives", "metric", "variance"},
    "survival": {"patients", "positives", "metric", "logrank_difference", "logrank_variance"},
    "regression": {"patients", "metric"},
    "multiclass": set(),
}
"""Numbers of a `finish` by kind of endpoint: all of them, or none where they are withheld."""


def check_claims(protocol: FederationSpec, stages: Stages, site: str, message: Message[AnyAnswer]) -> None:
    """Raise `PayloadError` for an answer whose numbers cannot be, or would let the site outweigh the others."""
    kind, values, tensors = message.kind, message.values, message.tensors
    masked = isinstance(values, FollowedAnswer)
    for name in (
        name for name in tensors if not masked or name in CLEAR
    ):  # what is masked may be large, and is not read
        value = tensors[name]
        counted = name in {"num_bags", "num_steps", "classes"} or name.endswith((".count", ".squares"))
        if (counted or name.startswith("watched_") or name == "train_loss") and (value < 0).any():
            raise PayloadError(f"site {site}: '{name}' is negative")
        if value.dtype == torch.float64 and not (value.abs() <= LARGEST).all():
            raise PayloadError(f"site {site}: '{name}' holds numbers beyond {LARGEST:.2g}")
    if "num_bags" in tensors:
        _check_counts(protocol, stages, site, kind, tensors)
    if "watched_count" in tensors and not masked:
        _check_watched(protocol, stages, site, tensors)
    if isinstance(values, FinishAnswer):
        _check_metrics(protocol, stages, site, values)
        if "covariates.count" in tensors:
            _check_covariates(protocol, stages, site, tensors["covariates.count"])
    fewest = FLOOR_STEPS if protocol.privacy is None else 1
    if "num_steps" in tensors and (tensors["num_steps"] < fewest).any():
        raise PayloadError(f"site {site}: an update from fewer than {fewest} steps")


def _check_counts(
    protocol: FederationSpec, stages: Stages, site: str, kind: str, tensors: Mapping[str, Tensor]
) -> None:
    least, most, counts = protocol.payload.min_patients, _most(protocol, stages, site), tensors["num_bags"]
    most = MOST_PATIENTS if most is None else most
    if (counts < least).any():
        raise PayloadError(f"site {site}: an update from fewer than {least} patients")
    if (counts > most).any():
        raise PayloadError(f"site {site}: counts with {int(counts.max())} patients, but the protocol knows of {most}")
    for name in tensors:
        if name.endswith(".count") and name != "features.count" and (tensors[name] > counts[:, None]).any():
            raise PayloadError(f"site {site}: '{name}' is more than its patients")
    if kind == "train":
        known = stages.progress.num_bags.get(site)
        if known is not None and counts.tolist() != [known[number] for number in stages.live]:
            raise PayloadError(f"site {site}: counts with other patients than it began with")
        if protocol.trust == "coordinator":
            states = {name: tensors[name] for name in stages.state}
            check_updates(states, stages.models(), protocol.payload.max_update, f"site {site}")
    if "classes" in tensors and protocol.trust == "coordinator" and (tensors["classes"].sum(1) != counts).any():
        raise PayloadError(f"site {site}: its classes are not its patients")


def most_patients(protocol: FederationSpec, stages: Stages) -> int:
    """Most patients that all training sites may count with together."""
    known = [_most(protocol, stages, site) for site in protocol.training_sites]
    return sum(MOST_PATIENTS if most is None else most for most in known)


def _most(protocol: FederationSpec, stages: Stages, site: str) -> int | None:
    """Most patients that a site may count with: those of the protocol or those that it joined with."""
    known = [protocol.sites[site].patients]
    if site in stages.progress.patients:  # who joined with too few to be stated counts with none
        known.append(stages.progress.patients[site] or 0)
    return min((patients for patients in known if patients is not None), default=None)


def _check_watched(protocol: FederationSpec, stages: Stages, site: str, tensors: Mapping[str, Tensor]) -> None:
    """The site's watched patients are as many as follow from its training counts."""
    if site not in stages.progress.num_bags:
        return
    largest = build_endpoint(protocol.endpoint).largest_error
    for number, expected in enumerate(stages.watched([site])):
        count, error = float(tensors["watched_count"][number]), float(tensors["watched_error"][number])
        events = protocol.endpoint.kind == "survival"  # only these are counted there
        if count > expected + ROUNDING or (count < expected - ROUNDING and not events):
            raise PayloadError(
                f"site {site}: 'watched_count' is {count:g}, but {expected:g} of its patients are watched"
            )
        if error > (largest * count if count else 0.0) + ROUNDING * count:
            raise PayloadError(
                f"site {site}: 'watched_error' is {error:g} over {count:g} patients; at most {largest:g} of each is possible"
            )


def _check_covariates(protocol: FederationSpec, stages: Stages, site: str, counts: Tensor) -> None:
    """Patients whose covariates are known: none, or as many as may be published and no more than the site has."""
    least, most = protocol.payload.small_cells, _most(protocol, stages, site)
    wrong = (counts != counts.round()) | ((counts > 0) & (counts < least)) | (counts > (most or MOST_PATIENTS))
    if wrong.any():
        raise PayloadError(f"site {site}: covariates of {float(counts[wrong][0]):g} patients")


def _check_metrics(protocol: FederationSpec, stages: Stages, site: str, values: FinishAnswer) -> None:
    kind, least, most = protocol.endpoint.kind, protocol.payload.small_cells, _most(protocol, stages, site)
    stated = {name: float(value) for name, value in values.metrics.items() if value is not None}
    if not stated:
        return
    if set(stated) != STATED[kind]:
        raise PayloadError(f"site {site}: states {', '.join(stated)}, which are not the numbers of a {kind} endpoint")
    total, most = stated["patients"], MOST_PATIENTS if most is None else most
    if not 2 * least <= total <= most:
        raise PayloadError(f"site {site}: metrics of {total:.0f} patients; {2 * least} to {most} are allowed")
    positives = stated.get("positives", total / 2)
    if min(positives, total - positives) < least:
        raise PayloadError(
            f"site {site}: {positives:g} positive patients of {total:g}; {least} of either are the fewest"
        )
    metric, pairs = stated["metric"], positives * (total - positives)
    # DeLong's variance is of numbers from 0 to 1 with the mean `metric`; at a death, one of two groups dies
    spread = max(0.0, metric * (1 - metric)) * (1 / (positives - 1) + 1 / (total - positives - 1))
    highest = {"metric": 1.0, "variance": spread, "logrank_variance": positives / 4}
    for name in (key for key in highest if key in stated):
        if not 0.0 <= stated[name] <= highest[name] + ROUNDING:
            raise PayloadError(f"site {site}: '{name}' is {stated[name]:g}; 0 to {highest[name]:.3g} are possible")
    if kind == "binary" and abs(2 * metric * pairs - round(2 * metric * pairs)) > 1e-4:
        raise PayloadError(f"site {site}: 'metric' is {metric:.9g}, which is no share of {pairs:g} pairs")
    if abs(stated.get("logrank_difference", 0.0)) > positives:
        raise PayloadError(
            f"site {site}: 'logrank_difference' is {stated['logrank_difference']:g} with {positives:g} events"
        )
