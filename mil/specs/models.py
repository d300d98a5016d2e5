"""Settings of the heads: a bag's tiles -> logits. A preset is a head with settings that somebody published."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

from mil.files import sha256_of
from mil.spec import Spec

Width = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class HeadSpec(Spec):
    """Base of the settings of heads. A class of this file with a name is a head of `mil/models/`; nothing else lists it."""

    name: Any
    title: ClassVar[str] = ""
    """The head as it stands in legends; '': its name."""
    attends: ClassVar[bool] = True
    """It weighs tiles against each other; not so heads that weigh all alike, look at one tile, or at none."""


class MeanSpec(HeadSpec):
    """Linear layer on the mean of the tiles: a linear probe. With `hidden`, tiles pass a ReLU layer first."""

    name: Literal["mean"] = "mean"
    title = "mean pooling"
    attends = False
    hidden: Width | None = None
    """Width of a tile embedding before the mean; none: the mean of the tiles as they are."""
    dropout: Share = 0.0


class MaxSpec(HeadSpec):
    """Logits of the tile with the highest ones."""

    name: Literal["max"] = "max"
    title = "max pooling"
    attends = False
    hidden: tuple[Width, ...] = ()
    """Widths of ReLU layers before a tile's logits."""
    dropout: Share = 0.0


class ChowderSpec(HeadSpec):
    """Top and bottom tile scores into an MLP (Courtiol et al. 2018); settings of Owkin's HistoSSLscaling."""

    name: Literal["chowder"] = "chowder"
    title = "Chowder"
    top: int = Field(default=10, ge=1)
    bottom: int = Field(default=10, ge=0)
    tile_hidden: tuple[Width, ...] = (128,)
    """Widths of sigmoid layers before a tile's score."""
    hidden: tuple[Width, ...] = (128, 64)
    """Widths of sigmoid layers between the scores and the logit."""


class WeldonSpec(HeadSpec):
    """Mean of the top and bottom tile scores (Durand et al. 2016); settings of Owkin's Substrafl Camelyon benchmark."""

    name: Literal["weldon"] = "weldon"
    title = "WELDON"
    top: int = Field(default=10, ge=1)
    bottom: int = Field(default=10, ge=0)


class Attending(HeadSpec):
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
    title = "gated attention"


class DSMILSpec(HeadSpec):
    """Two streams (Li et al. 2021): the highest tile, and attention to it; settings of the authors' code."""

    name: Literal["dsmil"] = "dsmil"
    title = "DSMIL"
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


class ClamSBSpec(HeadSpec):
    """CLAM, single branch (Lu et al. 2021): gated attention plus a loss on the tiles it attends to most and least."""

    name: Literal["clam_sb"] = "clam_sb"
    title = "CLAM"
    hidden: Width = 512
    attention: Width = 256
    samples: int = Field(default=8, ge=1)
    """Tiles a bag taken as positive and as many as negative for the loss on tiles."""
    bag_weight: float = Field(default=0.7, ge=0, le=1)
    """Weight of the bag's loss; the rest is the tiles'."""
    subtyping: bool = False
    """Classes exclude one another, so the other classes' most attended tiles are negative."""
    dropout: Share = 0.25


class TransMILSpec(HeadSpec):
    """Transformer over tiles with a class token (Shao et al. 2021). Positional: the order of the tiles matters."""

    name: Literal["transmil"] = "transmil"
    title = "TransMIL"
    width: Width = 512
    heads: int = Field(default=8, ge=1)
    landmarks: int = Field(default=256, ge=1)
    """Landmarks of the Nystroem approximation."""
    iterations: int = Field(default=6, ge=1)
    """Iterations of the pseudo-inverse."""
    kernel: int = Field(default=33, ge=1)
    """Length of the convolution of the values along the sequence."""
    dropout: Share = 0.1


class ClinicalSpec(HeadSpec):
    """Nothing of the slides: the experiment's covariates alone, by logistic (linear, Cox) regression."""

    name: Literal["clinical"] = "clinical"
    title = "clinical columns"
    attends = False


class UserHeadSpec(HeadSpec):
    """A torch module of the user, `python:FILE.py:CLASS`; every other key is an argument of CLASS. It runs the code in FILE."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]  # pyright: ignore[reportIncompatibleVariableOverride]

    name: str = Field(pattern=r"^python:.+:[A-Za-z_][A-Za-z0-9_]*$")
    """FILE is relative to the working folder. CLASS(width, outputs, **settings) makes the module."""
    file_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """SHA-256 of FILE; none: that of the file as it is now. A file with another one is refused."""

    @model_validator(mode="before")
    @classmethod
    def _with_digest(cls, data: Any) -> Any:
        """The settings with the digest of the file that they name."""
        if not isinstance(data, dict) or data.get("file_sha256"):
            return data
        file, colon, _ = str(data.get("name")).removeprefix("python:").rpartition(":")
        if not colon:
            raise ValueError(f"name: '{data.get('name')}' names no class; write python:FILE.py:CLASS")
        if not Path(file).is_file():
            raise ValueError(f"name: file {file} of '{data['name']}' does not exist; write python:FILE.py:CLASS")
        return data | {"file_sha256": sha256_of(Path(file))}

    @property
    def file(self) -> str:
        """Path of the file."""
        return self.name.removeprefix("python:").rpartition(":")[0]

    @property
    def class_name(self) -> str:
        """Name of the class in it."""
        return self.name.rpartition(":")[2]

    @property
    def settings(self) -> dict[str, JsonValue]:
        """Arguments of the class besides width and outputs."""
        return dict(self.__pydantic_extra__)

    @property
    def notice(self) -> str:
        """What a log says of it."""
        return f"model {self.name}: runs the code in {self.file} (SHA-256 {self.file_sha256[:12]}...) with your rights"


# Owkin: HistoSSLscaling conf/slide_level_task/cross_validation/model/*.yaml, FLamby fed_camelyon16/model.py,
# Substrafl benchmark/camelyon/common/weldon.py.
ABMIL = {"name": "gated_attention", "hidden": 128, "activation": "none", "attention": 128, "classifier": (128, 64)}
# Ilse et al. 2018, supplement: MUSK, Fox, Tiger, Elephant. The share of dropout is Wang et al.'s MI-Net's, 2018.
ILSE = {"before": (256, 128), "hidden": 64, "init": "xavier", "attention": 64, "dropout": 0.5}
PRESETS: dict[str, dict[str, Any]] = {
    "linear_probe": {"name": "mean"},
    "owkin_meanpool": {"name": "mean"},
    "owkin_chowder": {"name": "chowder", "top": 10, "bottom": 10, "tile_hidden": (128,), "hidden": (128, 64)},
    "owkin_weldon": {"name": "weldon", "top": 10, "bottom": 10},
    "owkin_abmil": ABMIL,
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
    "ilse_attention": {"name": "attention", **ILSE},
    "ilse_gated_attention": {"name": "gated_attention", **ILSE},
    "flamby_deepmil": ABMIL,
}


def named(value: Any) -> Any:
    """`attention` is short for `{name: attention}`; a preset's name stands for its settings, which may be overridden."""
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, dict) and value.get("name") in PRESETS:
        return PRESETS[value["name"]] | {key: setting for key, setting in value.items() if key != "name"}
    return value


def _named(base: type[HeadSpec]) -> Iterator[type[HeadSpec]]:
    """The classes below `base` whose name is one word, in the order of this file."""
    for spec in base.__subclasses__():
        if isinstance(spec.model_fields["name"].default, str):
            yield spec
        yield from _named(spec)


def _tag(value: Any) -> Any:
    """Which spec a value is for: its name, `python` for all `python:FILE.py:CLASS`."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "python" if isinstance(name, str) and name.startswith("python:") else name


HEAD_SPECS = {str(spec.model_fields["name"].default): spec for spec in _named(HeadSpec)}
if TYPE_CHECKING:
    ModelSpec = HeadSpec
else:
    ModelSpec = Annotated[
        Union[tuple(Annotated[spec, Tag(tag)] for tag, spec in (HEAD_SPECS | {"python": UserHeadSpec}).items())],  # noqa: UP007
        Discriminator(
            _tag,
            custom_error_type="model",
            custom_error_message=f"a model is {', '.join(HEAD_SPECS)}, python:FILE.py:CLASS or a preset",
        ),
        BeforeValidator(named),
    ]
