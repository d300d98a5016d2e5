"""The run -> what its results cannot say, as far as the run itself can tell."""

from contextlib import suppress

import pandas as pd

from mil.report.claims import leak_warning
from mil.results.results import Absent, Results
from mil.statistics.moments import FEW_AT_SITE

FEW_PATIENTS = 100


def limits(results: Results) -> list[str]:
    """What a reader should hold against the numbers, as far as the run itself can tell."""
    said = [warning] if (warning := leak_warning(results)) else []
    try:
        bags = results.bags(results.endpoint)
        said += [*_limits_of_size(results, bags), *_without_class(results, bags), *_without_label(results, bags)]
    except Absent:
        said.append("No table of patients was found, so nothing is known of the cohort's size.")
    said += [
        "A patient's score is the mean over models of several folds; scores of different folds, sites and strategies "
        f"need not lie on one scale, which {results.kind.primary.title} over several sites together does not forgive.",
        "Intervals of held-out patients allow for other patients at these sites, in training as well, but not for other seeds; those of "
        "external sites take the trained models as given. Neither says how other hospitals would do.",
        "Attention says where a model looked, not why, and not that the tissue caused the outcome.",
    ]
    if any(experiment.training.scaling == "site" for experiment in results.experiments.values()):
        said.append(
            "Features are scaled by the moments of each site's own patients (setting scaling: site): a patient's score depends on which "
            "other patients of the site are scored with them, and one patient alone is scaled by their own tiles."
            + _scaled_by_few(results)
        )
    if others := sorted(set(results.endpoints) - {results.endpoint}):
        said.append(
            f"Findings and figures are about the endpoint {results.endpoint}; of {', '.join(others)} the tables have the primary "
            "measure, and each model has a card."
        )
    if results.config.truth is None:
        said.append("No tile-level truth was given, so attention is shown but not scored.")
    return said


def _scaled_by_few(results: Results) -> str:
    """The external sites whose moments rest on few patients."""
    try:
        counts = results.bags(results.endpoint)["site"].value_counts()
    except Absent:
        return ""
    few = [f"{site} ({counts[site]})" for site in results.external_sites if 0 < counts.get(site, 0) < FEW_AT_SITE]
    return f" At {', '.join(few)} these are fewer than {FEW_AT_SITE} patients." if few else ""


def _limits_of_size(results: Results, bags: pd.DataFrame) -> list[str]:
    said = []
    if not results.kind.two_classes:
        said.append(
            f"The endpoint {results.endpoint} is of kind {results.kind.name}: baselines, controls with permuted labels, curves of sample size and figures that need "
            "two classes are left out, so that nothing here says how far colour or clinical columns alone would come."
        )
    counted = bool(results.kind.outcome)
    counts = bags.assign(label=bags["label"] if counted else 0).groupby("site")["label"].agg(["size", "sum"])
    small = counts[counts["size"] < FEW_PATIENTS]
    if len(small):
        listed = ", ".join(
            f"{site} {int(row['size'])}" + (f" ({int(row['sum'])} {results.kind.outcome})" if counted else "")
            for site, row in small.iterrows()
        )
        said.append(
            f"Few patients: {listed}. Intervals at such numbers are wide, and differences of 0.1 in {results.kind.primary.title} are noise."
        )
    if not results.external_sites:
        labelled = " with labels" if "external" in results.config.slides.roles.values() else ""
        said.append(f"There is no external site{labelled}: nothing here says how the models do in another hospital.")
    elif len(results.external_sites) == 1:
        said.append("There is one external site; how results vary between hospitals cannot be told from it.")
    rates = counts["sum"] / counts["size"]
    if results.kind.two_classes and len(rates) > 1 and rates.max() - rates.min() > 0.1:
        said.append(
            f"The share of positives differs between sites ({rates.min():.0%} to {rates.max():.0%}); a model that only tells "
            "sites apart would score above 0.5 on several sites together."
        )
    return said


def _without_class(results: Results, bags: pd.DataFrame) -> list[str]:
    """Training sites with local models that saw no patient of a class."""
    kind = results.kind
    classes = ("negative", "positive") if kind.two_classes else kind.spec.classes
    if not classes or not _has_local_models(results):
        return []
    named = bags["label"].astype(int).map(dict(enumerate(classes))) if kind.two_classes else kind.named(bags)
    said = []
    for site in results.training_sites:
        lacking = [name for name in classes if name not in set(named[bags["site"] == site])]
        if lacking:
            whom = f"{lacking[0]} patient" if kind.two_classes else f"patient of class {' or '.join(lacking)}"
            said.append(
                f"Site {site} has no {whom} of {results.endpoint}: its local models were trained without any and cannot tell such "
                "patients from others, so that their scores, and those of the ensemble of local models, say little."
            )
    return said


def _has_local_models(results: Results) -> bool:
    """Whether an experiment or a baseline of the main endpoint trains a model per site."""
    if any(
        experiment.strategy.by_site and experiment.endpoint == results.endpoint
        for experiment in results.experiments.values()
    ):
        return True
    with suppress(Absent):
        return bool(results.baseline_metrics(results.endpoint)["experiment"].str.endswith("_local").any())
    return False


def _without_label(results: Results, bags: pd.DataFrame) -> list[str]:
    """How many patients are in no measure, and of which sites there is none."""
    counts = results.without_label(results.endpoint)["site"].value_counts()
    if counts.empty:
        return []
    listed = ", ".join(f"{site} {counts[site]}" for site in results.sites if site in counts.index)
    unmeasured = [site for site in results.sites if site in counts.index and site not in set(bags["site"])]
    none = (
        f" Of {' and '.join(unmeasured)} there is no {results.kind.primary.title}, as no patient there has a label."
        if unmeasured
        else ""
    )
    return [f"Patients without a label are predicted, but counted in no measure: {listed}.{none}"]
