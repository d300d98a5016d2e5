"""The order in which a report tells its story: chapters, what each is about, and its figures and tables."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chapter:
    """One chapter: `figures` are names in `FIGURES`, `tables` names in `mil.report.tables`."""

    name: str
    title: str
    lead: str
    figures: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


STORY = (
    Chapter(
        "cohort",
        "The federation and its cohort",
        "Who takes part and what moves; who came in, who was left out and why; how the hospitals differ.",
        figures=("federation_diagram", "patient_flow", "cohort_table", "pipeline_overview", "heterogeneity"),
        tables=("excluded",),
    ),
    Chapter(
        "local",
        "What each hospital reaches alone",
        "Models trained on one site's own patients, on its held-out folds and at the other sites.",
        figures=("cv_box_plots", "transfer_matrix"),
    ),
    Chapter(
        "performance",
        "Does federation help?",
        "Every patient of a training site is scored by models that did not see them; external sites were read by no "
        "training or selection step.",
        figures=(
            "auroc_by_strategy",
            "strategies_paired",
            "roc_by_site",
            "roc_by_class",
            "survival_by_risk",
            "predicted_vs_observed",
            "external_table",
            "strategy_comparison",
            "strategy_differences",
            "site_value",
        ),
        tables=("performance", "comparisons", "baseline_comparisons"),
    ),
    Chapter(
        "use",
        "Could the score be used?",
        "Beyond ranking: precision, calibration, decisions, subgroups, and what the score adds to clinical variables.",
        figures=(
            "pr_by_site",
            "calibration",
            "decision_curves",
            "score_distributions",
            "confusion",
            "subgroups",
            "score_vs_clinical",
            "kaplan_meier",
        ),
        tables=("metrics",),
    ),
    Chapter(
        "attention",
        "Where the models look",
        "Attention of models that did not train on the patient shown. Slides and tiles are chosen by score and "
        "attention, by a rule, not by eye.",
        figures=(
            "heatmaps",
            "top_bottom_tiles",
            "cluster_enrichment",
            "tile_clusters",
            "review_sheet",
            "review_statistics",
        ),
        tables=("localisation",),
    ),
    Chapter(
        "doubts",
        "What could fool us",
        "Controls that know nothing of the tissue, other encoders and models, and how much data it takes.",
        figures=("null_controls", "ablations", "sample_size"),
        tables=("leaks",),
    ),
    Chapter(
        "training",
        "How training went",
        "The number of rounds is chosen on inner folds of the training patients, never on the patients that are scored.",
        figures=("learning_curves", "communication", "ledger"),
    ),
)
