"""How the hospitals differ before any model: features, how well they tell the site, stain, pixel size, bag size, labels."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mil.config import FiguresSpec
from mil.figures.registry import Drawn, figure
from mil.figures.results import Absent, Results
from mil.figures.stain import stain_vectors
from mil.figures.style import DOUBLE_MM, SOFT, chance_line, letters, light_grid, new_figure, site_colour, site_marker
from mil.figures.top_bottom_tiles import read_tiles
from mil.metrics import delong
from mil.metrics.baselines.inputs import bag_means
from mil.metrics.score import wilson_interval
from mil.rng import rng

FOLDS = 5
STAIN_SLIDES, STAIN_TILES = 8, 6  # slides a site, tiles a slide


@figure("How the sites differ", needs=("bags", "census", "features", "thumbnails"))
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """PCA of patients' mean features, site classifier, stain vectors, microns a pixel, tiles a patient, positives."""
    encoder = results.experiments[results.main].encoder
    if not results.has_features(encoder):
        raise Absent(f"features {encoder} are not on this machine")
    bags, means = results.bags(results.endpoint), bag_means(results, results.endpoint, encoder)
    values = means.reindex(bags["patient_id"]).to_numpy(dtype=float)
    sites = [site for site in results.sites if (bags["site"] == site).sum() > 1]
    picture = new_figure(DOUBLE_MM, 108)
    panels = picture.subplots(2, 3).ravel()
    data = [_pca(panels[0], results, bags, values), _classifier(panels[1], results, bags, values, sites)]
    data.append(_stains(panels[2], results, bags, sites))
    data += _by_patient(panels[3:5], results, bags, sites)
    data.append(_labels(panels[5], results, bags, sites))
    letters(panels)
    picture.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(sites))
    return Drawn(
        figure=picture,
        data=pd.concat([part for part in data if len(part)], ignore_index=True),
        n=f"{len(bags)} patients at {len(sites)} sites",
        caption=(
            f"a, first two principal components of each patient's mean features ({encoder}), with the share of variance. b, AUROC "
            "of a logistic regression that tells each site from the others by these features "
            f"({FOLDS}-fold cross-validation, {results.config.metrics.confidence:.0%} DeLong intervals, logit scale); 0.5 would be sites that "
            "cannot be told apart. c, haematoxylin and eosin of each site (Macenko 2009, a mark a slide): the "
            "colours that the stains have at equal density. d, microns a pixel. e, tiles a patient. f, share of positives with Wilson's intervals."
        ),
    )


def _pca(axes: Axes, results: Results, bags: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    scaled = StandardScaler().fit_transform(values)
    fitted = PCA(2, random_state=0).fit(scaled)
    points = fitted.transform(scaled)
    for site in results.sites:
        mine = (bags["site"] == site).to_numpy()
        axes.plot(
            *points[mine].T,
            site_marker(site, results.sites),
            color=site_colour(site, results.sites),
            markersize=3,
            alpha=0.75,
            markeredgewidth=0,
            label=site,
        )
    for name, setter, share in zip(
        ("PC 1", "PC 2"), (axes.set_xlabel, axes.set_ylabel), fitted.explained_variance_ratio_, strict=True
    ):
        setter(f"{name} ({share:.0%})")
    axes.set(xticks=[], yticks=[])
    axes.set_title("Features")
    return pd.DataFrame(
        {
            "panel": "features",
            "patient_id": bags["patient_id"],
            "site": bags["site"],
            "x": points[:, 0],
            "y": points[:, 1],
        }
    )


def _classifier(
    axes: Axes, results: Results, bags: pd.DataFrame, values: np.ndarray, sites: Sequence[str]
) -> pd.DataFrame:
    light_grid(axes)
    chance_line(axes)
    rows = []
    for place, site in enumerate(sites):
        labels = (bags["site"] == site).to_numpy().astype(int)
        folds = min(FOLDS, int(labels.sum()), int((1 - labels).sum()))
        if folds < 2:
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        split = StratifiedKFold(folds, shuffle=True, random_state=0)
        scores = cross_val_predict(model, values, labels, cv=split, method="predict_proba")[:, 1]
        value, low, high = delong.logit_interval(labels, scores, results.config.metrics.confidence)
        colour = site_colour(site, results.sites)
        axes.vlines(place, low, high, color=colour, linewidth=1.4)
        axes.plot(place, value, site_marker(site, results.sites), color=colour, markersize=4.5)
        rows.append({"panel": "site classifier", "site": site, "value": value, "low": low, "high": high})
    axes.set_xticks(range(len(sites)), sites)
    axes.set(xlim=(-0.5, len(sites) - 0.5), ylim=(0.3, 1.03), ylabel="AUROC, site against the rest")
    axes.set_title("Site from features")
    return pd.DataFrame(rows)


def _stains(axes: Axes, results: Results, bags: pd.DataFrame, sites: Sequence[str]) -> pd.DataFrame:
    """Colour patches of the mean stains, and each slide's stain angles as marks."""
    rows = []
    for site in sites:
        for slide_id in _some_slides(results, bags, site):
            pixels = _some_tiles(results, site, slide_id)
            found = stain_vectors(pixels) if pixels is not None else None
            if found is not None:
                stains = zip(("haematoxylin", "eosin"), found, strict=True)
                rows += [
                    {
                        "panel": "stain",
                        "site": site,
                        "slide_id": slide_id,
                        "stain": name,
                        "red": v[0],
                        "green": v[1],
                        "blue": v[2],
                    }
                    for name, v in stains
                ]
    table = pd.DataFrame(rows)
    axes.set_title("Stain")
    if table.empty:
        axes.text(
            0.5,
            0.5,
            "slides are not\non this machine",
            ha="center",
            va="center",
            fontsize=6.5,
            color=SOFT,
            transform=axes.transAxes,
        )
        axes.axis("off")
        return table
    for place, site in enumerate(sites):
        for row, stain in enumerate(("haematoxylin", "eosin")):
            mine = table[(table["site"] == site) & (table["stain"] == stain)][["red", "green", "blue"]]
            if len(mine):
                colour = np.exp(-mine.mean().to_numpy())  # optical density 1 along the stain
                axes.add_patch(_patch(place, row, colour))
    axes.set(xlim=(-0.5, len(sites) - 0.5), ylim=(1.5, -0.5), yticks=[0, 1])
    axes.set_xticks(range(len(sites)), sites)
    axes.set_yticks([0, 1], ["H", "E"])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return table


def _patch(place: int, row: int, colour: np.ndarray) -> Rectangle:
    return Rectangle((place - 0.42, row - 0.4), 0.84, 0.8, facecolor=tuple(np.clip(colour, 0, 1)), edgecolor="none")


def _some_slides(results: Results, bags: pd.DataFrame, site: str) -> list[str]:
    slides = bags.loc[bags["site"] == site, "slides"].astype(str).str.split(";").explode().sort_values().tolist()
    order = rng(0, "stain", site).permutation(len(slides))[:STAIN_SLIDES]
    return [slides[number] for number in order]


def _some_tiles(results: Results, site: str, slide_id: str) -> np.ndarray | None:
    try:
        coords, _ = results.features(site, results.experiments[results.main].encoder, slide_id)
        order = rng(0, "stain", slide_id).permutation(len(coords))[:STAIN_TILES]
        tiles = read_tiles(results, site, [(slide_id, int(x), int(y)) for x, y in coords[order]], size_px=64)
    except Absent:
        return None
    return np.concatenate([tile.reshape(-1, 3) for tile in tiles.values()])


def _by_patient(
    panels: Sequence[Axes], results: Results, bags: pd.DataFrame, sites: Sequence[str]
) -> list[pd.DataFrame]:
    used = bags.assign(slide_id=bags["slides"].astype(str).str.split(";")).explode("slide_id")
    table = used[["slide_id", "patient_id", "site"]].merge(
        results.census()[["slide_id", "mpp", "num_tiles"]], on="slide_id"
    )
    found = []
    columns = (("mpp", "Microns a pixel", table.groupby(["site", "patient_id"])["mpp"].mean()),
               ("num_tiles", "Tiles a patient", table.groupby(["site", "patient_id"])["num_tiles"].sum()))  # fmt: skip
    for axes, (column, label, values) in zip(panels, columns, strict=True):
        light_grid(axes)
        for place, site in enumerate(sites):
            mine = values.get(site, pd.Series(dtype=float)).dropna().to_numpy(dtype=float)
            jitter = rng(0, "jitter", site, column).uniform(-0.2, 0.2, len(mine))
            axes.plot(
                place + jitter,
                mine,
                "o",
                color=site_colour(site, results.sites),
                markersize=2.3,
                alpha=0.6,
                markeredgewidth=0,
            )
        axes.set_xticks(range(len(sites)), sites)
        axes.set(xlim=(-0.5, len(sites) - 0.5), ylim=(0, float(values.max()) * 1.08))
        axes.set_title(label)
        found.append(values.rename("value").reset_index().assign(panel=label))
    return found


def _labels(axes: Axes, results: Results, bags: pd.DataFrame, sites: Sequence[str]) -> pd.DataFrame:
    light_grid(axes)
    rows = []
    for place, site in enumerate(sites):
        labels = bags.loc[bags["site"] == site, "label"]
        share, low, high = wilson_interval(int(labels.sum()), len(labels), results.config.metrics.confidence)
        colour = site_colour(site, results.sites)
        axes.bar(place, share, width=0.6, color=colour, alpha=0.35)
        axes.vlines(place, low, high, color=colour, linewidth=1.3)
        rows.append({"panel": "label", "site": site, "value": share, "low": low, "high": high})
    axes.set_xticks(range(len(sites)), sites)
    axes.set(xlim=(-0.5, len(sites) - 0.5), ylim=(0, 1))
    axes.set_title(f"Positive for {results.endpoint}")
    return pd.DataFrame(rows)
