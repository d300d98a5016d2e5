"""The chapters of a report, in their order: what each is about, its tables, and the figures that name it."""

from dataclasses import dataclass

from mil.figures import FIGURES
from mil.paper import rank_of


@dataclass(frozen=True)
class Chapter:
    """One chapter; `tables` are names in `mil.report.tables`."""

    name: str
    title: str
    lead: str
    tables: tuple[str, ...] = ()

    @property
    def figures(self) -> list[str]:
        """Names of the figures that state this chapter, in the order of the protocol's list, then by name."""
        mine = [name for name in FIGURES if FIGURES[name].chapter == self.name]
        return sorted(mine, key=lambda name: (rank_of(FIGURES[name].number), name))


STORY = (
    Chapter(
        "cohort",
        "The federation and its cohort",
        "Who takes part and what moves; who came in, who was left out and why; how the hospitals differ.",
        tables=("excluded",),
    ),
    Chapter(
        "local",
        "What each hospital reaches alone",
        "Models trained on one site's own patients, on its held-out folds and at the other sites.",
    ),
    Chapter(
        "performance",
        "Does federation help?",
        "Every patient of a training site is scored by models that did not see them; external sites were read by no "
        "training or selection step.",
        tables=("performance", "comparisons", "baseline_comparisons", "further_endpoints"),
    ),
    Chapter(
        "use",
        "Could the score be used?",
        "Beyond ranking: precision, calibration, decisions, subgroups, and what the score adds to clinical variables.",
        tables=("metrics", "without_label"),
    ),
    Chapter(
        "attention",
        "Where the models look",
        "Attention of models that did not train on the patient shown. Slides and tiles are chosen by score and "
        "attention, by a rule, not by eye.",
        tables=("localisation",),
    ),
    Chapter(
        "doubts",
        "What could fool us",
        "Controls that know nothing of the tissue, other encoders and models, and how much data it takes.",
        tables=("leaks",),
    ),
    Chapter(
        "training",
        "How training went",
        "The number of rounds is chosen on inner folds of the training patients, never on the patients that are scored.",
    ),
    Chapter("costs", "What the run took", "Time and memory of each stage, measured by Snakemake.", tables=("costs",)),
)
