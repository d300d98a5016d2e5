"""Results -> figures, one module a figure, by name in `FIGURES`."""

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

__all__ = ["FIGURES", "Absent", "Drawn", "Entry", "Results", "draw", "save"]
MODULES = (
    patient_flow,
    cohort_table,
    roc_by_site,
    auroc_by_strategy,
    learning_curves,
    heatmaps,
    top_bottom_tiles,
)


def draw(name: str, results: Results) -> Drawn:
    """Draw the figure `name` with the settings of the results' config."""
    return FIGURES[name].draw(results, results.config.figures)
