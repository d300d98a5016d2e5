"""Results -> what the slide viewer knows of slides: label and scores of the patient, tiles with the attention of each model."""

import json
from typing import Any
from urllib.parse import quote

import numpy as np

from mil.figures.arms import input_name
from mil.figures.heatmaps import mean_scores
from mil.figures.style import strategy_name
from mil.files import file_name
from mil.results.results import Absent, Results

SQUARE_PX = 512
SMALLEST_PX = 256  # no level is smaller
MOST_MODELS = 6
ListedSlide = tuple[str, str, str]
"""Site, slide, patient."""


def models_of(results: Results, slides: list[ListedSlide]) -> list[str]:
    """The main experiment, then others of its endpoint that weigh tiles and have attention for any of `slides`."""
    rivals = [
        name
        for name, experiment in results.experiments.items()
        if name != results.main and experiment.endpoint == results.endpoint and experiment.model.name != "mean"
    ]
    files = results.files
    there = [name for name in rivals if any(files.has_attention(site, name, slide) for site, slide, _ in slides)]
    return [results.main, *there][:MOST_MODELS]


def index_script(results: Results, slides: list[ListedSlide], models: list[str], title: str, served: bool) -> str:
    """The text of `slides.js`: the models, and of each slide its address, label (0, 1, none) and a score by model."""
    labels: dict[str, Any] = {}
    scores: list[dict[str, float]] = [{} for _ in models]
    if results.kind.two_classes:
        labels = _labels(results)
        scores = [_scores(results, name) for name in models]
    names = [
        f"{strategy_name(experiment.strategy.name)}, {input_name(experiment)}"
        for experiment in (results.experiments[n] for n in models)
    ]
    page = {
        "title": title,
        "cohort": results.config.cohort,
        "endpoint": results.endpoint,
        "served": served,
        "models": [
            name if names.count(name) == 1 else f"{name} ({key})" for key, name in zip(models, names, strict=True)
        ],
        "slides": [
            {
                "id": slide,
                "at": f"slides/{quote(file_name(slide))}",
                "site": site,
                "patient": patient,
                "label": labels.get(patient),
                "scores": [known.get(patient) for known in scores],
            }
            for site, slide, patient in slides
        ],
    }
    return f"window.VIEWER = {json.dumps(page, separators=(',', ':'))};\n"


def slide_script(known: dict[str, Any]) -> str:
    """The text of a slide's `slide.js`."""
    return f"VIEWER.add({json.dumps(known, separators=(',', ':'))});\n"


def tiles_of(results: Results, listed: ListedSlide, models: list[str]) -> dict[str, Any]:
    """Corners of one slide's tiles, their attention by model (times the mean of the patient's tiles; none where a model has none), truth."""
    site, slide_id, patient = listed
    geometry = results.files.geometry(site, slide_id)
    spec, mpp = results.config.tiles, float(geometry["mpp"])
    corners, attention = np.zeros((0, 2), np.int64), []
    for name in models:
        try:
            there, values = results.files.attention(site, name, slide_id)
        except Absent:
            attention.append(None)
            continue
        corners = corners if len(corners) else there
        same = np.array_equal(corners, there)
        relative = values.astype(float) * results.bag_tiles(site, name, patient)
        attention.append([float(f"{value:.3g}") for value in relative] if same else None)
    try:
        share = results.files.tile_truth(site, slide_id, corners) if len(corners) else None
        positive_share = results.files.truth.spec.positive_share
    except Absent:
        share = positive_share = None
    return {
        "id": slide_id,
        "mpp": mpp,
        "side": spec.size_px * spec.mpp / mpp,
        "stride": (spec.stride_px or spec.size_px) * spec.mpp / mpp,
        "square": SQUARE_PX,
        "corners": corners.tolist(),
        "attention": attention,
        "truth": None if share is None else [round(float(value), 3) for value in share],
        "positive_share": positive_share,
    }


def levels_of(width: int, height: int) -> list[int]:
    """First and last level as Deep Zoom numbers them: the last is ceil(log2(longest side)), the first has at most `SMALLEST_PX`."""
    last = int(np.ceil(np.log2(max(width, height))))
    first = last
    while max(size_at(width, height, last - first)) > SMALLEST_PX:
        first -= 1
    return [first, last]


def size_at(width: int, height: int, halvings: int) -> tuple[int, int]:
    """(width, height) after so many halvings, rounded up as Deep Zoom does."""
    return -(-width // 2**halvings), -(-height // 2**halvings)


def _labels(results: Results) -> dict[str, Any]:
    try:
        bags = results.bags(results.endpoint)
    except Absent:
        return {}
    return {str(row.patient_id): int(row.label) for row in bags.itertuples()}


def _scores(results: Results, experiment: str) -> dict[str, float]:
    """Score by patient; empty before the experiment has predictions."""
    try:
        return {str(patient): round(float(score), 4) for patient, score in mean_scores(results, experiment).items()}
    except Absent:
        return {}
