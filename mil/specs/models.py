"""Settings of the heads: a bag's tiles -> logits. A preset is a head with settings that somebody published."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mil.spec import Spec

Width = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class MeanSpec(Spec):
    """Linear layer on the mean of the tiles: a linear probe. With `hidden`, tiles pass a ReLU layer first."""

    name: Literal["mean"] = "mean"
    hidden: Width | None = None
    """Width of a tile embedding before the mean; none: the mean of the tiles as they are."""
    dropout: Share = 0.0


class MaxSpec(Spec):
    """Logits of the tile with the highest ones."""

    name: Literal["max"] = "max"
    hidden: tuple[Width, ...] = ()
    """Widths of ReLU layers before a tile's logits."""
    dropout: Share = 0.0


class ChowderSpec(Spec):
    """Top and bottom tile scores into an MLP (Courtiol et al. 2018); settings of Owkin's HistoSSLscaling."""

    name: Literal["chowder"] = "chowder"
    top: int = Field(default=10, ge=1)
    bottom: int = Field(default=10, ge=0)
    tile_hidden: tuple[Width, ...] = (128,)
    """Widths of sigmoid layers before a tile's score."""
    hidden: tuple[Width, ...] = (128, 64)
    """Widths of sigmoid layers between the scores and the logit."""


class WeldonSpec(Spec):
    """Mean of the top and bottom tile scores (Durand et al. 2016); settings of Owkin's Substrafl Camelyon benchmark."""

    name: Literal["weldon"] = "weldon"
    top: int = Field(default=10, ge=1)
    bottom: int = Field(default=10, ge=0)


class Attending(Spec):
    """What both kinds of attention have in common."""

    before: tuple[Width, ...] = ()
    """Widths of ReLU layers, each with dropout, before the tile embedding."""
    hidden: Width = 128
    """Width of the tile embedding before attention."""
    activation: Literal["relu", "none"] = "relu"
    """After the tile embedding."""
    init: Literal["uniform", "xavier"] = "uniform"
    """First weights: PyTorch's, within +-1/sqrt(inputs), or Glorot and Bengio's (2010), which several layers do not dim."""
    attention: Width = 128
    """Width of the attention branches."""
    classifier: tuple[Width, ...] = ()
    """Widths of ReLU layers between the bag's vector and the logits."""
    dropout: Share = 0.0


class AttentionSpec(Attending):
    """Attention over tiles (Ilse et al. 2018) by one tanh layer."""

    name: Literal["attention"] = "attention"


class GatedAttentionSpec(Attending):
    """Gated attention over tiles (Ilse et al. 2018): a tanh branch times a sigmoid branch."""

    name: Literal["gated_attention"] = "gated_attention"


class DSMILSpec(Spec):
    """Two streams (Li et al. 2021): the highest tile, and attention to it; settings of the authors' code."""

    name: Literal["dsmil"] = "dsmil"
    score_hidden: tuple[Width, ...] = ()
    """Widths of sigmoid layers before a tile's logits."""
    query_hidden: tuple[Width, ...] = ()
    """Widths of sigmoid layers before a tile's query."""
    queries: Width = 128
    """Width of a query."""
    values: bool = True
    """A linear layer makes the values that attention averages; otherwise they are the tiles themselves."""
    scaled: bool = True
    """Attention is divided by the square root of `queries`."""
    hidden: tuple[Width, ...] = ()
    """Widths of sigmoid layers between the bag's vector and its logits."""
    loss: Literal["both", "mean"] = "both"
    """Mean of the two streams' losses, or loss of their mean logits. Predictions are the mean logits."""


class ClamSBSpec(Spec):
    """CLAM, single branch (Lu et al. 2021): gated attention plus a loss on the tiles it attends to most and least."""

    name: Literal["clam_sb"] = "clam_sb"
    hidden: Width = 512
    attention: Width = 256
    samples: int = Field(default=8, ge=1)
    """Tiles a bag taken as positive and as many as negative for the loss on tiles."""
    bag_weight: float = Field(default=0.7, ge=0, le=1)
    """Weight of the bag's loss; the rest is the tiles'."""
    subtyping: bool = False
    """Classes exclude one another, so the other classes' most attended tiles are negative."""
    dropout: Share = 0.25


class TransMILSpec(Spec):
    """Transformer over tiles with a class token (Shao et al. 2021). Positional: the order of the tiles matters."""

    name: Literal["transmil"] = "transmil"
    width: Width = 512
    heads: int = Field(default=8, ge=1)
    landmarks: int = Field(default=256, ge=1)
    """Landmarks of the Nystroem approximation."""
    iterations: int = Field(default=6, ge=1)
    """Iterations of the pseudo-inverse."""
    kernel: int = Field(default=33, ge=1)
    """Length of the convolution of the values along the sequence."""
    dropout: Share = 0.1


class ClinicalSpec(Spec):
    """Nothing of the slides: the experiment's covariates alone, by logistic (linear, Cox) regression."""

    name: Literal["clinical"] = "clinical"


# Owkin: HistoSSLscaling conf/slide_level_task/cross_validation/model/*.yaml, FLamby fed_camelyon16/model.py,
# Substrafl benchmark/camelyon/common/weldon.py.
PRESETS: dict[str, dict[str, Any]] = {
    "linear_probe": {"name": "mean"},
    "owkin_meanpool": {"name": "mean"},
    "owkin_chowder": {"name": "chowder", "top": 10, "bottom": 10, "tile_hidden": (128,), "hidden": (128, 64)},
    "owkin_weldon": {"name": "weldon", "top": 10, "bottom": 10},
    "owkin_abmil": {
        "name": "gated_attention",
        "hidden": 128,
        "activation": "none",
        "attention": 128,
        "classifier": (128, 64),
    },
    "owkin_dsmil": {
        "name": "dsmil",
        "score_hidden": (200, 100),
        "query_hidden": (200, 100),
        "queries": 32,
        "values": False,
        "scaled": False,
        "hidden": (200, 100),
        "loss": "mean",
    },
    "owkin_transmil": {"name": "transmil", "dropout": 0.0},
    # Ilse et al. 2018, supplement: MUSK, Fox, Tiger, Elephant. The share of dropout is Wang et al.'s MI-Net's, 2018.
    "ilse_attention": {
        "name": "attention",
        "before": (256, 128),
        "hidden": 64,
        "init": "xavier",
        "attention": 64,
        "dropout": 0.5,
    },
    "ilse_gated_attention": {
        "name": "gated_attention",
        "before": (256, 128),
        "hidden": 64,
        "init": "xavier",
        "attention": 64,
        "dropout": 0.5,
    },
    "flamby_deepmil": {
        "name": "gated_attention",
        "hidden": 128,
        "activation": "none",
        "attention": 128,
        "classifier": (128, 64),
    },
}


def named(value: Any) -> Any:
    """`attention` is short for `{name: attention}`; a preset's name stands for its settings, which may be overridden."""
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, dict) and value.get("name") in PRESETS:
        return PRESETS[value["name"]] | {key: setting for key, setting in value.items() if key != "name"}
    return value


ModelSpec = Annotated[
    MeanSpec
    | MaxSpec
    | ChowderSpec
    | WeldonSpec
    | AttentionSpec
    | GatedAttentionSpec
    | DSMILSpec
    | ClamSBSpec
    | TransMILSpec
    | ClinicalSpec,
    Field(discriminator="name"),
    BeforeValidator(named),
]
