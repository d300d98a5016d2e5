"""Updates that stand out from the others', as a poisoned one would: written into the record, for a person to judge.

An alarm stops nothing: sites differ honestly. What stops is `max_update`; what bears a wrong site is `median` and
`trimmed_mean`, of three sites or more.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mil.hospital.payload import Message, lengths

FAR = 10.0
"""Times as long as the median of the other sites' updates."""
AGAINST = -0.5
"""Cosine with the mean of the others', in the first round, where all sites leave from the same untrained model."""


def stand_out(found: Mapping[str, Message], before: Mapping[str, Tensor], first: bool) -> dict[str, str]:
    """Sentences about the sites whose updates are far longer than the others' or, in the `first` round, point against them."""
    if len(found) < 2:
        return {}
    states = {site: {name: message.tensors[name] for name in before} for site, message in sorted(found.items())}
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


def _direction(state: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensor:
    """All models' changes as one row of length 1, so that a long one does not speak for the others."""
    change = torch.cat([(value.double() - before[name].double()).flatten() for name, value in sorted(state.items())])
    return change / change.norm().clamp(min=1e-300)
