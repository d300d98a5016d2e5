"""A results folder -> its tables, read when asked for; what is not there is `Absent`, with the reason."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil.config import Config, EndpointSpec, ExperimentSpec, parse
from mil.endpoints import Endpoint, build_endpoint
from mil.errors import Absent, MilError
from mil.predictions.patients import by_patient
from mil.provenance import require_of_run
from mil.results.slide_files import SlideFiles
from mil.results.study import family_of, federated_experiment, main_experiment
from mil.schemas import BAGS
from mil.statistics.arms import ENSEMBLE, OWN_SITE, Scope, scopes
from mil.tables import has_label, read_table, read_text_table, stacked

__all__ = ["Absent", "Results"]


class Results:
    """Everything under `folder` (`results/<cohort>/`), seen through the config that made it."""

    def __init__(self, folder: str | Path, config: Config) -> None:
        self.folder = Path(folder)
        self.config = config
        self._tables: dict[tuple[Path, bool], pd.DataFrame] = {}
        self._scopes: dict[str, list[Scope]] = {}

    @classmethod
    def open(cls, folder: str | Path) -> "Results":
        """The results at `folder`, with the config that the workflow wrote there (`config.json`)."""
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise MilError(f"{path} does not exist; name a cohort's results folder, e.g. results/demo, after a run")
        try:
            return cls(folder, parse(Config, json.loads(path.read_text(encoding="utf-8")), str(path)))
        except (MilError, ValueError) as error:
            line = str(error) if isinstance(error, MilError) else f"{path} is not JSON: {error}"
            raise MilError(f"{line}; results of another version are read once the workflow has run again") from error

    @property
    def training_sites(self) -> list[str]:
        """Sites that train and have a patient with a label, by name."""
        return self._with_labels("train")

    @property
    def external_sites(self) -> list[str]:
        """Sites that no training or selection step reads and that have a patient with a label, by name."""
        return self._with_labels("external")

    def _with_labels(self, role: str) -> list[str]:
        sites = sorted(site for site, site_role in self.config.slides.roles.items() if site_role == role)
        with suppress(Absent):
            return sorted({*sites} & {*self.bags(self.endpoint)["site"]})
        return sites

    @property
    def sites(self) -> list[str]:
        """All sites, training ones first, whether or not a patient has a label: the order of every figure."""
        roles = self.config.slides.roles
        return sorted(roles, key=lambda site: (roles[site] != "train", site))

    @property
    def experiments(self) -> dict[str, ExperimentSpec]:
        """The experiments of this run, in the config's order."""
        return {name: self.config.experiments[name] for name in self.config.run}

    @property
    def endpoints(self) -> dict[str, EndpointSpec]:
        """The endpoints that this run's experiments predict, in the order of their first use."""
        names = dict.fromkeys(experiment.endpoint for experiment in self.experiments.values())
        return {name: self.config.endpoints[name] for name in names}

    @cached_property
    def main(self) -> str:
        """The experiment that is shown in detail (`main_experiment`)."""
        return main_experiment(self.config)

    @property
    def federated(self) -> str:
        """The experiment that findings compare with pooled, local and baselines (`federated_experiment`)."""
        return federated_experiment(self.main, self.experiments)

    @property
    def endpoint(self) -> str:
        """The main experiment's endpoint."""
        return self.experiments[self.main].endpoint

    @cached_property
    def kind(self) -> Endpoint:
        """What the main experiment's endpoint is scored by."""
        return self.kind_of(self.main)

    def kind_of(self, experiment: str) -> Endpoint:
        """What an experiment's endpoint is scored by."""
        return build_endpoint(self.config.endpoints[self.experiments[experiment].endpoint])

    def family(self) -> dict[str, ExperimentSpec]:
        """The main experiment and those that differ from it in how they are trained: what local, pooled, federated compare."""
        return family_of(self.main, self.experiments)

    def table(self, *parts: str, only_labelled: bool = False, text: Iterable[str] = ()) -> pd.DataFrame:
        """The CSV at `parts` under the results folder, its columns `text` as text; raises `Absent` when it is not there."""
        path = self.folder.joinpath(*parts)
        key = path, only_labelled
        if key not in self._tables:
            if not path.is_file():
                raise Absent(f"{'/'.join(parts)} is not among the results")
            if parts[0] == "runs":
                require_of_run(path)
            self._tables[key] = read_table(path, text, only_labelled)
        return self._tables[key].copy()

    def slides(self) -> pd.DataFrame:
        """Every slide of every site as `mil check` saw it."""
        return self._stack("slide tables", self.sites, lambda site: self.table("sites", site, "slides.csv"))

    def census(self) -> pd.DataFrame:
        """Every slide's last state and the reason, what may leave the sites."""
        return self._stack("census tables", self.sites, lambda site: self.table("census", f"{site}.csv"))

    def bags(self, endpoint: str) -> pd.DataFrame:
        """Patients with a label, with their slides and folds, of one endpoint."""
        return self._bags(endpoint, only_labelled=True)

    def without_label(self, endpoint: str) -> pd.DataFrame:
        """Patients without a label and their slides: they are predicted, and part of no statistic."""
        table = self._bags(endpoint)
        return table[~has_label(table)].reset_index(drop=True)

    def _bags(self, endpoint: str, only_labelled: bool = False) -> pd.DataFrame:
        return self.table("bags", f"{endpoint}.csv", only_labelled=only_labelled, text=BAGS)

    def flow(self, endpoint: str) -> pd.DataFrame:
        """Patients and slides after each step, by site."""
        return self.table("bags", f"{endpoint}.flow.csv")

    def predictions(self, experiment: str) -> pd.DataFrame:
        """Predictions of every model of one experiment, of patients with a label."""
        return self.table("predictions", f"{experiment}.csv", only_labelled=True)

    def scores_without_label(self, experiment: str) -> pd.DataFrame:
        """Rows of `by_patient` of the patients without a label."""
        table = self.table("predictions", f"{experiment}.csv")
        table = table[~has_label(table)]
        return by_patient(table, self.kind_of(experiment)) if len(table) else table

    def scopes(self, experiment: str) -> list[Scope]:
        """Every arm of an experiment on every site, in a fixed order; read once."""
        if experiment not in self._scopes:
            checked = self.kind_of(experiment).checked(self.predictions(experiment), f"predictions of {experiment}")
            self._scopes[experiment] = list(scopes(checked))
        return self._scopes[experiment]

    def main_scope(self, site: str, experiment: str | None = None) -> Scope:
        """Scores of the main experiment, or another one, at a site or group of sites: of a local strategy the own site's, or the ensemble's."""
        name = experiment or self.main
        there = [scope for scope in self.scopes(name) if scope.site == site and scope.split != "transfer"]
        if not there:
            raise Absent(f"{name} has no predictions at {site}")
        by_model = {scope.trained_on: scope for scope in there}
        return next((by_model[name] for name in (OWN_SITE, site, ENSEMBLE) if name in by_model), there[0])

    def baseline_scopes(self, endpoint: str) -> dict[str, list[Scope]]:
        """The same of every baseline, by its name (`clinical_pooled`, ...)."""
        by_name = {}
        for name, part in self.baselines(endpoint).groupby("experiment", sort=False):
            key = f"baselines/{endpoint}/{name}"  # no experiment's name has a slash
            if key not in self._scopes:
                self._scopes[key] = list(scopes(part))
            by_name[str(name)] = self._scopes[key]
        return by_name

    def has_scores(self, site: str) -> bool:
        """Whether the main experiment scored patients of a site or group of sites that it did not train on."""
        return any(scope.site == site and scope.split != "transfer" for scope in self.scopes(self.main))

    def metrics(self, *experiments: str) -> pd.DataFrame:
        """Metrics of the named experiments (all of the run without names), stacked."""
        return self._stack("metrics", experiments or self.config.run, lambda name: self.table("metrics", f"{name}.csv"))

    def measured(self, experiment: str, scope: Scope, metric: str) -> tuple[float, float, float]:
        """Value and interval of a metric of one arm at one site, as `mil score` wrote them; nan where it is not defined."""
        row = self.measured_row(experiment, scope, metric)
        return float(row["value"]), float(row["low"]), float(row["high"])

    def measured_row(self, experiment: str, scope: Scope, metric: str) -> pd.Series:
        """The row of the table of metrics that `measured` reads."""
        table = self.metrics(experiment)
        wanted = {"trained_on": scope.trained_on, "split": scope.split, "site": scope.site, "metric": metric}
        rows = table[(table[list(wanted)] == list(wanted.values())).all(axis=1)]
        if len(rows) != 1:
            raise Absent(
                f"metrics/{experiment}.csv has {len(rows)} rows of {metric} of {scope.trained_on} at {scope.site}"
            )
        return rows.iloc[0]

    def curve(self, name: str, experiment: str, scope: Scope, *folder: str) -> pd.DataFrame:
        """Points (group, x, y, low, high, patients) of a curve of one arm at one site, as `mil score` wrote them; no row where there is none.

        `folder`: that of the baselines of an endpoint, for a baseline.
        """
        table = self.table(*folder, "curves.csv") if folder else self.table("metrics", f"{experiment}.curves.csv")
        wanted = {"experiment": experiment, "trained_on": scope.trained_on, "split": scope.split, "site": scope.site}
        wanted["curve"] = name
        return table[(table[list(wanted)] == list(wanted.values())).all(axis=1)].reset_index(drop=True)

    def folds(self, experiment: str) -> pd.DataFrame:
        """The primary measure, in a column of its name, of each fold's models alone."""
        table = self.table("metrics", f"{experiment}.folds.csv").drop(columns="experiment")
        return table.rename(columns={"value": self.kind_of(experiment).primary.name})

    def localisation(self, *experiments: str) -> pd.DataFrame:
        """Attention against truth, of the named experiments (all without names); `Absent` where the settings name no truth."""
        if self.config.truth is None:  # an earlier run's tables may lie there still
            raise Absent("no attention scored against truth is among the results: the settings name no truth")
        what, names = "attention scored against truth", experiments or self.config.run
        return self._stack(what, names, lambda name: self.table("metrics", f"{name}.localisation.csv"))

    def slide_aurocs(self, experiment: str) -> pd.DataFrame:
        """AUROC of attention against truth within each slide that has both kinds of tile; `Absent` likewise."""
        self.localisation(experiment)
        return self.table("metrics", f"{experiment}.slides.csv")

    def clinical(self, name: str) -> pd.DataFrame:
        """The main experiment beside the patient table: `subgroups`, `associations` or `survival`; `Absent` when empty."""
        return self._filled("the cohort lacks the columns or the events for it", "metrics", "clinical", f"{name}.csv")

    def cohort(self) -> pd.DataFrame:
        """Characteristics of the main endpoint's patients by site, with tests between the sites."""
        return self.table("metrics", "cohort.csv")

    def reviews(self) -> pd.DataFrame:
        """What reviewers saw in tiles of high and of low attention; `Absent` before sheets were filled and compared."""
        return self._filled(
            "draw review_sheet, name the filled sheets, then run `mil compare`", "metrics", "reviews.csv"
        )

    def comparisons(self) -> pd.DataFrame:
        """Paired comparisons of the run's experiments."""
        return self.table("metrics", "comparisons.csv")

    def strategies(self) -> pd.DataFrame:
        """The strategies of the main experiment's family: each one's primary measure, and less pooled and local models."""
        return self.table("metrics", "strategies.csv")

    def baselines(self, endpoint: str) -> pd.DataFrame:
        """Predictions of the baselines of one endpoint, several experiments in one table."""
        return self.table("baselines", endpoint, "predictions.csv")

    def baseline_metrics(self, endpoint: str) -> pd.DataFrame:
        """Metrics of the baselines of one endpoint."""
        return self.table("baselines", endpoint, "metrics.csv")

    def baseline_comparisons(self, endpoint: str) -> pd.DataFrame:
        """The federated experiment (`federated`) less each baseline, paired."""
        return self.table("baselines", endpoint, "comparisons.csv")

    def deep_check(self) -> pd.DataFrame:
        """What `mil check --deep` found."""
        return self.table("checks", "deep.csv")

    def rounds(self, experiment: str) -> pd.DataFrame:
        """Training and inner-validation curves by round."""
        return self.table("runs", experiment, "rounds.csv")

    def models(self, experiment: str) -> pd.DataFrame:
        """The run's models: what each was trained on, its fold and its number of rounds."""
        return self.table("runs", experiment, "models.csv")

    def ledger(self, experiment: str) -> list[dict[str, Any]]:
        """The run's ledger, an entry a line."""
        path = self.folder / "runs" / experiment / "ledger.jsonl"
        if not path.is_file():
            raise Absent(f"runs/{experiment}/ledger.jsonl is not among the results")
        require_of_run(path)
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]

    @cached_property
    def files(self) -> SlideFiles:
        """Arrays and pixels of single slides."""
        return SlideFiles(
            self.folder,
            self.config,
            self.sites,
            self.sheet_folder,
            lambda site: self.table("sites", site, "slides.csv"),
        )

    @cached_property
    def sheet_folder(self) -> Path:
        """The folder of the slide sheet, which relative paths of slides and truth start from."""
        return Path(self.config.slides.sheet).parent

    def patients(self) -> pd.DataFrame:
        """The patient table as text cells: patient_id, labels and clinical columns; one row a patient."""
        slides = self.config.slides
        path = Path(slides.patients or slides.sheet)
        if not path.is_file() and (self.sheet_folder / path).is_file():
            path = self.sheet_folder / path
        if not path.is_file():
            raise Absent(f"the patient table {path} is not here")
        table = read_text_table(path, "patient table")
        if "patient_id" not in table.columns:
            raise Absent(f"{path} has no column patient_id")
        return table.drop_duplicates("patient_id").reset_index(drop=True)

    def bag_tiles(self, site: str, experiment: str, patient_id: str) -> int:
        """Number of tiles in a patient's bag: those of all their slides with attention."""
        slides = self._bags(self.experiments[experiment].endpoint).set_index("patient_id").loc[patient_id, "slides"]
        return sum(len(attention) for _, _, attention in self.files.bag_attention(site, experiment, slides))

    def features_by_patient(self, bags: pd.DataFrame, encoder: str) -> Iterator[tuple[str, np.ndarray]]:
        """Each patient of `bags` with the features (tiles, width) of all their slides."""
        for row in bags.itertuples():
            read = self.files.bag_features(str(row.site), encoder, row.slides)
            yield str(row.patient_id), np.concatenate([features for _, _, features in read])

    def clusters(self, site: str, endpoint: str) -> pd.DataFrame:
        """A sample of one site's tiles with the cluster of each."""
        return self.table("sites", site, "clusters", f"{endpoint}.csv")

    def about_features(self, endpoint: str, name: str) -> pd.DataFrame:
        """A table that `mil baseline` made from all sites' features: components, curves, clusters, ...; `Absent` when empty."""
        return self._filled("this cohort has nothing to fill it with", "baselines", endpoint, f"{name}.csv")

    def _filled(self, why: str, *parts: str) -> pd.DataFrame:
        """The CSV at `parts`; `Absent` where it has no row, which `why` explains."""
        table = self.table(*parts)
        if table.empty:
            raise Absent(f"{'/'.join(parts)} has no row: {why}")
        return table

    def _stack(self, what: str, names: Iterable[str], read: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
        """The tables of `names` that are there, one under the other; `Absent` when none is."""
        tables = []
        for name in names:
            with suppress(Absent):
                tables.append(read(name))
        if not tables:
            raise Absent(f"{what} are not among the results")
        return stacked(tables)
