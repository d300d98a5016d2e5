"""Bytes of models that cross between a site and the server in a round: what the ledger states of every update.

A number is 4 bytes, as in the messages between hospitals; names, counts and digests, some hundred bytes a message, are left out.
"""

from collections.abc import Mapping, Sequence
from math import prod

from mil.strategies.strategy import Strategy

NUMBER_BYTES = 4


def bytes_each_way(shapes: Mapping[str, Sequence[int]], strategy: Strategy) -> int:
    """Of one model, to a site and back from it alike: its shared tensors, and under SCAFFOLD as much of control variates.

    0 where nothing is exchanged: one learner sees all bags of its sites.
    """
    strategy = strategy.of_rounds
    if not strategy.federated:
        return 0
    shared = sum(prod(shape) for name, shape in shapes.items() if name.split(".")[0] not in strategy.local_parts)
    return NUMBER_BYTES * shared * (2 if strategy.controls else 1)
