"""A cohort of patient tables alone, without slides -> what local, pooled and federated clinical models reach.

`mil.bags.table` deals the folds and refuses bad labels as for slides; baselines and experiments of the model `clinical` are trained,
scored and compared by the same code as experiments on slides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mil.bags.covariates import clinical_inputs
from mil.bags.table import make_bags
from mil.baselines.protocol import join_folded, run_protocol, train_without_tiles
from mil.config import Config
from mil.endpoints import build_endpoint
from mil.errors import MilError, nearest
from mil.metrics.comparison import compare, compare_with
from mil.metrics.score import score
from mil.progress import Reporter
from mil.slides.sheet import Cohort, check_patients
from mil.tables import labelled, read_text_table, require_columns, stacked, write_table


@dataclass(frozen=True)
class ClinicalResults:
    """The tables that a run of slides has, too."""

    bags: pd.DataFrame
    predictions: pd.DataFrame
    inner: pd.DataFrame
    metrics: pd.DataFrame
    comparisons: pd.DataFrame

    def save(self, folder: Path) -> None:
        """One CSV each; metrics.csv, the last, completes the folder."""
        for name in ("bags", "predictions", "inner", "comparisons", "metrics"):
            write_table(getattr(self, name), folder / f"{name}.csv")


def read_patients(config: Config) -> Cohort:
    """The patient table, which needs the columns patient_id and site; every site must have a role."""
    if config.slides.patients is None:
        raise MilError(
            "slides.patients names no patient table; give a CSV with patient_id, site, the label and clinical columns"
        )
    path = config.slides.patients
    table = read_text_table(path, "patient table")
    require_columns(table, ["patient_id", "site"], f"patient table {path}")
    check_patients(table, path)
    blank = table.index[table["site"] == ""]
    if len(blank):
        raise MilError(f"patient table {path} line {blank[0]}: column 'site' is blank; fill it or remove the row")
    for site in table["site"].unique():
        if site not in config.slides.roles:
            raise MilError(
                f"patient table {path}: site '{site}' has no role; add it under slides.roles as train or external "
                f"({nearest(site, config.slides.roles)})"
            )
    return Cohort(pd.DataFrame(), table, path)


def clinical_cohort(
    config: Config, endpoint: str, cohort: Cohort | None = None, reporter: Reporter | None = None
) -> ClinicalResults:
    """Baselines on `metrics.clinical` and on `metrics.annotation` alone, and the run's experiments of the model `clinical`."""
    cohort = cohort or read_patients(config)
    if not config.metrics.clinical:
        raise MilError("metrics.clinical names no column; list the clinical columns to predict from")
    trained = {
        name: experiment
        for name, experiment in config.selected().items()
        if experiment.endpoint == endpoint and experiment.model.name == "clinical"
    }
    covariates = list(dict.fromkeys(name for experiment in trained.values() for name in experiment.covariates))
    bags = _bags(cohort, config, endpoint, covariates)
    spec = config.endpoints[endpoint]
    inputs = {"clinical": _inputs(cohort, config.metrics.clinical, "metrics.clinical")}
    if config.metrics.annotation:
        inputs["annotation"] = _inputs(cohort, [config.metrics.annotation], "metrics.annotation")
    folded = [run_protocol(name, table, bags, spec) for name, table in inputs.items()]
    folded += [train_without_tiles(name, experiment, spec, bags, reporter) for name, experiment in trained.items()]
    together = join_folded(folded)
    return ClinicalResults(
        bags,
        together.predictions,
        together.inner,
        score(together.predictions, config.metrics, None, together.inner, build_endpoint(spec)),
        _compared(together.predictions, config, endpoint, list(trained)),
    )


def _inputs(cohort: Cohort, columns: Sequence[str], where: str) -> pd.DataFrame:
    """`clinical_inputs` of the cohort; a class that all patients have is no input."""
    inputs = clinical_inputs(cohort.patients, columns, where)
    if inputs.columns.empty:
        raise MilError(f"{where}: all patients of {cohort.source} have the same {' and '.join(columns)}; name others")
    return inputs


def _bags(cohort: Cohort, config: Config, endpoint: str, covariates: list[str]) -> pd.DataFrame:
    """The bag table of `mil bag` without patients whose label is not known, a "slide" a patient standing for none."""
    patients = cohort.patients
    census = pd.DataFrame(
        {"slide_id": patients["patient_id"], "patient_id": patients["patient_id"], "site": patients["site"]}
    )
    census = census.assign(state="ok", reason="", stage="check", num_tiles=0)
    return labelled(make_bags(cohort, census, config.slides.roles, config.endpoints[endpoint], covariates)[0])


def _compared(table: pd.DataFrame, config: Config, endpoint: str, trained: list[str]) -> pd.DataFrame:
    """Strategies of the clinical model pairwise, and the pooled one less the annotation alone and less trained models."""
    kind = build_endpoint(config.endpoints[endpoint])
    parts = {str(name): part for name, part in table.groupby("experiment", sort=False)}
    strategies = {
        name: part
        for name, part in parts.items()
        if name in {"clinical_local", "clinical_pooled", "clinical_federated"}
    }
    others = {name: part for name, part in parts.items() if name == "annotation_pooled" or name in trained}
    comparisons = [
        compare(strategies, config.metrics, kinds=dict.fromkeys(strategies, kind)).assign(
            endpoint=endpoint, factor="strategy"
        ),
        compare_with("clinical_pooled", parts["clinical_pooled"], others, config.metrics, endpoint, kind),
    ]
    return stacked(comparisons)
