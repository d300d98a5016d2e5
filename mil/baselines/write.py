"""A results folder -> every table that takes the features of more than one site: baselines, controls, curves, clusters.

Besides training and prediction this is the only step that reads behind several sites' walls, since it trains models, too.
What it writes to `baselines/{endpoint}/` is by patient or coarser; what is by tile goes to the tile's own site.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mil.baselines.curves import patients_curve, permutations, site_value, tiles_curve
from mil.baselines.inputs import bag_means, fused, run_baselines
from mil.baselines.landscape import cluster_tiles, components, enrichment, shares, site_classifier
from mil.endpoints import build_endpoint
from mil.errors import MilError
from mil.features.stain import macenko_of
from mil.metrics.comparison import compare_with
from mil.metrics.score import curves_and_folds, score
from mil.rng import rng
from mil.schemas import METRICS
from mil.tables import by_slide, write_table

if TYPE_CHECKING:
    from mil.results.results import Results

SAMPLED_TILES = 1024  # tiles kept of a bag
CLUSTERED_TILES = 200  # tiles of a patient that are clustered
LEFT_OUT = "leave_one_site_out"
STAIN_SLIDES, STAIN_TILES = 8, 6  # slides a site, tiles a slide


def write_baselines(results: "Results", endpoint: str, folder: str | Path) -> pd.DataFrame:
    """Write everything into `folder` (and `sites/{site}/clusters/{endpoint}.csv`); returns the baselines' metrics."""
    folder, config = Path(folder), results.config
    if not build_endpoint(results.endpoints[endpoint]).two_classes:
        return _write_features_alone(results, endpoint, folder)
    folded = run_baselines(results, endpoint)
    metrics = score(folded.predictions, config.metrics, None, folded.inner)
    encoder = next(experiment.encoder for experiment in results.experiments.values() if experiment.endpoint == endpoint)
    encoder = results.experiments[results.main].encoder if endpoint == results.endpoint else encoder
    bags, means = results.bags(endpoint), bag_means(results, endpoint, encoder)
    tables = {
        "permutations": permutations(means, bags, config.metrics.permutations, config.metrics.seed),
        "patients_curve": patients_curve(means, bags, config.figures.resamplings),
        "site_value": site_value(means, bags, config.metrics.confidence),
        "components": components(means, bags),
        "site_classifier": site_classifier(means, bags, config.metrics.confidence),
        "stain": stain_table(results, bags, encoder),
        **_tile_tables(results, endpoint, encoder, bags),
    }
    if endpoint == results.endpoint:
        tables["comparisons"] = rivals(results, results.federated, folded.predictions)
    left_out = [
        rivals(results, name, folded.predictions)
        for name, experiment in results.experiments.items()
        if experiment.protocol == LEFT_OUT and experiment.endpoint == endpoint
    ]
    if left_out:
        tables["left_out"] = pd.concat(left_out, ignore_index=True)
    tables |= curves_and_folds(folded.predictions, config.metrics)
    tables |= {"predictions": folded.predictions, "inner": folded.inner, "metrics": metrics}
    _save(tables, folder)
    return metrics


def _save(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Write the tables, the last of which completes the folder; those of another kind of endpoint, or of other experiments, are removed."""
    for path in folder.glob("*.csv"):
        if path.stem not in tables:
            path.unlink()
    for name, table in tables.items():
        write_table(table, folder / f"{name}.csv")


def _write_features_alone(results: "Results", endpoint: str, folder: Path) -> pd.DataFrame:
    """What needs no two classes: components, site classifier and stains; there are no baselines, and `metrics` has no row."""
    encoder = next(experiment.encoder for experiment in results.experiments.values() if experiment.endpoint == endpoint)
    encoder = results.experiments[results.main].encoder if endpoint == results.endpoint else encoder
    bags, means = results.bags(endpoint), bag_means(results, endpoint, encoder)
    metrics = pd.DataFrame(columns=["experiment", *METRICS])
    tables = {
        "components": components(means, bags),
        "site_classifier": site_classifier(means, bags, results.config.metrics.confidence),
        "stain": stain_table(results, bags, encoder),
        "metrics": metrics,
    }
    _save(tables, folder)
    return metrics


def rivals(results: "Results", name: str, baselines: pd.DataFrame) -> pd.DataFrame:
    """An experiment less every baseline that stands on its folds, and less its late fusion; paired on true labels.

    One that leaves each site out is held against baselines that do. Permuted labels taught the baseline only: it is judged by
    the true ones.
    """
    experiment = results.experiments[name]
    left_out = experiment.protocol == LEFT_OUT
    fusion = f"fusion_{experiment.strategy.name}" if name in fused(results) else ""
    truth = results.bags(experiment.endpoint).set_index("patient_id")["label"]
    others = {}
    for other, part in baselines.groupby("experiment"):
        kind, strategy = str(other).rsplit("_", 1)
        if str(other) == fusion or (kind != "fusion" and strategy == ("loso" if left_out else "pooled")):
            others[str(other)] = part.assign(label=part["patient_id"].map(truth))
    return compare_with(name, results.predictions(name), others, results.config.metrics, experiment.endpoint)


def _tile_tables(results: "Results", endpoint: str, encoder: str, bags: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Curves over tiles and clusters of tiles, from a sample of every bag; each site's clusters go to the site."""
    tiles, features = sample_tiles(results, bags, encoder)
    starts = np.flatnonzero(np.r_[True, tiles["patient_id"].to_numpy()[1:] != tiles["patient_id"].to_numpy()[:-1]])
    by_patient = dict(zip(tiles["patient_id"].iloc[starts], np.split(features, starts[1:]), strict=True))
    few = tiles.groupby("patient_id").cumcount().to_numpy() < CLUSTERED_TILES  # the sample is in random order
    number = min(results.config.figures.clusters, max(int(few.sum()) // 4, 2))
    clustered = cluster_tiles(tiles[few], features[few].astype(np.float32), number)
    for site in results.sites:
        mine = clustered[clustered["site"] == site]
        write_table(mine, results.folder / "sites" / site / "clusters" / f"{endpoint}.csv")
    table = shares(clustered)
    named = table.rename(columns={cluster: f"cluster{cluster}" for cluster in range(number)})
    return {
        "tiles_curve": tiles_curve(by_patient, bags, max(results.config.figures.resamplings // 2, 2)),
        "clusters": enrichment(table, [cluster for cluster in table.columns if cluster != "label"]),
        "cluster_shares": named.reset_index(),
    }


def sample_tiles(results: "Results", bags: pd.DataFrame, encoder: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Up to `SAMPLED_TILES` tiles a patient in random order: slide_id, patient_id, site, label, x, y; and features (tiles, width)."""
    parts, features = [], []
    for bag in bags.itertuples():
        read = results.files.bag_features(str(bag.site), encoder, bag.slides)
        order = rng(0, "sample", bag.patient_id).permutation(sum(len(coords) for _, coords, _ in read))[:SAMPLED_TILES]
        slides = np.repeat([slide for slide, _, _ in read], [len(coords) for _, coords, _ in read])
        coords, values = (np.concatenate([part[field] for part in read]) for field in (1, 2))
        table = pd.DataFrame({"slide_id": slides[order], "x": coords[order, 0], "y": coords[order, 1]})
        parts.append(table.assign(patient_id=bag.patient_id, site=bag.site, label=bag.label))
        features.append(values[order])
    return pd.concat(parts, ignore_index=True), np.concatenate(features)


def stain_table(results: "Results", bags: pd.DataFrame, encoder: str) -> pd.DataFrame:
    """site, slide_id, stain, red, green, blue: optical densities of haematoxylin and eosin in some tiles of some slides."""
    rows = []
    for site in results.sites:
        slides = sorted(by_slide(bags[bags["site"] == site])["slide_id"])
        order = rng(0, "stain", site).permutation(len(slides))[:STAIN_SLIDES]
        for slide_id in [slides[number] for number in order]:
            try:
                coords, _ = results.files.features(site, encoder, slide_id)
                chosen = coords[rng(0, "stain", slide_id).permutation(len(coords))[:STAIN_TILES]]
                tiles = results.files.tile_pixels(site, [(slide_id, int(x), int(y)) for x, y in chosen], size_px=64)
                directions = (
                    macenko_of(np.concatenate([tile.reshape(-1, 3) for tile in tiles.values()]))[:6].reshape(3, 2).T
                )
            except MilError:  # the slide is not on this machine any more, or has too little stain
                continue
            pairs = zip(("haematoxylin", "eosin"), directions, strict=True)
            rows += [(site, slide_id, name, *(float(value) for value in vector)) for name, vector in pairs]
    return pd.DataFrame(rows, columns=["site", "slide_id", "stain", "red", "green", "blue"])
