"""Filled review sheets: which patterns stand in tiles of high and of low attention, and how far reviewers agree."""

import numpy as np

from mil.config import FiguresSpec
from mil.figures.cohort_table import p_words
from mil.figures.registry import Drawn, figure
from mil.figures.style import INK, MIDDLE_MM, SOFT, column_name, light_grid, new_figure
from mil.metrics.agreement import TILE_KINDS
from mil.results.results import Absent, Results

COLOURS = {"top": "#b2182b", "bottom": "#5b626b"}


@figure("Blind review: patterns and agreement", needs=("comparisons",), chapter="attention", number="F4c")
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """Share of tiles with each pattern by kind, Fisher's test, and kappa of the reviewers."""
    if not spec.reviews:
        raise Absent(
            "no filled review sheet is named (figures.reviews); fill those in figures/review_sheet.<site>/ first"
        )
    table = results.reviews().astype({"first": int, "second": int})  # text in other tables
    tiles, reviewers = int(table[["first_total", "second_total"]].iloc[0].sum()), int(table["reviewers"].iloc[0])
    picture = new_figure(MIDDLE_MM + 30, 18 + 8.5 * len(table))
    axes, right = picture.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
    light_grid(axes, "x")
    for height, row in enumerate(table.itertuples()):
        for kind, offset, count, total in (
            ("top", -0.17, row.first, row.first_total),
            ("bottom", 0.17, row.second, row.second_total),
        ):
            axes.barh(height + offset, count / total, height=0.3, color=COLOURS[kind], alpha=0.85)
            axes.text(count / total + 0.012, height + offset, f"{count}/{total}", va="center", fontsize=5.8, color=SOFT)
        right.text(
            0.05,
            height,
            p_words(row.p_adjusted),
            va="center",
            fontsize=6.5,
            transform=right.get_yaxis_transform(),
        )
        agreed = "–" if not np.isfinite(row.kappa) else f"{row.kappa:z.2f}".replace("-", "−")
        right.text(0.75, height, agreed, va="center", ha="center", fontsize=6.5, transform=right.get_yaxis_transform())
    axes.set_yticks(range(len(table)), [column_name(pattern) for pattern in table["pattern"]])
    axes.set(ylim=(len(table) - 0.4, -0.9), xlim=(0, 1.12), xlabel="Share of tiles", xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.tick_params(axis="y", length=0)
    right.axis("off")
    for x, head in ((0.05, "Fisher, FDR"), (0.62, "kappa")):
        right.text(x, -0.75, head, fontsize=6.5, fontweight=700, color=INK, transform=right.get_yaxis_transform())
    for kind, name in zip(TILE_KINDS, ("highest attention", "lowest attention"), strict=True):
        axes.barh([], [], color=COLOURS[kind], label=name)
    picture.legend(loc="outside upper left", ncols=2)
    return Drawn(
        figure=picture,
        data=table.drop(columns="reviewers"),
        n=f"{tiles} tiles, {reviewers} reviewers",
        caption=(
            "Patterns that reviewers saw in tiles of the highest and of the lowest attention without knowing which is which (with several reviewers: where most saw it). p: "
            "Fisher's exact test with Benjamini and Hochberg's false-discovery rate. Agreement: Cohen's kappa for two reviewers, Fleiss' for more."
        ),
    )
