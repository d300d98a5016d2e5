"""A small results folder in the formats of every stage, computed from a seeded generator: ground for figure tests.

Four hospitals. Every patient has a lymphocyte density; it raises the chance of response, is painted into the slide as dark
patches (whose outline is the truth), and is what the scores of better strategies see with less noise.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import tifffile
from cohort_drawing import HEIGHT, MPP, SITES, THUMB_MPP, TILE_MPP, TILE_PX, WIDTH, Slide, draw_patients, draw_slides
from filelock import FileLock

from mil import hdf5
from mil.bags.census import flow
from mil.bags.table import deal_folds
from mil.baselines.write import write_baselines
from mil.config import Config
from mil.files import write_text
from mil.metrics.agreement import reviewed
from mil.metrics.clinical import clinical_tables
from mil.metrics.cohort import characteristics
from mil.metrics.comparison import compare
from mil.metrics.localisation import by_slide, localise, slides_with_truth
from mil.metrics.score import curves_and_folds, score
from mil.metrics.strategies import strategies_of
from mil.results.results import Results
from mil.rng import rng
from mil.slides.fingerprint import fingerprint
from mil.tables import write_table
from mil.training.ledger import Ledger

# noise of the scores that each strategy gives, and how far they shift between sites
NOISE = {"local": 1.25, "pooled": 0.75, "fedavg": 0.8}


def _main(experiments: tuple[str, ...]) -> str:
    """The last experiment with attention that is not local."""
    attending = [name for name in experiments if name.startswith("attention")] or list(experiments)
    return ([name for name in attending if not name.endswith("local")] or attending)[-1]


def config_of(folder: Path, experiments: tuple[str, ...], sites: dict[str, str], folds: int, repeats: int) -> Config:
    stanzas = {
        name: {
            "encoder": "effnet",
            "model": "gated_attention" if name.startswith("attention") else "mean",
            "strategy": name.split("_")[1],
            "endpoint": "response",
        }
        for name in experiments
    }
    return Config.model_validate(
        {
            "cohort": "small",
            "slides": {"sheet": str(folder / "slides.csv"), "patients": str(folder / "patients.csv"), "roles": sites},
            "truth": {"masks": str(folder / "truth/{slide_id}.png"), "mask_mpp": 4.0, "positive_share": 0.3},
            "tiles": {"size_px": TILE_PX, "mpp": TILE_MPP},
            "endpoints": {"response": {"folds": folds, "inner_folds": 2, "repeats": repeats}},
            "experiments": stanzas,
            "run": list(experiments),
            "metrics": {
                "bootstrap": 200,
                "permutations": 20,
                "clinical": ["age", "grade", "ki67", "t_stage", "n_stage"],
                "annotation": "til_percent",
                "subgroups": ["age", "t_stage", "n_stage", "ki67", "site"],
                "time": "time_months",
                "event": "event",
            },
            "figures": {
                "dpi": 110,
                "slides_a_site": 2,
                "tiles_a_site": 5,
                "resamplings": 4,
                "main": _main(experiments),
            },
            "report": {"title": "Response to chemotherapy, four drawn hospitals", "remarks": "Made by a program."},
        }
    )


def build_results(
    folder: Path,
    patients_a_site: int = 14,
    experiments: tuple[str, ...] = ("attention_local", "attention_pooled", "attention_fedavg", "mean_fedavg"),
    sites: dict[str, str] = SITES,
    edit: Callable[[pd.DataFrame], pd.DataFrame] = lambda patients: patients,
    folds: int = 3,
    repeats: int = 2,
) -> Config:
    """Write the whole folder `folder/results` and the sheets beside it; returns the config that would have made it.

    `sites` are their roles by name; `edit` may change the patients (drop some, blank some cells) before slides are drawn.
    """
    config = config_of(folder, experiments, sites, folds, repeats)
    results = folder / "results"
    patients = edit(draw_patients(patients_a_site, list(sites)))
    slides = [slide for row in patients.itertuples() for slide in draw_slides(row)]
    write_sheets(folder, patients, slides)
    census = write_census(results, folder, slides, patients)
    usable = patients[patients["response"] != ""]
    ok = census[(census["state"] == "ok") & census["patient_id"].isin(usable["patient_id"])]
    bags = pd.DataFrame(
        {
            "patient_id": sorted(ok["patient_id"].unique()),
        }
    )
    by_patient = ok.groupby("patient_id")
    bags["slides"] = bags["patient_id"].map(by_patient["slide_id"].agg(lambda ids: ";".join(sorted(ids))))
    bags["site"] = bags["patient_id"].map(by_patient["site"].first())
    bags["role"] = bags["site"].map(sites)
    bags["label"] = bags["patient_id"].map(usable.set_index("patient_id")["response"].astype(int))
    bags = deal_folds(bags.sort_values(["site", "patient_id"], ignore_index=True), config.endpoints["response"])
    write_table(bags, results / "bags/response.csv")
    lost = dict.fromkeys(patients.loc[patients["response"] == "", "patient_id"], "no_label")
    write_table(flow(census, sites, bags["patient_id"], lost), results / "bags/response.flow.csv")
    write_tiles(results, [slide for slide in slides if slide.slide_id in set(ok["slide_id"])])
    for name in experiments:
        write_run(results, name, bags, patients, config)
        if name.endswith("fedavg"):
            write_attention(results, name, bags, slides, informed=name.startswith("attention"))
    write_text(results / "config.json", config.to_json())
    return config


def write_sheets(folder: Path, patients: pd.DataFrame, slides: list[Slide]) -> None:
    for slide in slides:
        path = folder / slide.site / f"{slide.slide_id}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        per_cm = 1e4 / MPP
        tifffile.imwrite(
            path, slide.pixels, tile=(256, 256), compression="jpeg", compressionargs={"level": 88}, photometric="rgb",
            resolution=(per_cm, per_cm), resolutionunit="CENTIMETER",
        )  # fmt: skip
        mask = folder / "truth" / f"{slide.slide_id}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(mask), slide.truth)
    rows = [(s.slide_id, s.patient_id, s.site, f"{s.site}/{s.slide_id}.tif") for s in slides]
    write_table(pd.DataFrame(rows, columns=["slide_id", "patient_id", "site", "path"]), folder / "slides.csv")
    write_table(patients.drop(columns=["site", "density"]), folder / "patients.csv")


def write_census(results: Path, folder: Path, slides: list[Slide], patients: pd.DataFrame) -> pd.DataFrame:
    """Slide tables and census; one slide without mpp, one truncated, one blank, as in a hospital's week."""
    flaws = {
        slides[2].slide_id: (
            "no_mpp",
            "the file does not say its microns a pixel; fill the sheet's mpp column",
            "check",
        ),
        slides[-1].slide_id: ("unreadable", "TIFF directory is truncated", "check"),
        slides[len(slides) // 2].slide_id: ("no_tissue", "no tile holds 50 % tissue", "tile"),
    }
    unlabelled = set(patients.loc[patients["response"] == "", "patient_id"])
    rows = []
    for slide in slides:
        state, reason, stage = flaws.get(slide.slide_id, ("ok", "", "extract"))
        if slide.patient_id in unlabelled:
            state, reason, stage = "no_label", "the patient has no label", "check"
        rows.append(
            {
                "slide_id": slide.slide_id,
                "patient_id": slide.patient_id,
                "site": slide.site,
                "path": str(folder / slide.site / f"{slide.slide_id}.tif"),
                "state": state,
                "reason": reason,
                "stage": stage,
                "num_tiles": len(tile_coords(slide)) if state == "ok" else 0,
                "format": "generic-tiff",
                "width": WIDTH,
                "height": HEIGHT,
                "levels": 1,
                "mpp": np.nan if state == "no_mpp" else MPP,
                "mpp_source": "tiff.XResolution",
                "objective_power": np.nan,
                "fingerprint": hashlib.sha256(slide.slide_id.encode()).hexdigest(),
                "bytes": 100_000,
            }
        )
    table = pd.DataFrame(rows)
    leaves = ["slide_id", "patient_id", "site", "state", "reason", "stage", "num_tiles", "mpp", "mpp_source", "format"]
    for site, part in table.groupby("site"):
        checked = part.assign(state=part["state"].where(part["stage"] == "check", "ok"))
        write_table(checked.drop(columns=["stage", "num_tiles"]), results / f"sites/{site}/slides.csv")
        write_table(part[leaves], results / f"census/{site}.csv")
    return table


def tile_coords(slide: Slide) -> np.ndarray:
    """Level-0 corners of the tiles that are at least half tissue, row by row."""
    rows, columns = HEIGHT // TILE_PX, WIDTH // TILE_PX
    tissue = slide.pixels[: rows * TILE_PX, : columns * TILE_PX].mean(axis=2) < 235
    share = tissue.reshape(rows, TILE_PX, columns, TILE_PX).mean(axis=(1, 3))
    y, x = np.nonzero(share >= 0.5)
    return np.stack([x, y], axis=1).astype(np.int64) * TILE_PX


def lymphocyte_share(slide: Slide, coords: np.ndarray) -> np.ndarray:
    """Share of truth in each tile; the truth has half the slide's pixels a side."""
    side = TILE_PX // 2
    rows, columns = HEIGHT // TILE_PX, WIDTH // TILE_PX
    share = (slide.truth[: rows * side, : columns * side] > 127).reshape(rows, side, columns, side).mean(axis=(1, 3))
    return share[coords[:, 1] // TILE_PX, coords[:, 0] // TILE_PX]


def write_tiles(results: Path, slides: list[Slide]) -> None:
    for slide in slides:
        coords = tile_coords(slide)
        size = (int(WIDTH * MPP / THUMB_MPP), int(HEIGHT * MPP / THUMB_MPP))
        thumbnail = results / f"sites/{slide.site}/thumbnails/{slide.slide_id}.jpg"
        thumbnail.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(thumbnail), cv2.resize(slide.pixels, size, interpolation=cv2.INTER_AREA)[..., ::-1])
        share = lymphocyte_share(slide, coords)
        stream = rng(0, "features", slide.slide_id)
        shift = rng(0, "shift", slide.site).normal(0, 0.7, 12)
        features = stream.normal(size=(len(coords), 12)) + shift
        features[:, 0] += 4 * share
        path = results.parent / slide.site / f"{slide.slide_id}.tif"
        root = {"slide_id": slide.slide_id, "mpp": MPP, "width": WIDTH, "height": HEIGHT, "mil_version": "0"}
        root |= {"fingerprint": fingerprint(path)}
        with hdf5.writing(results / f"sites/{slide.site}/tiles/{slide.slide_id}.h5") as file:
            file.append("coords", coords)
            file.append("tissue", np.ones(len(coords), np.float32))
            file.annotate({**root, "stage": "tiles"})
        with hdf5.writing(results / f"sites/{slide.site}/features/effnet/{slide.slide_id}.h5") as file:
            file.append("features", features.astype(np.float16))
            file.append("coords", coords)
            file.annotate({**root, "stage": "features", "encoder": "effnet"})


def write_run(results: Path, name: str, bags: pd.DataFrame, patients: pd.DataFrame, config: Config) -> None:
    strategy, spec = name.split("_")[1], config.endpoints["response"]
    density = patients.set_index("patient_id")["density"]
    training = sorted(site for site, role in config.slides.roles.items() if role == "train")
    folds = [(repeat, fold) for repeat in range(spec.repeats) for fold in range(spec.folds)]
    trained_on = training if strategy == "local" else ["+".join(training)]
    rows = []
    for on in trained_on:
        noise = NOISE[strategy] * (1 if name.startswith("attention") else 1.7)
        for repeat, fold in folds:
            model = rng(0, name, on, repeat, fold)
            bias = model.normal(0, 0.2)
            for row in bags.itertuples():
                in_fold = row.role == "train" and getattr(row, f"repeat{repeat}") == fold
                if row.role == "train" and not in_fold:
                    continue
                own = rng(0, name, on, row.patient_id).normal(0, noise)
                seen = 8 * (density[row.patient_id] - 0.4) + own + model.normal(0, 0.3) + bias
                inside = "held_out" if row.site in on.split("+") else "transfer"
                split = "external" if row.role == "external" else inside
                chance = float(1 / (1 + np.exp(-seen)))
                rows.append((name, on, repeat, fold, row.patient_id, row.site, row.role, split, row.label, chance))
    columns = ["experiment", "trained_on", "repeat", "fold", "patient_id", "site", "role", "split", "label", "score"]
    write_table(pd.DataFrame(rows, columns=columns), results / f"predictions/{name}.csv")
    write_rounds(results, name, trained_on, strategy, folds)


def write_rounds(results: Path, name: str, trained_on: list[str], strategy: str, folds: list[tuple[int, int]]) -> None:
    rows, models = [], []
    for on in trained_on:
        for repeat, fold in folds:
            models.append((f"{on}/repeat{repeat}/fold{fold}", on, repeat, fold, 9 + fold, 20))
            for inner in range(2):
                model = f"{on}/repeat{repeat}/fold{fold}/inner{inner}"
                for site in dict.fromkeys([*on.split("+"), on]):
                    stream = rng(0, "rounds", name, on, repeat, fold, inner, site)
                    for number in range(1, 21):
                        train = 0.2 + 0.5 * np.exp(-number / 6) + stream.normal(0, 0.01)
                        rise = 0.008 * max(0, number - 11) + stream.normal(0, 0.015)
                        loss = 0.48 + 0.22 * np.exp(-number / 4) + rise
                        auroc = 0.8 - 0.28 * np.exp(-number / 4) + stream.normal(0, 0.03)
                        rows.append((model, "inner", number, repeat, fold, site, train, loss, loss / 2.5, auroc))
    columns = ["model", "phase", "round", "repeat", "fold", "site", "train_loss", "val_loss", "val_error", "val_auroc"]
    write_table(pd.DataFrame(rows, columns=columns), results / f"runs/{name}/rounds.csv")
    columns = ["model", "trained_on", "repeat", "fold", "rounds", "patients"]
    write_table(pd.DataFrame(models, columns=columns), results / f"runs/{name}/models.csv")
    ledger = Ledger()
    for model, on, *_ in models:
        for number in range(1, 9):
            digest = hashlib.sha256(f"{model} {number}".encode()).hexdigest()
            for site in on.split("+"):
                update = hashlib.sha256(f"{model} {number} {site}".encode()).hexdigest()
                crossed = {"bytes_received": 232_000, "bytes_sent": 232_000} if "fed" in strategy else {}
                ledger.add(
                    {"model": model, "phase": "refit", "round": number, "site": site, "patients": 9,
                     "update_sha256": update, "global_sha256": digest, **crossed}
                )  # fmt: skip
    ledger.save(results / f"runs/{name}/ledger.jsonl")


def write_attention(results: Path, name: str, bags: pd.DataFrame, slides: list[Slide], informed: bool) -> None:
    by_id = {slide.slide_id: slide for slide in slides}
    for row in bags.itertuples():
        parts = {}
        for slide_id in str(row.slides).split(";"):
            slide = by_id[slide_id]
            coords = tile_coords(slide)
            noise = rng(0, "attention", name, slide_id).normal(0, 0.45, len(coords))
            parts[slide_id] = (coords, np.exp(3 * lymphocyte_share(slide, coords) * informed + noise * informed))
        total = sum(values.sum() for _, values in parts.values())
        for slide_id, (coords, values) in parts.items():
            with hdf5.writing(results / f"sites/{row.site}/attention/{name}/{slide_id}.h5") as file:
                file.append("coords", coords)
                file.append("attention", (values / total).astype(np.float32))
                file.annotate({"stage": "attention", "experiment": name, "slide_id": slide_id})


def score_all(results: Results) -> None:
    """What `mil score`, `mil compare`, `mil localise` and `mil baseline` write."""
    score_models(results)
    write_baselines(results, "response", results.folder / "baselines/response")


def score_models(results: Results) -> None:
    """The same without baselines."""
    spec, folder = results.config.metrics, results.folder / "metrics"
    predictions = {name: results.predictions(name) for name in results.experiments}
    for name, experiment in results.experiments.items():
        write_table(score(predictions[name], spec, experiment), folder / f"{name}.csv")
        for table, values in curves_and_folds(predictions[name], spec).items():
            write_table(values, folder / f"{name}.{table}.csv")
        slides = slides_with_truth(results, name)
        write_table(by_slide(slides), folder / f"{name}.slides.csv")
        write_table(localise(slides, spec, name, experiment), folder / f"{name}.localisation.csv")
    write_table(strategies_of(results, spec), folder / "strategies.csv")
    write_table(characteristics(results, spec.confidence), folder / "cohort.csv")
    write_table(reviewed(results), folder / "reviews.csv")
    for name, table in clinical_tables(results, spec).items():
        write_table(table, folder / f"clinical/{name}.csv")
    write_table(compare(predictions, spec, results.experiments), folder / "comparisons.csv")


def shared_results(folder: Path) -> Results:
    """The results folder that several test files read, built and scored once a session; `folder` is pytest's of this process."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all processes
    with FileLock(folder / "cohort.lock"):
        if not (folder / "cohort/results/metrics/comparisons.csv").is_file():
            build_results(folder / "cohort", patients_a_site=8)
            score_all(Results.open(folder / "cohort/results"))
    return Results.open(folder / "cohort/results")
