"""Settings of training, of the search over them, and the stanza that names an experiment."""

from typing import Literal

from pydantic import Field, model_validator

from mil.spec import Spec
from mil.specs.models import ClinicalSpec, ModelSpec
from mil.strategies import STRATEGIES, StrategySpec
from mil.strategies.strategy import Rate, ServerRate


class TrainingSpec(Spec):
    """How one model is trained: the same for every fold, site and strategy."""

    version: Literal[2] = 2
    rounds: int = Field(default=30, ge=1, le=100_000)
    """Most rounds; the number used is chosen on the inner folds. For local and pooled a round is `local_epochs` epochs."""
    patience: int | None = Field(default=None, ge=1)
    """Rounds without a smaller error on the inner folds after which an outer fold's selection stops; none: all rounds are tried."""
    local_epochs: int = Field(default=1, ge=1, le=10_000)
    """Passes over a site's patients a round."""
    local_steps: int | None = Field(default=None, ge=1)
    """Batches a round instead of epochs, as many at every site."""
    batch_size: int = Field(default=16, ge=1)
    """Patients a step."""
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Of sgd."""
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate falls over `rounds`, to zero after the last."""
    warmup: int = Field(default=0, ge=0)
    """Rounds over which the learning rate rises to its value."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Longest gradient of a model; longer ones are shortened to it."""
    imbalance: Literal["none", "weights", "sampling"] = "none"
    """Classes that are rare among the training patients: as they are, weighted in the loss, or drawn more often."""
    scaling: Literal["standard", "site", "none"] = "standard"
    """Features are centred and scaled by the training patients' mean and deviation (merged from the sites' sums).

    `site`: every site's by its own training patients', so that no moment leaves it; a site that the model was not trained
    on, at prediction, by those of its own patients' tiles (never their labels).
    """
    max_tiles: int | None = Field(default=None, ge=1)
    """Tiles drawn from a bag an epoch; none: all."""
    replicas: int = Field(default=1, ge=1, le=100)
    """Models a fold, each from its own first weights; their probabilities are averaged."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the matrix products; weights, sums and the optimiser are fp32 always. auto: bf16 on a GPU that has it, fp32 on
    a CPU; the run's spec.json says which."""
    seed: int = 0


class SearchSpec(Spec):
    """Candidates to choose from on the inner folds, all of them crossed; an empty list keeps the stanza's own value."""

    lr: tuple[float, ...] = ()
    weight_decay: tuple[float, ...] = ()
    server_lr: tuple[Rate, ...] = ()
    """Learning rate of the strategy's server; only where it has one."""
    model: tuple[ModelSpec, ...] = ()


class ExperimentSpec(Spec):
    """A named stanza: encoder x model x strategy x endpoint."""

    encoder: str
    endpoint: str
    model: ModelSpec
    strategy: StrategySpec
    protocol: Literal["cross_validation", "leave_one_site_out"] = "cross_validation"
    """`leave_one_site_out`: models of all training sites but one, for each of three or more, judged on the patients of that site
    and on nobody else. Cross-site transfer, trained on one and judged on another, comes with strategy local by itself."""
    covariates: tuple[str, ...] = ()
    """Numeric columns of the bag table that are joined to the bag's logits (late fusion)."""
    training: TrainingSpec = TrainingSpec()
    search: SearchSpec | None = None
    """What else to choose on the inner folds besides the number of rounds."""

    @model_validator(mode="after")
    def _possible(self) -> "ExperimentSpec":
        strategy = self.strategy.of_rounds
        if strategy.plain_sgd and (self.training.optimiser != "sgd" or self.training.momentum):
            raise ValueError(
                f"strategy {strategy.name} needs training.optimiser sgd without momentum: {strategy.plain_sgd}"
            )
        if strategy.one_step and self.training.local_steps != 1:
            raise ValueError(
                f"strategy {strategy.name} needs training.local_steps 1, and a batch_size that holds a site's patients"
            )
        if self.search is not None and self.search.server_lr and strategy.server_rate is None:
            having = [name for name, kind in STRATEGIES.items() if issubclass(kind, ServerRate)]
            raise ValueError(
                f"search.server_lr: the server of strategy {strategy.name} has no learning rate; leave it out, or choose one of "
                f"{', '.join(having)}"
            )
        if self.protocol == "leave_one_site_out" and self.strategy.by_site:
            raise ValueError(
                f"protocol leave_one_site_out needs one model of several sites; strategy {self.strategy.name} has one for each"
            )
        if isinstance(self.model, ClinicalSpec) and not self.covariates:
            raise ValueError("model clinical needs covariates")
        return self
