"""Filled review sheets: which patterns stand in tiles of high and of low attention, and how far reviewers agree."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from mil.config import FiguresSpec
from mil.errors import MilError
from mil.figures.cohort_table import p_words
from mil.figures.registry import Drawn, figure
from mil.figures.style import INK, MIDDLE_MM, SOFT, column_name, light_grid, new_figure
from mil.metrics.agreement import cohen_kappa, fleiss_kappa, pattern_table
from mil.results.results import Absent, Results
from mil.tables import read_text_table, require_columns

KINDS = ("top", "bottom")
COLOURS = {"top": "#b2182b", "bottom": "#5b626b"}


@figure("Blind review: patterns and agreement", needs=("attention", "bags"), chapter="attention", number="F4c")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Share of tiles with each pattern by kind, Fisher's test, and kappa of the reviewers."""
    if not spec.reviews:
        raise Absent(
            "no filled review sheet is named (figures.reviews); fill those in figures/review_sheet.<site>/ first"
        )
    keys = [results.folder / f"figures/review_sheet.{site}/key.csv" for site in results.sites]
    keys = [read_text_table(path, "review key") for path in keys if path.is_file()]
    if not keys:
        raise Absent("figures/review_sheet.<site>/key.csv is not there; draw review_sheet first")
    sheets = [read_sheet(Path(path), spec.patterns) for path in spec.reviews]
    kinds = pd.concat(keys).set_index("tile")["kind"]
    together = majority(sheets, spec.patterns).join(kinds, how="inner").reset_index()
    table = pattern_table(together, spec.patterns, KINDS)
    table["kappa"] = [_kappa([sheet[pattern].to_numpy() for sheet in sheets]) for pattern in spec.patterns]
    picture = new_figure(MIDDLE_MM + 30, 18 + 8.5 * len(table))
    axes, right = picture.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
    light_grid(axes, "x")
    for place, row in enumerate(table.itertuples()):
        for kind, offset, count, total in (
            ("top", -0.17, row.first, row.first_total),
            ("bottom", 0.17, row.second, row.second_total),
        ):
            axes.barh(place + offset, count / total, height=0.3, color=COLOURS[kind], alpha=0.85)
            axes.text(count / total + 0.012, place + offset, f"{count}/{total}", va="center", fontsize=5.8, color=SOFT)
        right.text(
            0.05,
            place,
            p_words(row.p_adjusted),
            va="center",
            fontsize=6.5,
            transform=right.get_yaxis_transform(),
        )
        agreed = "–" if not np.isfinite(row.kappa) else f"{row.kappa:z.2f}".replace("-", "−")
        right.text(0.75, place, agreed, va="center", ha="center", fontsize=6.5, transform=right.get_yaxis_transform())
    axes.set_yticks(range(len(table)), [column_name(pattern) for pattern in table["pattern"]])
    axes.set(ylim=(len(table) - 0.4, -0.9), xlim=(0, 1.12), xlabel="Share of tiles", xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.tick_params(axis="y", length=0)
    right.axis("off")
    for x, head in ((0.05, "Fisher, FDR"), (0.62, "kappa")):
        right.text(x, -0.75, head, fontsize=6.5, fontweight=700, color=INK, transform=right.get_yaxis_transform())
    for kind, name in zip(KINDS, ("highest attention", "lowest attention"), strict=True):
        axes.barh([], [], color=COLOURS[kind], label=name)
    picture.legend(loc="outside upper left", ncols=2)
    return Drawn(
        figure=picture,
        data=table,
        n=f"{len(together)} tiles, {len(sheets)} reviewers",
        caption=(
            "Patterns that reviewers saw in tiles of the highest and of the lowest attention without knowing which is which (with several reviewers: where most saw it). p: "
            "Fisher's exact test with Benjamini and Hochberg's false-discovery rate. Agreement: Cohen's kappa for two reviewers, Fleiss' for more."
        ),
    )


def read_sheet(path: Path, patterns: tuple[str, ...]) -> pd.DataFrame:
    """One filled sheet, 0/1 by tile and pattern; a blank or another value names the tile."""
    table = read_text_table(path, "review sheet")
    require_columns(table, ("tile", *patterns), f"review sheet {path}")
    table = table.set_index("tile")[list(patterns)]
    wrong = ~table.isin(["0", "1"])
    if wrong.any(axis=None):
        tile = wrong.index[wrong.any(axis=1)][0]
        pattern = wrong.columns[wrong.loc[tile]][0]
        raise MilError(f"review sheet {path}: {tile}, {pattern} is '{table.loc[tile, pattern]}'; write 0 or 1")
    return table.astype(int).sort_index()


def majority(sheets: list[pd.DataFrame], patterns: tuple[str, ...]) -> pd.DataFrame:
    """1 where more than half of the reviewers saw the pattern; the sheets must hold the same tiles."""
    first = sheets[0]
    for number, sheet in enumerate(sheets[1:], 2):
        if not sheet.index.equals(first.index):
            raise MilError(
                f"figures.reviews: sheet {number} holds other tiles than the first; give sheets of one review"
            )
    seen = np.mean([sheet[list(patterns)].to_numpy() for sheet in sheets], axis=0)
    return pd.DataFrame((seen > 0.5).astype(int), index=first.index, columns=list(patterns))


def _kappa(ratings: list[np.ndarray]) -> float:
    if len(ratings) < 2:
        return np.nan
    if len(ratings) == 2:
        return cohen_kappa(*next(combinations(ratings, 2)))
    return fleiss_kappa(np.stack(ratings, axis=1))
