"""The settings of the run -> the methods in sentences."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from mil.config import Config, EncoderSpec, ExperimentSpec, Spec
from mil.endpoints import ENDPOINTS, build_endpoint
from mil.endpoints.binary import EXCHANGE_BELOW, FEWEST
from mil.figures.style import encoder_name, model_name, strategy_name
from mil.results.results import Results
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import TrainingSpec
from mil.statistics import held_out
from mil.strategies import STRATEGIES
from mil.version import __version__

LIBRARIES = ("torch", "timm", "openslide-python", "openslide-bin", "scikit-learn", "lifelines", "numpy", "scipy")
PROTOCOL = (
    "The protocol is modelled on Ogier du Terrail et al., Federated learning for predicting histological response to neoadjuvant "
    "chemotherapy in triple-negative breast cancer, Nature Medicine 29:135–146 (2023). Cohort, models and numbers are this study's "
    "own; none is that paper's."
)
STATED = (
    "version",
    "optimiser",
    "lr",
    "weight_decay",
    "batch_size",
    "max_tiles",
    "local_epochs",
    "rounds",
    "scaling",
    "seed",
)
OPTIMISERS = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD"}


@dataclass(frozen=True)
class Paragraph:
    """A heading and its sentences."""

    title: str
    text: str


def methods(results: Results) -> list[Paragraph]:
    """Slides to metrics, a paragraph a stage that the run had, every number from the specs that made the results."""
    config = results.config
    read = {"Slides": _slides(config), "Tiles": _tiles(config)} if _reads_slides(results) else {}
    texts = {
        "Protocol": PROTOCOL,
        **read,
        "Features": _features(results),
        "Endpoints and folds": _folds(results),
        "Models and strategies": _models(results.experiments),
        "Training": _training(results.experiments, results.endpoints.values()),
        "Evaluation": _evaluation(results),
        "Software": _software(),
    }
    return [Paragraph(title, text) for title, text in texts.items()]


def _reads_slides(results: Results) -> bool:
    """Whether any site joined with slides; all others joined with features of another tool."""
    return not results.config.slides.features.keys() >= set(results.sites)


def _slides(config: Config) -> str:
    spec = config.slides
    return (
        "Slides were opened with their pixel size (microns a pixel, mpp) read from the header or, where given, the sheet; a slide whose mpp "
        f"is unknown, outside {spec.mpp_min:g}–{spec.mpp_max:g} or differs by more than {spec.anisotropy_max:.0%} between the axes was "
        "excluded, as was every slide that could not be read; nothing was guessed."
    )


def _tiles(config: Config) -> str:
    spec = config.tiles
    stride = spec.stride_px or spec.size_px
    overlap = "without overlap" if stride >= spec.size_px else f"every {stride} px"
    return (
        f"Tissue was found on a thumbnail of {spec.tissue.mpp:g} mpp ({spec.tissue.method.replace('_', ' ')}; specks below "
        f"{spec.tissue.min_area_um2:,.0f} µm² removed, holes up to {spec.tissue.fill_holes_um2:,.0f} µm² filled). Tiles are squares of "
        f"{spec.size_px} px at exactly {spec.mpp:g} mpp ({spec.size_px * spec.mpp:g} µm) on every scanner, {overlap}, with at "
        f"least {spec.min_tissue:.0%} tissue."
    )


def _features(results: Results) -> str:
    names = dict.fromkeys(experiment.encoder for experiment in results.experiments.values())
    said = [
        f"{encoder_name(name)} (“{name}”) is {_encoder(results.config.encoders[name], results.files.encoder_facts(name))}"
        for name in names
    ]
    elsewhere = [f"{site} ({source.layout})" for site, source in sorted(results.config.slides.features.items())]
    if elsewhere:
        excepted = ": what is said here of slides and tiles does not hold for them" if _reads_slides(results) else ""
        return (
            f"Features of {', '.join(elsewhere)} were made elsewhere, by the tool in brackets{excepted}. "
            f"Encoders: {'; '.join(said)}. Encoders were not trained or tuned here."
        )
    return f"Each tile became a vector by a frozen encoder: {'; '.join(said)}. Encoders were not trained or tuned here."


def _encoder(spec: EncoderSpec, facts: dict[str, Any]) -> str:
    """The encoder of the settings, with what the features' files record of it."""
    weights = f" with weights {spec.weights}" if spec.weights else ""
    phrases = [f"{facts['width']:,} numbers a tile"] if "width" in facts else []
    phrases.append(f"{facts.get('precision', spec.precision)} precision")
    if facts.get("weights_sha256"):
        phrases.append(f"weights SHA-256 {str(facts['weights_sha256'])[:12]}…")
    return f"{spec.name.replace('_', ' ')}{weights} ({', '.join(phrases)})"


def _folds(results: Results) -> str:
    said = []
    for name, spec in results.endpoints.items():
        repeats = "once" if spec.repeats == 1 else f"{spec.repeats} times"
        said.append(
            f"{name} (column “{spec.column}”; {build_endpoint(spec).meaning}): "
            f"patients of training sites were split {repeats} into {spec.folds} outer folds, within site and label, and the rest "
            f"of each into {spec.inner_folds} inner folds (seed {spec.seed})"
        )
    return (
        f"{'; '.join(said)}. All slides of a patient form one bag and stand in one fold. Folds were written to a table once, "
        "and every experiment used the same."
    )


def _models(experiments: dict[str, ExperimentSpec]) -> str:
    models = {experiment.model.to_json(): experiment.model for experiment in experiments.values()}
    strategies = {experiment.strategy.to_json(): experiment.strategy for experiment in experiments.values()}
    described = "; ".join(f"{model_name(spec.name)}{_settings(spec)}" for spec in models.values())
    listed = "; ".join(
        f"{strategy_name(spec.name)}{f', {spec.description}' if spec.description else ''}{_settings(spec)}"
        for spec in strategies.values()
    )
    joined = sorted({name for experiment in experiments.values() for name in experiment.covariates})
    covariates = f" Covariates of the patient table: {', '.join(joined)}." if joined else ""
    return f"Models: {described}.{covariates} Strategies: {listed}. {_what_leaves(experiments)}"


def _what_leaves(experiments: dict[str, ExperimentSpec]) -> str:
    """What the sites of the federated experiments send."""
    federated = [experiment for experiment in experiments.values() if experiment.strategy.of_rounds.federated]
    if not federated:
        return "No strategy of this run is federated: nothing is said of what would leave a site."
    sent = []
    for experiment in federated:
        sent.append(experiment.strategy.of_rounds.sent)
        if experiment.training.scaling == "standard":
            sent.append("counts, means and squared deviations of the features")
        if experiment.covariates:
            sent.append("counts, means and squared deviations of the covariates")
    listed = ", ".join(dict.fromkeys(sent))
    return f"In federated training a site sends {listed}, numbers of patients and losses; slides, features and patients stay."


def _settings(spec: Spec) -> str:
    return _in_brackets(spec.model_dump())


def _in_brackets(values: dict[str, Any]) -> str:
    """The settings that are not empty, without the name and version of what they belong to."""
    stated = {key: value for key, value in values.items() if key not in {"name", "version"}}
    listed = ", ".join(_setting(key, value) for key, value in stated.items() if value not in (None, (), [], 0.0))
    return f" ({listed})" if listed else ""


def _words(key: str) -> str:
    return re.sub(r"\blr\b", "learning rate", key.replace("_", " "))


def _setting(key: str, value: Any) -> str:
    if isinstance(value, dict):
        name = str(value.get("name", ""))
        title = strategy_name(name) if name in STRATEGIES else model_name(name)
        return f"{_words(key)} {title}{_in_brackets(value)}"
    words = "-".join(map(str, value)) if isinstance(value, (tuple, list)) else value
    return f"{_words(key)} {words}"


def _training(experiments: dict[str, ExperimentSpec], endpoints: Iterable[EndpointSpec]) -> str:
    groups: dict[str, list[str]] = {}
    for name, experiment in experiments.items():
        spec = experiment.training
        drawn = (
            "all tiles of a bag" if spec.max_tiles is None else f"{spec.max_tiles:,} tiles drawn from a bag each epoch"
        )
        text = (
            f"{OPTIMISERS.get(spec.optimiser, spec.optimiser)} (learning rate {spec.lr:g}, weight decay {spec.weight_decay:g}), {spec.batch_size} patients a step, "
            f"{drawn}, {spec.local_epochs} local epoch{'s' if spec.local_epochs > 1 else ''} a round, at most {spec.rounds} rounds, "
            f"features scaled: {spec.scaling}, seed {spec.seed}{_further(spec)}{_searched(experiment)}"
        )
        groups.setdefault(text, []).append(name)
    listed = "; ".join(text if len(groups) == 1 else f"{', '.join(names)}: {text}" for text, names in groups.items())
    measure = " or ".join(sorted({build_endpoint(spec).error for spec in endpoints}))
    return (
        f"{listed}. For each outer fold the number of rounds with the smallest {measure} on the held-out inner folds was chosen, and "
        "the model was trained anew on all outer training patients for exactly so many rounds. No outer-fold and no external "
        "patient was read by training or selection."
    )


def _further(spec: TrainingSpec) -> str:
    """Settings of training that the sentence does not name and that are not as by default."""
    plain = TrainingSpec().model_dump()
    changed = {key: value for key, value in spec.model_dump().items() if key not in STATED and value != plain[key]}
    return "".join(f", {_setting(key, value)}" for key, value in changed.items())


def _searched(experiment: ExperimentSpec) -> str:
    """Candidates among which the inner folds chose."""
    if experiment.search is None:
        return ""
    values = {key: value for key, value in experiment.search.model_dump().items() if value}
    listed = "; ".join(
        f"{_words(key)} among {', '.join(_setting('', candidate).strip() for candidate in value)}"
        for key, value in values.items()
    )
    return f", chosen on the inner folds: {listed}"


def _evaluation(results: Results) -> str:
    measured = {spec.kind: build_endpoint(spec).measured for spec in results.endpoints.values()}
    two_classes = any(build_endpoint(spec).two_classes for spec in results.endpoints.values()) or not measured
    said = [_evaluation_of_classes(results.config)] if two_classes else []
    if any(measured.values()):
        spec = results.config.metrics
        said += [measured[name] for name in ENDPOINTS if measured.get(name)]
        said.append(
            ("There, too, a" if two_classes else "A")
            + " patient's score is the mean over the models that did not see them; intervals "
            f"({spec.confidence:.0%}) come from the deviation of {spec.bootstrap:,} bootstrap resamples of patients within site (and class or event; seed {spec.seed}), on the "
            "logit scale or Fisher's z. Held-out intervals are enlarged for the overlap of training sets. Differences are tested on the same resamples at external sites, and of held-out patients by the corrected resampled t-test over folds; "
            "p values and the intervals beside them are corrected by Holm's method within each endpoint and factor, groups of sites and single sites apart."
        )
    return " ".join(said)


def _evaluation_of_classes(config: Config) -> str:
    spec = config.metrics
    return (
        "A patient's score is the mean over the models that did not see them (one a repeat at training sites, all at external "
        "sites). Held-out AUROC is the share of pairs of a positive and a negative patient of one site and one fold, both judged by one model, that are in the right "
        "order; scores of different folds are not compared. It estimates the expected AUROC of models trained on this share of such a cohort. Its variance is "
        "clustered by patient and enlarged for the overlap of training sets (up to twofold, by how much of a score is noise of training, which the repeats "
        f"show{_one_repeat(config)}). Held-out differences are tested on the same pairs with the same variance. AUROC in subgroups is formed alike, and the test of what a score adds to clinical columns allows for the overlap, too. No interval and no test is given below {held_out.FEWEST} patients of a class or "
        f"{held_out.FEWEST_PAIRS} pairs per repeat. At external sites AUROC has DeLong's variance on the logit scale, below {FEWEST} patients of a class Newcombe's "
        f"interval; differences are tested by DeLong's test, below {EXCHANGE_BELOW} patients of a class by a permutation test, with the intervals of both AUROCs joined (Zou 2007) and made to agree with the test. All intervals are at {spec.confidence:.0%}; other metrics have intervals "
        "of their own, named in the table, which take the models as given. Each difference has one test; p values and the intervals shown beside them are corrected by "
        "Holm's method within each factor, groups of sites and single sites apart. “Own site” scores each "
        "training patient by their own hospital's model; the ensemble is the mean of the local models' scores."
    )


def _one_repeat(config: Config) -> str:
    once = any(spec.repeats == 1 for spec in config.endpoints.values())
    return f"; with one repeat, {held_out.DIMENSIONS} independent directions of noise are assumed" if once else ""


def _software() -> str:
    versions = []
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return f"mil {__version__}; {', '.join(versions)}."
