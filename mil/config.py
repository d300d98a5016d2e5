"""YAML -> one frozen, versioned spec a stage: what the rule tracks, the command takes and the files record.

`configs/default.yaml` and `configs/schema.json` are generated from here (`mil config write`). A spec's `version` is
raised when the same settings would give other numbers. Precedence: defaults < `--configfile` < `--config`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from mil.errors import MilError, nearest
from mil.files import SAFE_NAME, require_file
from mil.spec import Spec
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec
from mil.specs.faults import first_fault
from mil.specs.slides import SlidesSpec, TileSpec, TruthSpec
from mil.strict_yaml import load_yaml

S = TypeVar("S", bound=BaseModel)
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class EncoderSpec(Spec):
    """A frozen tile -> vector model from the registry (`mil encoders list`), or any other by `kind:name`."""

    version: Literal[1] = 1
    name: str = "efficientnet_lite0"
    """A registered name, `timm:NAME`, `torchvision:NAME`, `torchscript:FILE` or `python:FILE.py:FUNCTION`. The last two run the
    code in that file with your rights: name only a file that you trust."""
    weights: str | None = None
    """File with the weights, or the folder that `mil encoders fetch` filled; none: where the registry says. `random`: untrained."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the encoder; `auto`: bf16 where the device is faster so. What was used is recorded in every file."""
    batch_size: int = Field(default=256, ge=1)
    """Tiles a step on a GPU; halved by itself where memory is short. Says how work is cut up, never what comes out."""
    stain: Literal["macenko", "reinhard"] | None = None
    """Stain normalisation of the tiles; none: off."""
    input_px: int | None = Field(default=None, ge=16, le=2048)
    """Side of the encoder's input; only for encoders that are not registered, none: what the model says, else 224."""
    mean: tuple[Share, Share, Share] | None = None
    std: tuple[Positive, Positive, Positive] | None = None
    """Normalisation of RGB in 0-1; only for encoders that are not registered, none: what the model says, else ImageNet's."""

    @property
    def code(self) -> str | None:
        """The file whose code is the encoder, of `torchscript:FILE` and `python:FILE.py:FUNCTION`."""
        kind, _, rest = self.name.partition(":")
        return {"torchscript": rest, "python": rest.rpartition(":")[0]}.get(kind)

    @model_validator(mode="after")
    def _registered_is_fixed(self) -> "EncoderSpec":
        if ":" not in self.name and (self.input_px, self.mean, self.std) != (None, None, None):
            raise ValueError(
                f"input_px, mean and std of the registered encoder '{self.name}' are fixed; leave them out"
            )
        if self.code is not None and self.weights not in (None, "random"):
            raise ValueError(
                f"encoder '{self.name}' takes its weights from its own file, never from `weights`; leave `weights` out"
            )
        return self


class MetricsSpec(Spec):
    """How predictions are scored."""

    version: Literal[6] = 6
    confidence: float = Field(default=0.95, gt=0, lt=1)
    bootstrap: int = Field(default=2000, ge=100, le=100_000)
    """Patient bootstrap resamples."""
    seed: int = 0
    clinical: tuple[str, ...] = ()
    """Columns of the patient table for the clinical baseline, late fusion and Cox models; numbers or classes."""
    annotation: str | None = None
    """Column with an expert's annotation (TILs in per cent, say) that stands as a baseline alone."""
    subgroups: tuple[str, ...] = ()
    """Columns of the patient table for subgroups; numbers are cut at their median."""
    time: str | None = None
    """Column with the follow-up time; with `event`, survival is analysed."""
    event: str | None = None
    """Column with 1 where the event happened and 0 where the patient was censored."""
    decision_thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.2, 0.35, 0.5)
    """Chances at which net benefit stands in the table of metrics; the figure shows the whole curve."""
    on_leak: Literal["stop", "flag"] = "stop"
    """What a leak does that the checks find: it ends the run, or stands in the report (an input may show the label honestly)."""
    permutations: int = Field(default=200, ge=10, le=100_000)
    """Permuted labels in the null controls."""

    @model_validator(mode="after")
    def _each_column_once(self) -> "MetricsSpec":
        for name in ("clinical", "subgroups"):
            columns = getattr(self, name)
            if doubled := [column for column in columns if columns.count(column) > 1]:
                raise ValueError(f"{name} names '{doubled[0]}' twice; keep one")
        if "score" in (*self.clinical, self.annotation):
            raise ValueError("'score' is the model's in every table; rename that column of the patient table")
        return self


class FiguresSpec(Spec):
    """How figures are drawn."""

    formats: tuple[Literal["pdf", "svg", "png"], ...] = ("pdf", "svg", "png")
    dpi: int = Field(default=200, ge=72, le=2400)
    slides_a_site: int = Field(default=4, ge=1, le=100)
    """Slides a site in the heat-map figure."""
    tiles_a_site: int = Field(default=8, ge=1, le=100)
    """Top and bottom tiles a site in the montage."""
    clusters: int = Field(default=6, ge=2, le=12)
    """Clusters of tiles in the figure of tile clusters."""
    review_tiles: int = Field(default=16, ge=2, le=1000)
    """Tiles of either kind (highest, lowest attention) in a site's review sheet for pathologists."""
    patterns: tuple[str, ...] = (
        "lymphocytes",
        "tumour",
        "necrosis",
        "fibrosis",
        "fat",
        "apocrine_change",
        "haemorrhage",
    )
    """Columns of the review sheet, to be filled with 0 or 1."""
    reviews: tuple[str, ...] = ()
    """Filled review sheets, one a pathologist; rows of several sites' sheets may stand one below the other."""
    resamplings: int = Field(default=20, ge=2, le=1000)
    """Draws of patients or tiles a point of the sample-size curves."""
    main: str | None = None
    """Experiment whose attention is drawn; none: the first under `run` with attention, cross-validated if any is."""


class ReportSpec(Spec):
    """The report's heading and remarks."""

    title: str = "Federated multiple-instance learning on whole-slide images"
    remarks: str = ""
    """Free text shown under the title: what the cohort is, what to beware of."""
    viewer_slides: int = Field(default=4, ge=0)
    """Slides a site in the slide viewer beside the report; 0: no viewer."""
    viewer_px: int = Field(default=3072, ge=512, le=16_384)
    """Longer side of a slide in the viewer, in pixels; tiles with the highest attention are there at their full size besides."""


# Names that would write over another table (metrics/comparisons.csv, bags/X.flow.csv) or stand for another model.
TAKEN = {"experiments": ("cohort", "comparisons", "reviews", "strategies"), "slides.roles": ("ensemble",)}
TAKEN_ENDINGS = {"experiments": (".localisation", ".slides", ".curves", ".folds"), "endpoints": (".flow",)}


class Config(Spec):
    """Everything a cohort's run is made of."""

    cohort: str = ""
    """Name of the cohort; its results go to `<results>/<cohort>/`."""
    results: str = "results"
    shard_size: int | None = Field(default=None, ge=1)
    """Slides per job of `check`, `tile` and `extract`; none: 50, and 125 from 4,000 slides on. Never changes what comes out, and only
    slides that are in no shard yet are dealt by it."""
    slides: SlidesSpec = SlidesSpec()
    truth: TruthSpec | None = None
    tiles: TileSpec = TileSpec()
    encoders: dict[str, EncoderSpec] = Field(default={"effnet": EncoderSpec(), "colour": EncoderSpec(name="colour")})
    endpoints: dict[str, EndpointSpec] = Field(default={"response": EndpointSpec()})
    experiments: dict[str, ExperimentSpec] = Field(default={})
    """Named stanzas; those of `configs/experiments.yaml` and the cohort's own."""
    run: tuple[str, ...] = ()
    """Names of the experiments to run, in the order of the figures."""
    metrics: MetricsSpec = MetricsSpec()
    figures: FiguresSpec = FiguresSpec()
    report: ReportSpec = ReportSpec()

    @property
    def results_folder(self) -> Path:
        """The folder of the cohort's results."""
        return Path(self.results) / self.cohort

    def selected(self) -> dict[str, ExperimentSpec]:
        """The experiments to run, by name, in their order."""
        return {name: self.experiments[name] for name in self.run}

    @property
    def used_encoders(self) -> list[str]:
        """Encoders of the experiments to run, by name."""
        return sorted({experiment.encoder for experiment in self.selected().values()})

    @property
    def used_endpoints(self) -> list[str]:
        """Endpoints of the experiments to run, by name."""
        return sorted({experiment.endpoint for experiment in self.selected().values()})

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        if not self.results.strip() or set(self.results) & set("{}<>*?\n"):
            raise ValueError(f"results: {self.results!r} is no folder's path; leave out {{ }} < > * and ?")
        self._check_names()
        self._check_features()
        for kind, names in ("run", self.run), ("figures.reviews", self.figures.reviews):
            if doubled := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{kind} names '{doubled[0]}' twice; keep one")
        for name in self.run:
            if name not in self.experiments:
                raise ValueError(f"run: unknown experiment '{name}'; {nearest(name, self.experiments)}")
            experiment = self.experiments[name]
            named = ("encoder", experiment.encoder, self.encoders), ("endpoint", experiment.endpoint, self.endpoints)
            for kind, key, known in named:
                if key not in known:
                    raise ValueError(f"experiments.{name}.{kind}: unknown {kind} '{key}'; {nearest(key, known)}")
        return self

    def _check_names(self) -> None:
        """Names that become folders: usable on every system, where `North` and `north` are one folder on some."""
        for kind, names in {
            "cohort": [self.cohort] if self.cohort else [],
            "encoders": self.encoders,
            "endpoints": self.endpoints,
            "experiments": self.experiments,
            "slides.roles": self.slides.roles,
        }.items():
            spelt: dict[str, str] = {}
            for name in names:
                if not SAFE_NAME.match(name):
                    raise ValueError(
                        f"{kind}: {name!r} cannot be part of a file name; use letters, digits, '.', '_' and '-'"
                    )
                if name.casefold() in TAKEN.get(kind, ()) or name.casefold().endswith(TAKEN_ENDINGS.get(kind, ())):
                    raise ValueError(f"{kind}: '{name}' is a name of the pipeline's own results; choose another name")
                if (other := spelt.setdefault(name.casefold(), name)) != name:
                    raise ValueError(f"{kind}: '{name}' and '{other}' differ by case alone; rename one of them")

    def _check_features(self) -> None:
        """Sites with features alone are sites, and say which features are whose where several encoders are used."""
        used = {experiment.encoder for experiment in map(self.experiments.get, self.run) if experiment is not None}
        for site, source in self.slides.features.items():
            if site not in self.slides.roles:
                raise ValueError(f"slides.features: unknown site '{site}'; {nearest(site, self.slides.roles)}")
            if len(used) > 1 and "{encoder}" not in source.folder and source.layout != "atlaspatch":
                raise ValueError(
                    f"slides.features.{site}.folder: {source.folder} holds the features of one encoder, but the experiments "
                    f"use {', '.join(sorted(used))}; put {{encoder}} into it, or run experiments of one encoder"
                )


def parse(spec: type[S], data: Mapping[str, Any], where: str) -> S:
    """Validate `data`; the first fault is a `MilError` that names `where`, the key, the value and the way out."""
    try:
        return spec.model_validate(data)
    except ValidationError as error:
        line = first_fault(spec, error)
        raise MilError(f"{where}: {line if len(line) <= 600 else line[:597] + '...'}") from error


def read_spec(spec: type[S], text: str) -> S:
    """A spec from the command line: JSON text, a YAML or JSON file, or `FILE:KEY.KEY` for a part of one."""
    if text.lstrip().startswith("{"):
        try:
            return parse(spec, json.loads(text), "--spec")
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError
            raise MilError(f"--spec is not JSON: {str(error)[:200]}") from error
    path, _, keys = text.rpartition(":") if ":" in text and not Path(text).is_file() else (text, "", "")
    part: Any = read_yaml(path)
    for key in filter(None, keys.split(".")):
        if not isinstance(part, dict) or not isinstance(part.get(key), dict):
            raise MilError(
                f"{path} has no part '{keys}'; name a part of it, or of configs/default.yaml with all defaults"
            )
        part = part[key]
    return parse(spec, part, text)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    path = require_file(path, "config")
    try:
        data = load_yaml(path.read_text(encoding="utf-8"), f"config {path}")
    except UnicodeDecodeError as error:
        raise MilError(f"config {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise MilError(f"config {path} must be a mapping of keys to values, not {type(data).__name__}")
    return data


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`: mappings are merged, everything else is replaced. The same rule as Snakemake's."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def defaults() -> dict[str, Any]:
    """All settings as they are where nobody sets them: `configs/default.yaml`."""
    return Config().model_dump(mode="json")


def load(*paths: str | Path) -> Config:
    """The config of the files in order, later ones over earlier ones and all over the defaults."""
    data = defaults()
    for path in paths:
        data = merge(data, read_yaml(path))
    return parse(Config, data, ", ".join(str(path) for path in paths))
