"""Many models, one strategy: a strategy sees one model, and here its steps are mapped over models."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from mil.strategies.aggregation import Answers, State
from mil.strategies.strategy import Stepped, Strategy

Named = dict[str, Tensor]


def begin_models(strategy: Strategy, states: State) -> Named:
    """The server's tensors (models, ...) before the first round, from states (models, *shape)."""
    count = len(next(iter(states.values())))
    return _stacked([strategy.begin({name: value[k] for name, value in states.items()}) for k in range(count)])


def step_models(strategy: Strategy, states: State, server: State, answers: Answers) -> Stepped:
    """`server_step` of every model; every tensor, those in `answers` too, has a leading axis of models."""

    def step(
        state: Named, server_state: Named, sites: Named, amounts: Tensor, total: Named, controls: Named
    ) -> Stepped:
        return strategy.server_step(state, server_state, Answers(sites, amounts, total.get("total"), controls))

    total = {} if answers.total is None else {"total": answers.total}
    given = (dict(states), dict(server), dict(answers.states), answers.amounts, total, dict(answers.controls))
    if strategy.vectorised:
        return torch.func.vmap(step)(*given)
    stepped = [step(*tree_map(lambda tensor, k=k: tensor[k], given)) for k in range(len(answers.amounts))]
    return _stacked([state for state, _ in stepped]), _stacked([after for _, after in stepped])


def _stacked(models: Sequence[Named]) -> Named:
    return {name: torch.stack([model[name] for model in models]) for name in models[0]}
