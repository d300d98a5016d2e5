"""The protocol's list of figures: numbers and contents. A figure states its number in its decorator.

The list was reconstructed from the paper's claims (Ogier du Terrail et al. 2023), since its captions were not at hand;
its numbers are therefore ours, not the journal's.
"""

PROTOCOL = {
    "F1a": "Federation: what moves, what stays",
    "F1b": "Patients and slides by site (CONSORT)",
    "F1c, T1": "Cohort with tests between sites",
    "F2a": "Pipeline on the run's own slides",
    "F2b": "Local training, by site, model and baseline",
    "F2c": "Transfer between sites",
    "F3a": "Local against federated, pooled, ensemble",
    "F3b, T2": "External sites, every model",
    "F3c": "ROC, precision and recall, calibration, decisions, scores; of other endpoints than yes or no: classes, numbers",
    "F4a": "Heat maps of responders and non-responders",
    "F4b": "Tiles with the highest and lowest attention",
    "F4c": "Blind review by pathologists",
    "F4d": "Score against TILs, Ki67, grade",
    "ED1": "Learning curves by round and site",
    "ED2": "Strategies, rounds and local work, what is sent",
    "ED3": "Encoders and models",
    "ED4": "Heterogeneity of the sites",
    "ED5": "Patients, tiles and sites against AUROC",
    "ED6": "Clusters of tiles",
    "ED7": "Subgroups",
    "ED8": "Ledger",
    "ED9": "Survival by prediction",
    "ED10": "Null controls",
}
"""Number -> content, in the order of the list."""


def rank_of(number: str) -> int:
    """Place of a figure's number in the list; a figure without a number comes after all others."""
    return list(PROTOCOL).index(number) if number else len(PROTOCOL)
