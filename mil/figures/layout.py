"""Where panels, names and legends go: sizes in mm, and text that is measured before it is set, so that nothing overlaps."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import text_to_path

from mil.figures.style import DOUBLE_MM, MM_AN_INCH, RC, SOFT, letters, new_figure

LEFT_MM, GAP_MM, HEAD_MM, AXIS_MM, RIGHT_MM = 12.0, 6.0, 10.0, 10.5, 3.0
PANELS_A_ROW, LARGEST_PANEL_MM = 4, 52.0
UPRIGHT_MM = 26.0  # room for names that stand upright below an axis


def site_panels(
    sites: Sequence[str], y_axis: str, below_mm: float = 0.0, foot_mm: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """A square panel a site, at most four a row, placed to the mm; the first of a row has the y axis' numbers and name.

    Under each panel there is room for the x axis and then `below_mm` for a legend or words (at `under(axes)`), under all of
    them `foot_mm` for a legend of the figure.
    """
    columns = min(PANELS_A_ROW, max(len(sites), 1))
    rows = -(-len(sites) // columns)
    side = min(LARGEST_PANEL_MM, (DOUBLE_MM - LEFT_MM - RIGHT_MM - GAP_MM * (columns - 1)) / columns)
    width = LEFT_MM + columns * side + GAP_MM * (columns - 1) + RIGHT_MM
    row_mm = HEAD_MM + side + AXIS_MM + below_mm
    height = rows * row_mm + foot_mm
    picture = new_figure(width, height, by_hand=True)
    panels: list[Axes] = []
    for number in range(len(sites)):
        row, column = divmod(number, columns)
        left, bottom = LEFT_MM + column * (side + GAP_MM), height - row * row_mm - HEAD_MM - side
        axes = picture.add_axes((left / width, bottom / height, side / width, side / height))
        if column:
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel(y_axis)
        panels.append(axes)
    if len(panels) > 1:
        letters(panels, up=12)  # on the line of `title_of_site`
    return picture, panels


def outer_panels(panels: Sequence[Axes]) -> list[Axes]:
    """The first panel of each row of `site_panels`: where the y axis is named."""
    return list(panels[::PANELS_A_ROW])


def under(axes: Axes) -> tuple[float, float]:
    """The middle of a panel's width, just below its x axis' label, as shares of the panel."""
    picture = axes.figure
    side = axes.get_position().height * picture.get_figheight() * MM_AN_INCH  # type: ignore[union-attr]
    return 0.5, -AXIS_MM / side


def legend_under(axes: Axes) -> None:
    """The panel's legend below its x axis, a line an entry; names (up to two blanks in a label) are cut to the panel's width."""
    handles, labels = axes.get_legend_handles_labels()
    room = width_mm(axes) + GAP_MM - 6
    split = [label.partition("  ") for label in labels]
    cut = [fitted(name, room - text_mm(numbers, 6.0) - 2, 6.0, least=6.0)[0] for name, _, numbers in split]
    named = [f"{name}  {numbers}" if numbers else name for name, (_, _, numbers) in zip(cut, split, strict=True)]
    axes.legend(
        handles, named, loc="upper center", bbox_to_anchor=under(axes), fontsize=6, borderpad=0, borderaxespad=0,
        handlelength=1.6, labelspacing=0.35,
    )  # fmt: skip


def width_mm(axes: Axes) -> float:
    """How wide a panel that was placed by hand is."""
    return axes.get_position().width * axes.figure.get_figwidth() * MM_AN_INCH  # type: ignore[union-attr]


def fitted(text: str, room_mm: float, size: float, bold: bool = False, least: float = 5.2) -> tuple[str, float]:
    """`text` and the size in points at which it fits into `room_mm`: smaller, down to `least`, then shortened in its middle."""
    wide = text_mm(text, size, bold)
    if wide <= room_mm:
        return text, size
    smaller = max(least, size * room_mm / wide)
    kept = text
    while len(kept) > 3 and text_mm(kept, smaller, bold) > room_mm:
        half = (len(kept.replace("…", "")) - 1) // 2
        kept = f"{text[:half]}…{text[len(text) - half :]}"
    return kept, smaller


@lru_cache(maxsize=10_000)
def text_mm(text: str, size: float, bold: bool = False) -> float:
    """How wide a text of that size in points is."""
    if not text.strip():
        return 0.0
    font = font_manager.FontProperties(family=RC["font.family"], weight=700 if bold else 400, size=size)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) * MM_AN_INCH / 72


def title_of_site(axes: Axes, site: str, aside: str, room_mm: float | None = None) -> None:
    """The site's name in bold and under it, in small, what there is to say of it."""
    name, size = fitted(site, room_mm or width_mm(axes), 7.5, bold=True)
    axes.set_title(name, fontsize=size, pad=12)
    axes.annotate(
        aside, (0, 1), xytext=(0, 4), textcoords="offset points", xycoords="axes fraction", fontsize=6.3, color=SOFT
    )


def name_sites(axes: Axes, sites: Sequence[str], below: Sequence[str] = (), room_mm: float | None = None) -> None:
    """Sites as ticks 0, 1, ... of the x axis: side by side where they fit, else from bottom to top, cut to `UPRIGHT_MM`.

    `below` is a second line a site; `room_mm` the panel's width, where it is not placed by hand.
    """
    axes.set_xlim(-0.5, len(sites) - 0.5)
    step = (room_mm or width_mm(axes)) / max(len(sites), 1) - 1
    lines = [[name, *below[number : number + 1]] for number, name in enumerate(sites)]
    if all(text_mm(line, 6.5) <= step for label in lines for line in label):
        axes.set_xticks(range(len(sites)), ["\n".join(label) for label in lines])
        return
    cut = [", ".join([fitted(label[0], UPRIGHT_MM, 6, least=6)[0], *label[1:]]) for label in lines]
    axes.set_xticks(range(len(sites)), cut, rotation=90, fontsize=6)


def name_rows(axes: Axes, names: Sequence[str], room_mm: float = 42.0) -> None:
    """Names as ticks 0, 1, ... of the y axis, each cut to `room_mm`."""
    axes.set_yticks(
        range(len(names)), ["\n".join(fitted(part, room_mm, 6.5)[0] for part in name.split("\n")) for name in names]
    )


def legend_of_figure(picture: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """One legend for the whole figure in as many columns as fit its width."""
    room = picture.get_figwidth() * MM_AN_INCH - 4
    wide = max((text_mm(label, 6.5) for label in labels), default=0) + 9
    columns = max(1, min(len(labels), int(room // wide)))
    picture.legend(handles, labels, loc="outside lower center", ncols=columns, columnspacing=1.4, borderaxespad=0.2)


def rounded_box(
    axes: Axes, corner: tuple[float, float], wide: float, high: float, edge: str, face: str, line: float
) -> None:
    """A box with rounded corners whose lower left one is `corner`; its line is `line` points wide."""
    style = "round,pad=0,rounding_size=1.6"
    axes.add_patch(FancyBboxPatch(corner, wide, high, boxstyle=style, facecolor=face, edgecolor=edge, linewidth=line))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, dashed: bool = False) -> None:
    """An arrow between two boxes."""
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.1, "mutation_scale": 7, "shrinkA": 1, "shrinkB": 1}
    axes.annotate("", xy=end, xytext=start, arrowprops={**style, "linestyle": (0, (3, 2)) if dashed else "-"})


def signed(value: float, digits: int = 2) -> str:
    """`+0.08`, `−0.02` with a true minus sign; what rounds to nothing has no sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def with_interval(value: float, low: float, high: float) -> str:
    """`0.81 [0.70, 0.89]` with true minus signs; without the interval where there is none, a dash where there is no value."""
    if not np.isfinite(value):
        return "–"
    interval = f" [{low:z.2f}, {high:z.2f}]" if np.isfinite([low, high]).all() else ""
    return f"{value:z.2f}{interval}".replace("-", "−")


def capital(text: str) -> str:
    """The first letter in upper case, the others as they are."""
    return f"{text[:1].upper()}{text[1:]}"
