"""Scores with intervals, and figures of a finished run."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mil.errors import MilError


class Interval(NamedTuple):
    """A value with the bounds of its confidence interval."""

    value: float
    low: float
    high: float


def auroc(
    labels: Sequence[int] | np.ndarray, scores: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> Interval:
    """Area under the ROC curve; labels 0 or 1, a patient each. DeLong's interval on the logit scale, of fewer than ten of a class Newcombe's.

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]).value
    0.75
    """
    from mil.endpoints.binary import fixed_interval
    from mil.statistics.delong import both_classes

    truth, given = np.asarray(labels), np.asarray(scores, float)
    if truth.shape != given.shape or truth.ndim != 1:
        raise MilError(f"labels {truth.shape} and scores {given.shape}: give one of each per patient")
    if not np.isin(truth, (0, 1)).all():
        raise MilError("labels must be 0 or 1")
    if not np.isfinite(given).all():
        raise MilError("scores hold NaN or infinity")
    if not both_classes(truth):
        raise MilError("an AUROC needs patients of both classes")
    return Interval(*(float(number) for number in fixed_interval(truth, given, np.zeros(len(truth)), confidence)[:3]))


def draw_figure(name: str, results: str | Path, site: str | None = None) -> list[Path]:
    """Draw a figure of a finished run into its `figures/`; returns the files (PDF, SVG, PNG, values, caption).

    `name` is a name or a number of the protocol (`F2a`, which may have several figures), as `mil plot list` prints them; `site`
    for the figures that are drawn per site. Settings are the run's.
    """
    from mil.workflow.figures import names_of

    names = names_of([name])
    from mil.figures import draw_figure as draw
    from mil.results.results import Results

    opened = Results.open(results)
    return [path for figure in names for path in draw(figure, opened, opened.config.figures, site)]
