"""Texts of a drawn figure that are cut by its edge or lie on each other: what an eye would call a defect."""

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text

from mil.figures.registry import Drawn
from mil.figures.style import DOUBLE_MM, MM_AN_INCH, use_style

LEAST_POINTS = 5.0
SLACK_PX = 1.5  # boxes of texts hold a margin around the ink


def defects(drawn: Drawn) -> list[str]:
    """What a printed page would show: crowded or too small texts, a figure wider than two columns. None where nothing is drawn."""
    if drawn.figure is None:
        return []
    with use_style():
        drawn.figure.draw_without_rendering()
        texts = shown_texts(drawn.figure)
        found = crowded(drawn.figure, texts)
        found += [f"small: {text.get_text()!r}" for text in texts if text.get_fontsize() < LEAST_POINTS]
    width = drawn.figure.get_figwidth() * MM_AN_INCH
    return found if width <= DOUBLE_MM + 0.1 else [*found, f"wide: {width} mm"]


def crowded(figure: Figure, texts: list[Text]) -> list[str]:
    """Every text that reaches over the figure's edge, and every pair of texts that overlap."""
    boxes = np.array([text.get_window_extent().extents for text in texts]).reshape(-1, 4)
    low, high = boxes[:, :2] + SLACK_PX, boxes[:, 2:] - SLACK_PX
    size = np.array([figure.bbox.width, figure.bbox.height])
    outside = ((low < -SLACK_PX) | (high > size + SLACK_PX)).any(axis=1)
    overlap = np.triu((low[:, None] < high[None]).all(axis=2) & (low[None] < high[:, None]).all(axis=2), k=1)
    found = [f"cut: {texts[number].get_text()!r}" for number in np.flatnonzero(outside)]
    pairs = np.argwhere(overlap)
    return found + [f"overlap: {texts[one].get_text()!r} and {texts[other].get_text()!r}" for one, other in pairs]


def shown_texts(figure: Figure) -> list[Text]:
    """The texts that are seen: of the ticks' labels only those within the axis' limits, none of an axis that is off."""
    axes = figure.axes
    of_ticks = {label for one in axes for axis in (one.xaxis, one.yaxis) for label in _labels(_ticks(axis))}
    drawn = {
        label
        for one in axes
        if one.axison
        for axis in (one.xaxis, one.yaxis)
        for label in _labels(axis._update_ticks())
    }
    off = {text for one in axes if not one.axison for text in (one.xaxis.label, one.yaxis.label)}
    return [
        text
        for text in figure.findobj(Text)
        if text.get_text().strip()
        and text.get_visible()
        and text not in off
        and (text in drawn or text not in of_ticks)
    ]


def _ticks(axis: Axis) -> list:
    return [*axis.majorTicks, *axis.minorTicks]


def _labels(ticks: list) -> list[Text]:
    return [label for tick in ticks for label in (tick.label1, tick.label2)]
