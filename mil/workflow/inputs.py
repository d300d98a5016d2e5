"""Settings, sheet and labels -> small files that the rules depend on, rewritten only when their content changes.

Snakemake's record of earlier runs (`.snakemake/metadata`) is not in a fresh checkout, and has no entry for a job that ended after
Snakemake was killed. A file of `inputs/` that is newer than a result says on its own that the result is out of date.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import mil
from mil.config import Config, ReportSpec
from mil.files import write_text
from mil.slides.sheet import Cohort
from mil.tables import csv_text
from mil.workflow.specs import encoder_json, slides_of

BEFORE = ".before"  # end of the name of a file's last content that a run has used


def put(path: Path, text: str) -> None:
    """Make `text` the content of `path`; a file that has it keeps its time.

    What a dry run replaced is kept beside it until a run starts, so that taking a setting back takes the time back, too.
    """
    kept = path.with_name(f".{path.name}{BEFORE}")
    content = path.read_text(encoding="utf-8") if path.is_file() else None
    if content == text:
        return
    if kept.is_file() and kept.read_text(encoding="utf-8") == text:
        kept.replace(path)
        return
    if content is not None and not kept.is_file():
        path.replace(kept)
    write_text(path, text)


def settle(results: Path) -> None:
    """Forget what dry runs replaced: a run starts with the files as they are now."""
    for folder in (results, *(results / "sites").glob("*/shards")):
        patterns = [f".*{BEFORE}", f"inputs/**/.*{BEFORE}"] if folder == results else [f".*{BEFORE}"]
        for path in (path for pattern in patterns for path in folder.glob(pattern)):
            path.unlink(missing_ok=True)


def write_inputs(config: Config, cohort: Cohort, results: Path) -> None:
    """Write `config.json` and the files below `inputs/`."""
    inputs = results / "inputs"
    put(results / "config.json", _of_sites(config, cohort.sites).to_json())
    put(inputs / "slides.json", slides_of(config.slides).to_json())
    put(inputs / "tiles.json", config.tiles.to_json())
    put(inputs / "metrics.json", config.metrics.to_json())
    put(inputs / "figures.json", _json({"spec": config.figures.to_json(), "reviews": states(config.figures.reviews)}))
    put(inputs / "report.json", _json({"spec": config.report.to_json(), "version": mil.__version__}))
    put(inputs / "study.json", _study(config))
    put(inputs / "truth.json", _json(_truth(config, cohort)))
    put(inputs / "patients.json", _json({"sha256": hashlib.sha256(cohort.patients.to_csv().encode()).hexdigest()}))
    for name in config.used_encoders:
        spec = config.encoders[name]
        weights = [Path(file) for file in (spec.weights, spec.code) if file is not None]
        put(inputs / f"encoders/{name}.json", _json({"spec": encoder_json(config, name), "weights": states(weights)}))
    for name in config.used_endpoints:
        put(inputs / f"endpoints/{name}.json", config.endpoints[name].to_json())
        put(inputs / f"labels/{name}.csv", _labels(config, cohort, name))
    for name, experiment in config.selected().items():
        put(inputs / f"experiments/{name}.json", experiment.to_json())


def _of_sites(config: Config, sites: Iterable[str]) -> Config:
    """The settings without sites that have no slide in the sheet, whose earlier results may lie there still."""
    parts = {"roles": config.slides.roles, "features": config.slides.features}
    kept = {key: {site: part[site] for site in part if site in sites} for key, part in parts.items()}
    return config.model_copy(update={"slides": config.slides.model_copy(update=kept)})


def states(paths: Iterable[str | Path]) -> dict[str, str]:
    """Size and time of files, and of all files below folders, by path."""
    stamps = {}
    for path in map(Path, paths):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                status = file.stat()
                stamps[str(file)] = f"{status.st_size}:{status.st_mtime_ns}"
    return stamps


def _study(config: Config) -> str:
    """What several experiments' results are put together by: all but how the report looks, and how work is cut up."""
    drawn = {name: getattr(config.figures, name) for name in ("main", "clusters", "resamplings")}
    plain = config.model_copy(
        update={
            "report": ReportSpec(),
            "figures": config.figures.__class__(**drawn),
            "results": "",
            "shard_size": None,
            "encoders": {name: json.loads(encoder_json(config, name)) for name in config.encoders},
            "metrics": config.metrics.__class__(),
            "experiments": config.selected(),
        }
    )
    return json.dumps(plain.model_dump(mode="json", warnings=False), sort_keys=True)


def _truth(config: Config, cohort: Cohort) -> Mapping[str, object]:
    if config.truth is None:
        return {}
    folder = Path(config.slides.sheet).parent
    if config.truth.table is not None:
        files = [Path(config.truth.table), folder / config.truth.table]
    else:
        pattern = str(config.truth.masks)
        names = [pattern.replace("{slide_id}", slide) for slide in cohort.slides["slide_id"]]
        files = [path for name in names for path in (Path(name), folder / name)]
    return {"spec": config.truth.to_json(), "files": states(files)}


def _labels(config: Config, cohort: Cohort, name: str) -> str:
    """The columns of the patient table that an endpoint and its experiments read, with each patient's site and role."""
    endpoint = config.endpoints[name]
    columns = [endpoint.column, *([endpoint.event] if endpoint.event else [])]
    columns += [
        covariate
        for experiment in config.selected().values()
        if experiment.endpoint == name
        for covariate in experiment.covariates
    ]
    sites = cohort.slides.drop_duplicates("patient_id").set_index("patient_id")["site"]
    table = cohort.patients[["patient_id", *dict.fromkeys(columns)]].sort_values("patient_id")
    table = table.assign(site=table["patient_id"].map(sites)).dropna(subset=["site"])
    return csv_text(table.assign(role=table["site"].map(dict(config.slides.roles))))


def _json(content: object) -> str:
    return json.dumps(content, sort_keys=True, indent=1) + "\n"
