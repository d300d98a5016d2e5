"""Results -> figures, one module a figure, by name in `FIGURES`."""

from pathlib import Path

from mil.config import FiguresSpec
from mil.figures import (
    auroc_by_strategy,
    cohort_table,
    heatmaps,
    learning_curves,
    patient_flow,
    roc_by_site,
    top_bottom_tiles,
)
from mil.figures.registry import FIGURES, Drawn, Entry
from mil.figures.results import Absent, Results
from mil.figures.save import save

__all__ = ["FIGURES", "Absent", "Drawn", "Entry", "Results", "draw_figure", "save"]
MODULES = (
    patient_flow,
    cohort_table,
    roc_by_site,
    auroc_by_strategy,
    learning_curves,
    heatmaps,
    top_bottom_tiles,
)


def draw_figure(name: str, results: Results, spec: FiguresSpec, site: str | None = None) -> list[Path]:
    """Draw the figure `name` (of one site, where it is drawn a site) into the results' `figures/`; returns its files."""
    drawn = FIGURES[name].draw(results, spec, site)
    return save(f"{name}.{site}" if FIGURES[name].per_site else name, drawn, results.folder / "figures", spec)
