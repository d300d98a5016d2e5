"""Attention and truth of each tile -> how well attention finds what the label is about, with a patient bootstrap.

Attention sums to 1 over a patient's bag, so a tile of a large bag has less of it; before tiles of several patients are
pooled it is multiplied by the bag's number of tiles (1 = the bag's mean).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mil.config import ExperimentSpec, MetricsSpec
from mil.metrics import delong
from mil.metrics.arms import EXTERNAL_SITES, TRAINING_SITES
from mil.metrics.bootstrap import percentile_interval, resamples, strata_of
from mil.metrics.score import described
from mil.rng import rng

if TYPE_CHECKING:
    from mil.figures.results import Results

COLUMNS = (
    "site",
    "patients",
    "slides",
    "tiles",
    "positive_tiles",
    "metric",
    "value",
    "low",
    "high",
    "method",
)


@dataclass(frozen=True)
class SlideAttention:
    """One slide's attention (tiles,) beside its truth (tiles,) of booleans; `bag_tiles` counts the whole bag."""

    slide_id: str
    patient_id: str
    site: str
    role: str
    attention: np.ndarray
    truth: np.ndarray
    bag_tiles: int

    @property
    def relative(self) -> np.ndarray:
        """Attention relative to the bag's mean."""
        return np.round(self.attention * self.bag_tiles, 5)  # equal attention is equal, whatever float32 made of it


def localise(
    slides: Iterable[SlideAttention], spec: MetricsSpec, name: str, experiment: ExperimentSpec | None = None
) -> pd.DataFrame:
    """Tile AUROC of attention against truth by site and role: the mean over slides, and all tiles pooled.

    The mean is over slides that hold both kinds of tile; pooled tiles come from all slides, positive or not.
    """
    slides = sorted(slides, key=lambda slide: (slide.site, slide.slide_id))
    rows = []
    for site, members in _groups(slides):
        common = {
            "experiment": name,
            **described(experiment),
            "site": site,
            "patients": len({slide.patient_id for slide in members}),
            "slides": len(members),
            "tiles": sum(len(slide.truth) for slide in members),
            "positive_tiles": int(sum(slide.truth.sum() for slide in members)),
        }
        rows += [{**common, **row} for row in (_pooled(members, spec, site), _mean(members, spec, site))]
    return pd.DataFrame(rows, columns=["experiment", *described(experiment), *COLUMNS])


def localisation(results: "Results", name: str, spec: MetricsSpec) -> pd.DataFrame:
    """`localise` for one experiment of a results folder; without truth or attention a table without rows."""
    experiment = results.experiments[name]
    slides = [] if results.config.truth is None else results.slides_with_truth(name)
    return localise(slides, spec, name, experiment)


def by_slide(slides: Iterable[SlideAttention]) -> pd.DataFrame:
    """Tile AUROC of each slide that has both kinds of tile: slide_id, patient_id, site, tiles, positive_tiles, auroc."""
    rows = [
        {
            "slide_id": slide.slide_id,
            "patient_id": slide.patient_id,
            "site": slide.site,
            "tiles": len(slide.truth),
            "positive_tiles": int(slide.truth.sum()),
            "auroc": delong.auroc(slide.truth.astype(int), slide.attention),
        }
        for slide in slides
        if delong.both_classes(slide.truth)
    ]
    return pd.DataFrame(rows, columns=["slide_id", "patient_id", "site", "tiles", "positive_tiles", "auroc"])


def _groups(slides: Sequence[SlideAttention]) -> Iterable[tuple[str, list[SlideAttention]]]:
    for site in sorted({slide.site for slide in slides}):
        yield site, [slide for slide in slides if slide.site == site]
    for group, role in ((TRAINING_SITES, "train"), (EXTERNAL_SITES, "external")):
        members = [slide for slide in slides if slide.role == role]
        if members:
            yield group, members


def _pooled(slides: list[SlideAttention], spec: MetricsSpec, site: str) -> Mapping[str, Any]:
    """AUROC over all tiles; resamples draw patients with all their tiles."""
    truth = np.concatenate([slide.truth for slide in slides])
    if not delong.both_classes(truth):
        return _row("tile_auroc_pooled", np.nan, np.array([]), spec, "not defined: tiles of one kind only")
    pairs = _pair_counts(slides)
    weights = _patient_weights(slides, spec, site)
    with np.errstate(invalid="ignore"):
        values = np.array([_auroc_of_pairs(pairs, row) for row in np.vstack([np.ones(len(slides)), weights])])
    return _row("tile_auroc_pooled", float(values[0]), values[1:], spec, "patient bootstrap")


def _mean(slides: list[SlideAttention], spec: MetricsSpec, site: str) -> Mapping[str, Any]:
    """Mean over slides of the AUROC within the slide."""
    values = by_slide(slides)
    if values.empty:
        return _row("tile_auroc_mean", np.nan, np.array([]), spec, "not defined: no slide has both kinds of tile")
    used = [slide for slide in slides if slide.slide_id in set(values["slide_id"])]
    weights = _patient_weights(used, spec, site)
    areas = values["auroc"].to_numpy()
    total = weights.sum(axis=1)
    drawn = (weights @ areas)[total > 0] / total[total > 0]
    return _row("tile_auroc_mean", float(areas.mean()), drawn, spec, "patient bootstrap")


def _pair_counts(slides: list[SlideAttention]) -> tuple[np.ndarray, np.ndarray]:
    """wins[i, j]: positive tiles of slide i above negative tiles of slide j (ties one half); and how many such pairs."""
    negatives = [np.sort(slide.relative[~slide.truth]) for slide in slides]
    wins, pairs = np.zeros((len(slides), len(slides))), np.zeros((len(slides), len(slides)))
    for i, slide in enumerate(slides):
        positive = slide.relative[slide.truth]
        for j, negative in enumerate(negatives):
            below = np.searchsorted(negative, positive, side="left")
            to = np.searchsorted(negative, positive, side="right")
            wins[i, j], pairs[i, j] = (below + to).sum() / 2, len(positive) * len(negative)
    return wins, pairs


def _auroc_of_pairs(counts: tuple[np.ndarray, np.ndarray], weights: np.ndarray) -> float:
    wins, pairs = counts
    return float(weights @ wins @ weights / (weights @ pairs @ weights))


def _patient_weights(slides: list[SlideAttention], spec: MetricsSpec, site: str) -> np.ndarray:
    """Resamples of patients within sites, as weights of their slides: (resamples, slides)."""
    patients = sorted({(slide.site, slide.patient_id) for slide in slides})
    place = {patient: index for index, patient in enumerate(patients)}
    strata = strata_of(np.array([where for where, _ in patients]))
    drawn = resamples(strata, spec.bootstrap, rng(spec.seed, "localisation", site))
    return drawn[:, [place[slide.site, slide.patient_id] for slide in slides]]


def _row(metric: str, value: float, drawn: np.ndarray, spec: MetricsSpec, method: str) -> Mapping[str, Any]:
    low, high = percentile_interval(drawn, spec.confidence)
    return {"metric": metric, "value": value, "low": low, "high": high, "method": method}
