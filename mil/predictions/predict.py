"""run + bags + features -> a probability a patient and model that may judge it, and attention a tile."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from mil.endpoints import Endpoint, build_endpoint
from mil.errors import CorruptFile, MilError
from mil.models import build
from mil.models.head import Output
from mil.schemas import PREDICTIONS
from mil.statistics.moments import FEW_AT_SITE, Moments
from mil.tables import has_label, require_columns
from mil.training.artefact import Family, Run
from mil.training.cohort import covariate_table
from mil.training.engine import PARTS, Data, Engine, Learners, Method
from mil.training.packing import Places
from mil.training.precision import resolved
from mil.training.store import FeatureStore


@dataclass(frozen=True)
class Predictions:
    """`table`: trained_on, repeat, fold, patient_id, site, role, split, label, score (survival: time; several classes: one
    score each); `attention`: patient -> (tiles,)."""

    table: pd.DataFrame
    attention: dict[str, np.ndarray]
    """Mean over the models that may see the patient; sums to 1 over the bag, in the order of its slides."""
    warnings: tuple[str, ...] = ()
    """What scores depend on besides the patient and the model."""


def predict(run: Run, bags: pd.DataFrame, features: FeatureStore) -> Predictions:
    """Each model on the patients it may judge, the scores of models that judge together averaged.

    `held_out`: patients of a site it was trained on, in its own outer fold. `transfer`: patients of a training site that
    it never saw, in the same fold number; models that left one site out judge these only. `external`: every patient of an
    external site, by every model. A patient of a training site who stands in no fold, for want of a label, trained no model and is
    judged in every fold. Where sites have models of their own, their patients are judged by these, and others' by the mean of all.
    Patients without a label change no number of the others.
    """
    _check_encoder(run, features)
    bags = _placed(run, bags.reset_index(drop=True))
    bags = bags if "label" in bags.columns else bags.assign(label=np.nan)
    _check_folds(run, bags)
    judge = Judge(run, bags, features)
    scores: dict[tuple[str, int, int], list[pd.DataFrame]] = {}
    sums: dict[str, np.ndarray] = {}
    for number, family in enumerate(run.families):
        models = run.models[run.models["family"] == number].sort_values("row")
        for model, scored in zip(models.itertuples(), judge.scores(family, models), strict=True):
            scores.setdefault((model.trained_on, model.repeat, model.fold), []).append(scored)
        judge.add_attention(family, models, sums)
    tables = []
    targets = ("label", *(name for name in judge.endpoint.columns if name != "label"))
    for (trained_on, repeat, fold), scored in sorted(scores.items(), key=lambda item: item[0]):
        mean = pd.concat(scored).groupby(level=0).mean()
        known = [name for name in targets if name in bags.columns]
        judged = bags.loc[mean.index, ["patient_id", "site", "role", *known]]
        split = splits(bags, trained_on.split("+"), repeat, fold)[mean.index]
        origin = {"trained_on": trained_on, "repeat": repeat, "fold": fold, "split": split}
        tables.append(pd.concat([judged.assign(**origin), mean], axis=1))
    table = pd.concat(tables, ignore_index=True)
    attention = {patient: (total / total.sum()).astype(np.float32) for patient, total in sums.items()}
    columns = [*PREDICTIONS, *(name for name in table if name not in PREDICTIONS)]
    return Predictions(table[columns], attention, tuple(_warnings(run, bags)))


def _warnings(run: Run, bags: pd.DataFrame) -> Iterator[str]:
    """Sites of few patients whose moments scale the features that are judged; a site that was trained on keeps those of training."""
    if run.experiment.training.scaling != "site":
        return
    kept = all(family.weights["features.mean"].dim() == 3 for family in run.families)
    trained = [set(str(names).split("+")) if kept else set() for names in run.models["trained_on"]]
    for site, count in bags.groupby("site")["patient_id"].nunique().items():
        if count < FEW_AT_SITE and any(site not in names for names in trained):
            yield (
                f"site {site}: features are scaled by the moments of the {count} patient{'s' if count > 1 else ''} in the "
                "bag table (`scaling: site`), so each score depends on who else is in it; take at least "
                f"{FEW_AT_SITE} patients, or train with `scaling: standard`"
            )


def splits(bags: pd.DataFrame, trained_on: list[str], repeat: int, fold: int) -> np.ndarray:
    """What each row of `bags` is to a model; '' where it may not judge it."""
    placed = pd.to_numeric(bags[f"repeat{repeat}"], errors="coerce").astype(float)
    in_fold = ((placed == fold) | placed.isna()).to_numpy(bool)
    external = (bags["role"] == "external").to_numpy(bool)
    trained = bags["site"].isin(trained_on).to_numpy(bool)
    return np.where(external, "external", np.where(in_fold, np.where(trained, "held_out", "transfer"), ""))


class Judge:
    """Applies a run's models to bags."""

    def __init__(self, run: Run, bags: pd.DataFrame, features: FeatureStore) -> None:
        self.run, self.bags, self.features = run, bags, features
        self.endpoint: Endpoint = build_endpoint(run.endpoint)
        self.personal = run.experiment.strategy.personal
        self.bag = features.require(bags["patient_id"].astype(str))
        self.places = Places.of(features.starts, features.sizes)
        known = covariate_table(bags, run.experiment.covariates)
        self.sites = sorted(bags["site"].astype(str).unique())
        self.covariates = np.full((len(features.patients), known.shape[1]), np.nan, np.float32)
        self.covariates[self.bag] = known
        self.site_of_bag = np.zeros(len(features.patients), np.int64)
        self.site_of_bag[self.bag] = np.searchsorted(self.sites, bags["site"].astype(str))
        known = has_label(bags).to_numpy()
        self.parts = [part for part in (known, ~known) if part.any()]
        """Rows with a label and rows without: apart, so that no sum over the former depends on how many the latter are."""
        self.own: dict[str, np.ndarray] = {}

    def scores(self, family: Family, models: pd.DataFrame) -> list[pd.DataFrame]:
        """For each model the endpoint's score columns, indexed by row of the bag table."""
        engine, learners = self._engine(family), self._learners(family, models)
        judged = [self._judged(model) != "" for model in models.itertuples()]
        rows = [[np.flatnonzero(mask & part) for mask in judged] for part in self.parts]
        logits = [engine.logits(learners, [self.bag[numbers] for numbers in part], self.places) for part in rows]
        tables = []
        for row, (numbers, values) in enumerate(zip(zip(*rows, strict=True), zip(*logits, strict=True), strict=True)):
            numbers, values = np.concatenate(numbers), np.concatenate(values)
            if self.endpoint.scaled:
                deviation, mean = (family.weights[f"target.{name}"][row].numpy() for name in ("deviation", "mean"))
                values = values * deviation + mean
            tables.append(pd.DataFrame(self.endpoint.scores(values), index=numbers))
        return tables

    def add_attention(self, family: Family, models: pd.DataFrame, sums: dict[str, np.ndarray]) -> None:
        """Add each model's attention to those patients' `sums` whom it may see: held out or external ones, or a site left out."""
        engine, learners = self._engine(family), self._learners(family, models)
        seen = []
        for model in models.itertuples():
            split = self._judged(model)
            transfer = (split == "transfer") & (self.run.experiment.protocol == "leave_one_site_out")
            seen.append((split == "held_out") | (split == "external") | transfer)

        attention: dict[tuple[int, str], np.ndarray] = {}

        def receive(learner: int, batch: np.ndarray, output: Output, row: int) -> None:
            ends = np.cumsum(self.features.sizes[batch])
            for bag, (number, end) in enumerate(zip(batch.tolist(), ends.tolist(), strict=True)):
                size = int(self.features.sizes[number])
                weights = np.full(size, 1 / size)
                if output.attention is not None:
                    weights = output.attention[row, bag, end - size : end].double().cpu().numpy()
                attention[learner, self.features.patients[number]] = weights

        for part in self.parts:
            engine.apply(learners, [self.bag[mask & part] for mask in seen], self.places, receive)
        for (_, patient), weights in sorted(attention.items(), key=lambda item: item[0]):
            sums[patient] = sums[patient] + weights if patient in sums else weights

    def _judged(self, model) -> np.ndarray:
        """What each row of the bag table is to a model; '' where it does not judge it."""
        split = splits(self.bags, model.trained_on.split("+"), model.repeat, model.fold)
        if self.run.experiment.protocol == "leave_one_site_out":
            split = np.where(split == "transfer", split, "")
        if not self.personal:
            return split
        others = self.bags["site"].isin(model.trained_on.split("+")) & (self.bags["site"] != model.member)
        return np.where(others, "", split)

    def _engine(self, family: Family) -> Engine:
        covariates = self.covariates.shape[1]
        head = build(family.model, self.features.width, self.endpoint.outputs, covariates)
        data = Data(
            self.features.source(torch.device("cpu")),
            self.features.width,
            torch.zeros(len(self.features.patients), len(self.endpoint.columns)),
            self.features.patient_keys(),
            torch.from_numpy(self.covariates) if covariates else None,
            torch.from_numpy(self.site_of_bag),
        )
        engine = Engine(
            head,
            self.endpoint,
            data,
            Method(precision=resolved(self.run.experiment.training.precision, torch.device("cpu"))),
        )
        shapes = {name: tuple(value.shape[1:]) for name, value in family.weights.items() if name not in BUFFERS}
        mean = family.weights.get("features.mean")
        if shapes != engine.layout.shapes or (mean is not None and mean.shape[-1] != self.features.width):
            raise CorruptFile(
                f"features: {self.features.width} numbers a tile do not fit the run's weights of {family.model.name}; extract them as "
                "for training, or run `mil train` again"
            )
        return engine

    def _learners(self, family: Family, models: pd.DataFrame) -> Learners:
        names = [name for name in sorted(family.weights) if name not in BUFFERS]
        rows = torch.cat([family.weights[name].flatten(1) for name in names], dim=1)
        buffers = {name: family.weights[name] for name in BUFFERS if name in family.weights}
        if self.run.experiment.training.scaling == "site":
            buffers |= self._scales_by_site(family, models)
        none = torch.zeros(len(rows), 1)
        return Learners(rows, buffers, none, none, none)

    def _scales_by_site(self, family: Family, models: pd.DataFrame) -> dict[str, torch.Tensor]:
        """Mean and deviation (models, sites of the table, width): as trained, else of the site's own bags in the table.

        They are of patients with a label, at a site without any of all its patients. A run between hospitals holds no site's moments:
        there every site takes its own.
        """
        known = sorted({site for names in self.run.models["trained_on"] for site in names.split("+")})
        if not self.own:
            moments = Moments.of_bags(self.features)
            there, labelled = np.zeros((2, len(self.features.patients)), bool)
            there[self.bag], labelled[self.bag] = True, has_label(self.bags)
            of_sites = [there & (self.site_of_bag == k) for k in range(len(self.sites))]
            chosen = [np.flatnonzero(mask & labelled if (mask & labelled).any() else mask) for mask in of_sites]
            scales = [moments.merged(numbers).scale() for numbers in chosen]
            self.own = {part: np.stack(values) for part, values in zip(PARTS, zip(*scales, strict=True), strict=True)}
        tensors = {}
        for part in PARTS:
            trained = family.weights[f"features.{part}"]
            scale = torch.from_numpy(self.own[part]).repeat(len(models), 1, 1)
            for row, model in enumerate(models.itertuples() if trained.dim() == 3 else ()):
                for site in str(model.trained_on).split("+"):
                    if site in self.sites:
                        scale[row, self.sites.index(site)] = trained[row, known.index(site)]
            tensors[f"features.{part}"] = scale
        return tensors


BUFFERS = tuple(f"{what}.{part}" for what in ("features", "covariates", "target") for part in ("mean", "deviation"))


def _check_encoder(run: Run, features: FeatureStore) -> None:
    for key in {**run.about, **features.about}:
        trained = run.about.get(key)
        if features.about.get(key) != trained:
            raise CorruptFile(
                f"features: {key} is {features.about.get(key)!r}, but the run was trained on {trained!r}; extract them with the same spec"
            )


def _placed(run: Run, bags: pd.DataFrame) -> pd.DataFrame:
    """Patients of external sites alone stand in no fold, whatever number of repeats their bag table was dealt for."""
    if run.folds is None or ((bags["role"] == "train") & has_label(bags)).any():
        return bags
    return bags.assign(**{name: "" for name in run.folds if name.startswith("repeat")})


def _check_folds(run: Run, bags: pd.DataFrame) -> None:
    """Patients of training sites must stand where they stood when the models were trained, or they would be judged by ones that saw them."""
    if run.folds is None:
        return
    columns = [name for name in run.folds if name != "patient_id"]
    require_columns(bags, ["patient_id", "role", *columns], "bags")
    then = run.folds.set_index("patient_id")[columns].apply(_as_text)
    now = bags[bags["role"] == "train"].set_index("patient_id")[columns].apply(_as_text)
    known = set(bags.loc[has_label(bags), "patient_id"])
    for patient, row in now.iterrows():
        if patient not in known:
            if patient in then.index:
                raise MilError(
                    f"bags: patient {patient} has no label, but had one when the run was trained, so that its models know the patient; "
                    "predict with the bags of that time, or run `mil train` again"
                )
            continue
        if patient not in then.index:
            raise MilError(
                f"bags: patient {patient} of training site {row['site']} was not there when the run was trained; run `mil train` again"
            )
        differing = [name for name in columns if row[name] != then.loc[patient, name]]
        if differing:
            name = differing[0]
            raise MilError(
                f"bags: patient {patient} has {name} {row[name]}, but had {then.loc[patient, name]} when the run was trained; run "
                "`mil train` again, or predict with the bags of that time"
            )


def _as_text(cells: pd.Series) -> pd.Series:
    """Cells as text, numbers the same whether a file made whole ones of them or not."""
    numbers = pd.to_numeric(cells, errors="coerce").astype(float)
    return numbers.map("{:g}".format).where(numbers.notna(), cells.astype(str))
