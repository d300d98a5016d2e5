"""experiment + bags + features -> a run: models for every choice of sites, repeat and outer fold."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mil.endpoints import Endpoint, build_endpoint
from mil.errors import MilError
from mil.models import build
from mil.progress import Reporter
from mil.specs.endpoints import EndpointSpec
from mil.specs.experiments import ExperimentSpec
from mil.specs.models import ModelSpec, UserHeadSpec
from mil.statistics.moments import Moments
from mil.strategies.strategy import Strategy
from mil.training.artefact import Family, Run, inner_scores, model_table
from mil.training.checkpoint import Checkpoint, forget
from mil.training.clients import Clients
from mil.training.cohort import TrainingCohort
from mil.training.engine import Data, Engine, Method, one_thread_each
from mil.training.finished import FinishedRun
from mil.training.packing import Places
from mil.training.plans import Rounds
from mil.training.precision import Computing
from mil.training.protocol import Task, candidates, check_groups, groups, inner_tasks, refit_tasks, select, teachers
from mil.training.records import Records
from mil.training.rounds import Driver, Phase
from mil.training.setup import Setup
from mil.training.sources import Centre, Source
from mil.training.store import FeatureStore
from mil.version import __version__


def train_into(
    folder: Path,
    experiment: ExperimentSpec,
    endpoint: EndpointSpec,
    bags: pd.DataFrame,
    features: FeatureStore,
    reporter: Reporter,
) -> None:
    """`train` and save the run in `folder`; its checkpoint there is forgotten only then.

    A run of the same settings, training patients, labels, folds and features that was finished there before is taken as it is: so where
    a slide was added at an external site.
    """
    cohort = TrainingCohort.of(bags, endpoint, build_endpoint(endpoint), experiment.covariates)
    finished = FinishedRun(folder, f"{_key(experiment, endpoint, cohort, features)} {__version__}")
    checkpoint = folder / "checkpoint"
    if finished.taken():
        reporter.say(
            f"{folder}: nothing of the training sites or the settings has changed since this run was finished, so it is taken as it is; "
            "to train it again, delete its folder"
        )
    else:
        train(experiment, endpoint, bags, features, reporter, checkpoint).save(folder)
        finished.keep()
    forget(checkpoint)


def train(
    experiment: ExperimentSpec,
    endpoint: EndpointSpec,
    bags: pd.DataFrame,
    features: FeatureStore,
    reporter: Reporter,
    checkpoint: Path | None = None,
    alike: bool = False,
) -> Run:
    """Select on the inner folds, refit on all outer training patients, for every fold at once.

    `bags` and `features` hold training sites only; a row of another role, or features of anybody else, is an error. With
    a `checkpoint` folder an interrupted call goes on where it stood, and gives what an undisturbed one would have given;
    the folder stays until the caller has saved the run. `alike`: train also where all training patients of a model have the
    same target, of whom nothing can be learned.
    """
    target = build_endpoint(endpoint)
    cohort = TrainingCohort.of(bags, endpoint, target, experiment.covariates)
    strangers = sorted(set(features.patients) - set(cohort.patients))
    if strangers:
        raise MilError(
            f"features: patient {strangers[0]} is not in the training rows; training is given training sites only"
        )
    trainer = Trainer(experiment, target, cohort, features, reporter)
    trainer.alike = alike
    if checkpoint is not None:
        trainer.checkpoint = Checkpoint(checkpoint, _key(experiment, endpoint, cohort, features))
    with one_thread_each():  # the engine's own threads share out the models
        families, models = trainer.refitted(trainer.selected())
    stated = ["patient_id", "site", *target.columns, *(f"repeat{repeat}" for repeat in range(endpoint.repeats))]
    folds = bags[stated].sort_values(["site", "patient_id"], ignore_index=True)
    return Run(
        experiment,
        endpoint,
        families,
        models,
        pd.DataFrame(trainer.records.table),
        trainer.records.ledger,
        dict(features.about),
        trainer.inner,
        folds,
        trainer.computing.stated(),
    )


class Trainer:
    """An experiment on its cohort: what selection and refit share."""

    checkpoint: Checkpoint | None = None
    alike = False
    """Train also where all patients have the same target."""
    inner: pd.DataFrame | None = None
    """Scores of the chosen candidates' inner models on the inner folds that they did not see."""

    def __init__(
        self,
        experiment: ExperimentSpec,
        endpoint: Endpoint,
        cohort: TrainingCohort,
        features: FeatureStore,
        reporter: Reporter,
    ) -> None:
        self.experiment, self.endpoint, self.cohort, self.features = experiment, endpoint, cohort, features
        self.reporter = reporter
        self.strategy: Strategy = experiment.strategy
        self.workers = torch.get_num_threads()
        self.computing = Computing.best(experiment.training.precision)
        self.device = self.computing.device
        moments = Moments.of_bags(features)
        self.centre: Centre | None = None
        if self.device.type == "cuda" and self.computing.precision == "bf16":
            mean, deviation = moments.merged(np.arange(len(moments.count))).scale()
            self.centre = (torch.from_numpy(mean), torch.from_numpy(deviation))
        self.sources: dict[int, Source] = {}
        bags = features.require(cohort.patients)
        moments = Moments(moments.count[bags], moments.mean[bags], moments.squares[bags])
        self.setup = Setup(cohort, endpoint, experiment.training, moments)
        self.bag = bags
        places = Places.of(features.starts, features.sizes)
        personal = bool(self.strategy.of_rounds.local_parts)
        self.records = Records(cohort, endpoint, bags, places, personal)
        self.engines: dict[str, tuple[Engine, FeatureStore]] = {}
        self.means: FeatureStore | None = None

    def selected(self) -> list[Task]:
        """For every sites, repeat and outer fold a task with the best candidate and number of rounds."""
        trained_on = teachers(self.cohort.sites, self.strategy.by_site, self.experiment.protocol)
        wanted = groups(self.cohort, trained_on)
        if not self.alike:
            check_groups(self.cohort, wanted, self.endpoint, "bags")
        tasks = inner_tasks(self.cohort, wanted, candidates(self.experiment), self.experiment.training.rounds)
        errors = np.full((len(tasks), self.experiment.training.rounds), np.inf)
        counts, held = np.ones_like(errors), [np.zeros((0, 0), np.float32)] * len(tasks)
        for number, (model, members) in enumerate(_by_model(tasks)):
            name = "inner" if not number else f"inner{number}"
            mine = [tasks[k] for k in members]
            if not (self.checkpoint and self.checkpoint.finished(name, self.records)):
                self._run(model, mine, name, "inner")
                self.records.settle()
                if self.checkpoint:
                    self.checkpoint.finish(name, self.records)
            reached = self.records.errors.shape[1]
            errors[members, :reached], counts[members, :reached] = self.records.errors, self.records.counts
            for row, logits in zip(members, self.records.held, strict=True):
                held[row] = logits
        chosen = select(tasks, errors, counts)
        self.inner = inner_scores(tasks, held, chosen, self.cohort, self.endpoint)
        return chosen

    def refitted(self, chosen: list[Task]) -> tuple[list[Family], pd.DataFrame]:
        """The chosen tasks trained on all their patients: weights, by head, and the table of models."""
        tasks = refit_tasks(self.cohort, chosen, self.experiment.training.replicas)
        families, tables = [], []
        for number, (model, members) in enumerate(_by_model(tasks)):
            mine = [tasks[k] for k in members]
            driver, phase, clients = self._run(model, mine, "refit" if not number else f"refit{number}", "refit")
            rows, buffers = phase.rows, phase.learners.buffers
            first = slice(None, None, clients.sites)
            if self.strategy.personal:
                rows = phase.learners.rows if self.strategy.finetune_epochs else driver.personal(phase, clients)
                first = slice(None)
            if not torch.isfinite(rows).all():
                raise MilError(
                    f"model {model.name}: weights are not finite after the refit; lower training.lr or set clip_norm"
                )
            layout = self._engine(model)[0].layout
            weights = {name: view.cpu().clone() for name, view in layout.views(rows).items()}
            weights |= {name: buffer[first].cpu().clone() for name, buffer in buffers.items()}
            family = Family(model, weights)
            families.append(family)
            tables.append(model_table(mine, clients, self.strategy, family, number))
        return families, pd.concat(tables, ignore_index=True)

    def _run(self, model: ModelSpec, tasks: list[Task], name: str, phase: str) -> tuple[Driver, Phase, Clients]:
        """One phase of one head."""
        engine, store = self._engine(model, sum(len(task.train) * task.rounds for task in tasks))
        rounds = Rounds(self.experiment.training, store)
        self.records.places = Places.of(store.starts, store.sizes)
        driver = Driver(engine, rounds, self.cohort, self.setup, self.strategy, self.experiment.training, self.records)
        title = f"{'select' if phase == 'inner' else 'refit'} {model.name}, {len(tasks)} models"
        with self.reporter.steps(title, max(task.rounds for task in tasks), "rounds") as steps:
            return driver, *driver.run(tasks, name, phase, steps, self.checkpoint)

    def _engine(self, model: ModelSpec, model_bags: int = 0) -> tuple[Engine, FeatureStore]:
        """The engine of a head, on all tiles or, where the head sees no more than that, on the bags' means.

        On a GPU its step is compiled where training `model_bags` times a bag takes so long that this saves time.
        """
        key = model.to_json()
        if key not in self.engines:
            training = self.experiment.training
            covariates = self.cohort.covariates
            if isinstance(model, UserHeadSpec):
                self.reporter.note(model.notice)
            head = build(model, self.features.width, self.endpoint.outputs, covariates.shape[1])
            if head.needs_classes and self.endpoint.classes < 2:
                raise MilError(
                    f"model {model.name} needs an endpoint with classes (binary, multiclass); choose another model"
                )
            store = self.features
            if head.only_mean and training.max_tiles is None:
                self.means = self.means or self.features.means()
                store = self.means
            places = np.argsort(self.bag)  # the patient of every bag
            source = self._source(store)
            tiles = f"{len(store.sizes)} bags, {int(store.sizes.sum())} tiles x {store.width}"
            self.reporter.note(
                f"{model.name}: {tiles}, {source.where}, on {self.device.type}, {self.computing.precision}"
            )
            data = Data(
                source,
                store.width,
                torch.from_numpy(self.cohort.targets[places]).to(self.device),
                store.patient_keys().to(self.device),
                torch.from_numpy(covariates[places]).to(self.device) if covariates.shape[1] else None,
                torch.from_numpy(np.searchsorted(self.cohort.sites, self.cohort.site[places])).to(self.device),
            )
            method = Method(training.optimiser, training.momentum, training.clip_norm, self.computing.precision)
            engine = Engine(
                head,
                self.endpoint,
                data,
                method,
                self.device,
                workers=self.workers,
                reporter=self.reporter,
                tiles=model_bags * float(store.sizes.mean()),
            )
            self.engines[key] = engine, store
        return self.engines[key]

    def _source(self, store: FeatureStore) -> Source:
        """One copy of a store's tiles for all heads."""
        if id(store) not in self.sources:
            centre = self.centre if store is self.features else None
            self.sources[id(store)] = store.source(self.device, centre, self.reporter)
        return self.sources[id(store)]


def _by_model(tasks: list[Task]) -> list[tuple[ModelSpec, list[int]]]:
    """Numbers of the tasks of each head, heads in the order of their first task."""
    heads: dict[str, tuple[ModelSpec, list[int]]] = {}
    for number, task in enumerate(tasks):
        heads.setdefault(task.candidate.model.to_json(), (task.candidate.model, []))[1].append(number)
    return list(heads.values())


def _key(experiment: ExperimentSpec, endpoint: EndpointSpec, cohort: TrainingCohort, features: FeatureStore) -> str:
    """What a checkpoint is for: settings, patients, sites, folds, targets and features."""
    stated = [experiment.to_json(), endpoint.to_json(), cohort.patients, cohort.site.tolist()]
    stated += [features.sizes.tolist(), dict(features.about), features.digest()]
    hasher = hashlib.sha256(json.dumps(stated, sort_keys=True, default=str).encode())
    for part in (cohort.targets, cohort.covariates, cohort.outer, cohort.inner):
        hasher.update(np.ascontiguousarray(part).tobytes())
    return hasher.hexdigest()
