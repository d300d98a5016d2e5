"""Columns of the tables that the pipeline writes, in their order, and which columns are text."""

SHEET = ("slide_id", "patient_id", "site", "path")
"""Slide sheet of a cohort, written by people: the columns that it must have."""
SLIDES = (
    *SHEET,
    "state",
    "reason",
    "format",
    "width",
    "height",
    "levels",
    "mpp",
    "mpp_source",
    "objective_power",
    "fingerprint",
    "bytes",
)
"""`sites/{site}/slides.csv`, a row per slide."""
MANIFEST = ("slide_id", "state", "reason", "num_tiles", "checksum")
"""`shard*.csv` of a stage, a row per slide; that of the tiles has further columns."""
CENSUS = ("slide_id", "patient_id", "site", "state", "reason", "stage", "num_tiles", "mpp", "mpp_source", "format")
"""`census/{site}.csv`, a row per slide."""
VALIDATION = ("path", "state", "reason", "bytes")
"""What `mil validate` writes, a row per file."""
BAGS = ("patient_id", "slides", "site", "role")
"""`bags/{endpoint}.csv`, a row per patient: these, the targets, covariates and folds."""
ROUNDS = ("model", "phase", "repeat", "fold", "round", "site", "train_loss", "val_loss", "val_error", "val_auroc")
"""`runs/{experiment}/rounds.csv`, a row per model, round and site."""
INNER = ("trained_on", "repeat", "fold", "inner", "patient_id", "site", "label", "score")
"""`runs/{experiment}/inner.csv`, a row per model and patient of its inner folds."""
PREDICTIONS = ("trained_on", "repeat", "fold", "patient_id", "site", "role", "split", "label", "score")
"""`predictions/{experiment}.csv` after its column `experiment`, a row per model and patient."""
PATIENTS = ("patient_id", "site", "role", "label", "probability", "models")
"""`predictions/{experiment}.patients.csv`, a row per patient. Of survival `time` and `log_hazard`, of a number `predicted`, of several classes
a column `probability_{class}` each instead of `probability`."""
METRICS = (
    "trained_on",
    "split",
    "site",
    "patients",
    "positives",
    "models",
    "metric",
    "value",
    "low",
    "high",
    "method",
    "primary",
)
"""`metrics/{experiment}.csv` after what names the experiment, a row per model, site, metric and method."""
COMPARISONS = (
    "endpoint",
    "factor",
    "first",
    "first_trained_on",
    "second",
    "second_trained_on",
    "split",
    "site",
    "patients",
    "positives",
    "first_models",
    "second_models",
    "metric",
    "first_value",
    "second_value",
    "difference",
    "low",
    "high",
    "p",
    "low_adjusted",
    "high_adjusted",
    "p_adjusted",
    "method",
    "correction",
    "primary",
)
"""`metrics/comparisons.csv`, a row per pair of models, site and method."""
CURVES = ("trained_on", "split", "site", "curve", "group", "x", "y", "low", "high", "patients")
"""`metrics/{experiment}.curves.csv` after what names the experiment, a row per model, site, curve and point."""
FOLDS = ("trained_on", "split", "site", "repeat", "fold", "patients", "positives", "value")
"""`metrics/{experiment}.folds.csv` after the experiment, a row per model, site, repeat and fold: the primary measure of that fold's models alone."""
COHORT = ("variable", "level", "site", "patients", "count", "value", "low", "high", "p")
"""`metrics/cohort.csv`, a row per characteristic, level and site (blank: all sites). Without a level `value` is the median and `low` and
`high` are quartiles; with one it is the share of the patients, with Wilson's interval. `p`: difference between the sites."""
REVIEWS = (
    *("pattern", "first", "first_total", "second", "second_total", "odds_ratio", "low", "high", "p", "p_adjusted"),
    *("kappa", "reviewers"),
)
"""`metrics/reviews.csv`, a row per pattern of the blind review; without rows before sheets are filled."""
STRATEGIES = (
    "experiment",
    "trained_on",
    "split",
    "site",
    "patients",
    "positives",
    "value",
    "low",
    "high",
    "against",
    "against_value",
    "difference",
    "p",
    "low_adjusted",
    "high_adjusted",
    "p_adjusted",
    "method",
    "correction",
)
"""`metrics/strategies.csv`, strategies of one model: a row per model and site, and per model that it is compared with there."""
LOCALISATION = (
    "site",
    "patients",
    "slides",
    "tiles",
    "positive_tiles",
    "metric",
    "value",
    "low",
    "high",
    "method",
)
"""`metrics/{experiment}.localisation.csv` after what names the experiment, a row per site and metric."""
SLIDE_AUROCS = ("slide_id", "patient_id", "site", "tiles", "positive_tiles", "auroc")
"""`metrics/{experiment}.slides.csv`, a row per slide with both kinds of tile."""
SUBGROUPS = ("variable", "level", "patients", "positives", "auroc", "low", "high", "method", "p_differs", "p_adjusted")
"""`metrics/clinical/subgroups.csv` after the experiment, a row per level of a variable."""
ASSOCIATIONS = ("analysis", "variable", "patients", "events", "value", "low", "high", "p", "p_adjusted", "method")
"""`metrics/clinical/associations.csv`, a row per analysis and variable; `method` says why an analysis has no value."""
SURVIVAL = ("group", "time", "survival", "low", "high", "at_risk")
"""`metrics/clinical/survival.csv`, a row per group of patients and time of an event."""

TEXT = frozenset(
    {
        "against",
        "analysis",
        "check",
        "checksum",
        "correction",
        "curve",
        "encoder",
        "endpoint",
        "experiment",
        "factor",
        "fingerprint",
        "first",
        "first_trained_on",
        "format",
        "group",
        "level",
        "member",
        "method",
        "metric",
        "model",
        "mpp_source",
        "path",
        "patient_id",
        "pattern",
        "phase",
        "reason",
        "role",
        "second",
        "second_trained_on",
        "sha256",
        "site",
        "slide_id",
        "split",
        "stage",
        "state",
        "step",
        "strategy",
        "subject",
        "trained_on",
        "variable",
    }
)
"""Columns that are text in every table, so that a patient '007' and a site '2' keep their names."""
NUMBERS = frozenset(
    {
        *(
            "auroc",
            "p_differs",
            "value",
            "low",
            "high",
            "low_adjusted",
            "high_adjusted",
            "difference",
            "p",
            "p_adjusted",
        ),
        *("x", "y", "odds_ratio", "kappa"),
        *("mpp", "width", "height", "levels", "objective_power", "bytes", "num_tiles"),
    }
)
"""Columns that hold numbers in every table, also where all of their cells are blank."""
