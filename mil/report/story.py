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
        "The cohort",
        "Who came in, who was left out and why, and how the hospitals differ.",
        figures=("patient_flow", "cohort_table"),
        tables=("excluded",),
    ),
    Chapter(
        "performance",
        "Does it predict, and does federation help?",
        "Every patient of a training site is scored by models that did not see them; external sites were read by no "
        "training or selection step.",
        figures=("auroc_by_strategy", "roc_by_site"),
        tables=("performance", "comparisons"),
    ),
    Chapter(
        "training",
        "How training went",
        "The number of rounds is chosen on inner folds of the training patients, never on the patients that are scored.",
        figures=("learning_curves",),
    ),
    Chapter(
        "attention",
        "Where the models look",
        "Attention of models that did not train on the patient shown. Slides and tiles are chosen by score and "
        "attention, by a rule, not by eye.",
        figures=("heatmaps", "top_bottom_tiles"),
        tables=("localisation",),
    ),
)
