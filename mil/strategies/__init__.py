"""Strategies: how the models of several sites become one model, or stay apart. A file each; nothing else lists them."""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import BeforeValidator, Field

from mil.strategies.strategy import Strategy


def named(value: Any) -> Any:
    """`fedavg` is short for `{name: fedavg}`."""
    return {"name": value} if isinstance(value, str) else value


def _discovered() -> dict[str, type[Strategy]]:
    """The strategies of the files of this package, by name."""
    strategies: dict[str, type[Strategy]] = {}
    for module in iter_modules(__path__, f"{__name__}."):
        for thing in vars(import_module(module.name)).values():
            if not (isinstance(thing, type) and issubclass(thing, Strategy) and thing.__module__ == module.name):
                continue
            name = thing.model_fields["name"].default
            if name in strategies:
                raise ValueError(f"two strategies are named '{name}': {strategies[name].__module__}, {module.name}")
            if isinstance(name, str):  # a base of strategies has no name
                strategies[name] = thing
    return dict(sorted(strategies.items()))


def _union(some: list[type[Strategy]]) -> Any:
    return Annotated[Union[tuple(some)], Field(discriminator="name"), BeforeValidator(named)]  # noqa: UP007


STRATEGIES = _discovered()
if TYPE_CHECKING:
    StrategySpec = Strategy
else:
    FederatedSpec = _union([kind for kind in STRATEGIES.values() if kind.federated])
    for strategy in STRATEGIES.values():
        strategy.model_rebuild(_types_namespace={"FederatedSpec": FederatedSpec})
    StrategySpec = _union(list(STRATEGIES.values()))
