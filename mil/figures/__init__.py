"""Results -> figures, one module a figure, by name in `FIGURES`."""

from pathlib import Path

from mil.config import FiguresSpec
from mil.figures import (
    ablations,
    auroc_by_strategy,
    calibration,
    cluster_enrichment,
    cohort_table,
    communication,
    confusion,
    cv_box_plots,
    decision_curves,
    external_table,
    federation_diagram,
    heatmaps,
    heterogeneity,
    kaplan_meier,
    learning_curves,
    ledger,
    null_controls,
    patient_flow,
    pipeline_overview,
    pr_by_site,
    predicted_vs_observed,
    review_sheet,
    review_statistics,
    roc_by_class,
    roc_by_site,
    sample_size,
    score_distributions,
    score_vs_clinical,
    site_value,
    strategies_paired,
    strategy_comparison,
    strategy_differences,
    subgroups,
    survival_by_risk,
    tile_clusters,
    top_bottom_tiles,
    transfer_matrix,
)
from mil.figures.registry import FIGURES, Drawn, Entry
from mil.figures.save import save
from mil.results.results import Absent, Results

__all__ = ["FIGURES", "Absent", "Drawn", "Entry", "Results", "draw_figure", "save"]
MODULES = (
    ablations,
    auroc_by_strategy,
    calibration,
    cluster_enrichment,
    cohort_table,
    communication,
    confusion,
    cv_box_plots,
    decision_curves,
    external_table,
    federation_diagram,
    heatmaps,
    heterogeneity,
    kaplan_meier,
    learning_curves,
    ledger,
    null_controls,
    patient_flow,
    pipeline_overview,
    pr_by_site,
    predicted_vs_observed,
    review_sheet,
    review_statistics,
    roc_by_class,
    roc_by_site,
    sample_size,
    score_distributions,
    score_vs_clinical,
    site_value,
    strategies_paired,
    strategy_comparison,
    strategy_differences,
    subgroups,
    survival_by_risk,
    tile_clusters,
    top_bottom_tiles,
    transfer_matrix,
)


def draw_figure(name: str, results: Results, spec: FiguresSpec, site: str | None = None) -> list[Path]:
    """Draw the figure `name` (of one site, where it is drawn a site) into the results' `figures/`; returns its files."""
    drawn = FIGURES[name].draw(results, spec, site)
    return save(f"{name}.{site}" if FIGURES[name].per_site else name, drawn, results.folder / "figures", spec)
