"""A table of text -> a typeset picture, for journals that want it so; the report shows the same rows as HTML."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mil.figures.layout import fitted, text_mm
from mil.figures.style import DOUBLE_MM, HAIR, INK, SOFT, new_figure

ROW_MM, HEAD_MM, FOOT_MM = 4.4, 7.0, 5.0
GAP_MM, INDENT_MM = 3.0, 3.0
MOST_MM, HEAD_MOST_MM = 44.0, 22.0  # no column is wider than the first, none for its head's sake than the second
SIZE, HEAD_SIZE = 6.5, 7.0


def table_picture(table: pd.DataFrame, left: int = 1) -> Figure:
    """Rules above, under the head and below; the first `left` columns flush left, the others centred.

    Columns are as wide as their texts. Those that do not fit beside each other go on in a block below, with those
    first columns again. A column `Level` is folded into the first: a row that has one is an indented sub-row named by it.
    """
    table, indented = folded(table)
    table = table.fillna("").astype(str)
    table.columns = [str(column) for column in table.columns]
    blocks = _blocks(table, left)
    block_mm = HEAD_MM + ROW_MM * len(table) + FOOT_MM
    height = block_mm * len(blocks) - FOOT_MM + 3
    picture = new_figure(DOUBLE_MM, height, by_hand=True)
    axes = picture.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, DOUBLE_MM), ylim=(0, height))
    axes.axis("off")
    for number, columns in enumerate(blocks):
        _draw(axes, table[columns], indented, height - number * block_mm, left)
    return picture


def _widths(table: pd.DataFrame) -> list[float]:
    """What each column needs in mm, its gap included; a head that is wider than its cells is cut to `HEAD_MOST_MM`."""
    widths = []
    for number, column in enumerate(table.columns):
        cells = max((text_mm(cell, SIZE) for cell in table[column].unique()), default=0.0) + INDENT_MM * (not number)
        head = min(text_mm(column, HEAD_SIZE, bold=True), HEAD_MOST_MM)
        widths.append(min(max(cells, head), MOST_MM) + GAP_MM)
    return widths


def _blocks(table: pd.DataFrame, left: int) -> list[list[str]]:
    """Columns that fit beside each other, the first `left` in every block; blocks hold about equally many."""
    names = list(table.columns)
    widths = dict(zip(names, _widths(table), strict=True))
    first, others = names[:left], names[left:]
    room = DOUBLE_MM - 2 - sum(widths[column] for column in first)
    for count in range(1, len(others) + 1):
        most = -(-len(others) // count)
        parts = [others[start : start + most] for start in range(0, len(others), most)]
        if all(sum(widths[column] for column in part) <= room for part in parts):
            return [[*first, *part] for part in parts]
    return [[*first, column] for column in others]


def _draw(axes: Axes, table: pd.DataFrame, indented: list[bool], top: float, left: int) -> None:
    widths = _widths(table)
    spare = max(DOUBLE_MM - 2 - sum(widths), 0) / len(widths)
    places, x = [], 2.0
    for number, wide in enumerate(widths):
        places.append(x if number < left else x + (wide + spare) / 2 - GAP_MM / 2)
        x += wide + spare
    for number, (column, x) in enumerate(zip(table.columns, places, strict=True)):
        _text(axes, x, top - 4.2, column, widths[number], number >= left, HEAD_SIZE, bold=True)
    bottom = top - HEAD_MM - ROW_MM * len(table) - 0.8
    for y, wide in ((top - 0.8, 0.9), (top - HEAD_MM, 0.6), (bottom, 0.9)):
        axes.plot([1, DOUBLE_MM - 1], [y, y], color=INK, linewidth=wide)
    for line, row in enumerate(table.itertuples(index=False)):
        y = top - HEAD_MM - (line + 0.5) * ROW_MM - 0.4
        if line and not indented[line]:
            axes.plot([1, DOUBLE_MM - 1], [y + ROW_MM / 2, y + ROW_MM / 2], color=HAIR, linewidth=0.4)
        for number, (cell, x) in enumerate(zip(row, places, strict=True)):
            sub = indented[line] and not number
            at = x + INDENT_MM * sub
            _text(axes, at, y, str(cell), widths[number], number >= left, SIZE, colour=SOFT if sub else INK)


def _text(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    wide: float,
    centred: bool,
    size: float,
    bold: bool = False,
    colour: str = INK,
) -> None:
    kept, points = fitted(text, wide - GAP_MM + 1, size, bold)
    axes.text(
        x, y, kept, fontsize=points, color=colour, ha="center" if centred else "left", va="center",
        fontweight=700 if bold else 400,
    )  # fmt: skip


def folded(table: pd.DataFrame) -> tuple[pd.DataFrame, list[bool]]:
    """The table without its column `Level`, and whether each row is a sub-row; sub-rows are named by their level."""
    if "Level" not in table.columns:
        return table, [False] * len(table)
    level = table["Level"].astype(str)
    first = table.columns[0]
    named = table.drop(columns="Level").assign(**{str(first): table[first].where(level == "", level)})
    return named, (level != "").tolist()
