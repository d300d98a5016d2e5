"""Texts of a drawn figure that are cut by its edge or lie on each other: what an eye would call a defect."""

from itertools import combinations

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from mil.figures.registry import Drawn
from mil.figures.style import DOUBLE_MM, MM_AN_INCH, use_style

LEAST_POINTS = 5.0
SLACK_PX = 1.5  # boxes of texts hold a margin around the ink


def defects(drawn: Drawn) -> list[str]:
    """What a printed page would show: crowded or too small texts, a figure wider than two columns. None where nothing is drawn."""
    if drawn.figure is None:
        return []
    with use_style():
        found = crowded(drawn.figure)
        found += [
            f"small: {text.get_text()!r}" for text in shown_texts(drawn.figure) if text.get_fontsize() < LEAST_POINTS
        ]
    width = drawn.figure.get_figwidth() * MM_AN_INCH
    return found if width <= DOUBLE_MM + 0.1 else [*found, f"wide: {width} mm"]


def crowded(figure: Figure) -> list[str]:
    """Every text that reaches over the figure's edge, and every pair of texts that overlap."""
    figure.draw_without_rendering()
    texts = [(text, _box(text)) for text in shown_texts(figure)]
    width, height = figure.bbox.width, figure.bbox.height
    found = [
        f"cut: {text.get_text()!r}"
        for text, box in texts
        if box.x0 < -SLACK_PX or box.y0 < -SLACK_PX or box.x1 > width + SLACK_PX or box.y1 > height + SLACK_PX
    ]
    for (one, box), (other, its) in combinations(texts, 2):
        if box.x0 < its.x1 and its.x0 < box.x1 and box.y0 < its.y1 and its.y0 < box.y1:
            found.append(f"overlap: {one.get_text()!r} and {other.get_text()!r}")
    return found


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


def _box(text: Text) -> Bbox:
    box = text.get_window_extent()
    return Bbox.from_extents(box.x0 + SLACK_PX, box.y0 + SLACK_PX, box.x1 - SLACK_PX, box.y1 - SLACK_PX)
