"""Three hospitals with features and no slides, whose patients have a class, a time to an event and a number to predict."""

from pathlib import Path

import numpy as np
from features_alone import MPP, TILES, write_stamp
from typer.testing import CliRunner

from mil.cli import app
from mil.config import Config

WIDTH = 6
ROLES = {"north": "train", "south": "train", "east": "external"}
CLASSES = ("low", "middle", "high")
FOLDS = {"repeats": 1, "folds": 3, "inner_folds": 2}
ENDPOINTS = {
    "grade": {"kind": "multiclass", "column": "grade", "classes": list(CLASSES), **FOLDS},
    "relapse": {"kind": "survival", "column": "months", "event": "relapsed", **FOLDS},
    "marker": {"kind": "regression", "column": "marker", **FOLDS},
    "response": {"kind": "binary", "column": "response", **FOLDS},
}
STRATEGIES = ("fedavg", "pooled", "local")  # the first is the main experiment


def make_features(folder: Path, patients_a_site: int = 24, seed: int = 0) -> None:
    """Features of every hospital, sheet and patient table below `folder`.

    Every patient has a severity, by which half of their tiles is moved along one direction; class, hazard, number and
    response follow it with some noise. Times are whole months, so that there are ties, and some are censored.
    """
    random = np.random.default_rng(seed)
    slides, patients = ["slide_id,patient_id,site,path"], ["patient_id,grade,months,relapsed,marker,response,age"]
    for site in ROLES:
        for number in range(patients_a_site):
            patient, severity = f"{site}-p{number:02d}", random.normal()
            tiles = random.normal(size=(TILES, WIDTH))
            tiles[: TILES // 2, 0] += 2 * severity
            write_stamp(folder / site, f"{patient}-s1", tiles.astype(np.float16))
            slides.append(f"{patient}-s1,{patient},{site},")
            seen = severity + random.normal(0, 0.4)
            grade = CLASSES[int(np.digitize(seen, [-0.45, 0.45]))]
            event, censored = random.exponential(24 * np.exp(-1.2 * severity)), random.uniform(12, 60)
            months = int(np.ceil(min(event, censored)))
            marker, response = 50 + 10 * seen, int(seen + random.normal(0, 0.4) > 0)
            patients.append(
                f"{patient},{grade},{months},{int(event <= censored)},{marker:.1f},{response},{random.integers(35, 80)}"
            )
    (folder / "slides.csv").write_text("\n".join(slides) + "\n")
    (folder / "patients.csv").write_text("\n".join(patients) + "\n")


def config_of(folder: Path, endpoints: tuple[str, ...], **figures: object) -> dict:
    """The cohort's config: local, pooled and FedAvg for each of `endpoints`."""
    source = {"layout": "stamp", "encoder": "uni", "weights_sha256": "ab" * 32, "mpp": MPP, "tile_mpp": 0.5}
    names = {f"{endpoint}_{strategy}": (endpoint, strategy) for endpoint in endpoints for strategy in STRATEGIES}
    training = {"rounds": 10, "local_epochs": 2, "batch_size": 16, "lr": 0.02, "scaling": "site"}
    model = {"name": "gated_attention", "hidden": 8, "attention": 4}
    return {
        "cohort": "kinds",
        "slides": {
            "sheet": str(folder / "slides.csv"),
            "patients": str(folder / "patients.csv"),
            "roles": ROLES,
            "features": {site: source | {"folder": str(folder / site)} for site in ROLES},
        },
        "encoders": {"uni": {"name": "uni"}},
        "endpoints": {name: ENDPOINTS[name] for name in endpoints},
        "experiments": {
            name: {"encoder": "uni", "model": model, "strategy": strategy, "endpoint": endpoint, "training": training}
            for name, (endpoint, strategy) in names.items()
        },
        "run": list(names),
        "metrics": {"bootstrap": 200, "clinical": ["age"], "subgroups": ["age", "site"], "permutations": 10},
        "figures": {"formats": ["png"], "dpi": 110, "resamplings": 4, **figures},
    }


def run_steps(folder: Path, endpoint: str, patients_a_site: int = 30) -> Path:
    """Every command of the workflow, in its order, on a small cohort with one endpoint; the results folder."""
    (folder / "data").mkdir()
    make_features(folder / "data", patients_a_site)
    stanza = config_of(folder / "data", (endpoint,))
    config = Config.model_validate(stanza)
    results, sites = folder / "results", folder / "results/sites"
    for site in ROLES:
        slides = sites / site / "slides.csv"
        column = config.endpoints[endpoint].column
        mil("check", "--site", site, "--spec", config.slides.to_json(), "--labels", column, "--out", slides)
        source = config.slides.features[site]
        told = ["--encoder", "uni", "--mpp", source.mpp, "--tile-mpp", source.tile_mpp]
        told += ["--weights-sha256", source.weights_sha256]
        features = sites / site / "features/uni"
        mil("convert", source.layout, source.folder, *told, features, "--slides", slides)
        mil("census", slides, features / "shard0.csv", "--out", results / "census" / f"{site}.csv")
    bags = results / "bags" / f"{endpoint}.csv"
    spec, slides = config.endpoints[endpoint].to_json(), config.slides.to_json()
    census = [results / "census" / f"{site}.csv" for site in sorted(ROLES)]
    mil("bag", *census, "--slides", slides, "--spec", spec, "--out", bags, "--flow", bags.with_suffix(".flow.csv"))
    (results / "config.json").write_text(config.to_json())
    measured = config.metrics.to_json()
    checked = results / "checks/inputs.csv"
    mil("check", "--inputs", results, "--out", checked)
    for name, experiment in config.experiments.items():
        run, predictions = results / "runs" / name, results / "predictions" / f"{name}.csv"
        stated = experiment.to_json()
        mil("train", bags, "--sites", sites, "--spec", stated, "--endpoint", spec, "--folder", run)
        mil("predict", run, "--bags", bags, "--sites", sites, "--out", predictions)
        asked = ["--inner", run / "inner.csv", "--spec", measured, "--experiment", stated, "--endpoint", spec]
        mil("score", predictions, *asked, "--out", results / "metrics" / f"{name}.csv")
    mil("compare", results, "--spec", measured, "--out", results / "metrics/comparisons.csv")
    mil("baseline", results, "--endpoint", endpoint, "--folder", results / "baselines" / endpoint)
    mil("check", "--deep", results, "--known", checked, "--out", results / "checks/deep.csv")
    for where in ([], *(["--site", site] for site in ROLES)):
        mil("plot", "all", "--results", results, *where, "--spec", config.figures.to_json())
    mil("report", results, "--out", results / "report/index.html")
    return results


def mil(*arguments: object) -> str:
    """One command as a user gives it; what it printed."""
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, f"mil {' '.join(map(str, arguments))}\n{done.output}\n{done.exception!r}"
    return done.output
