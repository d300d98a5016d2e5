"""A table of text -> a typeset picture, for journals that want it so; the report shows the same rows as HTML."""

import pandas as pd
from matplotlib.figure import Figure

from mil.figures.style import DOUBLE_MM, HAIR, INK, SOFT, new_figure

ROW_MM, HEAD_MM = 4.4, 7.0
FIRST_SHARE = 0.26


def table_picture(table: pd.DataFrame, width_mm: float = DOUBLE_MM, first_share: float = FIRST_SHARE) -> Figure:
    """Rules above, under the head and below; the first column left, the others centred.

    A column `Level` is folded into the first: a row that has one is an indented sub-row named by it.
    """
    table, indented = folded(table)
    height = HEAD_MM + ROW_MM * len(table) + 3
    picture = new_figure(width_mm, height, by_hand=True)
    axes = picture.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width_mm), ylim=(0, height))
    axes.axis("off")
    columns = list(table.columns)
    first = width_mm * first_share
    step = (width_mm - first - 2) / max(len(columns) - 1, 1)
    places = [2.0, *(first + (number + 0.5) * step for number in range(len(columns) - 1))]
    for number, (column, x) in enumerate(zip(columns, places, strict=True)):
        axes.text(
            x, height - 4.2, str(column), ha="center" if number else "left", va="center", fontweight=700, fontsize=7
        )
    for y, colour, wide in ((height - 0.8, INK, 0.9), (height - HEAD_MM, INK, 0.6), (1.2, INK, 0.9)):
        axes.plot([1, width_mm - 1], [y, y], color=colour, linewidth=wide)
    for place, row in enumerate(table.itertuples(index=False)):
        y = height - HEAD_MM - (place + 0.5) * ROW_MM - 0.4
        if place and not indented[place]:
            axes.plot([1, width_mm - 1], [y + ROW_MM / 2, y + ROW_MM / 2], color=HAIR, linewidth=0.4)
        for number, (cell, x) in enumerate(zip(row, places, strict=True)):
            text = "" if pd.isna(cell) else str(cell)
            axes.text(
                x + (3 if indented[place] and not number else 0), y, text, ha="center" if number else "left",
                va="center", fontsize=6.5, color=SOFT if indented[place] and not number else INK,
            )  # fmt: skip
    return picture


def folded(table: pd.DataFrame) -> tuple[pd.DataFrame, list[bool]]:
    """The table without its column `Level`, and whether each row is a sub-row; sub-rows are named by their level."""
    if "Level" not in table.columns:
        return table, [False] * len(table)
    level = table["Level"].astype(str)
    first = table.columns[0]
    named = table.drop(columns="Level").assign(**{str(first): table[first].where(level == "", level)})
    return named, (level != "").tolist()
