"""Results folders of several runs -> one page: settings that differ, cohorts in numbers, the primary measure of each arm side by side.

Everything is read from the runs' settings and tables; nothing is computed anew, and no test is made between runs.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from mil.errors import MilError
from mil.figures.layout import with_interval
from mil.files import require_file
from mil.metrics.score import primary
from mil.report.build import SCRIPT, page_environment
from mil.report.cells import Cell, ReportTable
from mil.tables import by_slide, read_table, require_columns

MOST = 6  # runs; more columns do not fit a page
MOST_LETTERS = 160  # of a setting's value
ARM = ["experiment", "trained_on", "split", "site"]  # with the endpoint, since baselines of several have one name
SHOWN = ["metric", "value", "low", "high", "method", "patients", "primary"]


@dataclass(frozen=True)
class ComparedRun:
    """A results folder, its letter on the page, and its settings as they stand in its config.json, of whatever version of mil."""

    letter: str
    folder: Path
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """Letter and cohort."""
        return f"{self.letter}: {self.settings.get('cohort') or self.folder.name}"

    def used(self, kind: str) -> dict[str, Any]:
        """The stanzas of `experiments`, `endpoints` or `encoders` that the run used, by name."""
        stanzas = {name: self.settings["experiments"][name] for name in self.settings["run"]}
        if kind != "experiments":
            wanted = {stanza[kind.removesuffix("s")] for stanza in stanzas.values()}
            stanzas = {name: value for name, value in self.settings[kind].items() if name in wanted}
        return stanzas

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of each endpoint that the run predicts."""
        return {name: stanza["kind"] for name, stanza in self.used("endpoints").items()}

    @cached_property
    def flat(self) -> dict[str, str]:
        """Every setting that the run used, as dotted key and JSON text."""
        kinds = ("experiments", "endpoints", "encoders")
        return dict(_flat({**self.settings, **{kind: self.used(kind) for kind in kinds}}))

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """The primary measure of every arm of the run's experiments and baselines, at every site."""
        used = self.used("experiments")
        paths = {self.folder / "metrics" / f"{name}.csv": stanza["endpoint"] for name, stanza in used.items()}
        paths |= {self.folder / "baselines" / name / "metrics.csv": name for name in self.kinds}
        tables = []
        for path, endpoint in paths.items():
            if path.is_file():
                table = read_table(path)
                require_columns(table, [*ARM, *SHOWN], str(path))
                tables.append(primary(table).assign(endpoint=endpoint))
        filled = [table for table in tables if len(table)]
        if not filled:
            raise MilError(f"{self.folder}: has no metrics of its experiments; finish the run, then compare")
        return pd.concat(filled, ignore_index=True)

    @cached_property
    def bags(self) -> pd.DataFrame:
        """Patients with a label, with their site and slides, of every endpoint."""
        tables = []
        for name in self.kinds:
            path = require_file(self.folder / "bags" / f"{name}.csv", "bag table", "finish the run, then compare")
            tables.append(read_table(path, only_labelled=True).assign(endpoint=name))
        return pd.concat(tables, ignore_index=True)


def compare_runs(folders: Sequence[Path], out: Path) -> str:
    """The page about the runs in `folders`; `out` is where it will stand, since it links to their reports and tables."""
    runs = _opened(folders)
    settings, measures, cohorts = _settings(runs), _measures(runs), _cohorts(runs)
    for number, table in enumerate((measures, cohorts, settings), 1):
        table.number = number
    return (
        page_environment(f"{len(runs)} runs compared")
        .get_template("comparison.html.j2")
        .render(
            runs=[{"run": run, "links": _links(run, out)} for run in runs],
            cautions=_cautions(runs),
            measures=measures,
            cohorts=cohorts,
            settings=settings,
            script=SCRIPT.read_text(encoding="utf-8"),
        )
    )


def _opened(folders: Sequence[Path]) -> list[ComparedRun]:
    """The runs; a `MilError` for fewer than two, a folder twice, one without results, and endpoints of different kinds."""
    if not 2 <= len({folder.resolve() for folder in folders}) == len(folders) <= MOST:
        raise MilError(
            f"--compare needs 2 to {MOST} different results folders, e.g. mil report --compare results/a results/b"
        )
    runs = [ComparedRun(chr(ord("A") + n), folder, _read(folder)) for n, folder in enumerate(folders)]
    first, *others = runs
    for run in others:
        if set(run.kinds.values()) != set(first.kinds.values()):
            said = [", ".join(f"{name} ({kind})" for name, kind in compared.kinds.items()) for compared in (first, run)]
            raise MilError(
                f"{first.folder} predicts {said[0]}, {run.folder} {said[1]}: endpoints of different kinds have different measures; "
                "compare runs of the same kinds"
            )
    return runs


def _read(folder: Path) -> dict[str, Any]:
    path = require_file(folder / "config.json", "", "name a cohort's results folder, e.g. results/demo, after a run")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        ComparedRun("A", folder, settings).flat  # noqa: B018  every part that is read later is there
        if not settings["run"]:
            raise MilError(f"{folder}: no experiment was run (config.json, run), so there is nothing to compare")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MilError(
            f"{path} holds no settings of a run ({type(error).__name__}: {error}); name a results folder"
        ) from error
    return settings


def _flat(value: Any, key: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [pair for name, part in value.items() for pair in _flat(part, f"{key}.{name}" if key else str(name))]
    return [(key, json.dumps(value, ensure_ascii=False))]


def _settings(runs: list[ComparedRun]) -> ReportTable:
    """A row per setting that is not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.flat)
    rows = []
    for key in keys:
        values = [run.flat.get(key, "–") for run in runs]
        if len(set(values)) > 1:
            rows.append(
                [
                    Cell(key),
                    *(Cell(value if len(value) <= MOST_LETTERS else f"{value[:MOST_LETTERS]}…") for value in values),
                ]
            )
    return ReportTable(
        "Settings that differ",
        "Of the experiments, endpoints and encoders that a run used. –: the run has no such setting.",
        ["Setting", *(run.name for run in runs)],
        rows,
    )


def _measures(runs: list[ComparedRun]) -> ReportTable:
    """A row per endpoint, arm and site, a column per run; the endpoint is shown where there are several."""
    by_arm: dict[tuple[str, ...], dict[str, Any]] = {}
    for run in runs:
        for row in run.metrics.itertuples():
            key = (*(str(getattr(row, name)) for name in ("endpoint", *ARM)), str(row.metric))
            by_arm.setdefault(key, {})[run.letter] = row
    rows, several = [], len({endpoint for endpoint, *_ in by_arm}) > 1
    for (endpoint, experiment, trained_on, split, site, metric), by_run in by_arm.items():
        cells = [Cell(endpoint)] * several
        cells += [Cell(experiment), Cell(trained_on), Cell(site), Cell(split.replace("_", "-")), Cell(_measure(metric))]
        for run in runs:
            row = by_run.get(run.letter)
            if row is None:
                cells.append(Cell("–"))
                continue
            text = with_interval(row.value, row.low, row.high)
            cells.append(Cell(f"{text}, n = {int(row.patients):,}", float(row.value), strong=True))
        rows.append(cells)
    return ReportTable(
        "The primary measure of each arm",
        "With its interval and the number of patients, as in each run's metrics. –: the run has no such arm.",
        [
            *["Endpoint"] * several,
            "Experiment",
            "Trained on",
            "Scored on",
            "Split",
            "Measure",
            *(run.name for run in runs),
        ],
        rows,
    )


def _measure(metric: str) -> str:
    return metric.replace("_", " ").replace("auroc", "AUROC")


def _cohorts(runs: list[ComparedRun]) -> ReportTable:
    """A row per endpoint and site: patients, positives and slides of each run."""
    sites = dict.fromkeys(
        (name, str(site)) for run in runs for name, site in zip(run.bags["endpoint"], run.bags["site"], strict=True)
    )
    rows = []
    for endpoint, site in sites:
        cells = [Cell(endpoint), Cell(site)]
        for run in runs:
            bags = run.bags[(run.bags["endpoint"] == endpoint) & (run.bags["site"] == site)]
            slides = len(by_slide(bags))
            binary = run.kinds.get(endpoint) == "binary"
            positives = f", {int((bags['label'] == 1).sum()):,} positive" if binary else ""
            cells.append(
                Cell(f"{len(bags):,} patients{positives}, {slides:,} slides" if len(bags) else "–", float(len(bags)))
            )
        rows.append(cells)
    return ReportTable(
        "Cohorts in numbers",
        "Patients in the analysis, with their slides.",
        ["Endpoint", "Site", *(run.name for run in runs)],
        rows,
    )


def _cautions(runs: list[ComparedRun]) -> list[str]:
    """What a reader must know before comparing numbers of different runs."""
    first, *others = runs
    said = []
    for run in others:
        both = [_patients(first), _patients(run)]
        pair = f"{first.letter} and {run.letter}"
        if both[0] == both[1]:
            said.append(f"{pair} analyse the same {len(both[0]):,} patients, with the same labels and folds.")
        else:
            shared = {key[:3] for key in both[0]} & {key[:3] for key in both[1]}
            equal = {key[:4] for key in both[0]} & {key[:4] for key in both[1]}
            said.append(
                f"{pair} do not analyse the same data: {len(both[0]):,} and {len(both[1]):,} patients, {len(shared):,} of them in both "
                f"(same endpoint, site and id), {len(equal):,} of those with the same label, {len(both[0] & both[1]):,} also in the same folds. "
                "A difference between their numbers may be one between patients or folds."
            )
        changed = [
            key
            for key in first.flat | run.flat
            if key.startswith("metrics.") and first.flat.get(key) != run.flat.get(key)
        ]
        if changed:
            said.append(
                f"{pair} are scored by other settings ({', '.join(changed)}): measures or intervals are not made alike."
            )
    said.append(
        "No test is made between runs, so there is no p value here. mil compare tests experiments of one run on the same patients, "
        "paired and corrected: put both settings as two experiments into one cohort file."
    )
    return said


def _patients(run: ComparedRun) -> set[tuple[str, ...]]:
    """Endpoint, site, patient, label and folds, as text."""
    dealt = [name for name in run.bags.columns if str(name).startswith("repeat")]
    labels = [name for name in ("label", "time", "event") if name in run.bags.columns]
    return {
        (
            str(row["endpoint"]),
            str(row["site"]),
            str(row["patient_id"]),
            str([row[name] for name in labels]),
            str([row[name] for name in dealt]),
        )
        for row in run.bags.to_dict("records")
    }


def _links(run: ComparedRun, out: Path) -> list[tuple[str, str]]:
    """The run's report and tables, as (text, address), those that are there."""
    names = {"Report": "report/index.html", "Comparisons within the run": "metrics/comparisons.csv"}
    names |= {f"Metrics of {name}": f"metrics/{name}.csv" for name in run.settings["run"]}
    start = out.resolve().parent
    return [
        (text, quote(Path(os.path.relpath(run.folder.resolve() / name, start)).as_posix()))
        for text, name in names.items()
        if (run.folder / name).is_file()
    ]
