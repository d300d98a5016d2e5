"""Attention and truth of each tile -> how well attention finds what the label is about, with a jackknife over patients.

Attention sums to 1 over a patient's bag, so a tile of a large bag has less of it; before tiles of several patients are
pooled it is multiplied by the bag's number of tiles (1 = the bag's mean).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mil.config import ExperimentSpec, MetricsSpec
from mil.endpoints.bounds import metric_row
from mil.metrics.score import described
from mil.results.results import Results
from mil.schemas import LOCALISATION, SLIDE_AUROCS
from mil.statistics import delong
from mil.statistics.arms import EXTERNAL_SITES, TRAINING_SITES
from mil.statistics.intervals import GROUPS, deletions, jackknife_error, on_logit_scale


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

    The mean is over slides that hold both kinds of tile, and its row counts these; pooled tiles come from all slides.
    """
    slides = sorted(slides, key=lambda slide: (slide.site, slide.slide_id))
    rows = []
    for site, members in _groups(slides):
        stated = {"experiment": name, **described(experiment), "site": site}
        rows.append({**stated, **_counts(members), **_pooled(members, spec)})
        both = [slide for slide in members if delong.both_classes(slide.truth)]
        rows.append({**stated, **_counts(both), **_mean(both, spec)})
    return pd.DataFrame(rows, columns=["experiment", *described(experiment), *LOCALISATION])


def _counts(slides: Sequence[SlideAttention]) -> dict[str, int]:
    """Patients, slides and tiles that a metric was made of."""
    return {
        "patients": len({(slide.site, slide.patient_id) for slide in slides}),
        "slides": len(slides),
        "tiles": sum(len(slide.truth) for slide in slides),
        "positive_tiles": int(sum(slide.truth.sum() for slide in slides)),
    }


def slides_with_truth(results: Results, experiment: str, labelled: bool = True) -> list[SlideAttention]:
    """Attention beside truth for every slide of the experiment that has both; none for a cohort without truth.

    The slides are those of the patients who are `labelled`, or of the others.
    """
    if results.config.truth is None:
        return []
    files, slides = results.files, []
    patients = results.bags if labelled else results.without_label
    for row in patients(results.experiments[experiment].endpoint).itertuples():
        read = files.bag_attention(str(row.site), experiment, row.slides)
        bag_tiles = sum(len(attention) for _, _, attention in read)
        for slide, coords, attention in read:
            share = files.tile_truth(row.site, slide, coords)
            if share is None:
                continue
            positive = share >= files.truth.spec.positive_share
            given = (row.patient_id, row.site, row.role, attention.astype(float), positive, bag_tiles)
            slides.append(SlideAttention(slide, *given))
    return slides


def by_slide(slides: Iterable[SlideAttention]) -> pd.DataFrame:
    """Table `SLIDE_AUROCS`: tile AUROC of each slide that has both kinds of tile."""
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
    return pd.DataFrame(rows, columns=SLIDE_AUROCS)


def _groups(slides: Sequence[SlideAttention]) -> Iterable[tuple[str, list[SlideAttention]]]:
    for site in sorted({slide.site for slide in slides}):
        yield site, [slide for slide in slides if slide.site == site]
    for group, role in ((TRAINING_SITES, "train"), (EXTERNAL_SITES, "external")):
        members = [slide for slide in slides if slide.role == role]
        if members:
            yield group, members


def _pooled(slides: list[SlideAttention], spec: MetricsSpec) -> Mapping[str, Any]:
    """AUROC over all tiles; the jackknife leaves out patients with all their tiles."""
    truth = np.concatenate([slide.truth for slide in slides])
    if not delong.both_classes(truth):
        return metric_row("tile_auroc_pooled", np.nan, np.nan, np.nan, "not defined: tiles of one kind only")
    pairs = _pair_counts(slides)
    with np.errstate(invalid="ignore"):
        without = np.array([_auroc_of_pairs(pairs, row) for row in _left_out(slides)])
    return _jackknifed("tile_auroc_pooled", _auroc_of_pairs(pairs, np.ones(len(slides))), without, slides, spec)


def _mean(slides: list[SlideAttention], spec: MetricsSpec) -> Mapping[str, Any]:
    """Mean over slides, each with both kinds of tile, of the AUROC within the slide."""
    values = by_slide(slides)
    if values.empty:
        return metric_row("tile_auroc_mean", np.nan, np.nan, np.nan, "not defined: no slide has both kinds of tile")
    areas, weights = values["auroc"].to_numpy(), _left_out(slides)
    with np.errstate(invalid="ignore"):
        without = (weights @ areas) / weights.sum(axis=1)
    return _jackknifed("tile_auroc_mean", float(areas.mean()), without, slides, spec)


def _jackknifed(
    metric: str, value: float, without: np.ndarray, slides: list[SlideAttention], spec: MetricsSpec
) -> Mapping[str, Any]:
    patients = _patients(slides).max() + 1
    degrees = max(min(int(patients), GROUPS) - 1, 1)
    bounds = on_logit_scale(
        value, jackknife_error(without), degrees, spec.confidence, float(patients), "jackknife over patients"
    )
    return metric_row(metric, value, bounds.low, bounds.high, bounds.method)


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


def _patients(slides: list[SlideAttention]) -> np.ndarray:
    """Number of each slide's patient (slides,)."""
    names = [f"{slide.site} {slide.patient_id}" for slide in slides]
    return np.unique(names, return_inverse=True)[1]


def _left_out(slides: list[SlideAttention]) -> np.ndarray:
    """Weights (deletions, slides) that leave out each patient, with all their slides."""
    patient = _patients(slides)
    return deletions(int(patient.max()) + 1)[:, patient]
