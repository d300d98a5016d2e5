"""Answers that stand out from the other sites', as a wrong one would: written into the record, for a person to judge.

An alarm stops nothing: sites differ honestly. `max_update` rejects an update that is too large; `median` and `trimmed_mean`
tolerate a wrong one among three sites or more.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mil.hospital.messages import FinishAnswer
from mil.hospital.payload import Message, lengths

FAR = 10.0
"""Times as long as the median of the other sites' updates."""
MOST = 2 / 3
"""Share of all patients from which on one site decides the pooled figure alone."""
TILES = "number of tiles a patient"
AGAINST = -0.5
"""Cosine with the mean of the others', in the first round, where all sites leave from the same untrained model."""


def all_alarms(kind: str, answers: Mapping[str, Message], before: Mapping[str, Tensor], first: bool) -> dict[str, str]:
    """Of answers that are not masked; `before`: the models that were sent, `first`: in the first round."""
    apart = stand_apart(kind, {site: message.tensors for site, message in answers.items()})
    return apart | (stand_out(answers, before, first) if kind == "train" else lone_voice(answers))


def stand_out(answers: Mapping[str, Message], before: Mapping[str, Tensor], first: bool) -> dict[str, str]:
    """Sentences about the sites whose updates are far longer than the others' or, in the `first` round, point against them."""
    if len(answers) < 2:
        return {}
    states = {site: {name: message.tensors[name] for name in before} for site, message in sorted(answers.items())}
    norms = {site: lengths(state, before) for site, state in states.items()}
    directions = {site: _direction(state, before) for site, state in states.items()}
    alarms = {}
    for site in states:
        others = [other for other in states if other != site]
        usual = torch.stack([norms[other] for other in others]).median(0).values
        ratio = float((norms[site] / usual.clamp(min=1e-12)).max())
        if ratio > FAR:
            alarms[site] = f"its update is {ratio:.3g} times as long as the others'"
        mean = torch.stack([directions[other] for other in others]).mean(0)
        cosine = float(torch.nn.functional.cosine_similarity(directions[site], mean, dim=0))
        if first and len(others) > 1 and cosine < AGAINST and site not in alarms:
            alarms[site] = f"its update points against the others' (cosine {cosine:.2f})"
    return alarms


def stand_apart(kind: str, tensors_of: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """Sentences about the sites whose means or losses lie far from all others': one of them decides scales or selection."""
    parts = {site: _typical(kind, tensors) for site, tensors in sorted(tensors_of.items())}
    alarms = {}
    for site, values in parts.items():
        for name, value in values.items():
            others = torch.stack(
                [part[name] for other, part in parts.items() if other != site and name in part] or [value]
            )
            if name in {"watched error", TILES}:
                far = value > FAR * others.median(0).values.clamp(min=1e-3)
            else:
                far = (value - others.median(0).values).abs() > FAR * others.abs().amax(0).clamp(min=1.0)
            if far.any():
                alarms[site] = f"its {name} is {float(value[far][0]):.3g}, far from the other sites'; it decides alone"
    return alarms


def _typical(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is comparable between sites of any size: means of scales, losses per patient."""
    if kind == "moments":
        means = {name: value for name, value in tensors.items() if name.endswith(".mean")}
        if "features.count" in tensors:
            means[TILES] = tensors["features.count"].flatten() / tensors["num_bags"]
        return means
    if "watched_error" not in tensors:
        return {}
    counted = tensors["watched_count"] > 0
    return {
        "watched error": torch.where(counted, tensors["watched_error"] / tensors["watched_count"].clamp(min=1), 1.0)
    }


def lone_voice(answers: Mapping[str, Message]) -> dict[str, str]:
    """A sentence about the site that alone decides a pooled metric of three sites or more."""
    counts = {
        site: message.values.patients
        for site, message in answers.items()
        if isinstance(message.values, FinishAnswer) and message.values.patients is not None
    }
    total = sum(counts.values())
    return {
        site: f"its {count} patients are {count / total:.0%} of those whose metrics are published; it decides alone"
        for site, count in sorted(counts.items())
        if len(counts) > 2 and count > MOST * total
    }


def _direction(state: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensor:
    """All models' changes as one row of length 1, so that a long one does not speak for the others."""
    change = torch.cat([(value.double() - before[name].double()).flatten() for name, value in sorted(state.items())])
    return change / change.norm().clamp(min=1e-300)
