"""Settings of the strategies: how models of several sites become one (or stay apart)."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mil.specs.base import Spec

Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class LocalSpec(Spec):
    """One model a training site, on that site's patients only."""

    name: Literal["local"] = "local"


class PooledSpec(Spec):
    """One model on all training sites' patients together, as no federation could."""

    name: Literal["pooled"] = "pooled"


class EnsembleSpec(Spec):
    """Mean of the local models' probabilities: what sites can do without training together."""

    name: Literal["ensemble"] = "ensemble"


class CyclicSpec(Spec):
    """One model passed from site to site (Chang et al. 2018); a round is a visit to every site."""

    name: Literal["cyclic"] = "cyclic"
    shuffled: bool = False
    """Every round visits the sites in an order drawn anew; otherwise in the order of their names."""


class Federated(Spec):
    """What all strategies with a server have in common."""

    weighting: Literal["patients", "uniform"] = "patients"
    """A site counts by its training patients, or as much as any other."""
    participation: float = Field(default=1.0, gt=0, le=1)
    """Share of the sites drawn for a round, at least one."""


class FedAvgSpec(Federated):
    """Federated averaging (McMahan et al. 2017)."""

    name: Literal["fedavg"] = "fedavg"
    histofl_noise: float | None = Field(default=None, gt=0)
    """HistoFL's alpha (Lu et al. 2022): to the average the server adds, for every site and every tensor but biases, normal
    noise of alpha times the deviation of the site's own tensor. Nothing is clipped and the scale depends on the data: this
    gives no privacy guarantee of any kind, and hospitals are refused it (theirs is `privacy` in the protocol)."""


class FedAvgMSpec(Federated):
    """Federated averaging with momentum at the server (Hsu et al. 2019)."""

    name: Literal["fedavgm"] = "fedavgm"
    momentum: Decay = 0.9
    server_lr: Rate = 1.0


class FedProxSpec(Federated):
    """Federated averaging whose sites are pulled towards the global model (Li et al. 2020)."""

    name: Literal["fedprox"] = "fedprox"
    mu: float = Field(default=0.01, ge=0)
    """The loss gets mu/2 times the squared distance to the global model."""


class Adaptive(Federated):
    """Server optimisers of Reddi et al. 2021, Algorithm 2: no bias correction, second moment begins at tau squared."""

    server_lr: Rate = 0.01
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    tau: Rate = 1e-3
    like: Literal["reddi", "flamby", "flower", "adam"] = "reddi"
    """`flamby`: the second moment begins at zero (FLamby's own settings are beta2 0.999 and tau 1e-8). `adam`: the same, and
    fedadam has Adam's bias correction (Kingma and Ba 2015). `flower`: that with the round counted from two, as flwr's FedAdam
    has it."""


class FedAdamSpec(Adaptive):
    """Adam at the server."""

    name: Literal["fedadam"] = "fedadam"


class FedSGDSpec(Adaptive):
    """One gradient of each site's patients a round (FedSGD, McMahan et al. 2017), taken by Adam at the server.

    With the whole site in a batch this is Adam on all patients together, to the rounding: what federation costs when it costs
    nothing but rounds. The sites take one step of sgd, at any learning rate. A gradient tells more of patients than an update
    of many steps, so hospitals are refused it.
    """

    name: Literal["fedsgd"] = "fedsgd"
    server_lr: Rate = 1e-3
    beta2: Decay = 0.999
    tau: Rate = 1e-8
    like: Literal["reddi", "flamby", "flower", "adam"] = "adam"


class FedYogiSpec(Adaptive):
    """Yogi at the server."""

    name: Literal["fedyogi"] = "fedyogi"


class FedAdagradSpec(Adaptive):
    """Adagrad at the server."""

    name: Literal["fedadagrad"] = "fedadagrad"


class ScaffoldSpec(Federated):
    """Control variates against the sites' drift (Karimireddy et al. 2020, option II). The sites' optimiser must be sgd."""

    name: Literal["scaffold"] = "scaffold"
    server_lr: Rate = 1.0


class FedPerSpec(Federated):
    """Body shared, head of its own at every site (Arivazhagan et al. 2019): one model a site."""

    name: Literal["fedper"] = "fedper"
    local: tuple[str, ...] = ("score",)
    """Layers that never leave the site, by the first part of their tensors' names."""


class MedianSpec(Federated):
    """Median of the sites, number by number (Yin et al. 2018); every site counts alike."""

    name: Literal["median"] = "median"


class TrimmedMeanSpec(Federated):
    """Mean of the sites without the most extreme at either end, number by number (Yin et al. 2018)."""

    name: Literal["trimmed_mean"] = "trimmed_mean"
    trim: float = Field(default=0.2, ge=0, lt=0.5)
    """Share of the sites left out at either end, rounded down."""


class FinetuneSpec(Spec):
    """Any federated strategy, then some rounds of local work on each site's own patients: one model a site."""

    name: Literal["finetune"] = "finetune"
    epochs: int = Field(default=5, ge=1)
    """Rounds of local work after the last round: epochs, where `local_epochs` is 1."""
    base: "FederatedSpec" = FedAvgSpec()


def named(value: Any) -> Any:
    """`fedavg` is short for `{name: fedavg}`."""
    return {"name": value} if isinstance(value, str) else value


FederatedSpec = Annotated[
    CyclicSpec
    | FedPerSpec
    | FedAvgSpec
    | FedAvgMSpec
    | FedProxSpec
    | FedAdamSpec
    | FedSGDSpec
    | FedYogiSpec
    | FedAdagradSpec
    | ScaffoldSpec
    | MedianSpec
    | TrimmedMeanSpec,
    Field(discriminator="name"),
    BeforeValidator(named),
]
FinetuneSpec.model_rebuild()

StrategySpec = Annotated[
    LocalSpec
    | EnsembleSpec
    | FinetuneSpec
    | FedPerSpec
    | PooledSpec
    | CyclicSpec
    | FedAvgSpec
    | FedAvgMSpec
    | FedProxSpec
    | FedAdamSpec
    | FedSGDSpec
    | FedYogiSpec
    | FedAdagradSpec
    | ScaffoldSpec
    | MedianSpec
    | TrimmedMeanSpec,
    Field(discriminator="name"),
    BeforeValidator(named),
]
