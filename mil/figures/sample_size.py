"""How many patients, and how many tiles a patient, an AUROC takes: a quick model on the mean of the features."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mil.config import FiguresSpec
from mil.figures.registry import Drawn, figure
from mil.figures.results import Absent, Results
from mil.figures.style import INK, MIDDLE_MM, chance_line, letters, light_grid, new_figure
from mil.metrics.baselines.inputs import bag_means
from mil.metrics.baselines.logistic import fit_together
from mil.metrics.delong import both_classes, within
from mil.rng import rng

STRENGTH = 0.1
SHARES = (0.15, 0.25, 0.4, 0.6, 0.8, 1.0)
TILES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
FEWEST = 8


@figure("Patients, tiles and AUROC", needs=("bags", "features"))
def draw(results: Results, spec: FiguresSpec) -> Drawn:
    """AUROC within external sites against the number of training patients, and of tiles drawn from every bag."""
    if not results.external_sites:
        raise Absent("there is no external site to test on")
    encoder = results.experiments[results.main].encoder
    if not results.has_features(encoder):
        raise Absent(f"features {encoder} are not on this machine")
    bags, means = results.bags(results.endpoint), bag_means(results, results.endpoint, encoder)
    outside = bags[bags["role"] == "external"]
    if not any(both_classes(part["label"].to_numpy()) for _, part in outside.groupby("site")):
        raise Absent("no external site has patients of both classes")
    everyone = means.reindex(bags["patient_id"]).to_numpy(dtype=float)
    patients = _patients_curve(bags, everyone, spec.resamplings)
    tiles = _tiles_curve(results, bags, encoder, spec.resamplings)
    picture = new_figure(MIDDLE_MM + 20, 58)
    panels = picture.subplots(1, 2, sharey=True)
    _curve(panels[0], patients, "patients", "Training patients")
    _curve(panels[1], tiles, "tiles", "Tiles a patient")
    panels[1].set_xscale("log", base=2)
    ticks = sorted(set(tiles["tiles"]))[::2]
    panels[1].set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    panels[1].minorticks_off()
    panels[0].set_ylabel("AUROC within external sites")
    letters(panels)
    return Drawn(
        figure=picture,
        data=pd.concat([patients, tiles], ignore_index=True),
        n=f"{len(outside)} external patients, {spec.resamplings} draws a point",
        caption=(
            f"a, training patients drawn within site and label; b, tiles drawn from every bag, in training and test. The model is a ridge regression on the mean "
            f"of a patient's features ({encoder}), pooled over the training sites: quick, so that it can be trained often, and no substitute for the "
            "main model. Line: mean over draws; band: the middle 80 % of draws, which says how draws vary and leaves out that external patients might have been others."
        ),
    )


def _fit_and_score(values: np.ndarray, bags: pd.DataFrame, chosen: np.ndarray) -> float:
    labels = bags["label"].to_numpy(dtype=int)
    outside = (bags["role"] == "external").to_numpy()
    model = fit_together([values[chosen]], [labels[chosen]], STRENGTH)
    scored = model.chance(values[outside])
    return float(within(labels[outside], scored, bags.loc[outside, "site"].to_numpy()).auroc[0])


def _patients_curve(bags: pd.DataFrame, values: np.ndarray, draws: int) -> pd.DataFrame:
    training = np.flatnonzero((bags["role"] == "train").to_numpy())
    strata = (bags["site"] + " " + bags["label"].astype(str)).to_numpy()
    rows = []
    for share in SHARES:
        for draw_number in range(draws if share < 1 else 1):
            stream = rng(0, "sample size", share, draw_number)
            chosen = np.concatenate(
                [_some(stream, training[strata[training] == s], share) for s in np.unique(strata[training])]
            )
            if len(chosen) >= FEWEST and both_classes(bags["label"].to_numpy()[chosen]):
                rows.append(
                    {"patients": len(chosen), "draw": draw_number, "auroc": _fit_and_score(values, bags, chosen)}
                )
    return pd.DataFrame(rows)


def _some(stream: np.random.Generator, members: np.ndarray, share: float) -> np.ndarray:
    return stream.choice(members, max(round(share * len(members)), 1), replace=False)


def _tiles_curve(results: Results, bags: pd.DataFrame, encoder: str, draws: int) -> pd.DataFrame:
    tiles = [
        np.concatenate([results.features(row.site, encoder, slide)[1] for slide in str(row.slides).split(";")]).astype(
            np.float32
        )
        for row in bags.itertuples()
    ]
    largest = int(np.median([len(bag) for bag in tiles]))
    training = np.flatnonzero((bags["role"] == "train").to_numpy())
    rows = []
    for number in [count for count in TILES if count <= largest]:
        for draw_number in range(max(draws // 2, 2)):
            stream = rng(0, "tiles", number, draw_number)
            values = np.stack([_few(stream, bag, number).mean(axis=0, dtype=np.float64) for bag in tiles])
            rows.append({"tiles": number, "draw": draw_number, "auroc": _fit_and_score(values, bags, training)})
    return pd.DataFrame(rows)


def _few(stream: np.random.Generator, bag: np.ndarray, number: int) -> np.ndarray:
    return bag[stream.choice(len(bag), min(number, len(bag)), replace=False)]


def _curve(axes: Axes, table: pd.DataFrame, column: str, label: str) -> None:
    light_grid(axes)
    chance_line(axes)
    by_size = table.groupby(column)["auroc"]
    sizes: Sequence[float] = list(by_size.groups)
    axes.fill_between(sizes, by_size.quantile(0.1), by_size.quantile(0.9), color=INK, alpha=0.12, linewidth=0)
    axes.plot(sizes, by_size.mean(), "o-", color=INK, markersize=3)
    axes.set(xlabel=label, ylim=(min(0.4, float(table["auroc"].min()) - 0.02), 1.02))
