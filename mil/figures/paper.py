"""Where the paper's figures are: the ids of the protocol's figure list -> names of ours.

The list was reconstructed from the paper's claims (Ogier du Terrail et al. 2023), since its captions were not at hand;
its numbers are therefore ours, not the journal's.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Deliverable:
    """One figure or table of the list, and the figures here that stand for it."""

    id: str
    content: str
    figures: tuple[str, ...]


PAPER = (
    Deliverable("F1a", "Federation: what moves, what stays", ("federation_diagram",)),
    Deliverable("F1b", "Patients and slides by site (CONSORT)", ("patient_flow",)),
    Deliverable("F1c, T1", "Cohort with tests between sites", ("cohort_table",)),
    Deliverable("F2a", "Pipeline on the run's own slides", ("pipeline_overview",)),
    Deliverable("F2b", "Local training, by site, model and baseline", ("cv_box_plots",)),
    Deliverable("F2c", "Transfer between sites", ("transfer_matrix",)),
    Deliverable("F3a", "Local against federated, pooled, ensemble", ("auroc_by_strategy", "strategies_paired")),
    Deliverable("F3b, T2", "External sites, every model", ("external_table",)),
    Deliverable(
        "F3c",
        "ROC, precision and recall, calibration, decisions, scores; of other endpoints than yes or no: classes, numbers",
        (
            "roc_by_site",
            "pr_by_site",
            "calibration",
            "decision_curves",
            "score_distributions",
            "roc_by_class",
            "confusion",
            "predicted_vs_observed",
        ),
    ),
    Deliverable("F4a", "Heat maps of responders and non-responders", ("heatmaps",)),
    Deliverable("F4b", "Tiles with the highest and lowest attention", ("top_bottom_tiles",)),
    Deliverable("F4c", "Blind review by pathologists", ("review_sheet", "review_statistics")),
    Deliverable("F4d", "Score against TILs, Ki67, grade", ("score_vs_clinical",)),
    Deliverable("ED1", "Learning curves by round and site", ("learning_curves",)),
    Deliverable(
        "ED2",
        "Strategies, rounds and local work, what is sent",
        ("strategy_comparison", "strategy_differences", "communication"),
    ),
    Deliverable("ED3", "Encoders and models", ("ablations",)),
    Deliverable("ED4", "Heterogeneity of the sites", ("heterogeneity",)),
    Deliverable("ED5", "Patients, tiles and sites against AUROC", ("sample_size", "site_value")),
    Deliverable("ED6", "Clusters of tiles", ("cluster_enrichment", "tile_clusters")),
    Deliverable("ED7", "Subgroups", ("subgroups",)),
    Deliverable("ED8", "Ledger", ("ledger",)),
    Deliverable("ED9", "Survival by prediction", ("kaplan_meier", "survival_by_risk")),
    Deliverable("ED10", "Null controls", ("null_controls",)),
)
