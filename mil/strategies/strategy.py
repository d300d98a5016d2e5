"""What every strategy is: its settings, its facts and the server's step, on one model at a time.

A strategy is one file of this package: settings are the fields, facts the class variables, arithmetic the methods. It sees one
model: tensors by name, `state` (*shape) and the sites' (sites, *shape). It keeps no tensors: they go in and come out. Tensors of
its server are float64. Buffers (means and deviations of features, covariates and target; class weights) are no part of a
state: every site has the same ones from before the first round, and no strategy changes them.

Files of this package are read whenever settings are, so they import no torch: tensors' methods do all of the arithmetic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from mil.spec import Spec
from mil.strategies.aggregation import Answers, State, moved, weighted_change
from mil.strategies.fixed_point import NARROW, WIDE, FixedPoint

if TYPE_CHECKING:
    from torch import Tensor

Stepped = tuple[dict[str, "Tensor"], dict[str, "Tensor"]]
"""The next global state, and the server's next tensors."""
Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Strategy(Spec):
    """Base of the strategies. What is said here holds where a strategy says nothing else."""

    name: Any
    """In configs: of each strategy a literal, which finds its class."""
    title: ClassVar[str] = ""
    """In legends and tables."""
    colour: ClassVar[str] = ""
    """In figures, as #rrggbb; none: a spare one."""
    description: ClassVar[str] = ""
    """A clause for the methods of the report."""
    sent: ClassVar[str] = "model weights"
    """What a site sends."""
    collaboration: ClassVar[int] = 2
    """Order in comparisons: 0 apart, 1 all rows in a single place, 2 federated."""
    federated: ClassVar[bool] = False
    """Sites train apart and exchange models; otherwise a single learner sees all bags of its sites."""
    by_site: ClassVar[bool] = False
    """One model for each training site."""
    cyclic: ClassVar[bool] = False
    """Sites train one after the other on the same model; no server is needed."""
    personal: ClassVar[bool] = False
    """In the end each site has its own model."""
    controls: ClassVar[bool] = False
    """Sites and server keep control variates."""
    is_sum: ClassVar[bool] = False
    """The server needs nothing of the sites but weighted sums: see `WeightedSum`."""
    between_hospitals: ClassVar[bool] = False
    """May be run between hospitals."""
    vectorised: ClassVar[bool] = False
    """`server_step` can be mapped over models by `torch.func.vmap`; otherwise it is called for each of them."""
    plain_sgd: ClassVar[str] = ""
    """Why the sites must train by sgd without momentum; empty: they need not."""
    one_step: ClassVar[bool] = False
    """Sites take a single step a round."""

    @property
    def of_rounds(self) -> Strategy:
        """The strategy of the rounds, without what sites do after the last of them."""
        return self

    @property
    def share(self) -> float:
        """Share of the sites that take part in a round."""
        return 1.0

    @property
    def uniform(self) -> bool:
        """Every site counts as much as any other."""
        return False

    @property
    def random_order(self) -> bool:
        """Of cyclic training: every round visits the sites in an order drawn anew."""
        return False

    @property
    def pull(self) -> float:
        """FedProx's mu: strength of the sites' pull towards the global model."""
        return 0.0

    @property
    def fixed(self) -> FixedPoint:
        """How the sites' weighted changes are rounded before they are summed."""
        return WIDE

    @property
    def local_parts(self) -> tuple[str, ...]:
        """Layers that stay at their site: first parts of their tensors' names."""
        return ()

    @property
    def finetune_epochs(self) -> int:
        """Rounds of local work at each site after the last round."""
        return 0

    @property
    def server_rate(self) -> float | None:
        """Learning rate of the server; none: it has none."""
        return None

    def at_rate(self, server_lr: float | None) -> Strategy:
        """The same with another learning rate of the server; none: as it is."""
        return self if server_lr is None else self.model_copy(update={"server_lr": server_lr})

    def amounts(self, patients: Tensor) -> Tensor:
        """Training patients of sites -> what each counts, float64; a site without patients counts 0."""
        return (patients > 0).double() if self.uniform else patients.double()

    def begin(self, state: State) -> dict[str, Tensor]:
        """The server's tensors before the first round."""
        return {}

    def server_step(self, state: State, server: State, answers: Answers) -> Stepped:
        """The next global state and the server's next tensors."""
        raise NotImplementedError(f"strategy {self.name} has no server")


class Federated(Strategy):
    """Strategies with a server. A new one gives `server_step`, which may do anything with the sites' models."""

    federated = True
    between_hospitals = True

    weighting: Literal["patients", "uniform"] = "patients"
    """A site counts by its training patients, or as much as any other."""
    participation: float = Field(default=1.0, gt=0, le=1)
    """Share of the sites drawn for a round, at least one."""

    @property
    def share(self) -> float:
        """`participation`."""
        return self.participation

    @property
    def uniform(self) -> bool:
        """From `weighting`."""
        return self.weighting == "uniform"


class WeightedSum(Federated):
    """Strategies whose server needs only the weighted mean of the sites' changes, which hospitals can sum masked."""

    is_sum = True
    vectorised = True

    sum_bits: Literal[32, 64] = 64
    """Bits of the integers in which the sites' weighted changes are summed. 64: steps of 2^-40, changes of a weight below 2^20 in a round.
    32: half the bytes between hospitals, steps of 2^-29, changes below 2."""

    @property
    def fixed(self) -> FixedPoint:
        """From `sum_bits`."""
        return WIDE if self.sum_bits == 64 else NARROW

    def server_step(self, state: State, server: State, answers: Answers) -> Stepped:
        """`step` by the weighted mean of the sites' changes."""
        return self.step(state, server, weighted_change(state, answers, self.fixed))

    def step(self, state: State, server: State, change: State) -> Stepped:
        """The next state and server from the mean change (*shape) float64 of every tensor; here: state + change."""
        return moved(state, change), dict(server)


class ServerRate(WeightedSum):
    """Weighted sums whose server has a learning rate."""

    server_lr: Rate = 1.0

    @property
    def server_rate(self) -> float | None:
        """`server_lr`."""
        return self.server_lr


def server_tensors(part: str, tensors: State) -> dict[str, Tensor]:
    """Tensors of the server under the names `part/NAME`."""
    return {f"{part}/{name}": value for name, value in tensors.items()}


def server_part(server: State, part: str) -> dict[str, Tensor]:
    """The tensors named `part/NAME` by NAME."""
    return {name.removeprefix(f"{part}/"): value for name, value in server.items() if name.startswith(f"{part}/")}
